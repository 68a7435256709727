"""Everything that `spoolctl check --repair` puts right, as something to be done to a healthy spool."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from server.spools import AGENT, DECK, SITE, USER, drop, in_state, queued, result_of
from spool.ctl.checking import Check
from spool.ctl.findings import PROBLEM, REPAIRED, Finding
from spool.files import remove_tree
from spool.incoming import Incoming
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import JobState
from spool.results import accept
from spool.states import State
from spool.store import Store

LONG_AGO = 1e9
HEX = "0123456789abcdef"
Break = Callable[[Store], Any]  # returns the id of the job that it is about, if any


def examine(store: Store, *, repair: bool = False) -> list[Finding]:
    """What a check of the spool yields, without what it stands on."""
    return list(Check(store.paths, repair=repair).all())


def codes(found: list[Finding]) -> list[str]:
    return sorted(item.code for item in found)


def to_repair(found: list[Finding]) -> list[Finding]:
    """What is wrong, or has just been put right: nothing of it may be left after a repair."""
    return [item for item in found if item.level in (PROBLEM, REPAIRED) or item.mend is not None]


def old(path: Path) -> Path:
    """Make everything in it old."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            os.utime(Path(folder) / name, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        os.utime(folder, (LONG_AGO, LONG_AGO))
    os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return path


def rewrite(store: Store, job_id: str, **changes: Any) -> str:
    path = store.paths.job(job_id).state
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return job_id


def arrive(store: Store, state: JobState, files: Mapping[str, bytes]) -> Incoming:
    incoming = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
    for name, data in files.items():
        incoming.append(name, 0, io.BytesIO(data), len(data))
    return incoming


FILES = {"out/beam.dat": b"result", "out/sub/more": b"more", "log/stdout.txt": b"said"}


def started(store: Store) -> JobState:
    """A job that was handed in, claimed and started; no other job is claimed for it."""
    state = store.claim_one(queued(store).id, agent=AGENT)
    return store.start(state.id, state.run_id, by=AGENT)


def made(store: Store, word: State) -> JobState:
    """A job in that state, with its history and its lines in the journal."""
    if word in (State.RUNNING, State.COMPLETED):
        return started(store) if word == State.RUNNING else finished(store)
    if word == State.CANCELED:
        return store.cancel(queued(store).id, by="test")
    assert word == State.QUEUED
    return queued(store)


def finished(store: Store) -> JobState:
    state = started(store)
    incoming = arrive(store, state, FILES)
    return accept(store, result_of(state, tuple(incoming.entry(name) for name in FILES)), by=AGENT)


class Killed(BaseException):
    """As a kill is: nothing is cleaned up."""


@contextmanager
def killed_at(place: Any, name: str, *, after: int = 0) -> Iterator[None]:
    """Kill whoever calls `place.name` for the time after `after` calls."""
    real, left = getattr(place, name), [after]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(*args, **kwargs)

    setattr(place, name, dying)
    try:
        yield
    except Killed:
        pass
    else:
        raise AssertionError(f"{name} was not called {after + 1} times")
    finally:
        setattr(place, name, real)


def results_here(store: Store) -> str:
    state = started(store)
    incoming = arrive(store, state, FILES)
    result = result_of(state, tuple(incoming.entry(name) for name in FILES))
    with killed_at(store, "end"):
        accept(store, result, by=AGENT)
    assert store.state(state.id).state == State.RETURNING
    return state.id


def results_half(store: Store) -> str:
    state = started(store)
    arrive(store, state, FILES).move_folder("out", store.paths.job(state.id).out)
    return state.id


def results_half_merged(store: Store) -> str:
    state = started(store)
    incoming = arrive(store, state, FILES)
    out = store.paths.job(state.id).out
    (out / "sub").mkdir(parents=True)
    (incoming.files / "out" / "sub" / "more").rename(out / "sub" / "more")
    return state.id


def requeue_half(store: Store, *, after: int = 2) -> str:
    state = finished(store)
    with killed_at(os, "rename", after=after):
        store.requeue(state.id, by="op")
    assert (store.paths.job(state.id).attempts / "1").is_dir()
    return state.id


def incoming_left(store: Store) -> str:
    state = finished(store)
    arrive(store, state, {"out/late": b"x"})
    return state.id


def behind(store: Store, torn: bytes) -> str:
    job_id = finished(store).id
    path = store.paths.job(job_id).history
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + torn)
    return job_id


def with_file(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def accepting(store: Store) -> str:
    """A drop whose accepting was cut off."""
    job_id = drop(store)
    (store.paths.tmp / f"accept.{job_id}").mkdir()
    (store.paths.drop / job_id).rename(store.paths.tmp / f"accept.{job_id}" / "job")
    old(store.paths.tmp / f"accept.{job_id}")
    return job_id


def taken(store: Store, *, other: bytes = b"") -> str:
    """A copied drop whose original could not be removed."""
    job_id = queued(store).id
    hidden = store.paths.drop / f".taken.{job_id}"
    (hidden / "in").mkdir(parents=True)
    shutil.copy(store.paths.job(job_id).job, hidden / "job.json")
    (hidden / "in" / "beam.inp").write_bytes(other or DECK)
    return job_id


def link(path: Path, target: str) -> None:
    remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def deep(store: Store) -> str:
    """A tree that is as deep as names may be long, in a job whose state is gone."""
    job_id = queued(store).id
    below = store.paths.job(job_id).inputs.joinpath(*["d"] * 200)
    below.mkdir(parents=True)
    store.paths.job(job_id).state.unlink()
    return job_id


def of(change: Callable[[JobPaths], Any], word: State = State.QUEUED) -> Break:
    """`change` done to the folder of a job in that state."""

    def break_it(store: Store) -> str:
        state = made(store, word)
        change(store.paths.job(state.id))
        return state.id

    return break_it


def entry_of(store: Store, job_id: str) -> Path:
    state = store.state(job_id)
    return store.paths.queue_of(state.site, state.user) / state.queue_key


def lose_entry(store: Store, word: State, path: Callable[[Store, str], Path]) -> str:
    state = in_state(store, word) if word == State.NEW else made(store, word)
    path(store, state.id).unlink(missing_ok=True)
    return state.id


def stray(store: Store, folder: str, word: State) -> str:
    """An entry for a job that is not in the state it tells of."""
    state = made(store, word)
    name = f"0999.20260101T000000000000Z.{state.id}.1" if folder.startswith("queue") else state.id
    with_file(store.paths.root / folder / name)
    return state.id


def elsewhere(store: Store) -> str:
    """The entry of a waiting job under another site and user."""
    state = made(store, State.QUEUED)
    other = with_file(store.paths.queue / "other" / "bob" / "x").parent
    entry_of(store, state.id).rename(other / state.queue_key)
    (other / "x").unlink()
    return state.id


# name -> what breaks it, what it is called
DAMAGES: dict[str, tuple[Break, str]] = {
    "folder missing": (lambda store: remove_tree(store.paths.sites), "folder_missing"),
    "journal missing": (lambda store: remove_tree(store.paths.journal), "folder_missing"),
    "folder mode": (lambda store: store.paths.drop.chmod(0o700), "folder_mode"),
    "file for a folder": (lambda store: (store.paths.archive.rmdir(), with_file(store.paths.archive, b"x")), "folder_not"),
    "locks missing": (lambda store: [(store.paths.locks / name).unlink() for name in ("00", "7f")], "locks_missing"),
    "lock mode": (lambda store: (store.paths.locks / "11").chmod(0o600), "locks_mode"),
    "lock a fifo": (lambda store: ((store.paths.locks / "22").unlink(), os.mkfifo(store.paths.locks / "22")), "locks_odd"),
    "no job": (lambda store: with_file(store.paths.jobs / "notes\n\x1b[2J" / "x", b"x"), "not_job"),
    "job is a file": (lambda store: with_file(store.paths.jobs / new_id(), b"x").name, "job_not_folder"),
    "job is a link": (lambda store: link(store.paths.jobs / new_id(), "/etc"), "job_not_folder"),
    "job is a fifo": (lambda store: os.mkfifo(store.paths.jobs / new_id()), "job_not_folder"),
    "job mode": (of(lambda paths: paths.folder.chmod(0o700)), "job_mode"),
    "state missing": (of(lambda paths: paths.state.unlink(), State.RUNNING), "record_missing"),
    "state torn": (of(lambda paths: paths.state.write_bytes(paths.state.read_bytes()[:50])), "record_wrong"),
    "state a fifo": (of(lambda paths: (paths.state.unlink(), os.mkfifo(paths.state))), "record_wrong"),
    "state a link": (of(lambda paths: link(paths.state, "/etc/passwd")), "record_wrong"),
    "state a folder": (of(lambda paths: (paths.state.unlink(), paths.state.mkdir())), "record_wrong"),
    "state of another": (lambda store: rewrite(store, made(store, State.QUEUED).id, id=new_id()), "state_foreign"),
    "job.json missing": (of(lambda paths: paths.job.unlink()), "record_missing"),
    "job.json torn": (of(lambda paths: paths.job.write_text("{")), "record_wrong"),
    "result torn, ended": (of(lambda paths: paths.result.write_text("{"), State.COMPLETED), "record_wrong"),
    "result torn, running": (of(lambda paths: paths.result.write_text("{"), State.RUNNING), "result_wrong"),
    "deep tree": (deep, "record_missing"),
    "temporary files": (of(lambda paths: with_file(paths.folder / f".state.json.{HEX}.tmp", b"{")), "temps"),
    "history a fifo": (of(lambda paths: (paths.history.unlink(), os.mkfifo(paths.history)), State.RUNNING), "history_odd"),
    "history behind": (lambda store: behind(store, b""), "history_behind"),
    "history torn": (lambda store: behind(store, b'{"revision":4,"at'), "history_behind"),
    "new without entry": (lambda store: lose_entry(store, State.NEW, lambda store, job: store.paths.new / job), "new_missing"),
    "queued without entry": (lambda store: lose_entry(store, State.QUEUED, entry_of), "queue_missing"),
    "queued elsewhere": (elsewhere, "queue_missing"),
    "wrong key": (lambda store: rewrite(store, made(store, State.QUEUED).id, queue_key="../../x"), "queue_key_wrong"),
    "running without entry": (
        lambda store: lose_entry(store, State.RUNNING, lambda store, job: store.paths.active / SITE / AGENT / job),
        "active_missing",
    ),
    "stale queue entry": (lambda store: stray(store, f"queue/{SITE}/{USER}", State.CANCELED), "entry_stale"),
    "queue entry without job": (
        lambda store: with_file(store.paths.queue / SITE / USER / f"0999.20260101T000000000000Z.{new_id()}.1"), "entry_stale"),
    "stale active entry": (lambda store: stray(store, f"active/{SITE}/{AGENT}", State.QUEUED), "entry_stale"),
    "stale new entry": (lambda store: stray(store, "new", State.QUEUED), "entry_stale"),
    "strange entries": (lambda store: with_file(store.paths.queue / SITE / USER / "a\nb"), "entry_strange"),
    "strange entry with something": (lambda store: with_file(store.paths.active / SITE / AGENT / "x", b"x"), "entry_strange"),
    "file for a site": (lambda store: with_file(store.paths.active / "file", b"x"), "entry_strange"),
    "folder for an entry": (
        lambda store: (entry_of(store, job := made(store, State.QUEUED).id).unlink(), entry_of(store, job).mkdir()),
        "entry_strange",
    ),
    "index mode": (lambda store: with_file(store.paths.queue / "t" / "u" / "x").parent.chmod(0o500), "index_mode"),
    "results all here": (results_here, "results_here"),
    "results half": (results_half, "results_half"),
    "results half, merged": (results_half_merged, "results_half"),
    "incoming left": (incoming_left, "incoming_left"),
    "requeue half": (requeue_half, "requeue_half"),
    "requeue begun": (lambda store: requeue_half(store, after=0), "requeue_half"),
    "accepting": (accepting, "tmp_accept"),
    "register": (lambda store: old(with_file(store.paths.tmp / f"register.{new_id()}" / "job.json").parent), "tmp_scratch"),
    "submit": (lambda store: old(with_file(store.paths.tmp / f"submit.{new_id()}" / "in" / "x").parent.parent), "tmp_ours"),
    "bin": (lambda store: old(with_file(store.paths.tmp / f"check.{HEX}" / "incoming" / "x").parent.parent), "tmp_ours"),
    "spool.json": (lambda store: old(with_file(store.paths.tmp / f"spool.json.{HEX}")), "tmp_ours"),
    "spool.ini": (lambda store: (link(store.paths.tmp / f"spool.ini.{HEX}", "/gone"), old(store.paths.tmp / f"spool.ini.{HEX}")),
                  "tmp_ours"),
    "taken": (taken, "drop_taken"),
    "temporary file of a site": (lambda store: old(with_file(store.paths.sites / f".s.json.{HEX}.tmp")), "temp"),
    "rejected without reason": (lambda store: with_file(store.paths.rejected / new_id() / "job.json"), "reason_missing"),
    "corrupt without reason": (lambda store: with_file(store.paths.corrupt / new_id() / "job.json"), "reason_missing"),
    "journal a fifo": (lambda store: os.mkfifo(store.paths.journal / "2026-01-01.jsonl"), "journal_odd"),
    "journal lines": (lambda store: journal_of(store).write_bytes(journal_of(store).read_bytes()[:-20]), "journal_lacks"),
}  # fmt: skip


def journal_of(store: Store) -> Path:
    return max(path for path in store.paths.journal.iterdir() if path.is_file())
