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
from spool.errors import Conflict, InvalidRecord, NotFound, SpoolError
from spool.fields import Fields
from spool.files import open_beneath, read_record, remove_tree, replace_file, sync_file
from spool.incoming import Digests, Incoming
from spool.manifest import hash_fd
from spool.patterns import literal
from spool.published import ABNORMAL, CALC_END, ERROR, WITHHELD
from spool.records import CANCELED, FileEntry, Job, JobState, Result
from spool.results import accept
from spool.server.published_forms import why_not_for_a_poller
from spool.states import FINAL, Reason, State
from spool.store import Store
from spool.streams import Stored

_MOST_TOLD = 10_000
_ORDER = (0, 1)  # of what a poller's next calc-request tells: later than its claim, which has (0, 0)
_MAX_BYTES = 16 * 1024 * 1024


class OutOfTurn(Conflict):
    """The job is not where this step can follow: too early, past it, canceled, or another poller's."""


@dataclass(frozen=True)
class Trace:
    """poller.json: what the poller of one run has said. `end` is empty, `calc end` or `abnormal`; `media` by name in the job.

    `closed`: the results are being judged, and no others are taken. `asked`: a calc-request came since its last step.
    """

    received: bool = False
    end: str = ""
    returned: bool = False
    closed: bool = False
    asked: bool = False
    media: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def further(self) -> bool:
        """True where the step within the present state was taken (`spool.published.PROGRESS`)."""
        return self.returned if self.end else self.received

    @classmethod
    def read(cls, incoming: Incoming) -> Trace:
        """Return what was said so far; nothing where that cannot be read any more, so that the job can still end."""
        path = incoming.folder / "poller.json"
        try:
            fields = Fields(jsonio.loads(read_record(path, _MAX_BYTES), "poller.json"), "poller.json")
            words = {name: fields.boolean(name, False) for name in ("received", "returned", "closed", "asked")}
            return cls(**words, end=fields.string("end", ""), media=fields.mapping("media"))
        except FileNotFoundError:
            return cls()
        except InvalidRecord as exc:
            log.error("unreadable", file=path, why=exc)
            return cls()

    def write(self, incoming: Incoming) -> None:
        """Replace the record, durably."""
        incoming.prepare()
        replace_file(incoming.folder / "poller.json", jsonio.dumps({**self.__dict__, "media": dict(self.media)}))


def poller_name(token_id: str, address: str) -> str:
    """Return the name under which a poller claims: its token and its real address."""
    return f"{published.POLLER}{token_id}@{re.sub(r'[^0-9A-Za-z.-]', '_', address)}"[:64]


def _token_of(poller: str) -> str:
    return poller.partition("@")[0]


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

        A poller that asks has no job in hand: what it had is ended, or given back where it was not started. What would be lost
        by that ends when it asks twice, and the first time it is told of no job: a line that was cut can bring, once it is
        whole again, a request that the poller has long given up, after the steps that followed it.
        """
        for job_id in self._store.queue.active(site, poller):
            try:
                if self._may_be_late(job_id, poller):
                    return ""
                self._put_down(job_id, site, poller)
            except (SpoolError, OSError) as exc:  # it does not keep the poller from its next job
                log.warning("not_put_down", job=job_id, site=site, agent=poller, why=exc)
        if not enabled:
            return ""
        controls = self._store.controls.get()
        for entry in self._store.queue.waiting(site, [user]):
            with contextlib.suppress(SpoolError, OSError):
                state = self._store.state(entry.job_id)
                held_back = controls.why_not_claimed(site, state.workflow)
                if state.state == State.QUEUED and not held_back and self._can_carry(state):
                    return state.id
        return ""

    def _may_be_late(self, job_id: str, poller: str) -> bool:
        """Note that the poller of a job whose end is to come asks; True where that is the first time since its last step."""
        with contextlib.suppress(NotFound), self._store.locked(job_id) as state:
            trace = self.trace(state)
            unfinished = state.state == State.RUNNING or (state.state == State.RETURNING and trace.end == CALC_END)
            if state.agent == poller and unfinished and not (trace.returned or trace.asked):
                replace(trace, asked=True).write(self.incoming(state))
                return True
        return False

    def _can_carry(self, state: JobState) -> bool:
        why = why_not_for_a_poller(self._store.job(state.id), state)
        if why and state.id not in self._told:
            if len(self._told) > _MOST_TOLD:
                self._told.clear()
            self._told.add(state.id)
            log.warning("not_for_a_poller", job=state.id, site=state.site, why=why)
        return not why

    def params(self, job_id: str, poller: str) -> JobState:
        """calc-params: claim the job for this poller; the repeat of the same poller gets it again."""
        state = self._store.state(job_id)
        if state.state == State.QUEUED and self._can_carry(state):
            try:
                return self._store.claim_one(job_id, agent=poller)
            except Conflict:  # somebody was quicker; it may have been a repeat of this very call
                state = self._store.state(job_id)
        if state.state == State.CLAIMED and state.agent == poller and not self.trace(state).received:
            return state
        raise OutOfTurn(f"job {job_id} is {state.state} and cannot be fetched (any more)", hint="ask calc-request")

    def received(self, job_id: str, poller: str) -> None:
        """calc-params-complete"""
        with self._turn(job_id, poller, State.CLAIMED) as state:
            incoming = self.incoming(state)
            replace(Trace.read(incoming), received=True).write(incoming)

    def start(self, job_id: str, poller: str) -> None:
        """calc-start: claimed -> running, once the inputs were received."""
        with self._turn(job_id, poller, State.CLAIMED, State.RUNNING) as state:
            if not self.trace(state).received:
                raise OutOfTurn(f"the inputs of job {job_id} were not received", hint="say calc-params-complete first")
        self._store.start(job_id, state.run_id, by=poller)

    def end(self, job_id: str, poller: str, word: str) -> None:
        """calc-end: running -> returning; `word` is `calc end` or `abnormal`."""
        with self._turn(job_id, poller, State.RUNNING, State.RETURNING) as state:
            incoming = self.incoming(state)
            trace = Trace.read(incoming)
            if trace.returned or trace.end not in ("", word):
                raise OutOfTurn(f"job {job_id} has ended with {trace.end!r} already", hint="go on, or ask calc-request")
            replace(trace, end=word, asked=False).write(incoming)
        self._store.returning(job_id, state.run_id, by=poller, exit_code=0 if word == CALC_END else None)

    def results(self, job_id: str, poller: str, files: Mapping[str, Stored], media: Mapping[str, list[str]]) -> None:
        """send-results: keep the files; a repeat replaces what was kept. Of two at once one is kept whole."""
        with self._turn(job_id, poller, State.RETURNING):
            pass
        for item in files.values():  # outside of the lock, under which they are only renamed
            sync_file(item.path)
        with self._turn(job_id, poller, State.RETURNING) as state:
            incoming = self.incoming(state)
            trace = Trace.read(incoming)
            if trace.closed:
                raise OutOfTurn(f"the results of job {job_id} are complete", hint="say end-send, or ask calc-request")
            if trace.returned:  # what a crash leaves of two sendings must not count
                replace(trace, returned=False, media={}).write(incoming)
            remove_tree(incoming.files)  # folders too: what was one may be a file now
            incoming.adopt(files)
            replace(trace, returned=True, asked=False, media=dict(media)).write(incoming)

    def end_send(self, job_id: str, poller: str) -> JobState:
        """end-send: verify, move in and end the job; without results it has failed."""
        try:
            with self._turn(job_id, poller, State.RETURNING) as state:
                pass
        except OutOfTurn:
            state = self._store.state(job_id)
            result = self._store.result(job_id) if state.state in (State.COMPLETED, State.FAILED) else None
            if result is None or result.run_id != state.run_id or not self._has(state, poller):
                raise
            return state
        return self._finish(state, poller)

    # Judging

    def _has(self, state: JobState, poller: str) -> bool:
        """True where the job's run is this poller's. Its address may change after calc-params, if it had no earlier run."""
        if state.agent == poller or not published.is_poller(state.agent):
            return state.agent == poller
        if _token_of(state.agent) != _token_of(poller):
            return False
        return all(entry.by != poller or entry.run_id == state.run_id for entry in self._store.history(state))

    @contextlib.contextmanager
    def _turn(self, job_id: str, poller: str, *states: State) -> Iterator[JobState]:
        """Hold the job's lock, the run being this poller's and in one of `states`; a cancel asked for is confirmed here."""
        canceled = None
        with self._store.locked(job_id) as state:
            if not self._has(state, poller):
                raise OutOfTurn(f"job {job_id} is {state.state}, and not this poller's", hint="ask calc-request")
            if state.agent != poller and state.state not in FINAL:  # found under its new address when it asks for another job
                state = self._store.hand_over(state, poller)
            if state.cancel_requested_at and state.state in (State.RUNNING, State.RETURNING):
                canceled = state
            elif state.state not in states:
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
        """Close the results of a returning job, so that none come between their judgement and their acceptance; end it."""
        with self._store.locked(state.id) as now:
            incoming = self.incoming(now)
            if now.run_id == state.run_id and now.state not in FINAL:
                replace(Trace.read(incoming), closed=True).write(incoming)
            trace = Trace.read(incoming)
        try:
            result = self._judge(state, trace)
        except FileNotFoundError as exc:  # not sent again either: it must not stay like this for ever
            log.error("results_gone", job=state.id, run=state.run_id, why=exc)
            result = self._judge(state, replace(trace, returned=False))
        return accept(self._store, result, by=poller, digests=self._digests)

    def _judge(self, state: JobState, trace: Trace) -> Result:
        """Return the result that the poller's words come to."""
        job = self._store.job(state.id)
        kept = [name for name, kind in trace.media.items() if kind[0] != ERROR] if trace.returned else []
        missing = [name for name in map(literal, job.outputs) if name and f"out/{name}" not in kept]
        reason, message = _verdict(job, trace, missing)
        stays = [name for name, kind in trace.media.items() if kind == [ERROR, WITHHELD]] if trace.returned else []
        withheld = tuple(f"{name[4:] if name.startswith('out/') else name}: {WITHHELD}" for name in stays)
        missing = [name for name in missing if f"out/{name}" not in stays]
        return Result(
            id=state.id, run_id=state.run_id, attempt=state.attempt, exit_code=0 if trace.end == CALC_END else None,
            reason=reason, message=message, started_at=state.started_at, finished_at=state.changed_at,
            files=tuple(self._entry(state, name) for name in kept), missing=tuple(missing), withheld=withheld,
            extra={"media": dict(trace.media)},
        )  # fmt: skip

    def _entry(self, state: JobState, name: str) -> FileEntry:
        with contextlib.suppress(FileNotFoundError):
            return self.incoming(state).entry(name)
        # a repeat at once, or a crash, between the move and the final state
        with open(open_beneath(self._store.paths.job(state.id).folder, name, os.O_RDONLY), "rb") as file:
            digest, size = hash_fd(file.fileno())
        return FileEntry(name, size, digest)


def _verdict(job: Job, trace: Trace, missing: list[str]) -> tuple[str, str]:
    if trace.end == ABNORMAL:
        return Reason.ABNORMAL.value, "the poller said abnormal: exit code not 0, or none of the outputs was written"
    if not trace.returned:
        return Reason.TRANSFER.value, "the poller could not send the results"
    if job.require_all and missing:
        return Reason.MISSING_OUTPUTS.value, f"the poller did not find: {' '.join(missing)}"
    return "", ""
