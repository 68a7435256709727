"""The routes of /v1 (docs/protocol.md). Each function is one call: who may, what is judged, what is answered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, Callable
from urllib.parse import parse_qs

from bottle import Bottle, HTTPResponse, request

from spool import jsonio
from spool.config import LiveConfig
from spool.drops import check_against, first_state, freeze_inputs
from spool.errors import Conflict, InvalidRecord, InvalidRequest, NoSpace, NotFound, StaleRun, UnknownRun
from spool.files import open_beneath, remove_tree, replace_file
from spool.incoming import Digests, Incoming
from spool.names import check_name, is_id, new_id
from spool.paths import JobPaths
from spool.records import JOB_LIMIT_BYTES, FileEntry, Job, JobState, Result
from spool.registering import publish_new
from spool.results import accept, keep_late
from spool.room import why_no_room
from spool.server import files
from spool.server.auth import Asker, Auth
from spool.server.sync import Sync
from spool.signatures import LIMIT_BYTES
from spool.signed import check_handed_in, signed_by
from spool.states import State
from spool.store import Store, check_run

SYNC_LIMIT_BYTES = 4 * 1024 * 1024
_PARTS = ("out", "log")


def answer(value: dict[str, Any], status: int = 200) -> HTTPResponse:
    """Return a JSON answer, UTF-8 without escapes."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8")
    return HTTPResponse(body, status, {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"})


def summary(state: JobState) -> dict[str, Any]:
    """Return a job's state as the API shows it in lists: without the manifest."""
    value: dict[str, Any] = jsonio.loads(state.encode(), "state.json")
    value.pop("inputs")
    return value


class V1:
    """The calls of version 1 over one store."""

    def __init__(self, store: Store, config: LiveConfig, auth: Auth, sync: Sync, digests: Digests) -> None:
        self._store = store
        self._config = config
        self._auth = auth
        self._sync = sync
        self._digests = digests

    def mount(self, app: Bottle) -> None:
        """Add the routes to `app`."""
        for method, path, call in self.routes():
            app.route(path, method, call)

    def routes(self) -> Iterator[tuple[str, str, Callable[..., HTTPResponse]]]:
        """Yield (method, path, function); the documentation's table is checked against this."""
        job, file = "/v1/jobs/<job_id>", "/v1/jobs/<job_id>/files/<part:re:out|log>/<name:path>"
        yield "POST", "/v1/sync", self.sync
        yield "POST", "/v1/jobs", self.register
        yield "GET", "/v1/jobs", self.list
        yield "GET", job, self.show
        yield "POST", f"{job}/enqueue", self.enqueue
        yield "POST", f"{job}/cancel", self.cancel
        yield "POST", f"{job}/requeue", self.requeue
        yield "POST", f"{job}/finish", self.finish
        yield "GET", f"{job}/files/job.json", self.get_job
        yield "GET", f"{job}/files/job.json.sig", self.get_signature
        yield "POST", f"{job}/files/job.json.sig", self.put_signature
        yield "GET", f"{job}/in.tar", self.get_tar
        yield "POST", f"{job}/files/out.tar", self.put_tar
        yield "GET", f"{job}/files/in/<name:path>", self.get_input
        yield "HEAD", f"{job}/files/in/<name:path>", self.head_input
        yield "PATCH", f"{job}/files/in/<name:path>", self.put_input
        yield "POST", f"{job}/files/in/<name:path>", self.put_input
        yield "GET", file, self.get_output
        yield "HEAD", file, self.head_output
        yield "PATCH", file, self.put_output
        yield "POST", file, self.put_output

    def _asker(self) -> Asker:
        return self._auth.asker(request.environ)

    def _seen(self, job_id: str) -> tuple[Asker, JobState]:
        asker = self._asker()
        state = self._store.state(job_id)
        asker.need_seen(state)
        return asker, state

    @property
    def _limit(self) -> int:
        return int(self._config.get().server["max_chunk"])

    def _need_space(self, length: int) -> None:
        why = why_no_room(self._store.paths.root, self._config.get().server["min_free"], coming=length)
        if why:
            raise NoSpace(f"the spool takes nothing new: {why}", hint="try again later; an operator makes room")

    # Agent

    def sync(self) -> HTTPResponse:
        """POST /v1/sync"""
        asker = self._asker()
        return answer(self._sync.answer(asker, files.read_body(request.environ, SYNC_LIMIT_BYTES)))

    def _running(self, job_id: str) -> JobState:
        asker, state = self._seen(job_id)
        asker.need_agent(state)
        with self._telling_unknown(state, query("run_id")):
            check_run(state, query("run_id"))
        return state

    @contextlib.contextmanager
    def _telling_unknown(self, state: JobState, run_id: str) -> Iterator[None]:
        """Make `UnknownRun` of a `StaleRun` that the job's history does not have."""
        try:
            yield
        except StaleRun as exc:
            if is_id(run_id) and not self._store.knows(state, run_id):
                hint = "a restore from a backup? the agent keeps it; an operator decides"
                raise UnknownRun(f"run {run_id} of job {state.id} is not known here", hint=hint) from exc
            raise

    def _incoming(self, state: JobState) -> Incoming:
        return Incoming(self._store.paths.job(state.id).incoming_of(state.run_id), self._digests)

    def put_output(self, job_id: str, part: str, name: str) -> HTTPResponse:
        """PATCH, or POST with X-HTTP-Method-Override: append a chunk of a result."""
        _need_patch()
        state = self._running(job_id)
        if state.state not in (State.RUNNING, State.HELD, State.RETURNING):
            raise Conflict(f"job {job_id} is {state.state} and takes no results", hint="sync tells what is wanted")
        self._need_space(files.body_length(request.environ, self._limit))
        return files.upload_chunk(request.environ, self._incoming(state), f"{part}/{check_name(name)}", self._limit)

    def head_output(self, job_id: str, part: str, name: str) -> HTTPResponse:
        """HEAD: with run_id how much of a result is here, without it the headers of a finished file."""
        if not query("run_id"):
            return self.get_output(job_id, part, name)
        state = self._running(job_id)
        return files.upload_state(self._incoming(state), f"{part}/{check_name(name)}")

    def put_tar(self, job_id: str) -> HTTPResponse:
        """POST out.tar: many small results in one request."""
        state = self._running(job_id)
        if state.state not in (State.RUNNING, State.HELD, State.RETURNING):
            raise Conflict(f"job {job_id} is {state.state} and takes no results", hint="sync tells what is wanted")
        self._need_space(files.body_length(request.environ, self._limit))
        return answer({"files": files.upload_tar(request.environ, self._incoming(state), "out", self._limit)})

    def finish(self, job_id: str) -> HTTPResponse:
        """POST finish: the result.json of a run; everything in its manifest must be here. Safe to repeat."""
        asker, state = self._seen(job_id)
        asker.need_agent(state)
        result = Result.parse(files.read_body(request.environ, jsonio.MAX_BYTES))
        if result.id != job_id:
            raise InvalidRecord(f"result.json is of job {result.id}", hint="send the result to its own job")
        try:
            with self._telling_unknown(state, result.run_id):
                return answer(summary(accept(self._store, result, by=state.agent or asker.user, digests=self._digests)))
        except (StaleRun, Conflict):
            keep_late(self._store, result, by=asker.user)
            raise

    def get_job(self, job_id: str) -> HTTPResponse:
        """GET job.json, its exact bytes."""
        _, state = self._seen(job_id)
        data = self._store.job_bytes(state.id)
        entry = FileEntry("job.json", len(data), hashlib.sha256(data).hexdigest())  # so that nobody takes a proxy's page for it
        return files.download(request.environ, self._store.paths.job(state.id), "", "job.json", entry)

    def get_signature(self, job_id: str) -> HTTPResponse:
        """GET job.json.sig, its exact bytes; `NotFound` where the job is not signed."""
        _, state = self._seen(job_id)
        return files.download(request.environ, self._store.paths.job(state.id), "", "job.json.sig", None)

    def put_signature(self, job_id: str) -> HTTPResponse:
        """POST job.json.sig: sign a new job; what stands there is replaced. Safe to repeat."""
        self._submitting(job_id)
        data = files.read_body(request.environ, LIMIT_BYTES)
        self._need_space(len(data))
        with self._store.locked(job_id) as state:
            if state.state != State.NEW:
                raise Conflict(f"job {job_id} is {state.state} and is not signed any more", hint="submit another job")
            check_handed_in(data, self._store.job(job_id), job_id, state.user)
            replace_file(self._store.paths.job(job_id).signature, data)
        return answer(summary(state))

    def get_input(self, job_id: str, name: str) -> HTTPResponse:
        """GET or HEAD one input."""
        _, state = self._seen(job_id)
        wanted = check_name(name)
        entry = next((item for item in state.inputs if item.path == wanted), None)
        if entry is None:
            raise NotFound(f"job {job_id} has no input {wanted!r}", hint="GET /v1/jobs/ID lists them")
        return files.download(request.environ, self._store.paths.job(job_id), "in", wanted, entry)

    def get_tar(self, job_id: str) -> HTTPResponse:
        """GET in.tar: the small inputs in one answer."""
        _, state = self._seen(job_id)
        limit = _number(query("max_bytes", "1048576"))
        body = files.download_tar(self._store.paths.job(job_id), state, after=query("after"), max_bytes=limit)
        return HTTPResponse(body, 200, {"Content-Type": "application/x-tar", "Cache-Control": "no-store"})

    # Submitter and operator

    def register(self) -> HTTPResponse:
        """POST /v1/jobs: a job.json; the job is `new` until its inputs are here and it is enqueued. Safe to repeat by id."""
        asker = self._asker()
        asker.need("submitter")
        data = files.read_body(request.environ, JOB_LIMIT_BYTES)
        job = Job.parse(data)
        asker.need_site(job.site)
        check_against(job, asker.user, self._config.get(), self._store)
        self._need_space(len(data))
        job_id = job.id or new_id()
        state = first_state(job, job_id, asker.user, (), state=State.NEW, by=asker.user)
        return answer(summary(publish_new(self._store, state, data)), 201)

    def _submitting(self, job_id: str) -> JobState:
        asker, state = self._seen(job_id)
        asker.need_change(state)
        return state

    def _inputs(self, job_id: str) -> Incoming:
        return Incoming(self._store.paths.job(job_id).incoming / "submit", self._digests)

    def put_input(self, job_id: str, name: str) -> HTTPResponse:
        """PATCH, or POST with X-HTTP-Method-Override: append a chunk of an input of a new job."""
        _need_patch()
        state = self._submitting(job_id)
        if state.state != State.NEW:
            raise Conflict(f"job {job_id} is {state.state} and takes no more inputs", hint="submit another job")
        wanted = check_name(name)
        if wanted not in {item.path for item in self._store.job(job_id).inputs}:
            raise NotFound(f"job.json does not name the input {wanted!r}", hint="name every input in job.json")
        self._need_space(files.body_length(request.environ, self._limit))
        return files.upload_chunk(request.environ, self._inputs(job_id), f"in/{wanted}", self._limit)

    def head_input(self, job_id: str, name: str) -> HTTPResponse:
        """HEAD: of a new job how much of the input is here, of any other the headers of the input."""
        _, state = self._seen(job_id)
        if state.state != State.NEW:
            return self.get_input(job_id, name)
        with contextlib.suppress(FileNotFoundError):  # an enqueue has moved it to its place and then did not go through
            fd = open_beneath(self._store.paths.job(job_id).inputs, name, os.O_RDONLY)
            with os.fdopen(fd, "rb") as here:
                size = os.fstat(here.fileno()).st_size
            return HTTPResponse(b"", 200, {"Upload-Offset": str(size), "Cache-Control": "no-store"})
        return files.upload_state(self._inputs(job_id), f"in/{name}")

    def enqueue(self, job_id: str) -> HTTPResponse:
        """POST enqueue: hash the inputs, then new -> queued. Safe to repeat."""
        state = self._submitting(job_id)
        if state.state != State.NEW:
            return answer(summary(state))
        job = self._store.job(job_id)
        check_against(job, state.user, self._config.get(), self._store)
        paths = self._store.paths.job(job_id)
        with self._store.locked(job_id) as state:
            if state.state == State.NEW:
                self._inputs(job_id).move_folder("in", paths.inputs)
        entries = freeze_inputs(job, paths.inputs)
        state = self._store.enqueue(job_id, by=state.user, inputs=entries)
        remove_tree(paths.incoming)
        return answer(summary(state))

    def cancel(self, job_id: str) -> HTTPResponse:
        """POST cancel"""
        asker, state = self._seen(job_id)
        asker.need_change(state)
        return answer(summary(self._store.cancel(job_id, by=asker.user)))

    def requeue(self, job_id: str) -> HTTPResponse:
        """POST requeue: an operator's act; with `?force=1` a run that is with a site is given up for it."""
        asker, _ = self._seen(job_id)
        asker.need("operator")
        return answer(summary(self._store.requeue(job_id, by=asker.user, force=query("force") == "1")))

    def list(self) -> HTTPResponse:
        """GET /v1/jobs: the jobs this asker may see, newest first; ?state= and ?site= narrow, ?limit= (default 200)."""
        asker = self._asker()
        wanted = [state for state in self._store.states() if asker.may_see(state)]
        for key in ("state", "site", "user"):
            if query(key):
                wanted = [state for state in wanted if str(getattr(state, key)) == query(key)]
        wanted.sort(key=lambda state: state.submitted_at, reverse=True)
        limit = _number(query("limit", "200"))
        return answer({"jobs": [summary(state) for state in wanted[:limit]], "total": len(wanted)})

    def show(self, job_id: str) -> HTTPResponse:
        """GET /v1/jobs/ID: the state with the manifest of inputs, what was asked, the result if there is one, and the history."""
        _, state = self._seen(job_id)
        result = self._store.result(job_id)
        return answer(
            {
                "state": jsonio.loads(state.encode(), "state.json"),
                "job": jsonio.loads(self._store.job_bytes(job_id), "job.json"),
                "result": jsonio.loads(result.encode(), "result.json") if result else None,
                "history": [entry.encode() for entry in self._store.history(state)],
                "signed_by": signed_by(self._store.paths.job(job_id)),
            }
        )

    def get_output(self, job_id: str, part: str, name: str) -> HTTPResponse:
        """GET one result or log; of a log that is still growing, what is here so far."""
        _, state = self._seen(job_id)
        paths, wanted = self._store.paths.job(job_id), check_name(name)
        result = self._store.result(job_id)
        if result is None and part == "log" and state.run_id:
            return files.download(request.environ, JobPaths(self._incoming(state).files), "log", wanted, None)
        entry = next((item for item in result.files if item.path == f"{part}/{wanted}"), None) if result else None
        if entry is None:
            raise NotFound(f"job {job_id} has no file {part}/{wanted}", hint="GET /v1/jobs/ID lists its result")
        return files.download(request.environ, paths, part, wanted, entry)


def query(key: str, default: str = "") -> str:
    """Return a parameter of the request's query string, as the UTF-8 text it is."""
    try:
        values = parse_qs(request.environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="strict").get(key)
    except (UnicodeError, ValueError) as exc:
        raise InvalidRequest("the query string cannot be read", hint="percent-encode it as UTF-8") from exc
    return values[0] if values else default


def _number(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 16 else 0


def _need_patch() -> None:
    method = request.environ["REQUEST_METHOD"]
    override = str(request.environ.get("HTTP_X_HTTP_METHOD_OVERRIDE", "")).upper()
    if method == "POST" and override != "PATCH":
        raise InvalidRequest("POST needs X-HTTP-Method-Override: PATCH here", hint="or send PATCH")
