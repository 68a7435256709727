"""The jobs of one spool: every change of state (docs/format.md, "States" and "Writing order").

Each change is one lock hold: read again, judge, write the indexes and `state.json` in the order that lets the indexes list too
much but never too little, then the history and the journal. `SpoolError`s say what a caller did wrong; the record of
a job that cannot be read is moved to `corrupt/` and never stops the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from spool import journal, jsonio, log
from spool.attempts import set_attempt_aside
from spool.clock import Clock
from spool.controls import ControlFile
from spool.creation import open_spool
from spool.errors import Conflict, NotFound, SpoolError, StaleRun, is_no_space
from spool.files import append_line, replace_file
from spool.history import clip, complete_history
from spool.instants import to_epoch, utc_now
from spool.jobs import Jobs
from spool.locks import JobLocks
from spool.names import check_id, new_id
from spool.paths import SpoolPaths
from spool.queue import Entry, Queue, make_key
from spool.records import HistoryEntry, JobState
from spool.states import FINAL, WITH_SITE, Reason, State, check_transition

Listener = Callable[[JobState], None]


class Store(Jobs):
    """One spool, opened. Threads and processes may share a spool; each process has a `Store` of its own."""

    def __init__(self, paths: SpoolPaths) -> None:
        super().__init__(paths)
        self.locks = JobLocks(paths.locks)
        self.queue = Queue(paths)
        self.clock = Clock()
        self.controls = ControlFile(paths.controls)
        self._not_claimed: dict[str, str] = {}
        self._listeners: list[Listener] = []

    @classmethod
    def open(cls, root: Path, *, create: bool = False) -> Store:
        """Open the spool at `root`, with `create` making one of an empty folder; errors as `open_spool`."""
        return cls(open_spool(root, create=create))

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with the new state after each change made through this object."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def locked(self, job_id: str) -> Iterator[JobState]:
        """Hold the job's lock and yield its state as read under it."""
        with self.locks.hold(check_id(job_id)):
            yield self.state(job_id)

    def write(self, state: JobState, target: State, *, by: str, why: str = "", **changes: Any) -> JobState:
        """Write the next revision of `state`; the caller holds the lock and has judged that it may.

        The history line of the revision before is completed first (a crash may have lost it), then `state.json` is
        replaced, then the new line and the journal follow.
        """
        if target != state.state:
            check_transition(state.id, state.state, target)
        why = clip(why)
        updated = replace(state, state=target, **changes)
        entry = HistoryEntry(
            revision=state.revision + 1,
            at=utc_now(),
            source=str(state.state),
            target=str(target),
            by=by,
            attempt=updated.attempt,
            run_id=updated.run_id or state.run_id,
            why=why,
        )
        updated = updated.with_entry(entry)
        paths = self.paths.job(state.id)
        complete_history(paths, state)
        replace_file(paths.state, updated.encode())
        append_line(paths.history, jsonio.dumps_line(entry.encode()))
        self._tell(updated)
        return updated

    def _tell(self, state: JobState) -> None:
        try:
            journal.note(self.paths, state)
        except OSError as exc:  # derived: the change itself stands
            log.warning("journal_failed", job=state.id, why=exc)
        entry = state.last
        log.info(
            "state", job=state.id, source=entry.source if entry else "", to=state.state, site=state.site, user=state.user,
            attempt=state.attempt, run=state.run_id, by=entry.by if entry else "", reason=state.reason,
        )  # fmt: skip
        for listener in self._listeners:
            listener(state)

    def published(self, state: JobState) -> None:
        """Tell journal, log and listeners of a job that was published by rename (see `spool.drops`)."""
        self._tell(state)

    def enqueue(self, job_id: str, *, by: str, **changes: Any) -> JobState:
        """new -> queued, entry first. A job that is queued already or further is returned as it is."""
        with self.locked(job_id) as state:
            if state.state != State.NEW:
                return state
            return self._to_queue(state, by=by, why="enqueued", **changes)

    def _to_queue(self, state: JobState, *, by: str, why: str, **changes: Any) -> JobState:
        attempt = int(changes.get("attempt", state.attempt))
        key = make_key(state.id, attempt, state.priority)
        self.queue.add(state.site, state.user, key)
        queued = self.write(state, State.QUEUED, by=by, why=why, queue_key=key, run_id="", agent="", **changes)
        if state.state == State.NEW:
            self.queue.remove_new(state.id)
        return queued

    def claim(self, site: str, users: list[str], *, agent: str, room: int, order: tuple[int, int] = (0, 0)) -> list[JobState]:
        """Claim up to `room` waiting jobs of `site` for `agent`, first come first served within a priority.

        Each is claimed atomically: a job is given to one claimer. Stale entries met on the way are removed. What operators hold
        back (`spool.controls`) stays where it is.
        """
        claimed: list[JobState] = []
        if room <= 0 or self._held_back(site):
            return claimed
        for entry in self.queue.waiting(site, users):
            try:
                state = self._claim_entry(site, entry, agent, order)
            except (SpoolError, OSError) as exc:  # this one waits; the others are not delayed
                if isinstance(exc, OSError) and is_no_space(exc):
                    self._tell_not_claimed("the spool's disk", site, exc)
                    break  # for every other as well
                self._tell_not_claimed(entry.job_id, site, exc)
                continue
            if state is not None:
                self._not_claimed.clear()  # a disk that is full again is told of again
                claimed.append(state)
            if len(claimed) >= room:
                break
        return claimed

    def _held_back(self, site: str) -> bool:
        try:
            return bool(self.controls.get().why_not_claimed(site))
        except SpoolError as exc:
            self._tell_not_claimed("every job", site, exc)
            return True

    def _tell_not_claimed(self, job: str, site: str, exc: Exception) -> None:
        """Say why, once: waiting syncs ask every second. Not the text of an OSError, which may name a temporary file."""
        why = str((exc.strerror if isinstance(exc, OSError) else "") or exc)
        if self._not_claimed.get(job) != why:
            self._not_claimed[job] = why
            log.error("not_claimed", job=job, site=site, why=exc)

    def _claim_entry(self, site: str, entry: Entry, agent: str, order: tuple[int, int]) -> JobState | None:
        with self.locks.hold(entry.job_id):
            try:
                state = self.state(entry.job_id)
            except NotFound:
                state = None
            if state is None or state.state != State.QUEUED or state.queue_key != entry.key:
                self.queue.remove(site, entry.user, entry.key)
                return None
            return self._claim_waiting(state, agent, order)

    def _claim_waiting(self, state: JobState, agent: str, order: tuple[int, int]) -> JobState | None:
        """Claim a queued job, or expire it where that is due; the caller holds the lock.

        One that is due by a clock that has just jumped is neither: it waits until the clock has settled or is set back.
        """
        if self.controls.get().why_not_claimed(state.site, state.workflow):
            return None
        if state.expires_at and to_epoch(state.expires_at) <= self.clock.now():
            if self._is_due(state):
                self._expire(state, f"expires_at {state.expires_at} has passed")
            return None
        self.queue.add_active(state.site, agent, state.id)
        claimed = self.write(
            state, State.CLAIMED, by=agent, why="claimed", run_id=new_id(), agent=agent, agent_order=order,
            claimed_at=utc_now(), queue_key="",
        )  # fmt: skip
        self.queue.remove(state.site, state.user, state.queue_key)
        return claimed

    def claim_one(self, job_id: str, *, agent: str) -> JobState:
        """Claim this very job for `agent`. Raises `Conflict` where it does not wait (any more)."""
        with self.locked(job_id) as state:
            claimed = self._claim_waiting(state, agent, (0, 0)) if state.state == State.QUEUED else None
            if claimed is None:
                raise Conflict(f"job {job_id} is {state.state} and cannot be claimed", hint="ask for another job")
            return claimed

    def adopt(self, job_id: str, run_id: str, *, agent: str, order: tuple[int, int]) -> JobState:
        """Take the run of an agent, which this spool does not know of, for the job's: queued -> claimed -> running.

        After a restore from a backup: the command was started before, and must not be started a second time in its attempt.
        Raises `Conflict` where the job does not wait.
        """
        with self.locked(job_id) as state:
            if state.state != State.QUEUED:
                raise Conflict(f"job {job_id} is {state.state} and does not wait", hint="sync again")
            self.queue.add_active(state.site, agent, state.id)
            claimed = self.write(
                state, State.CLAIMED, by=agent, why="its agent has it already (a restore?)", run_id=run_id, agent=agent,
                agent_order=order, claimed_at=utc_now(), started_at=utc_now(), queue_key="",
            )  # fmt: skip
            self.queue.remove(state.site, state.user, state.queue_key)
            return self.write(claimed, State.RUNNING, by=agent, why="was started before", started_at=utc_now())

    def _is_due(self, state: JobState) -> bool:
        """True where `expires_at` has passed for certain: a clock that jumped forward does not count at once."""
        return bool(state.expires_at) and to_epoch(state.expires_at) <= self.clock.certain()

    def adopt_found(self, job_id: str, run_id: str, *, by: str, instead_of: str) -> JobState:
        """As `adopt`, for the push: it has claimed `instead_of` and then found `run_id` at the site. Atomic."""
        with self.locked(job_id) as state:
            check_run(state, instead_of)
            why = "was started before (a restore?)"
            return self.write(state, State.RUNNING, by=by, why=why, run_id=run_id, started_at=utc_now())

    def _expire(self, state: JobState, why: str) -> JobState:
        expired = self.write(state, State.EXPIRED, by="spool", why=why, message=why, queue_key="", ended_at=utc_now())
        self._leave_waiting(state)
        return expired

    def _leave_waiting(self, state: JobState) -> None:
        """Remove the index entries of a job that was `state` and waits no more."""
        self.queue.remove(state.site, state.user, state.queue_key)
        if state.state == State.NEW:
            self.queue.remove_new(state.id)

    def expire(self, job_id: str, *, unclaimed: str = "") -> JobState:
        """Make a new or queued job expired whose `expires_at` has passed, or for the reason `unclaimed` where that is given.

        Any other job is returned as it is.
        """
        with self.locked(job_id) as state:
            if state.state not in (State.NEW, State.QUEUED):
                return state
            if unclaimed or self._is_due(state):
                return self._expire(state, unclaimed or f"expires_at {state.expires_at} has passed")
            return state

    def hand_over(self, state: JobState, agent: str) -> JobState:
        """Note that the run is with `agent` now, the same party under another name; the caller holds the lock and has judged."""
        self.queue.add_active(state.site, agent, state.id)
        moved = self.write(state, state.state, by=agent, why=f"goes on for {state.agent}", agent=agent)
        self.queue.remove_active(state.site, state.agent, state.id)
        return moved

    def start(self, job_id: str, run_id: str, *, by: str, order: tuple[int, int] = (0, 0)) -> JobState:
        """Give permission to start: claimed -> running, durably, before the command is. Safe to repeat."""
        with self.locked(job_id) as state:
            check_run(state, run_id)
            if state.state == State.CLAIMED:
                self.controls.get().check_start(job_id)
                return self.write(state, State.RUNNING, by=by, why="may start", started_at=utc_now(), agent_order=order)
            if state.state == State.RUNNING:
                return state
            raise Conflict(f"job {job_id} is {state.state} and cannot be started", hint="forget this run")

    def hold(self, job_id: str, run_id: str, *, by: str) -> JobState:
        """running -> held: the command has ended, its results wait at the site for a person. Safe to repeat."""
        with self.locked(job_id) as state:
            check_run(state, run_id)
            if state.state == State.RUNNING:
                return self.write(state, State.HELD, by=by, why="finished; waits for a person's release at the site")
            return state

    def returning(self, job_id: str, run_id: str, *, by: str, exit_code: int | None = None) -> JobState:
        """running or held -> returning: the command has ended, its results follow. Safe to repeat."""
        with self.locked(job_id) as state:
            check_run(state, run_id)
            if state.state in (State.RUNNING, State.HELD):
                return self.write(state, State.RETURNING, by=by, why="finished, results follow", exit_code=exit_code)
            return state

    def end(self, state: JobState, target: State, *, by: str, reason: str = "", message: str = "", **more: Any) -> JobState:
        """Write a final state and drop the job from the indexes; the caller holds the lock."""
        message = clip(message)
        ended = self.write(
            state,
            target,
            by=by,
            why=message or reason,
            reason=reason,
            message=message,
            queue_key="",
            ended_at=utc_now(),
            **more,
        )
        self._leave_waiting(state)
        self.queue.remove_active(state.site, state.agent, state.id)
        return ended

    def fail(self, job_id: str, run_id: str, *, by: str, reason: str, message: str) -> JobState:
        """End a run that brings no result: lost, unreachable, refused. A job that is final already is returned as it is."""
        with self.locked(job_id) as state:
            if state.state in FINAL and state.run_id == run_id:
                return state
            check_run(state, run_id)
            return self.end(state, State.FAILED, by=by, reason=reason, message=message)

    def lose(self, job_id: str, run_id: str, *, by: str, order: tuple[int, int], message: str) -> JobState:
        """End a started run that a later sync of its agent no longer lists: failed, lost.

        `order` numbers that sync; one that is not later than the sync which claimed or started the job has simply been
        overtaken on its way, and changes nothing, whichever server process it reached.
        """
        with self.locked(job_id) as state:
            started = state.state in WITH_SITE - {State.CLAIMED}
            if state.run_id != run_id or not started or order <= state.agent_order:
                return state
            return self.end(state, State.FAILED, by=by, reason=Reason.LOST.value, message=message)

    def give_back(self, job_id: str, run_id: str, *, by: str, why: str) -> JobState:
        """claimed -> queued for an agent without contact: provably not started. Any other job is returned as it is."""
        with self.locked(job_id) as state:
            adopted = bool(state.started_at)  # a crash came within `adopt`: its command may run
            if state.state != State.CLAIMED or state.run_id != run_id or adopted:
                return state
            queued = self._to_queue(state, by=by, why=why)
            self.queue.remove_active(state.site, state.agent, state.id)
            return queued

    def cancel(self, job_id: str, *, by: str) -> JobState:
        """Ask for a cancel: at once where the command was not started, else an intent that the site confirms. Safe to repeat.

        Raises `Conflict` where the job has ended in another way.
        """
        with self.locked(job_id) as state:
            if state.state == State.CANCELED:
                return state
            if state.state in FINAL:
                raise Conflict(f"job {job_id} is {state.state} already", hint="there is nothing to cancel")
            return self._cancel(state, by)

    def _cancel(self, state: JobState, by: str, **more: str) -> JobState:
        """Cancel a job that has not ended; the caller holds the lock. `more` is written along."""
        if state.cancel_requested_at and not more:
            return state
        asked = {"cancel_requested_at": state.cancel_requested_at or utc_now(), "cancel_requested_by": by, **more}
        if state.state in WITH_SITE - {State.CLAIMED}:
            return self.write(state, state.state, by=by, why="cancel requested", **asked)
        return self.end(state, State.CANCELED, by=by, message="canceled before it started", **asked)

    def withdraw(self, job_id: str, *, by: str, force: bool = True) -> JobState:
        """Cancel a job, whatever it is doing, and have it gone for the clients of the published protocol. Safe to repeat.

        Without `force` only one that waits for its site; `Conflict` for any other.
        """
        with self.locked(job_id) as state:
            if not force and state.state != State.QUEUED:
                raise Conflict(f"job {job_id} is {state.state} and does not wait", hint="force cancels it")
            gone = {"withdrawn_at": state.withdrawn_at or utc_now()}
            if state.state in FINAL:
                return state if state.withdrawn_at else self.write(state, state.state, by=by, why="withdrawn", **gone)
            return self._cancel(state, by, **gone)

    def requeue(self, job_id: str, *, by: str, force: bool = False) -> JobState:
        """Queue a job that has ended once more: attempt N+1; what attempt N left moves to `attempts/N/`.

        An operator's act. With `force` a job that is with a site is given up first: what its run brings later is refused and
        kept aside. Raises `Conflict` where the job has not ended. Safe to repeat after a crash at any point.
        """
        with self.locked(job_id) as state:
            if force and state.state in WITH_SITE:
                message = f"given up by {by}; the command may still run at the site"
                state = self.end(state, State.FAILED, by=by, reason=Reason.GIVEN_UP.value, message=message)
            if state.state not in FINAL:
                hint = "cancel it first, or wait for its end; a site that stays silent: requeue --force"
                raise Conflict(f"job {job_id} is {state.state} and has not ended", hint=hint)
            job = self.job(job_id)
            if job.max_attempts and state.attempt >= job.max_attempts:
                raise Conflict(f"job {job_id} has had its {job.max_attempts} attempts (max_attempts)", hint="submit it again")
            if job.inputs and not state.inputs:
                raise Conflict(f"job {job_id} was never enqueued: its inputs were not taken in", hint="submit it again")
            set_attempt_aside(self.paths.job(job_id), state.attempt)
            cleared = dict.fromkeys(("claimed_at", "started_at", "ended_at", "reason", "message"), "")
            cleared.update(cancel_requested_at="", cancel_requested_by="", expires_at="", withdrawn_at="")
            return self._to_queue(state, by=by, why="requeue", attempt=state.attempt + 1, exit_code=None, **cleared)


def check_run(state: JobState, run_id: str) -> None:
    """Raise `StaleRun` unless `run_id` is the job's current run: the fence that keeps late results apart."""
    if not run_id or state.run_id != run_id:
        raise StaleRun(
            f"run {run_id} of job {state.id} is not its current one (the job is {state.state}, attempt {state.attempt})",
            hint="the run was given up or replaced; its results are not merged",
        )
