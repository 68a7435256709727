"""The published server as a `Client` shows its own: the same calls, so that one code decides what runs and what leaves.

Nothing of a job's own is kept here but its `Way`. The command's start is permitted by the server's acknowledged calc-start alone;
uploads happen in one piece at the end (`finish`), because the protocol has no other way.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Callable

from spool import log
from spool.agent import published_files
from spool.agent.published_calls import Answer, Calls, NoSuchSite
from spool.agent.published_files import Params
from spool.agent.published_way import Steps, Way
from spool.errors import Conflict, InvalidRecord, NotFound, StaleRun, TooLarge, TransferFailed, Unreachable
from spool.instants import utc_now
from spool.names import is_id, new_id
from spool.paths import JobPaths
from spool.published import ABNORMAL, CALC_END, COMPLETE_SEND, GETTING_RETURN, GOT_RETURN, MAX_BODY_BYTES, RUNNING, SENDING_PARAMS
from spool.records import FileEntry, JobState, Result
from spool.results import final_state
from spool.states import State
from spool.streams import length_of

MARK = "published"  # the key in a local state.json that says by which protocol the job came
TOKEN_OWNER = "token-owner"  # the user of every job where the token's owner is not known: the protocol does not name him
UNREADABLE_TRIES = 3
ENVELOPE_BYTES = 1024  # of a body besides its files: ids


def _always() -> None:
    pass


class PublishedClient:
    """The adapter over `Calls`. Threads may share one.

    `logs` gives, for a job's and a run's id, the folder that holds ``log/``, where logs leave at all; `hides` tells of a name
    whether it must not be told of.
    """

    in_one_piece = True  # all files leave with `finish`

    def __init__(
        self, calls: Calls, base: Path, *, user: str = "", logs: Callable[[str, str], Path] | None = None,
        hides: Callable[[str], bool] = lambda name: False,
    ) -> None:  # fmt: skip
        self._calls = calls
        self._base = base
        self._user = user or TOKEN_OWNER
        self._logs = logs
        self._hides = hides
        self._ways: dict[str, Way] = {}
        self._offers: dict[str, JobState] = {}
        self._unreadable: dict[str, int] = {}
        self._syncing = threading.Lock()
        self.may_send: Callable[[], None] = _always

    def carries(self, job_id: str) -> bool:
        """True for a job that came by this protocol."""
        return job_id in self._ways

    def offered(self, job_id: str) -> bool:
        """True for the job that the server offered last."""
        return job_id in self._offers

    def adopt(self, state: JobState) -> None:
        """Carry this job from now on, where it stands."""
        accept_id = str(state.extra[MARK]["accept_id"])
        self._ways[state.id] = Way(self._calls, self._base / state.id, Steps(state.run_id, accept_id), state.site)
        self._offers.pop(state.id, None)

    def ask(self, site: str) -> Answer:
        """Ask for a job; the answer is for `sync`."""
        return self._calls.request(site)

    # What an agent's loop asks

    def sync(self, request: Mapping[str, Any], asked: Answer | None = None) -> dict[str, Any]:
        """Take the steps that the reported jobs wait for, ask for one more where there is room, and say what is wanted.

        `asked` is what was answered to the question for a job where that was put already.
        """
        with self._syncing:
            told = [self._tell(job) for job in request["jobs"]]
            return {"jobs": [*told, *self._more(request, asked)]}

    def _more(self, request: Mapping[str, Any], asked: Answer | None) -> list[dict[str, str]]:
        # One job at a time, whatever `slots` says: a poller that asks has nothing in hand any more, and a server may take
        # what it has not started back, or what it has not sent for lost.
        if asked is None and request["room"] > 0 and not request["jobs"]:
            asked = self._calls.request(request["site"])
        return [] if asked is None else self._offer(asked, request)

    def _tell(self, job: Mapping[str, Any]) -> dict[str, str]:
        way = self._ways[job["id"]]
        want = "return"
        if job["state"] == State.CLAIMED:
            want = self._permit(way) if job["ready"] else "forget" if way.steps.gone else "fetch"
        elif job["state"] in (State.RUNNING, State.HELD):  # held: there it has simply not ended yet
            want = "run" if way.still_there() else "forget"
        return {"id": job["id"], "run_id": job["run_id"], "want": want}

    @staticmethod
    def _permit(way: Way) -> str:
        """Ask for the start; the word is `start` only where the server acknowledged it to this agent."""
        if way.steps.ending:  # its end was being told when the agent was killed: it must not start after all
            return "cancel"
        try:
            way.take("calc-params-complete", COMPLETE_SEND)
            way.take("calc-start", RUNNING)
        except StaleRun as exc:
            log.warning("given_up_there", job=way.steps.accept_id, why=exc)
            return "forget"
        return "start"

    def _offer(self, asked: Answer, request: Mapping[str, Any]) -> list[dict[str, str]]:
        if asked.code == "400":
            raise NoSuchSite(asked.message, hint="set the site's identifier as MInt's operators gave it")
        accept_id = asked.accept_id
        if not (asked.ok and accept_id) or request["room"] <= 0:
            return []
        # Another form than a canonical UUID must not become a path.
        job_id = accept_id if is_id(accept_id) else str(uuid.uuid5(uuid.NAMESPACE_URL, accept_id))
        mark = {MARK: {"accept_id": accept_id}}
        state = JobState(job_id, State.CLAIMED, request["site"], self._user, 1, run_id=new_id(), claimed_at=utc_now(), extra=mark)
        self._offers = {job_id: state}
        return [{"id": job_id, "run_id": state.run_id, "want": "fetch"}]

    def state(self, job_id: str) -> JobState:
        """Return the record of the job that was offered last; nothing of it is known yet but its id."""
        if job_id not in self._offers:
            raise NotFound(f"job {job_id} is not offered any more", hint="the next sync tells")
        return self._offers[job_id]

    # What a job's carrier asks

    def job_bytes(self, job_id: str) -> bytes:
        """Claim the job, receive its inputs into `in/` and return job.json. Nothing is asked where that was done before."""
        way, paths = self._ways[job_id], self._paths(job_id)
        params = self._params(job_id)
        if params is None:
            self._receive(job_id, way)
            params = self._params(job_id)
        if params is None:
            raise InvalidRecord(f"{way.folder} lost what was received", hint="does something clean it up?")
        if not way.reached(SENDING_PARAMS):
            way.note(taken=SENDING_PARAMS, trying="")
        params.check()
        published_files.place(params, paths.inputs)
        return published_files.job_of(params, job_id, way.site, self._user).encode()

    def _receive(self, job_id: str, way: Way) -> None:
        way.open()
        try:
            published_files.receive(way.params, way.folder / "params")
        except InvalidRecord as exc:
            self._unreadable[job_id] = self._unreadable.get(job_id, 0) + 1
            kind = Unreachable if self._unreadable[job_id] < UNREADABLE_TRIES else TransferFailed
            raise kind(f"the inputs cannot be read: {exc.message}", hint="see MInt's log") from exc

    def signature_bytes(self, job_id: str) -> None:
        """Return None: the protocol carries no signature."""

    def inputs(self, state: JobState) -> tuple[FileEntry, ...]:
        """Return the manifest of the inputs, as measured here."""
        params = self._params(state.id)
        return params.inputs if params else ()

    @contextlib.contextmanager
    def download(self, job_id: str, name: str, offset: int, sha256: str) -> Iterator[Iterator[bytes]]:
        """Raise: the inputs came with `job_bytes`, and the server does not send them twice."""
        raise TransferFailed(f"in/{name} of job {job_id} is gone, and is not sent twice", hint="did something clean up the base?")
        yield iter(())

    @contextlib.contextmanager
    def download_tar(self, job_id: str, after: str, max_bytes: int) -> Iterator[Any]:
        """Raise, as `download`."""
        raise TransferFailed(f"inputs of job {job_id} are gone, and are not sent twice", hint="did something clean up the base?")
        yield None

    def upload_offset(self, job_id: str, run_id: str, name: str) -> int:
        """Return the size of the file here: it goes with `finish`, all at once."""
        return (self._paths(job_id).folder / name).stat().st_size

    def upload(self, job_id: str, run_id: str, name: str, file: BinaryIO, offset: int, length: int) -> int:
        """Send nothing."""
        return offset + length

    def upload_tar(self, job_id: str, run_id: str, data: bytes) -> None:
        """Send nothing."""

    def still_wants(self, job_id: str, run_id: str) -> bool:
        """False: a step that is refused for good ends the job here; `PublishedWay` has asked calc-progress before."""
        return False

    def finish(self, result: Result) -> dict[str, Any]:
        """Take the steps from where the job is to its end; return the state it ended in. Safe to repeat after a restart.

        A job whose command never ran goes all the way too: the protocol has no other for telling its reason.
        """
        self.may_send()
        way = self._ways.get(result.id)
        if way is None:  # never claimed
            return {}
        if not way.steps.ending:
            way.note(ending=True)
        found = {} if way.reached(GETTING_RETURN) else self._results(way, result)
        if not way.reached(SENDING_PARAMS):
            way.note(taken=SENDING_PARAMS)
        way.take("calc-params-complete", COMPLETE_SEND)
        way.take("calc-start", RUNNING)
        way.take("calc-end", CALC_END, {"result": ABNORMAL if result.reason or way.steps.refused else CALC_END})
        self._send(way, found)
        way.take("end-send", GOT_RETURN, {"result": "end send"})
        return {"state": str(State.FAILED if way.steps.refused else final_state(result)), "refused": way.steps.refused}

    def _results(self, way: Way, result: Result) -> dict[str, Any]:
        params = self._params(result.id)
        wanted = params.wanted if params else ()
        logs = self._logs(result.id, result.run_id) if self._logs else None
        found = published_files.entries(wanted, result, self._paths(result.id).folder, logs, self._hides)
        size = length_of(found) + ENVELOPE_BYTES
        if size >= MAX_BODY_BYTES:
            why = f"the results have {size} bytes once encoded; the published protocol carries less than {MAX_BODY_BYTES}"
            way.note(refused=why)
        return published_files.all_absent(found, way.steps.refused) if way.steps.refused else found

    @staticmethod
    def _send(way: Way, found: dict[str, Any]) -> None:
        """Send the results; where they are refused, entries with the reason; where these are too, end-send alone says it."""
        try:
            way.take("send-results", GETTING_RETURN, {"result_files": found})
        except (TransferFailed, TooLarge, Conflict) as exc:
            log.warning("results_refused", job=way.steps.accept_id, why=exc)
            way.note(refused=f"the results could not be sent: {exc.message}")
            with contextlib.suppress(TransferFailed, TooLarge):
                found = published_files.all_absent(found, way.steps.refused)
                way.take("send-results", GETTING_RETURN, {"result_files": found})

    def _paths(self, job_id: str) -> JobPaths:
        return JobPaths(self._base / job_id)

    def _params(self, job_id: str) -> Params | None:
        return published_files.load(self._ways[job_id].folder / "params")
