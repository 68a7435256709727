"""What a published poller does to a job, step by step, each safe to repeat (docs/protocol.md, "The published protocol").

A poller has one job at a time and says only how far it is. That stands in `incoming/RUN_ID/poller.json`, written before the
state, so that a repeat after any crash or lost answer finds where it was. A poller is known by its token and its real address.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from spool import jsonio, log, published
from spool.errors import Conflict, NotFound, SpoolError
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.incoming import Digests, Incoming
from spool.patterns import literal
from spool.published import ABNORMAL, CALC_END, ERROR
from spool.records import CANCELED, FileEntry, Job, JobState, Result
from spool.results import accept
from spool.server.published_forms import why_not_for_a_poller
from spool.states import FINAL, Reason, State
from spool.store import Store
from spool.streams import Stored

_ORDER = (0, 1)  # of what a poller's next calc-request tells: later than its claim, which has (0, 0)
_MAX_BYTES = 16 * 1024 * 1024


class OutOfTurn(Conflict):
    """The job is not where this step can follow: too early, past it, canceled, or another poller's."""


@dataclass(frozen=True)
class Trace:
    """poller.json: what the poller of one run has said. `end` is empty, `calc end` or `abnormal`; `media` by name in the job."""

    received: bool = False
    end: str = ""
    returned: bool = False
    media: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def further(self) -> bool:
        """True where the step within the present state was taken (`spool.published.PROGRESS`)."""
        return self.returned if self.end else self.received

    @classmethod
    def read(cls, incoming: Incoming) -> Trace:
        """Return what was said so far."""
        try:
            fields = Fields(jsonio.loads(read_record(incoming.folder / "poller.json", _MAX_BYTES), "poller.json"), "poller.json")
        except FileNotFoundError:
            return cls()
        received, returned = fields.boolean("received", False), fields.boolean("returned", False)
        return cls(received, fields.string("end", ""), returned, fields.mapping("media"))

    def write(self, incoming: Incoming) -> None:
        """Replace the record, durably."""
        incoming.prepare()
        replace_file(incoming.folder / "poller.json", jsonio.dumps({**self.__dict__, "media": dict(self.media)}))


def poller_name(token_id: str, address: str) -> str:
    """Return the name under which a poller claims: its token and its real address."""
    return f"poller-{token_id}@{re.sub(r'[^0-9A-Za-z.-]', '_', address)}"[:64]


class Pollers:
    """The seven calls of the pollers over one store. `poller` is a name by `poller_name`; errors as `Store`, and `OutOfTurn`."""

    def __init__(self, store: Store, digests: Digests) -> None:
        self._store = store
        self._digests = digests
        self._told: set[str] = set()

    def incoming(self, state: JobState) -> Incoming:
        """Return where the results of the job's current run arrive."""
        return Incoming(self._store.paths.job(state.id).incoming_of(state.run_id), self._digests)

    def progress(self, state: JobState) -> str:
        """Return how far the job is in the published words, whoever runs it."""
        further = self.trace(state).further
        if state.state == State.RETURNING and not further:
            further = any(files for _, _, files in os.walk(self.incoming(state).files))
        return published.progress(state, further=further)

    def status(self, state: JobState) -> str:
        """Return `none`, `completed` or `abnormal`."""
        return published.status(state, abnormal=self.trace(state).end == ABNORMAL or bool(state.exit_code))

    def trace(self, state: JobState) -> Trace:
        """Return what the poller of the job's current run has said; nothing where no poller has it."""
        return Trace.read(self.incoming(state)) if state.run_id and state.state not in FINAL else Trace()

    # The calls

    def request(self, site: str, user: str, poller: str, *, enabled: bool) -> str:
        """calc-request: return the id of the first job that waits for this site and user, or ``""``. Claims nothing.

        A poller that asks has no job in hand: what it had is ended, or given back where it was not started.
        """
        for job_id in self._store.queue.active(site, poller):
            try:
                self._put_down(job_id, site, poller)
            except (SpoolError, OSError) as exc:  # it does not keep the poller from its next job
                log.warning("not_put_down", job=job_id, site=site, agent=poller, why=exc)
        if not enabled:
            return ""
        for entry in self._store.queue.waiting(site, [user]):
            with contextlib.suppress(SpoolError, OSError):
                state = self._store.state(entry.job_id)
                if state.state == State.QUEUED and self._can_carry(state):
                    return state.id
        return ""

    def _can_carry(self, state: JobState) -> bool:
        why = why_not_for_a_poller(self._store.job(state.id))
        if why and state.id not in self._told:
            self._told.add(state.id)
            log.warning("not_for_a_poller", job=state.id, site=state.site, why=why)
        return not why

    def params(self, job_id: str, poller: str) -> JobState:
        """calc-params: claim the job for this poller; the repeat of the same poller gets it again."""
        state = self._store.state(job_id)
        if state.state == State.QUEUED and self._can_carry(state):
            return self._store.claim_one(job_id, agent=poller)
        if state.state == State.CLAIMED and state.agent == poller and not self.trace(state).received:
            return state
        raise OutOfTurn(f"job {job_id} is {state.state} and cannot be fetched (any more)", hint="ask calc-request")

    def received(self, job_id: str) -> None:
        """calc-params-complete"""
        with self._turn(job_id, State.CLAIMED) as state:
            incoming = self.incoming(state)
            replace(Trace.read(incoming), received=True).write(incoming)

    def start(self, job_id: str, poller: str) -> None:
        """calc-start: claimed -> running, once the inputs were received."""
        with self._turn(job_id, State.CLAIMED, State.RUNNING) as state:
            if not self.trace(state).received:
                raise OutOfTurn(f"the inputs of job {job_id} were not received", hint="say calc-params-complete first")
        self._store.start(job_id, state.run_id, by=poller)

    def end(self, job_id: str, poller: str, word: str) -> None:
        """calc-end: running -> returning; `word` is `calc end` or `abnormal`."""
        with self._turn(job_id, State.RUNNING, State.RETURNING) as state:
            incoming = self.incoming(state)
            trace = Trace.read(incoming)
            if trace.returned or trace.end not in ("", word):
                raise OutOfTurn(f"job {job_id} has ended with {trace.end!r} already", hint="go on, or ask calc-request")
            replace(trace, end=word).write(incoming)
        self._store.returning(job_id, state.run_id, by=poller, exit_code=0 if word == CALC_END else None)

    def results(self, job_id: str, files: Mapping[str, Stored], media: Mapping[str, list[str]]) -> None:
        """send-results: keep the files; a repeat replaces what was kept."""
        with self._turn(job_id, State.RETURNING) as state:
            pass
        self.incoming(state).adopt(files)
        with self._turn(job_id, State.RETURNING) as now:
            if now.run_id != state.run_id:
                raise OutOfTurn(f"job {job_id} was given up meanwhile", hint="ask calc-request")
            incoming = self.incoming(state)
            replace(Trace.read(incoming), returned=True, media=dict(media)).write(incoming)

    def end_send(self, job_id: str, poller: str) -> JobState:
        """end-send: verify, move in and end the job; without results it has failed."""
        state = self._store.state(job_id)
        result = self._store.result(job_id) if state.state in (State.COMPLETED, State.FAILED) else None
        if result is not None and result.run_id == state.run_id and state.agent.startswith("poller-"):
            return state
        with self._turn(job_id, State.RETURNING) as state:
            pass
        return self._finish(state, poller)

    # Judging

    @contextlib.contextmanager
    def _turn(self, job_id: str, *states: State) -> Iterator[JobState]:
        """Hold the job's lock, the job being a poller's and in one of `states`; a cancel that was asked for is confirmed here."""
        canceled = None
        with self._store.locked(job_id) as state:
            if state.cancel_requested_at and state.state in (State.RUNNING, State.RETURNING):
                canceled = state
            elif state.state not in states or not state.agent.startswith("poller-"):
                raise OutOfTurn(f"job {job_id} is {state.state} and this step cannot follow", hint="ask calc-request")
            else:
                yield state
        if canceled is not None:
            self._cancel(canceled)
            raise OutOfTurn(f"job {job_id} was canceled", hint="ask calc-request")

    def _cancel(self, state: JobState) -> None:
        result = Result(id=state.id, run_id=state.run_id, attempt=state.attempt, reason=CANCELED, message="canceled")
        accept(self._store, result, by=state.agent, digests=self._digests)

    def _put_down(self, job_id: str, site: str, poller: str) -> None:
        try:
            state = self._store.state(job_id)
        except NotFound:
            self._store.queue.remove_active(site, poller, job_id)
            return
        if state.agent != poller or state.state in FINAL:
            with self._store.locked(job_id) as now:
                if now.agent != poller or now.state in FINAL:
                    self._store.queue.remove_active(site, poller, job_id)
        elif state.state == State.CLAIMED:
            self._store.give_back(job_id, state.run_id, by=poller, why="the poller asks for another job")
        elif state.cancel_requested_at:
            self._cancel(state)
        elif state.state == State.RUNNING:
            message = "the poller, which may have started the command, asks for another job"
            self._store.lose(job_id, state.run_id, by=poller, order=_ORDER, message=message)
        else:
            self._finish(state, poller)

    def _finish(self, state: JobState, poller: str) -> JobState:
        trace = self.trace(state)
        return accept(self._store, self._judge(state, trace), by=poller, digests=self._digests)

    def _judge(self, state: JobState, trace: Trace) -> Result:
        """Return the result that the poller's words come to."""
        job, incoming = self._store.job(state.id), self.incoming(state)
        files = self._here(incoming, trace)
        missing = [name for name in map(literal, job.outputs) if name and f"out/{name}" not in {item.path for item in files}]
        reason, message = _verdict(job, trace, missing)
        return Result(
            id=state.id, run_id=state.run_id, attempt=state.attempt, exit_code=0 if trace.end == CALC_END else None,
            reason=reason, message=message, started_at=state.started_at, finished_at=state.changed_at, files=tuple(files),
            missing=tuple(missing), extra={"media": dict(trace.media)},
        )  # fmt: skip

    @staticmethod
    def _here(incoming: Incoming, trace: Trace) -> list[FileEntry]:
        if not trace.returned:
            return []
        return [incoming.entry(name) for name, kind in trace.media.items() if kind[0] != ERROR]


def _verdict(job: Job, trace: Trace, missing: list[str]) -> tuple[str, str]:
    if trace.end == ABNORMAL:
        return Reason.ABNORMAL.value, "the poller said abnormal: exit code not 0, or none of the outputs was written"
    if not trace.returned:
        return Reason.TRANSFER.value, "the poller could not send the results"
    if job.require_all and missing:
        return Reason.MISSING_OUTPUTS.value, f"the poller did not find: {' '.join(missing)}"
    return "", ""
