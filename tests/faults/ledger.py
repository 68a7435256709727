"""What was acknowledged, kept outside the file system that is cut; and whether all of it is still there.

The names of the kinds are those of the methods of `Judge`. A line is added when the answer has come, never before.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from crash.checks import record_at_any_moment
from spool.errors import SpoolError
from spool.incoming import Incoming
from spool.paths import JobPaths
from spool.records import HistoryEntry, JobState, Result
from spool.states import FINAL, WITH_SITE, State
from spool.store import Store

Line = tuple[str, str, dict[str, Any]]


class Ledger:
    """Lines of (kind, job id, facts), written by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[Line] = []

    def add(self, kind: str, job_id: str, **facts: Any) -> None:
        with self._lock:
            self._lines.append((kind, job_id, facts))

    def copy(self) -> list[Line]:
        """What was acknowledged up to now."""
        with self._lock:
            return list(self._lines)

    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _, _ in self.copy())


def lost(root: Path, lines: list[Line]) -> list[str]:
    """What of `lines` is not in the spool at `root`, and what of the spool is torn; nothing is changed there."""
    try:
        store = Store.open(root)
    except (SpoolError, OSError) as error:
        return [f"the spool itself: {error}"]
    judge = Judge(store)
    found = judge.torn()
    for kind, job_id, facts in lines:
        why = _said(lambda kind=kind, job_id=job_id, facts=facts: getattr(judge, kind)(job_id, **facts))
        if why:
            found.append(f"{kind} {job_id} {_short(facts)}: {why}")
    return found


def _said(check: Any) -> str:
    """Why it does not hold; empty where it does."""
    try:
        check()
    except (AssertionError, SpoolError, OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if not isinstance(value, (bytes, dict))}


class Judge:
    """One method a kind of acknowledgement; each raises where what it promised is not there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states: dict[str, JobState] = {}
        self._histories: dict[str, list[HistoryEntry]] = {}

    def torn(self) -> list[str]:
        """Every record in the spool parses, the indexes list enough, histories are whole."""
        found = []
        for name in sorted(path.name for path in self._store.paths.jobs.iterdir()):
            why = _said(lambda name=name: record_at_any_moment(self._store, self._state(name)))
            if why:
                found.append(f"job {name}: {why}")
        for path in self._store.paths.corrupt.iterdir():
            found.append(f"corrupt/{path.name}")
        return found

    def _state(self, job_id: str) -> JobState:
        if job_id not in self._states:
            self._states[job_id] = JobState.parse(self._store.paths.job(job_id).state.read_bytes())
        return self._states[job_id]

    def _history(self, job_id: str) -> list[HistoryEntry]:
        if job_id not in self._histories:
            self._histories[job_id] = self._store.history(self._state(job_id))
        return self._histories[job_id]

    def dropped(self, job_id: str, job: bytes, inputs: dict[str, bytes]) -> None:
        """A drop that was renamed and synced by its submitter, or that `spoolctl submit` told the id of."""
        paths = self._store.paths
        places = [paths.drop / job_id, paths.accepting(job_id) / "job", paths.jobs / job_id]
        found = [place for place in places if place.exists()]
        assert len(found) == 1, f"it is at {found}"
        if job:
            assert (found[0] / "job.json").read_bytes() == job, "job.json differs"
        for name, data in inputs.items():
            assert (found[0] / "in" / name).read_bytes() == data, f"in/{name} differs"

    def registered(self, job_id: str, job: bytes) -> None:
        assert self._state(job_id).id == job_id
        assert not job or self._store.job_bytes(job_id) == job, "job.json differs"

    def input(self, job_id: str, name: str, offset: int, data: bytes) -> None:
        """So many bytes of an input were acknowledged."""
        paths = self._store.paths.job(job_id)
        if (paths.inputs / name).exists():
            assert (paths.inputs / name).read_bytes()[:offset] == data[:offset]
            return
        assert self._state(job_id).state == State.NEW, "in/ is not there"
        self._arrived(Incoming(paths.incoming / "submit"), f"in/{name}", offset, data)

    @staticmethod
    def _arrived(incoming: Incoming, name: str, offset: int, data: bytes) -> None:
        assert incoming.offset(name) >= offset, f"{incoming.offset(name)} bytes of {name} are here, {offset} were acknowledged"
        assert (incoming.files / name).read_bytes()[:offset] == data[:offset], f"{name} has other bytes"

    def moved(self, job_id: str, to: str, run_id: str = "", inputs: dict[str, bytes] | None = None) -> None:
        """A state that was answered; a later one may have followed, but it has been."""
        entries = self._history(job_id)
        assert any(entry.target == to and run_id in ("", entry.run_id) for entry in entries), (
            f"never was {to} of run {run_id}: {[str(entry.target) for entry in entries]}"
        )
        for name, data in (inputs or {}).items():
            assert (self._store.paths.job(job_id).inputs / name).read_bytes() == data, f"in/{name} differs"

    def requeued(self, job_id: str, attempt: int) -> None:
        assert self._state(job_id).attempt >= attempt

    def cancel_asked(self, job_id: str) -> None:
        state = self._state(job_id)
        asked = state.cancel_requested_at or any(entry.target == State.CANCELED for entry in self._history(job_id))
        assert asked or state.attempt > 1

    def appended(self, job_id: str, run_id: str, name: str, offset: int, data: bytes) -> None:
        """So many bytes of a result were acknowledged; they are where the run has come to."""
        state, paths = self._state(job_id), self._store.paths.job(job_id)
        if state.run_id != run_id or state.state not in WITH_SITE:
            return  # `finished` tells of those
        if (paths.folder / name).exists():  # half of a finish
            assert (paths.folder / name).read_bytes()[:offset] == data[:offset]
            return
        self._arrived(Incoming(paths.incoming_of(run_id)), name, offset, data)

    def finished(self, job_id: str, run_id: str, to: str, files: dict[str, bytes]) -> None:
        """An accepted result: it is there whole, or a requeue has put some of it aside."""
        paths = self._store.paths.job(job_id)
        self.moved(job_id, to, run_id)
        attempt = min(entry.attempt for entry in self._history(job_id) if entry.run_id == run_id)  # a requeue names it too
        folders = [paths.folder, paths.attempt(attempt)]
        results = [folder / "result.json" for folder in folders if (folder / "result.json").exists()]
        (result,) = [one for one in (Result.parse(path.read_bytes()) for path in results) if one.run_id == run_id]
        assert {entry.path: entry.size for entry in result.files} == {name: len(data) for name, data in files.items()}
        state = self._state(job_id)
        if state.attempt == attempt and state.run_id == run_id:
            assert str(state.state) == to, f"a final state was left: {state.state}"
        for name, data in files.items():
            here = [folder / name for folder in folders if (folder / name).exists()]
            assert any(path.read_bytes() == data for path in here), f"{name} differs or is gone"


def all_ended(root: Path, registered: set[str]) -> list[str]:
    """The jobs that have not ended, or have ended other than once an attempt; one whose id nobody was told stays `new`."""
    store, found = Store.open(root), []
    for path in store.paths.jobs.iterdir():
        state = JobState.parse(JobPaths(path).state.read_bytes())
        ends = Counter(
            entry.attempt for entry in store.history(state) if entry.target in FINAL and entry.source != entry.target
        )
        if state.state == State.NEW and state.id not in registered:
            continue
        if state.state not in FINAL or set(ends.values()) != {1} or len(ends) != state.attempt:
            found.append(f"{state.id}: {state.state}, ends by attempt: {dict(ends)}")
    return found


def told(lines: list[str]) -> str:
    return json.dumps(lines[:20], ensure_ascii=False, indent=1)
