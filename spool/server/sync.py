"""POST /v1/sync: the one call of an agent's loop (docs/protocol.md, "sync").

The agent says what it has; it is told what is wanted of each job, and gets new ones up to its room. One reconciling call
replaces a claim/acknowledge protocol: an answer that was lost is simply told again at the next sync.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from spool import log
from spool.config import LiveConfig
from spool.creation import identity
from spool.errors import Conflict, NotFound, SpoolError, StaleRun, from_os_error
from spool.instants import utc_now
from spool.records import JobState
from spool.server.auth import Asker
from spool.server.contacts import Contacts
from spool.server.request import Held, Request
from spool.server.wakeups import Waiter, Wakeups
from spool.states import FINAL, State
from spool.store import Store

RECHECK_S = 1.0
_PASSIVE = ("run", "keep", "return")
_STARTED = ("running", "held", "returning")


class Sync:
    """Answers syncs over one store."""

    def __init__(self, store: Store, config: LiveConfig, wakeups: Wakeups, contacts: Contacts) -> None:
        self._store = store
        self._config = config
        self._wakeups = wakeups
        self._contacts = contacts
        self._warned: set[str] = set()
        self._put_off: dict[str, str] = {}
        store.listen(lambda state: wakeups.notify(state.site))

    def answer(self, asker: Asker, body: bytes) -> dict[str, Any]:
        """Answer one sync; waits up to its `wait_s` where there is nothing to tell."""
        request = Request.parse(body)
        asker.need("agent")
        asker.need_site(request.site)
        request = self._within_site(request)
        key = (request.site, asker.user, request.agent)
        self._contacts.check_alone(key, request)
        current = self._contacts.note(key, request)
        epoch = identity(self._store.paths)[1]
        if request.epoch not in ("", epoch):
            # Restored from a backup: nothing is lost or given out before the agent has said what it has and what it has ended.
            return {"epoch": epoch, "now": utc_now(), "superseded": False, "jobs": self._told_of(asker, request)}
        jobs = self._told_of(asker, request)
        if current:
            jobs += self._unlisted(asker, request)
            jobs += self._claim(asker, request, len(jobs) - len(request.jobs))
        superseded = not current
        if current and request.wait_s > 0 and not _worth_telling(request, jobs):
            jobs, superseded = self._wait(asker, request, jobs)
        elif current:
            self._wakeups.supersede(key, request.order)
        return {"epoch": epoch, "now": utc_now(), "superseded": superseded, "jobs": jobs}

    def _told_of(self, asker: Asker, request: Request) -> list[dict[str, Any]]:
        return [self._tell(asker, request, held) for held in request.jobs]

    def _within_site(self, request: Request) -> Request:
        """Return the request as its site allows: a disabled site brings home what it has and gets nothing new."""
        sites = self._config.get().sites
        if request.site in sites and not sites[request.site].enabled:
            return replace(request, room=0)
        if sites:
            self._config.get().site(request.site)
        return request

    def _wait(self, asker: Asker, request: Request, jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        paths = self._store.paths
        folders = [paths.job(held.id).folder for held in request.jobs]
        if request.room:
            folders += [paths.queue / request.site, paths.queue_of(request.site, asker.user)]
        waiter = self._wakeups.enter((request.site, asker.user, request.agent), request.order, folders)
        if waiter is None:
            return jobs, False
        try:
            jobs = self._wait_until(asker, request, waiter, jobs)
        finally:
            self._wakeups.leave(waiter)
        return jobs, waiter.superseded

    def _wait_until(self, asker: Asker, request: Request, waiter: Waiter, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + request.wait_s
        while not _worth_telling(request, jobs):
            left = deadline - time.monotonic()
            # A newer sync may have come before this one was registered, and found nobody to end.
            if left <= 0 or waiter.superseded or self._contacts.overtaken(waiter.agent, request.order):
                waiter.superseded = left > 0
                break
            asker.still("agent", request.site)
            # What came between the first look and the registration, or in the tick of a look, is found by looking again.
            jobs = self._told_of(asker, request) + self._claim(asker, request, 0)
            if not _worth_telling(request, jobs):
                waiter.wait(min(left, RECHECK_S))
        return jobs

    def _claim(self, asker: Asker, request: Request, taken: int) -> list[dict[str, Any]]:
        room = request.room - taken
        states = self._store.claim(request.site, [asker.user], agent=request.agent, room=room, order=request.order)
        return [_told(state, "fetch") for state in states]

    def _unlisted(self, asker: Asker, request: Request) -> list[dict[str, Any]]:
        """Judge the jobs that are this agent's but that it did not list: claimed ones are told again, started ones are lost."""
        listed = {held.id for held in request.jobs}
        told = []
        for job_id in self._store.queue.active(request.site, request.agent):
            if job_id in listed:
                continue
            try:
                told += self._tell_unlisted(asker, request, job_id)
            except (SpoolError, OSError) as exc:
                self._say_put_off(job_id, exc)
        return told

    def _tell_unlisted(self, asker: Asker, request: Request, job_id: str) -> list[dict[str, Any]]:
        state = self._own(asker, request, job_id)
        if state is None:
            self._drop_active(request, job_id)
        elif state.state == State.CLAIMED and request.leaving:
            self._store.give_back(job_id, state.run_id, by=request.agent, why="the agent is leaving and never got it")
        elif state.state == State.CLAIMED:
            return [_told(state, "fetch")]
        else:
            message = "the agent no longer has this job, which it may have started"
            self._store.lose(job_id, state.run_id, by=request.agent, order=request.order, message=message)
        return []

    def _drop_active(self, request: Request, job_id: str) -> None:
        with self._store.locks.hold(job_id):
            try:
                state = self._store.state(job_id)
            except NotFound:
                state = None
            if state is None or state.agent != request.agent or state.state in FINAL:
                self._store.queue.remove_active(request.site, request.agent, job_id)

    def _own(self, asker: Asker, request: Request, job_id: str) -> JobState | None:
        try:
            state = self._store.state(job_id)
        except NotFound:
            return None
        mine = state.agent == request.agent and state.site == request.site and state.user == asker.user
        return state if mine and state.state not in FINAL else None

    def _tell(self, asker: Asker, request: Request, held: Held) -> dict[str, Any]:
        """Return what is wanted of a job that the agent has."""
        try:
            state = self._store.state(held.id)
            asker.need_agent(state)
        except OSError as exc:
            return self._later(held, exc)
        except SpoolError as exc:
            # After a restore the server may know less than the agent: the agent keeps the job, an operator decides.
            if self._first_time(held):
                log.warning("unknown_job", job=held.id, run=held.run_id, site=request.site, agent=request.agent, why=exc)
            return {"id": held.id, "run_id": held.run_id, "want": "keep", "state": "unknown"}
        try:
            if state.run_id != held.run_id:
                adopted = self._adopted(request, held, state)
                if adopted is None:
                    return self._tell_other_run(request, held, state)
                state = adopted
            told = self._judge(state, held, request.order)
            self._put_off.pop(held.id, None)
            return told
        except (StaleRun, Conflict):  # it changed under our hands: the next sync tells
            return _told(state, "run")
        except (SpoolError, OSError) as exc:
            return self._later(held, exc)

    def _later(self, held: Held, exc: SpoolError | OSError) -> dict[str, Any]:
        """Answer for a job that cannot be judged now (a full disk, say): it waits, the agent's others are not delayed."""
        self._say_put_off(held.id, exc)
        return {"id": held.id, "run_id": held.run_id, "want": "run", "state": "unknown"}

    def _say_put_off(self, job_id: str, exc: SpoolError | OSError) -> None:
        # Once: the agent asks again every few seconds. Not the text of an OSError, which may name a temporary file.
        told = from_os_error(exc, "judging the job") if isinstance(exc, OSError) else exc
        if self._put_off.get(job_id) != told.message:
            self._put_off[job_id] = told.message
            log.warning("job_put_off", job=job_id, why=exc, hint=told.hint)

    def _adopted(self, request: Request, held: Held, state: JobState) -> JobState | None:
        """Return the job as this run's, where the spool forgot of it in a restore and waits to run the same attempt again."""
        waits = state.state == State.QUEUED and held.attempt == state.attempt and held.state in _STARTED
        if not waits or self._store.knows(state, held.run_id):
            return None
        return self._store.adopt(state.id, held.run_id, agent=request.agent, order=request.order)

    def _tell_other_run(self, request: Request, held: Held, state: JobState) -> dict[str, Any]:
        """Answer for a run that is not the job's: one that was replaced ends; one that is not known here is kept."""
        told = {"id": held.id, "run_id": held.run_id}
        kept = (self._store.paths.job(state.id).late / f"{held.run_id}.json").exists()
        if self._store.knows(state, held.run_id) or held.state not in _STARTED or kept:
            return {**told, "want": "cancel" if held.state == "running" else "forget", "state": "stale"}
        if self._first_time(held):
            log.warning("unknown_run", job=held.id, run=held.run_id, site=request.site, agent=request.agent, now=state.state)
        return {**told, "want": "keep", "state": "unknown"}

    def _first_time(self, held: Held) -> bool:
        """True where nothing was said of this run yet: its agent asks again every few seconds."""
        first = held.run_id not in self._warned
        self._warned.add(held.run_id)
        return first

    def _judge(self, state: JobState, held: Held, order: tuple[int, int]) -> dict[str, Any]:
        if state.state in FINAL:
            return _told(state, self._after_end(state, held))
        if state.state == State.CLAIMED and held.state in _STARTED:  # restored to before the start
            state = self._store.start(state.id, held.run_id, by=state.agent, order=order)
        if state.state == State.CLAIMED and not held.ready:
            return _told(state, "fetch")
        if held.state == "held":
            state = self._store.hold(state.id, held.run_id, by=state.agent)
        if held.state == "returning" and state.state in (State.RUNNING, State.HELD):
            state = self._store.returning(state.id, held.run_id, by=state.agent, exit_code=held.exit_code)
        if state.state == State.RETURNING:
            return _told(state, "return")
        if state.cancel_requested_at:
            return _told(state, "cancel")
        if state.state == State.CLAIMED or held.state == "claimed":
            return _told(self._store.start(state.id, held.run_id, by=state.agent, order=order), "start")
        return _told(state, "run")

    @staticmethod
    def _after_end(state: JobState, held: Held) -> str:
        if held.state == "running":
            return "cancel" if state.state == State.CANCELED else "run"
        return "forget"


def _worth_telling(request: Request, jobs: list[dict[str, Any]]) -> bool:
    """True where some job has news for the agent: a wait ends only for what it was not told before."""
    known = {(held.id, held.run_id): held.told for held in request.jobs}
    return any(job["want"] not in _PASSIVE and job["want"] != known.get((job["id"], job["run_id"])) for job in jobs)


def _told(state: JobState, want: str) -> dict[str, Any]:
    return {"id": state.id, "run_id": state.run_id, "attempt": state.attempt, "want": want, "state": str(state.state)}
