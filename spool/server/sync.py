"""POST /v1/sync: the one call of an agent's loop (docs/protocol.md, "sync").

The agent says what it has; it is told what is wanted of each job, and gets new ones up to its room. One reconciling call
replaces a claim/acknowledge protocol: an answer that was lost is simply told again at the next sync.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from spool import jsonio, log
from spool.config import LiveConfig
from spool.creation import identity
from spool.errors import Conflict, InvalidRequest, NotFound, SpoolError, StaleRun, Twin, from_os_error
from spool.fields import Fields
from spool.files import replace_file
from spool.instants import utc_now
from spool.names import check_id, check_site, check_user
from spool.records import JobState
from spool.server.auth import Asker
from spool.server.wakeups import Waiter, Wakeups
from spool.states import FINAL, State
from spool.store import Store

MAX_WAIT_S = 25.0
MAX_ROOM = 1000
RECHECK_S = 1.0
CONTACT_EVERY_S = 10.0
TWIN_SILENT_S = 600.0  # so long after its last word an agent's identity is free for a process with an older count of starts
_PASSIVE = ("run", "keep", "return")
_STARTED = ("running", "held", "returning")


AgentKey = tuple[str, str, str]  # site, user, the agent's own name: two users' agents may have one name


@dataclass(frozen=True)
class Held:
    """One job as the agent reports it."""

    id: str
    run_id: str
    state: str
    ready: bool
    told: str
    attempt: int
    exit_code: int | None

    @classmethod
    def parse(cls, value: Any) -> Held:
        """Read one entry of ``jobs``."""
        if not isinstance(value, dict):
            raise InvalidRequest("jobs must list objects", hint="see docs/protocol.md, sync")
        fields = Fields(value, "sync: jobs")
        return cls(
            check_id(fields.string("id")),
            check_id(fields.string("run_id")),
            fields.string("state"),
            fields.boolean("ready", False),
            fields.string("told", ""),
            fields.integer("attempt", 0, low=0),
            fields.optional_integer("exit_code"),
        )


@dataclass(frozen=True)
class Request:
    """A sync request."""

    site: str
    agent: str
    instance: str
    generation: int
    seq: int
    room: int
    wait_s: float
    version: str
    leaving: bool
    epoch: str
    jobs: tuple[Held, ...]

    @property
    def order(self) -> tuple[int, int]:
        """What orders the syncs of one agent: its start's generation, then the number within it."""
        return self.generation, self.seq

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Read and check the body."""
        fields = Fields(jsonio.loads(body, "sync"), "sync")
        return cls(
            site=check_site(fields.string("site")),
            agent=check_user(fields.string("agent")),
            instance=fields.string("instance", ""),
            generation=fields.integer("generation", 0, low=0),
            seq=fields.integer("seq", 0, low=0),
            room=min(MAX_ROOM, fields.integer("room", 0, low=0)),
            wait_s=min(MAX_WAIT_S, float(fields.integer("wait_s", 0, low=0))),
            version=fields.string("version", ""),
            leaving=fields.boolean("leaving", False),
            epoch=fields.string("epoch", ""),
            jobs=tuple(Held.parse(value) for value in fields.list("jobs")),
        )


class Contacts:
    """When each agent was last heard of, by this server's monotonic clock alone, and the order of its syncs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: dict[AgentKey, tuple[float, tuple[int, int]]] = {}
        self._written: dict[str, float] = {}
        self._instances: dict[AgentKey, tuple[str, int]] = {}
        self._twins: set[tuple[AgentKey, str]] = set()
        self.started = time.monotonic()

    def note(self, key: AgentKey, request: Request) -> bool:
        """Note a contact; return False for a sync that was overtaken by a newer one of the same agent on its way here."""
        newest = self._hear(key, request.order)
        self._write(request.site, request.agent, request.version)
        return request.order >= newest

    def check_alone(self, key: AgentKey, request: Request) -> None:
        """Raise `Twin` where another process of this identity is at work: not an earlier start of this agent.

        A start makes the generation one more, so a process of the same or an older one than was heard lately is a copy's.
        """
        silent_s = self.silent_s(key)
        with self._lock:
            instance, generation = self._instances.get(key, (request.instance, request.generation))
            if instance == request.instance or request.generation > generation or silent_s > TWIN_SILENT_S:
                self._instances[key] = (request.instance, request.generation)
                return
            first = (key, request.instance) not in self._twins
            self._twins.add((key, request.instance))
        if first:  # it asks again every few seconds
            log.warning("twin", site=request.site, agent=request.agent, user=key[1], generation=request.generation,
                        why="two processes work under one identity; this one is refused", at_work=generation)  # fmt: skip
        raise Twin(
            f"another process works as agent {request.agent} of {request.site}: two with one identity take each other's jobs",
            hint="stop one of them; a copied base gets an identity of its own by removing agent.json and its job folders",
        )

    def heard(self, key: AgentKey, version: str) -> None:
        """Note a contact of an agent that does not sync: a published poller."""
        self._hear(key, (0, 0))
        self._write(key[0], key[2], version)

    def _hear(self, key: AgentKey, order: tuple[int, int]) -> tuple[int, int]:
        """Return the order of the newest contact before this one."""
        with self._lock:
            _, newest = self._seen.get(key, (0.0, (-1, -1)))
            self._seen[key] = (time.monotonic(), max(order, newest))
        return newest

    def overtaken(self, key: AgentKey, order: tuple[int, int]) -> bool:
        """True where a newer sync of this agent has been noted."""
        with self._lock:
            return self._seen.get(key, (0.0, order))[1] > order

    def silent_s(self, key: AgentKey) -> float:
        """Return for how many observed seconds the agent was not heard of (since this server's start, if never)."""
        with self._lock:
            at, _ = self._seen.get(key, (self.started, (0, 0)))
        return time.monotonic() - at

    def known(self) -> dict[AgentKey, float]:
        """Return (site, user, agent) -> seconds since its last contact."""
        with self._lock:
            return {key: time.monotonic() - at for key, (at, _) in self._seen.items()}

    def _write(self, site: str, agent: str, version: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._written.get(site, -CONTACT_EVERY_S) < CONTACT_EVERY_S:
                return
            self._written[site] = now
        value = {"format": 1, "site": site, "agent": agent, "at": utc_now(), "version": version}
        try:
            replace_file(self._store.paths.site(site), jsonio.dumps(value))
        except OSError as exc:  # derived: the call itself goes on
            log.warning("contact_not_written", site=site, why=exc)


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
            return self._judge(state, held, request.order)
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
        if held.state == "returning" and state.state == State.RUNNING:
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
