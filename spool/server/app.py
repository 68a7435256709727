"""The bottle application: routes mounted, and every error turned into an answer a person can use."""

from __future__ import annotations

from typing import Any, Callable

from bottle import Bottle, HTTPError, HTTPResponse, request

from spool import log
from spool.config import LiveConfig
from spool.errors import InvalidName, InvalidRequest, NotFound, SpoolError, from_os_error
from spool.incoming import Digests
from spool.published import BASE
from spool.server.auth import Auth
from spool.server.contacts import Contacts
from spool.server.envelope import route_error
from spool.server.pages import Pages
from spool.server.problems import problem
from spool.server.published import Published
from spool.server.sync import Sync
from spool.server.tokens import TokenFile
from spool.server.v1 import V1
from spool.server.wakeups import Wakeups
from spool.store import Store


class Internal(SpoolError):
    """Something nobody foresaw; the details are in the log, never in the answer."""


def token_file(store: Store, config: LiveConfig) -> TokenFile:
    """Return the tokens that count here."""
    return TokenFile(config.get().server["tokens"] or store.paths.tokens)


def build(store: Store, config: LiveConfig, wakeups: Wakeups, contacts: Contacts, tokens: TokenFile) -> Bottle:
    """Return the application over `store`."""
    app = Bottle(autojson=False)
    auth = Auth(tokens)
    sync = Sync(store, config, wakeups, contacts)
    digests = Digests()
    V1(store, config, auth, sync, digests).mount(app)
    Published(store, config, auth, contacts, digests).mount(app)
    Pages(store, config, auth, contacts).mount(app)
    app.install(_answering_errors)
    app.add_hook("before_request", _check_path)
    app.default_error_handler = _route_error
    return app


def _check_path() -> None:
    """Refuse a path that is not UTF-8 or holds a control character: bottle would drop those bytes and serve another name."""
    raw = str(request.environ.get("bottle.raw_path", ""))
    try:
        text = raw.encode("latin-1").decode("utf-8")
    except UnicodeError:
        text = "\0"
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise problem(InvalidName("the path holds bytes that no name may hold", hint="percent-encode names as UTF-8"))


def _answering_errors(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a call so that whatever it raises becomes a problem document."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except HTTPResponse:
            raise
        except SpoolError as exc:
            log.info("refused", call=request.path, code=exc.code, why=exc.message, address=request.environ.get("REMOTE_ADDR"))
            return problem(exc)
        except OSError as exc:
            error = from_os_error(exc, f"{request.method} {request.path}")
            log.error("os_error", call=request.path, code=error.code, why=exc)
            return problem(error)
        except Exception:  # noqa: BLE001 - the outermost frame of a request: answer, and log the stack once
            log.error("internal", trace=True, call=request.path)
            return problem(Internal("something went wrong here", hint="an operator finds it in the server's log"))

    return wrapped


def _route_error(error: HTTPError) -> Any:
    """Answer what bottle itself found: no such route, a method it does not take, a malformed request."""
    if request.path.startswith(f"{BASE}/") and error.status_code < 500:
        return route_error(error.status_code)
    known: SpoolError = NotFound(f"there is no {request.method} {request.path} here", hint="docs/protocol.md lists the calls")
    if error.status_code != 404:
        known = InvalidRequest(f"{request.method} {request.path}: {error.body}", hint="docs/protocol.md lists the calls")
    answer = problem(known)
    answer.status = error.status_code if error.status_code < 500 else answer.status_code
    if error.status_code == 405:
        answer.set_header("Allow", error.get_header("Allow", ""))
    if error.status_code >= 500:
        log.error("internal", call=request.path, why=error.exception or error.body)
    return answer
