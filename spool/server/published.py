"""The fourteen routes below `/mi-distcomp-api`, over the same store as /v1 (docs/protocol.md, "The published protocol").

Each function is one of the fourteen calls. Whatever it raises becomes the published envelope, `{"errors": [...]}`, with the HTTP
status that the published programs know; all answers are UTF-8 without escapes, because those programs print them raw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable

from bottle import Bottle, HTTPResponse, request

from spool import jsonio, log, published
from spool.config import LiveConfig
from spool.drops import check_against, first_state
from spool.errors import (
    CommandNotAllowed,
    Conflict,
    InvalidName,
    InvalidRecord,
    InvalidRequest,
    NoSpace,
    NotAllowed,
    NotFound,
    SpoolError,
    TooManyTries,
    Unauthorized,
    UnknownSite,
    from_os_error,
)  # fmt: skip
from spool.files import free_bytes
from spool.incoming import Digests
from spool.names import is_id, new_id
from spool.paths import JobPaths
from spool.published import ABNORMAL, BASE, CALC_END, GOT_RETURN, VIA
from spool.records import JOB_LIMIT_BYTES, FileEntry, Job, JobState
from spool.registering import publish_new
from spool.scratch import scratch
from spool.server import files
from spool.server.auth import Asker, Auth
from spool.server.bodies import SMALL_BYTES
from spool.server.pollers import OutOfTurn, Pollers, poller_name
from spool.server.problems import STATUS
from spool.server.published_forms import calc_of, is_input, is_result, job_of, known_of, printable, results_of, results_sent
from spool.server.sync import Contacts
from spool.server.v1 import query
from spool.states import State
from spool.store import Store
from spool.streams import length_of, read_document, write_document

END_SEND = "end send"
VERSION = "published poller"


class Told(Exception):
    """An answer other than success: HTTP status, code and message as the published programs know them."""

    def __init__(self, status: int, code: Any, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def errors(code: Any, message: str, status: int = 200, **more: Any) -> HTTPResponse:
    """Return the envelope of nearly every answer. A control character, which JSON has only as an escape, is replaced."""
    return _json({"errors": [{"code": code, "message": printable(message), **more}]}, status)


def _json(value: dict[str, Any], status: int = 200) -> HTTPResponse:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8")
    return HTTPResponse(body, status, {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"})


def streamed(document: dict[str, Any], at_each_block: Callable[[], None] = lambda: None) -> HTTPResponse:
    """Return an answer that holds files; `at_each_block` is called as it goes out, at the pace of whoever reads it."""

    def blocks() -> Iterator[bytes]:
        for block in write_document(document):
            at_each_block()
            yield block

    headers = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}
    return HTTPResponse(blocks(), 200, {**headers, "Content-Length": str(length_of(document))})


class Published:
    """The fourteen calls over one store."""

    def __init__(self, store: Store, config: LiveConfig, auth: Auth, contacts: Contacts, digests: Digests) -> None:
        self._store = store
        self._config = config
        self._auth = auth
        self._contacts = contacts
        self._pollers = Pollers(store, digests)

    def mount(self, app: Bottle) -> None:
        """Add the routes to `app`, and the answer to a path that cannot be read."""
        app.add_hook("before_request", _check_path)
        for method, name, call in self.routes():
            app.route(f"{BASE}/{name}", method, _in_envelope(call))

    def routes(self) -> Iterator[tuple[str, str, Callable[[], HTTPResponse]]]:
        """Yield (method, name, function); the documentation's table is checked against this."""
        yield "POST", "add-calcinfo", self.add
        yield "POST", "allow-wait-calc", self.allow
        yield "POST", "cancel-wait-calc", self.cancel
        yield "GET", "calc-status", self.status
        yield "GET", "calc-progress", self.progress
        yield "GET", "get-calc-result", self.result
        yield "GET", "get-calcinfo", self.known
        yield "GET", "calc-request", self.request
        yield "GET", "calc-params", self.params
        yield "POST", "calc-params-complete", self.params_complete
        yield "POST", "calc-start", self.start
        yield "POST", "calc-end", self.end
        yield "POST", "send-results", self.send_results
        yield "POST", "end-send", self.end_send

    # The submitter's calls

    def add(self) -> HTTPResponse:
        """POST add-calcinfo: register a job, which waits only after allow-wait-calc."""
        asker = self._asker("submitter")
        try:
            with scratch(self._store.paths, "published") as folder:
                document = self._large(folder, is_input)
                return errors(200, "", accept_id=self._register(asker, document).id)
        except Told as told:
            return errors(told.code, told.message, 202)
        except (InvalidName, InvalidRecord, InvalidRequest, UnknownSite) as exc:
            return errors(400, f"{exc.message} ({exc.hint})", 202)
        except (CommandNotAllowed, NotAllowed) as exc:
            return errors(401, f"{exc.message} ({exc.hint})", 202)

    def _register(self, asker: Asker, document: dict[str, Any]) -> JobState:
        calc = document.get("calc-info")
        if not isinstance(calc, dict):
            raise Told(202, 400, "there is no calc-info in the request")
        for key in ("remote-site", "command"):
            if not isinstance(calc.get(key), str) or not calc[key]:
                raise Told(202, 400, f"there is no {key} in calc-info")
        value, inputs = job_of(calc)
        job = Job.parse(jsonio.dumps(value))
        check_against(job, asker.user, self._config.get())
        asker.need_site(job.site)
        entries = tuple(FileEntry(name, item.size, item.sha256) for name, item in sorted(inputs.items()))
        state = first_state(job, new_id(), asker.user, entries, state=State.NEW, by=asker.user, via=VIA)

        def fill(paths: JobPaths) -> None:
            for name, item in inputs.items():
                item.path.rename(paths.inputs / name)

        data = jsonio.dumps(value)
        if len(data) > JOB_LIMIT_BYTES:
            raise Told(202, 400, f"what describes the job has {len(data)} bytes, {JOB_LIMIT_BYTES} are taken; send it as a file")
        return publish_new(self._store, state, data, fill=fill)

    def allow(self) -> HTTPResponse:
        """POST allow-wait-calc: new -> queued."""
        state = self._submitted(self._small().get("accept_id"), 400)
        if state.state != State.NEW:
            raise Told(400, 401, f"accept_id({state.id}) is waiting already, or further")
        check_against(self._store.job(state.id), state.user, self._config.get())
        self._store.enqueue(state.id, by=state.user)
        return errors(200, "")

    def cancel(self) -> HTTPResponse:
        """POST cancel-wait-calc: the job is gone for the clients; with `delete` = force whatever it is doing."""
        body = self._small()
        state = self._submitted(body.get("accept_id"), 400)
        if state.state != State.QUEUED and body.get("delete") != "force":
            progress = self._pollers.progress(state)
            raise Told(400, 401, f"accept_id({state.id}) is {progress}, not waiting; delete: force cancels it")
        self._store.withdraw(state.id, by=state.user)
        return errors(200, "")

    def status(self) -> HTTPResponse:
        """GET calc-status"""
        return errors(200, f"status:{self._pollers.status(self._asked_about())}")

    def progress(self) -> HTTPResponse:
        """GET calc-progress"""
        return errors(200, f"status:{self._pollers.progress(self._asked_about())}")

    def _asked_about(self) -> JobState:
        return self._submitted(_parameter("accept_id"), 200)

    def result(self) -> HTTPResponse:
        """GET get-calc-result: RESULTS, as a stream."""
        state = self._asked_about()
        if self._pollers.progress(state) != GOT_RETURN:
            raise Told(200, 400, f"accept_id({state.id}) is {self._pollers.progress(state)}: there is no result yet")
        found = results_of(self._store.job(state.id), state, self._store.result(state.id), self._store.paths.job(state.id))
        return streamed({"errors": [{"code": 200, "message": "", "result-info": {"result_files": found}}]})

    def known(self) -> HTTPResponse:
        """GET get-calcinfo: accept_id -> what is known of it, of all jobs that this asker may see."""
        asker = self._asker()
        jobs = [state for state in self._store.states() if asker.may_see(state) and not state.withdrawn_at]
        return _json({job.id: known_of(job, self._pollers.progress(job), self._pollers.status(job)) for job in jobs})

    def _submitted(self, accept_id: Any, unknown_status: int) -> JobState:
        """Return the job; an unknown or withdrawn one is answered with `unknown_status`, somebody else's with 403."""
        asker = self._asker()
        unknown = Told(unknown_status, 400, f"There is no information for accept_id({accept_id})")
        if not isinstance(accept_id, str) or not is_id(accept_id):
            raise unknown
        try:
            state = self._store.state(accept_id)
        except NotFound as exc:
            raise unknown from exc
        _need(asker.may_see(state))
        if request.method == "POST":
            asker.need_change(state)
        if state.withdrawn_at:
            raise unknown
        return state

    # The poller's calls

    def request(self) -> HTTPResponse:
        """GET calc-request: the first job that waits for this site and user; claims nothing."""
        asker, site = self._asker("agent"), _parameter("site_id")
        sites = self._config.get().sites
        if site not in sites:
            raise Told(200, "400", f"Your site-id({site}) does not match in the list that acceptable to.")
        _need(asker.token.covers(site))
        poller = self._heard(asker, site)
        job_id = self._pollers.request(site, asker.user, poller, enabled=sites[site].enabled)
        if not job_id:
            raise Told(200, "0300", f"There is no information for accept_id(None), about the your site id({site})")
        return errors(200, "", accept_id=job_id)

    def params(self) -> HTTPResponse:
        """GET calc-params: claim the job, and CALC as a stream."""
        job_id, poller = self._in_hand({"accept_id": _parameter("accept_id"), "site_id": _parameter("site_id")})
        state = self._pollers.params(job_id, poller)
        document = {"calc-info": calc_of(self._store.job(job_id), state, self._store.paths.job(job_id))}
        # While the inputs are on their way there is contact: else a slow line would lose the job each time.
        return streamed(document, partial(self._contacts.heard, (state.site, state.user, poller), VERSION))

    def params_complete(self) -> HTTPResponse:
        """POST calc-params-complete: the poller has the inputs."""
        self._pollers.received(*self._in_hand(self._small()))
        return errors(200, "")

    def start(self) -> HTTPResponse:
        """POST calc-start: claimed -> running."""
        self._pollers.start(*self._in_hand(self._small()))
        return errors(200, "")

    def end(self) -> HTTPResponse:
        """POST calc-end: running -> returning."""
        body = self._small()
        job_id, poller = self._in_hand(body)
        self._pollers.end(job_id, poller, _word(body, CALC_END, ABNORMAL))
        return errors(200, "")

    def send_results(self) -> HTTPResponse:
        """POST send-results: RESULTS, taken in as a stream."""
        asker = self._asker("agent")
        with scratch(self._store.paths, "published") as folder:
            document = self._large(folder, is_result)
            job_id, poller = self._in_hand(document, asker)
            self._pollers.results(job_id, poller, *results_sent(document, self._store.job(job_id)))
        return errors(200, "")

    def end_send(self) -> HTTPResponse:
        """POST end-send: the job ends."""
        body = self._small()
        job_id, poller = self._in_hand(body)
        _word(body, END_SEND)
        self._pollers.end_send(job_id, poller)
        return errors(200, "")

    def _in_hand(self, body: dict[str, Any], asker: Asker | None = None) -> tuple[str, str]:
        """Return (job id, poller's name); HTTP 400 for an unknown site or id, 403 for another user's or site's job."""
        asker = asker or self._asker("agent")
        accept_id, site = body.get("accept_id"), body.get("site_id")
        if not isinstance(site, str) or site not in self._config.get().sites:
            raise Told(400, 400, f"Your site-id({site}) does not match in the list that acceptable to.")
        try:
            state = self._store.state(accept_id if isinstance(accept_id, str) else "")
        except (NotFound, InvalidName) as exc:
            raise Told(400, 400, f"There is no information for accept_id({accept_id}), about the your site id({site})") from exc
        if state.site != site:
            raise Told(400, 400, f"There is no information for accept_id({accept_id}), about the your site id({site})")
        asker.need_agent(state)
        return state.id, self._heard(asker, site)

    def _heard(self, asker: Asker, site: str) -> str:
        poller = poller_name(asker.token.id, str(request.environ.get("REMOTE_ADDR", "")))
        self._contacts.heard((site, asker.user, poller), VERSION)
        return poller

    # Requests

    def _asker(self, *roles: str) -> Asker:
        asker = self._auth.asker(request.environ)
        if roles:
            asker.need(*roles)
        return asker

    def _small(self) -> dict[str, Any]:
        self._asker()
        return jsonio.loads(files.read_body(request.environ, SMALL_BYTES), "the body")

    def _large(self, folder: Path, is_file: Callable[[Any], bool]) -> dict[str, Any]:
        length = files.body_length(request.environ, published.MAX_BODY_BYTES)
        if free_bytes(self._store.paths.root) - length < self._config.get().server["min_free"]:
            raise NoSpace("the disk is nearly full: nothing new is taken", hint="try again later; operators free space")
        return read_document(request.environ["wsgi.input"], folder, is_file, what="the body")


def _parameter(name: str) -> str:
    value = query(name)
    if not value:
        raise Told(400, 400, f"there is no parameter {name}")
    return value


def _word(body: dict[str, Any], *known: str) -> str:
    word = body.get("result")
    if word is None:
        raise Told(400, 401, "there is no result in the request")
    if word not in known:
        raise Told(400, 402, f"result({word}) is none of: {', '.join(known)}")
    return str(word)


def _need(allowed: bool) -> None:
    if not allowed:
        raise NotAllowed("another user's", hint="")


def _in_envelope(call: Callable[[], HTTPResponse]) -> Callable[[], HTTPResponse]:
    """Wrap a call so that whatever it raises is answered as the published programs know it."""

    def wrapped() -> HTTPResponse:
        try:
            return call()
        except Told as told:
            return errors(told.code, told.message, told.status)
        except (Unauthorized, NotAllowed, NotFound) as exc:
            log.info("refused", call=request.path, code=exc.code, why=exc.message, address=request.environ.get("REMOTE_ADDR"))
            return errors("0005", published.no_permission(request.path), 403)
        except (OutOfTurn, Conflict) as exc:
            return errors(401, exc.message)
        except SpoolError as exc:
            return _error(exc)
        except OSError as exc:
            log.error("os_error", call=request.path, why=exc)
            return _error(from_os_error(exc, f"{request.method} {request.path}"))
        except Exception:  # noqa: BLE001 - the outermost frame of a request that answers as the published programs know it
            log.error("internal", trace=True, call=request.path)
            return errors(500, "something went wrong here (an operator finds it in the server's log)", 500)

    return wrapped


def _error(exc: SpoolError) -> HTTPResponse:
    status = STATUS[exc.code]
    log.info("refused", call=request.path, code=exc.code, why=exc.message, address=request.environ.get("REMOTE_ADDR"))
    answer = errors(status, f"{exc.message} ({exc.hint})" if exc.hint else exc.message, status)
    if isinstance(exc, TooManyTries):
        answer.set_header("Retry-After", str(exc.retry_after_s))
    return answer


def _check_path() -> None:
    raw = str(request.environ.get("bottle.raw_path", ""))
    if raw.startswith(f"{BASE}/") and not (raw.isascii() and raw.isprintable()):
        raise errors(400, "the path holds bytes that no call has", 400)


def route_error(status: int) -> HTTPResponse:
    """Answer a path or method that is none of the fourteen calls."""
    return errors(status, f"there is no {request.method} {request.path} here", status)

