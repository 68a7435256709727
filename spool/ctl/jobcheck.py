"""The part of `spoolctl check` that judges every job folder, and repairs it under that job's lock.

`_judge` only reads. It is asked without the lock, which is cheap; whatever it says is judged again under the lock before it is
told, and once more in the same hold as the repair, because the others go on working meanwhile. Links are not followed, and
nothing but regular files is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from spool import jsonio
from spool.ctl.aside import discard, set_aside
from spool.ctl.findings import Finding, problem, remark
from spool.ctl.house import SHARED_FOLDER, chmod, shared_mode
from spool.ctl.resulting import aside_of_attempt, carry_on, move_back, take_back
from spool.errors import Busy, InvalidName, InvalidRecord, SpoolError, UnknownFormat
from spool.files import last_line, read_record
from spool.history import complete_history
from spool.journal import is_plain
from spool.names import check_user, is_id
from spool.paths import JobPaths
from spool.queue import make_key, parse_key
from spool.records import JOB_LIMIT_BYTES, Job, JobState, Result
from spool.states import FINAL, WITH_SITE, State
from spool.store import Store

LOCK_WAIT_S = 5.0
BY = "spool"
_RESTORE = "restore it, move the folder back to jobs/, then: spoolctl check --repair"
_TEMP = re.compile(r"\.(?:job\.json|state\.json|result\.json|reason\.json|[0-9a-f-]{36}\.json)\.[0-9a-f]{16}\.tmp")

Rest = Callable[[], object]  # what is left to do when the lock is free again


class Fault(NamedTuple):
    """A finding, and its repair for whoever holds the lock."""

    finding: Finding
    mend: Callable[[], Rest | None] | None = None


def read_state(store: Store, job_id: str) -> JobState:
    """Return the state of a job, moving nothing; `InvalidRecord` where its folder is none."""
    paths = store.paths.job(job_id)
    if not stat.S_ISDIR(os.lstat(paths.folder).st_mode):
        raise InvalidRecord(f"jobs/{job_id} is not a folder", hint="see what it is")
    return JobState.parse(read_record(paths.state, jsonio.MAX_BYTES))


class JobFolders:
    """Judges the folders in jobs/; `count` tells how many jobs were looked at."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paths = store.paths
        self.count = 0

    def all(self) -> Iterator[Finding]:
        """Yield what is wrong with the folders in jobs/."""
        for name in sorted(os.listdir(self._paths.jobs)):
            if is_id(name):
                self.count += 1
                yield from self._job(name)
            else:
                why = f"jobs/{name} is not a job: its name is no UUID"
                mend = partial(self._move_stranger, name, why)
                yield remark("not_job", name=name, mend=mend)

    def _move_stranger(self, name: str, why: str) -> bool:
        set_aside(self._paths, self._paths.jobs / name, f"jobs.{name}", why=why, hint="see what it is; remove it when done")
        return True

    def _job(self, job_id: str) -> Iterator[Finding]:
        told: set[str] = set()
        while any(fault.finding.code not in told for fault in self._judge(job_id)):
            try:
                with self._store.locks.hold(job_id, timeout_s=LOCK_WAIT_S):
                    found = [fault for fault in self._judge(job_id) if fault.finding.code not in told]
            except Busy:
                yield remark("job_busy", job=job_id)
                return
            for finding, mend in found:
                told.add(finding.code)
                yield replace(finding, mend=partial(self._mend, job_id, finding.code)) if mend else finding

    def _mend(self, job_id: str, code: str) -> bool:
        rest: Rest | None = None
        with self._store.locks.hold(job_id, timeout_s=LOCK_WAIT_S):
            for finding, mend in self._judge(job_id):
                if finding.code == code and mend is not None:
                    rest = mend()
                    break
            else:
                return False
        if rest is not None:
            rest()
        return True

    # What is wrong with one job, in the order in which it is to be repaired; what bars a look at the rest comes last

    def _judge(self, job_id: str) -> Iterator[Fault]:
        paths = self._paths.job(job_id)
        try:
            mode = os.lstat(paths.folder).st_mode
        except FileNotFoundError:  # taken by retention meanwhile
            return
        if not stat.S_ISDIR(mode):
            yield self._corrupt(paths, problem("job_not_folder", job=job_id, id=job_id), f"jobs/{job_id} is not a folder")
            return
        if mode & 0o777 != 0o770:
            yield Fault(shared_mode("job_mode", mode, job=job_id, id=job_id), lambda: _open_to_group(paths.folder))
        state: JobState | None = None
        try:
            state = read_state(self._store, job_id)
            Job.parse(read_record(paths.job, JOB_LIMIT_BYTES))
        except (SpoolError, OSError) as exc:
            yield self._unreadable(paths, exc, Path(getattr(exc, "filename", "") or "a record").name)
            return
        if state.id != job_id:
            why = f"state.json is of job {state.id}"
            yield self._corrupt(paths, problem("state_foreign", job=job_id, id=job_id, other=state.id), why)
            return
        yield from self._records(paths, state)

    def _unreadable(self, paths: JobPaths, exc: SpoolError | OSError, name: str) -> Fault:
        job_id = paths.folder.name
        if isinstance(exc, FileNotFoundError):
            return self._corrupt(paths, problem("record_missing", job=job_id, id=job_id, name=name), f"{name} is missing")
        if isinstance(exc, UnknownFormat):
            return Fault(problem("record_newer", job=job_id, id=job_id, why=exc))
        if isinstance(exc, OSError):  # rights, or the disk: the record itself may be in order
            return Fault(problem("record_denied", job=job_id, id=job_id, why=exc))
        return self._corrupt(paths, problem("record_wrong", job=job_id, id=job_id, why=exc), exc.message)

    def _corrupt(self, paths: JobPaths, finding: Finding, why: str) -> Fault:
        return Fault(finding, lambda: set_aside(self._paths, paths.folder, paths.folder.name, why=why, hint=_RESTORE))

    def _records(self, paths: JobPaths, state: JobState) -> Iterator[Fault]:
        temps = [path for path in _names(paths.folder) + _names(paths.late) if _TEMP.fullmatch(path.name) and is_plain(path)]
        if temps:
            finding = remark("temps", job=state.id, id=state.id, names=", ".join(path.name for path in temps[:3]))
            yield Fault(finding, lambda: _unlink(temps))
        if os.path.lexists(paths.history) and not is_plain(paths.history):
            why = "history.jsonl is not a regular file"
            yield self._record_aside(paths.history, problem("history_odd", job=state.id, id=state.id), why)
            return
        if state.last is not None and last_line(paths.history) + b"\n" != jsonio.dumps_line(state.last.encode()):
            yield Fault(remark("history_behind", job=state.id, id=state.id), lambda: complete_history(paths, state))
        try:
            result = _result(paths)
        except (SpoolError, OSError) as exc:
            if state.state in FINAL or isinstance(exc, (UnknownFormat, OSError)):
                yield self._unreadable(paths, exc, "result.json")
                return
            yield self._record_aside(paths.result, problem("result_wrong", job=state.id, id=state.id, why=exc), str(exc))
            result = None
        yield from self._index(state)
        yield from self._run(paths, state, result)

    def _record_aside(self, record: Path, finding: Finding, why: str) -> Fault:
        name = f"{finding.job}.{record.name}"
        hint = "it lay in the job's folder, which goes on without it; remove it when nobody needs it"
        return Fault(finding, lambda: set_aside(self._paths, record, name, why=why, hint=hint))

    # Its entry in the index that tells of it

    def _index(self, state: JobState) -> Iterator[Fault]:
        queue, job_id = self._store.queue, state.id
        if state.state == State.NEW and not is_plain(self._paths.new / job_id):
            yield Fault(problem("new_missing", job=job_id, id=job_id), lambda: queue.add_new(job_id))
        elif state.state == State.QUEUED:
            yield from self._waiting(state)
        elif state.state in WITH_SITE:
            if not _is_name(state.agent):
                yield Fault(problem("agent_wrong", job=job_id, id=job_id, state=state.state, agent=state.agent))
            elif not is_plain(self._paths.active / state.site / state.agent / job_id):
                finding = problem("active_missing", job=job_id, id=job_id, state=state.state)
                yield Fault(finding, lambda: queue.add_active(state.site, state.agent, job_id))

    def _waiting(self, state: JobState) -> Iterator[Fault]:
        entry = parse_key(state.queue_key, state.user)
        if entry is None or (entry.job_id, entry.attempt) != (state.id, state.attempt):
            finding = problem("queue_key_wrong", job=state.id, id=state.id, word=state.queue_key)
            yield Fault(finding, lambda: self._new_key(state))
        elif not is_plain(self._paths.queue_of(state.site, state.user) / state.queue_key):
            finding = problem("queue_missing", job=state.id, id=state.id)
            yield Fault(finding, lambda: self._store.queue.add(state.site, state.user, state.queue_key))

    def _new_key(self, state: JobState) -> None:
        key = make_key(state.id, state.attempt, state.priority)
        self._store.queue.add(state.site, state.user, key)
        self._store.write(state, State.QUEUED, by=BY, why="check --repair: a new entry in the queue", queue_key=key)

    # What its run left, or a requeue

    def _run(self, paths: JobPaths, state: JobState, result: Result | None) -> Iterator[Fault]:
        job_id = state.id
        mine = result is not None and (result.run_id, result.attempt) == (state.run_id, state.attempt)
        if state.state in FINAL:
            if aside_of_attempt(paths, state.attempt):
                finding = problem("requeue_half", job=job_id, id=job_id, state=state.state, attempt=state.attempt)
                yield Fault(finding, lambda: take_back(paths, state.attempt))
            elif state.state == State.COMPLETED and not mine:
                yield Fault(problem("result_missing", job=job_id, id=job_id))
            if mine and os.path.lexists(paths.incoming):
                yield Fault(remark("incoming_left", job=job_id, id=job_id), lambda: discard(self._paths, paths.incoming))
        elif state.state in WITH_SITE and is_id(state.run_id):
            if mine and result is not None:
                finding = remark("results_here", job=job_id, id=job_id, state=state.state)
                yield Fault(finding, lambda: partial(carry_on, self._store, state, result, by=BY))
            elif any(os.path.lexists(place) for place in (paths.out, paths.log)):
                finding = remark("results_half", job=job_id, id=job_id, state=state.state)
                yield Fault(finding, lambda: move_back(paths, state.run_id))


def _result(paths: JobPaths) -> Result | None:
    try:
        return Result.parse(read_record(paths.result, jsonio.MAX_BYTES))
    except FileNotFoundError:
        return None


def _is_name(agent: str) -> bool:
    try:
        return bool(check_user(agent))
    except InvalidName:
        return False


def _names(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)] if not os.path.islink(folder) else []
    except (FileNotFoundError, NotADirectoryError):
        return []


def _open_to_group(folder: Path) -> None:
    chmod(folder, SHARED_FOLDER)


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
