"""The fourteen routes below `/mi-distcomp-api`, over the same store as /v1 (docs/protocol.md, "The published protocol").

Each function is one of the fourteen calls. Whatever it raises becomes the published envelope, `{"errors": [...]}`, with the HTTP
status that the published programs know; all answers are UTF-8 without escapes, because those programs print them raw.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from bottle import Bottle, HTTPResponse, request

from spool import jsonio, published
from spool.config import LiveConfig
from spool.drops import check_against, first_state
from spool.errors import (
    CommandNotAllowed,
    Conflict,
    Disabled,
    InvalidName,
    InvalidRecord,
    InvalidRequest,
    NoSpace,
    NotAllowed,
    NotFound,
    UnknownSite,
)  # fmt: skip
from spool.files import free_bytes
from spool.incoming import Digests
from spool.names import is_id, new_id
from spool.paths import JobPaths
from spool.published import ABNORMAL, BASE, CALC_END, GETTING_RETURN, GOT_RETURN, VIA
from spool.records import JOB_LIMIT_BYTES, FileEntry, Job, JobState
from spool.registering import publish_new
from spool.scratch import scratch
from spool.server import files
from spool.server.auth import Asker, Auth
from spool.server.bodies import SMALL_BYTES
from spool.server.contacts import Contacts
from spool.server.envelope import Told, as_json, check_path, errors, in_envelope, need, parameter, streamed, word
from spool.server.pollers import Pollers, poller_name
from spool.server.published_forms import calc_of, is_input, is_result, job_of, known_of, results_of, results_sent
from spool.states import State
from spool.store import Store
from spool.streams import read_document

END_SEND = "end send"
MOST_STATUSES = 10_000
VERSION = "published poller"


class Published:
    """The fourteen calls over one store."""

    def __init__(self, store: Store, config: LiveConfig, auth: Auth, contacts: Contacts, digests: Digests) -> None:
        self._store = store
        self._config = config
        self._auth = auth
        self._contacts = contacts
        self._pollers = Pollers(store, digests)
        self._statuses: OrderedDict[str, str] = OrderedDict()  # accept_id -> what calc-status last said

    def mount(self, app: Bottle) -> None:
        """Add the routes to `app`, and the answer to a path that cannot be read."""
        app.add_hook("before_request", check_path)
        for method, name, call in self.routes():
            app.route(f"{BASE}/{name}", method, in_envelope(call))

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
                document = self._large(folder, is_input, self._config.get().server["min_free"])
                return errors(200, "", accept_id=self._register(asker, document).id)
        except Told as told:
            return errors(told.code, told.message, 202)
        except (InvalidName, InvalidRecord, InvalidRequest, UnknownSite) as exc:
            return errors(400, f"{exc.message} ({exc.hint})", 202)
        except Disabled as exc:
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
        check_against(job, asker.user, self._config.get(), self._store)
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
        check_against(self._store.job(state.id), state.user, self._config.get(), self._store)
        self._store.enqueue(state.id, by=state.user)
        return errors(200, "")

    def cancel(self) -> HTTPResponse:
        """POST cancel-wait-calc: the job is gone for the clients; with `delete` = force whatever it is doing."""
        body = self._small()
        state = self._submitted(body.get("accept_id"), 400)
        try:
            self._store.withdraw(state.id, by=state.user, force=body.get("delete") == "force")
        except Conflict as exc:
            progress = self._pollers.progress(self._store.state(state.id))
            raise Told(400, 401, f"accept_id({state.id}) is {progress}, not waiting; delete: force cancels it") from exc
        return errors(200, "")

    def status(self) -> HTTPResponse:
        """GET calc-status"""
        state = self._asked_about()
        self._statuses[state.id] = self._pollers.status(state)
        self._statuses.move_to_end(state.id)
        if len(self._statuses) > MOST_STATUSES:
            self._statuses.popitem(last=False)
        return errors(200, f"status:{self._statuses[state.id]}")

    def progress(self) -> HTTPResponse:
        """GET calc-progress. It is not at its end before the status that goes with it was told.

        The published submitter asks for the status first and then for the progress, and takes the status it has when the
        progress is `got return`: a job that failed between the two questions would count as one that ended well.
        """
        state = self._asked_about()
        progress, told = self._pollers.progress(state), self._statuses.get(state.id)
        if progress == GOT_RETURN and told not in (None, self._pollers.status(state)):
            progress = GETTING_RETURN
        return errors(200, f"status:{progress}")

    def _asked_about(self) -> JobState:
        return self._submitted(parameter("accept_id"), 200)

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
        return as_json({job.id: known_of(job, self._pollers.progress(job), self._pollers.status(job)) for job in jobs})

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
        need(asker.may_see(state))
        if request.method == "POST":
            asker.need_change(state)
        if state.withdrawn_at:
            raise unknown
        return state

    # The poller's calls

    def request(self) -> HTTPResponse:
        """GET calc-request: the first job that waits for this site and user; claims nothing."""
        asker, site = self._asker("agent"), parameter("site_id")
        sites = self._config.get().sites
        if site not in sites:
            raise Told(200, "400", f"Your site-id({site}) does not match in the list that acceptable to.")
        need(asker.token.covers(site))
        poller = self._heard(asker, site)
        enabled = sites[site].enabled and site not in self._store.controls.get().disabled_sites
        job_id = self._pollers.request(site, asker.user, poller, enabled=enabled)
        if not enabled:  # what it had in hand is put down by now
            raise Told(200, "400", f"Your site-id({site}) does not match in the list that acceptable to.")
        if not job_id:
            raise Told(200, "0300", f"There is no information for accept_id(None), about the your site id({site})")
        return errors(200, "", accept_id=job_id)

    def params(self) -> HTTPResponse:
        """GET calc-params: claim the job, and CALC as a stream."""
        job_id, poller = self._in_hand({"accept_id": parameter("accept_id"), "site_id": parameter("site_id")})
        state = self._pollers.params(job_id, poller)
        return streamed({"calc-info": calc_of(self._store.job(job_id), state, self._store.paths.job(job_id))})

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
        self._pollers.end(job_id, poller, word(body, CALC_END, ABNORMAL))
        return errors(200, "")

    def send_results(self) -> HTTPResponse:
        """POST send-results: RESULTS, taken in as a stream."""
        asker = self._asker("agent")
        with scratch(self._store.paths, "published") as folder:
            document = self._large(folder, is_result)  # what is finished has the last of the room
            job_id, poller = self._in_hand(document, asker)
            self._pollers.results(job_id, poller, *results_sent(document, self._store.job(job_id)))
        return errors(200, "")

    def end_send(self) -> HTTPResponse:
        """POST end-send: the job ends."""
        body = self._small()
        job_id, poller = self._in_hand(body)
        word(body, END_SEND)
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

    def _large(self, folder: Path, is_file: Callable[[Any], bool], min_free: int = 0) -> dict[str, Any]:
        length = files.body_length(request.environ, published.MAX_BODY_BYTES)
        if free_bytes(self._store.paths.root) - length < min_free:
            raise NoSpace("the disk is nearly full: nothing new is taken", hint="try again later; operators free space")
        # What an `Error` entry holds as its content is nobody's business.
        return read_document(request.environ["wsgi.input"], folder, is_file, what="the body", keep_damaged=True)
