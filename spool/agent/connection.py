"""One server, one token: how requests go out, and what counts as no answer at all.

The token is sent by an `AuthBase`, because a ~/.netrc entry would replace a plain header; of the environment only the proxies
count (`spool.tls`). What an answer means is for those who speak a protocol over it.

A line that went silent is found by TCP itself after `stall_s` seconds (keepalive while an answer is waited for, a limit on
unacknowledged data while something is sent), so that the long waits for an answer need not be short for its sake.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies

from spool import errors
from spool.errors import ConfigError, SpoolError, Unreachable
from spool.tls import Tls, TlsAdapter, explain, hushed, proxies_for

E = TypeVar("E", bound=SpoolError)

AGENT = "mint-spool-agent"  # which release is told only where the site says so
CONNECT_S = 15.0
READ_S = 120.0
STALL_S = 60
_PROBES = 3  # unanswered ones, after which the line is dead
MAX_RETRY_AFTER_S = 3600


class _Bearer(AuthBase):
    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request


def _watched(stall_s: int) -> list[tuple[int, int, int]]:
    """Return the socket options by which tcp(7) ends a line that is silent for `stall_s`; fewer where the system has not all."""
    probe_s = max(1, stall_s // (_PROBES + 1))
    wanted = {
        "TCP_NODELAY": 1, "TCP_KEEPIDLE": probe_s, "TCP_KEEPINTVL": probe_s, "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": stall_s * 1000,
    }  # fmt: skip
    options = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in wanted.items() if hasattr(socket, name)]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *options]


class _Adapter(TlsAdapter, HTTPAdapter):
    """Connections, also those through a proxy, whose silence ends."""

    def __init__(self, tls: Tls, stall_s: int) -> None:
        self.tls = tls
        self._options = _watched(stall_s)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        parent: Any = super()  # types-requests for Python 3.9 does not know it
        parent.init_poolmanager(*args, **kwargs, socket_options=self._options)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        parent: Any = super()
        return parent.proxy_manager_for(proxy, **kwargs, socket_options=self._options)


def system_tls() -> Tls:
    """Return the trust of an agent.ini that names none: the system's authorities."""
    return Tls(bundle=DEFAULT_CA_BUNDLE_PATH)


class Connection:
    """Talks to one server with one token, which is asked for at each request. Threads may share one: each gets a session."""

    def __init__(
        self, url: str, token: Callable[[], str], *, tls: Tls | None = None, stall_s: int = STALL_S, agent: str = AGENT
    ) -> None:
        self.url = url.rstrip("/")
        self._agent = agent
        self.stall_s = stall_s
        self._auth = _Bearer(token)
        self._tls = tls or system_tls()
        self._local = threading.local()

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False  # ~/.netrc, REQUESTS_CA_BUNDLE; the proxies are passed on each call
            for scheme in ("http://", "https://"):
                self._local.session.mount(scheme, _Adapter(self._tls, self.stall_s))
            self._local.session.headers["User-Agent"] = self._agent
        session: requests.Session = self._local.session
        return session

    @contextmanager
    def send(self, method: str, path: str, *, read_s: float = READ_S, **kwargs: Any) -> Iterator[requests.Response]:
        """Send one request and yield the answer, whatever its status; `Unreachable` where none came or it was cut.

        `read_s` is the longest silence in seconds. Never repeats a request by itself, and follows no redirection.
        """
        try:
            proxies = proxies_for(self.url, get_environ_proxies(self.url))
        except ConfigError as exc:
            raise Unreachable(exc.message, hint=exc.hint) from None  # its cause may show the password
        try:
            answer = self._session().request(
                method,
                self.url + path,
                auth=self._auth,
                verify=self._tls.verify,
                proxies=proxies,
                timeout=(CONNECT_S, read_s),
                allow_redirects=False,
                stream=True,
                **kwargs,
            )
        except (requests.RequestException, OSError) as exc:
            why, hint = explain(exc) or (_short(exc), "check network, proxy and port")
            raise Unreachable(f"no answer from {self.url}: {why}", hint=hint) from exc
        with answer:
            try:
                yield answer
            except (requests.RequestException, OSError) as exc:
                if errors.is_no_space(exc):  # this side's disk, met while the answer was stored
                    raise
                why, hint = explain(exc) or (_short(exc), "it is tried again")
                raise Unreachable(f"the line to {self.url} was cut: {why}", hint=hint) from exc


def no_answer(status: int) -> bool:
    """True for what a gateway, or a server that is busy, says in the place of an answer, whatever its body."""
    return status >= 500 or status in (408, 429)


def retry_after_s(answer: requests.Response) -> int:
    """Return the seconds that Retry-After asks for, at most an hour; 0 where it asks for none."""
    asked = answer.headers.get("Retry-After", "")
    return max(1, min(MAX_RETRY_AFTER_S, int(asked[:9]))) if asked.isascii() and asked.isdigit() else 0


def asked_to_wait(error: E, seconds: float) -> E:
    """Note on `error` that it asks for so many seconds before the next try (none: nothing is noted); return it."""
    if seconds:
        error.retry_after_s = seconds  # type: ignore[attr-defined]
    return error


class Stream:
    """The body of an answer as a file to read from; a cut line raises what `Connection.send` knows."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        while len(self._rest) < size and (block := next(self._blocks, b"")):
            self._rest += block
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def _short(exc: Exception) -> str:
    """Return the innermost reason of requests' nested exceptions: what a person can act on."""
    text = hushed(str(exc.__context__ or exc) if not str(exc) else str(exc))
    return text if len(text) < 300 else text[:297] + "..."
