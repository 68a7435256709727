"""The bottle application: routes mounted, and every error turned into an answer a person can use."""

from __future__ import annotations

from typing import Any, Callable

from bottle import Bottle, HTTPError, HTTPResponse, request

from spool import log
from spool.config import LiveConfig
from spool.errors import InvalidName, InvalidRequest, NotFound, SpoolError, from_os_error
from spool.incoming import Digests
from spool.published import BASE
from spool.server.asking import Command
from spool.server.auth import Auth
from spool.server.contacts import Contacts
from spool.server.envelope import route_error
from spool.server.gateway import Gateway
from spool.server.login import Login
from spool.server.pages import Pages
from spool.server.problems import problem
from spool.server.proxied import Trusted
from spool.server.published import Published
from spool.server.sync import Sync
from spool.server.tokens import TokenFile
from spool.server.users import UserFile
from spool.server.v1 import V1
from spool.server.wakeups import Wakeups
from spool.store import Store


class Internal(SpoolError):
    """Something nobody foresaw; the details are in the log, never in the answer."""


def token_file(store: Store, config: LiveConfig) -> TokenFile:
    """Return the tokens that count here."""
    return TokenFile(config.get().server["tokens"] or store.paths.tokens)


def auth_of(config: LiveConfig, tokens: TokenFile) -> Auth:
    """Return what says who asks, as ``[server] auth`` has it. Raises `ConfigError` where that cannot work."""
    options = config.get().server
    if options["auth"] == "gateway":
        return Gateway(options["gateway_headers"], Trusted(options["trusted_proxy"]), options["gateway_secret"])
    if options["auth"] == "command":
        timeout_s, cache_s = options["auth_timeout_s"], options["auth_cache_s"]
        return Command(options["auth_command"], timeout_s=timeout_s, cache_s=cache_s, at_a_time=options["auth_at_a_time"])
    return Auth(tokens)


def build(
    store: Store, config: LiveConfig, wakeups: Wakeups, contacts: Contacts, tokens: TokenFile, auth: Auth | None = None
) -> Bottle:
    """Return the application over `store`."""
    app = Bottle(autojson=False)
    auth, options = auth or auth_of(config, tokens), config.get().server
    users = UserFile(options["users"] or store.paths.users)
    sync = Sync(store, config, wakeups, contacts)
    digests = Digests()
    V1(store, config, auth, sync, digests).mount(app)
    Login(users, tokens, days=options["login_days"], offered=auth.has_tokens).mount(app)
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
