"""How a run is judged, and how its result is accepted exactly once (docs/format.md, "result.json").

`judge` turns what the runner saw into a `Result`; all sides use it, so a job ends the same way in every mode. `accept`
verifies every file of the manifest outside the lock and moves them in under it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spool import log
from spool.errors import Conflict, DigestMismatch, InvalidRequest
from spool.files import fsync_dir, open_beneath, replace_file
from spool.incoming import Digests, Incoming, remove_incoming
from spool.instants import from_epoch
from spool.manifest import hash_fd
from spool.paths import JobPaths
from spool.records import CANCELED, FileEntry, Job, JobState, Result
from spool.runner import RunStatus, signal_of
from spool.states import FINAL, Reason, State
from spool.store import Store, check_run

MAX_LATE = 100  # records of late results kept of one job


@dataclass(frozen=True)
class Outputs:
    """What a run left and what of it comes back: names for people, entries (``out/...``) for the manifest."""

    files: tuple[FileEntry, ...] = ()
    missing: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()
    found: int = 0


def judge(
    job: Job,
    state: JobState,
    status: RunStatus,
    outputs: Outputs,
    logs: Sequence[FileEntry] = (),
    *,
    wall_time_s: int | None = None,
) -> Result:
    """Return the result of a run that is over. `outputs.found` counts the files that the job asked for and the command wrote.

    Exit 0 and at least one output is success, the others listed as missing, unless `require_all`; with no outputs
    declared the exit code decides. `wall_time_s` is the limit that held, where the site has one of its own.
    """
    reason, message = _verdict(job, status, outputs, wall_time_s or job.wall_time_s)
    return Result(
        id=state.id,
        run_id=state.run_id,
        attempt=state.attempt,
        exit_code=status.exit_code,
        signal=signal_of(status.exit_code) if status.exit_code is not None else None,
        reason=reason,
        message=message,
        started_at=from_epoch(status.started_at) if status.started_at else "",
        finished_at=from_epoch(status.finished_at) if status.finished_at else "",
        files=(*outputs.files, *logs),
        missing=outputs.missing,
        withheld=outputs.withheld,
        not_carried=outputs.not_carried,
    )


def _verdict(job: Job, status: RunStatus, outputs: Outputs, wall_time_s: int | None) -> tuple[str, str]:
    if status.cancel or status.word == "canceled":  # asked for while it ran, or before it was started
        return CANCELED, "stopped on request"
    if status.word == "lost":
        return Reason.LOST.value, _LOST.get(status.why, f"the site no longer knows how the command ended ({status.why})")
    if status.spawn_failed:
        return (
            Reason.SPAWN.value,
            f"the command could not be started (exit code {status.exit_code}); see log/runner.log at the site",
        )
    if status.wall_time:
        return Reason.WALL_TIME.value, f"stopped at its wall-time limit of {wall_time_s} s"
    if status.exit_code is None:
        return Reason.LOST.value, f"the runner says {status.word!r} and no exit code"
    if signal_of(status.exit_code) is not None:
        return Reason.SIGNAL.value, f"ended by signal {signal_of(status.exit_code)} (exit code {status.exit_code})"
    if status.exit_code != 0:
        return Reason.EXIT_NONZERO.value, f"ended with exit code {status.exit_code}"
    if job.outputs and not outputs.found:
        return Reason.NO_OUTPUTS.value, f"ended with 0 but wrote none of: {' '.join(job.outputs)}"
    if job.require_all and outputs.missing:
        return Reason.MISSING_OUTPUTS.value, f"ended with 0 but did not write: {' '.join(outputs.missing)}"
    return "", ""


_LOST = {
    "reboot": "the external computer was restarted while the command ran",
    "vanished": "the command is gone and left no exit code (killed together with its supervisor)",
}


def no_run(state: JobState, reason: str, message: str) -> Result:
    """Return the result of a run whose command was never started."""
    return Result(id=state.id, run_id=state.run_id, attempt=state.attempt, reason=reason, message=message)


def final_state(result: Result) -> State:
    """Return the state a result leads to."""
    if result.reason == CANCELED:
        return State.CANCELED
    return State.FAILED if result.reason else State.COMPLETED


def accept(store: Store, result: Result, *, by: str, digests: Digests | None = None) -> JobState:
    """Verify that everything the result lists is here, move it in and end the job; return its state.

    Accepted exactly once: the repeat of an accepted result returns the stored state; a run that is not the job's
    current one raises `StaleRun` and changes nothing. `DigestMismatch` names the files that must be sent again (what is
    here of them was thrown away). Safe to repeat after a crash at any point.
    """
    state = store.state(result.id)
    check_run(state, result.run_id)
    if state.state in FINAL:
        return _accepted_before(store, state, result)
    if state.state == State.CLAIMED and result.files:  # before its files are missed: none could come yet
        raise Conflict(f"job {state.id} is claimed and takes no results yet", hint="a sync tells of its start")
    paths = store.paths.job(result.id)
    incoming = Incoming(paths.incoming_of(result.run_id), digests)
    with incoming.closed():  # a stray chunk must not change what was verified
        _verify(paths, incoming, result)
        with store.locked(result.id) as state:
            check_run(state, result.run_id)
            if state.state in FINAL:
                return _accepted_before(store, state, result)
            if state.attempt != result.attempt:
                raise InvalidRequest(f"job {state.id} is at attempt {state.attempt}, not {result.attempt}", hint="sync again")
            ended = _move_in(store, state, paths, incoming, result, by)
    remove_incoming(paths.incoming)
    return ended


def keep_late(store: Store, result: Result, *, by: str) -> None:
    """Keep the record of a run whose results are not taken any more, in `late/RUN_ID.json`, with a remark in the history.

    Its files stay at the site, and what has arrived of them in `attempts/N/incoming/`. Safe to repeat.
    """
    paths = store.paths.job(result.id)
    with store.locked(result.id) as state:
        stored = store.result(result.id)
        if stored is not None and stored.run_id == result.run_id:
            return
        if state.run_id == result.run_id and state.state not in FINAL:
            return  # too early, not late: it is told again after the next sync
        place = paths.late / f"{result.run_id}.json"
        paths.late.mkdir(0o770, exist_ok=True)
        if place.exists():
            return
        if len(os.listdir(paths.late)) >= MAX_LATE:
            log.warning("late_not_kept", job=result.id, run=result.run_id, why=f"{MAX_LATE} are there already")
            return
        replace_file(place, result.encode())
        fsync_dir(paths.folder)
        end = result.reason or "success"
        why = f"late result of run {result.run_id}, refused: {end}, {len(result.files)} files at the site; late/{place.name}"
        store.write(state, state.state, by=by, why=why)
    log.warning(
        "late_result", job=result.id, run=result.run_id, attempt=result.attempt, exit_code=result.exit_code,
        files=len(result.files), state=state.state, why="its run was given up or replaced",
    )  # fmt: skip


def _accepted_before(store: Store, state: JobState, result: Result) -> JobState:
    stored = store.result(state.id)
    if stored is not None and stored.run_id == result.run_id:
        return state
    raise Conflict(
        f"job {state.id} is {state.state} ({state.reason or 'no reason'}) and takes no result any more",
        hint="an operator may requeue it",
    )


def _verify(paths: JobPaths, incoming: Incoming, result: Result) -> None:
    wrong: list[str] = []
    for entry in result.files:
        here = _entry_here(paths, incoming, entry.path)
        if here == entry:
            continue
        if here is None or here.size >= entry.size:
            incoming.restart(entry.path)
        wrong.append(entry.path)
    if wrong:
        raise DigestMismatch(
            f"{len(wrong)} files of job {result.id} are not here as announced: {', '.join(wrong[:5])}",
            hint="send them again from the offset that HEAD tells",
        )


def _entry_here(paths: JobPaths, incoming: Incoming, name: str) -> FileEntry | None:
    with contextlib.suppress(FileNotFoundError):
        return incoming.entry(name)
    try:  # a crash came between the move and the final state
        fd = open_beneath(paths.folder, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        digest, size = hash_fd(fd)
    finally:
        os.close(fd)
    return FileEntry(name, size, digest)


def _move_in(store: Store, state: JobState, paths: JobPaths, incoming: Incoming, result: Result, by: str) -> JobState:
    target_state = final_state(result)
    if state.state == State.CLAIMED and target_state == State.COMPLETED:
        raise Conflict(f"job {state.id} was never started", hint="ask for the start first")
    refused = state.state == State.HELD and target_state != State.COMPLETED and not result.files
    _set_unlisted_aside(incoming, result)
    for name, target in (("out", paths.out), ("log", paths.log)):
        incoming.move_folder(name, target)
    fsync_dir(paths.folder)
    replace_file(paths.result, result.encode())
    if state.state in (State.RUNNING, State.HELD) and not refused:
        state = store.write(state, State.RETURNING, by=by, why="finished", exit_code=result.exit_code)
    return store.end(
        state, target_state, by=by, reason="" if target_state == State.CANCELED else result.reason, message=result.message,
        exit_code=result.exit_code,
    )  # fmt: skip


def _set_unlisted_aside(incoming: Incoming, result: Result) -> None:
    """Drop what arrived and is not in the manifest (a log that was streamed and then withheld), so that it is not merged."""
    listed = {entry.path for entry in result.files}
    for folder, _, names in os.walk(incoming.files):
        for name in names:
            path = Path(folder) / name
            if str(path.relative_to(incoming.files)) not in listed:
                log.warning("unlisted_dropped", job=result.id, run=result.run_id, file=path.relative_to(incoming.files))
                path.unlink()
