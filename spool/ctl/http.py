"""Requests to a server's /v1, and what counts as an answer (docs/protocol.md).

Guarantees: a time limit on every request; the bearer token is never replaced by ~/.netrc and never follows a redirect; of the
environment only the proxies count (`spool.tls`); whatever is not this API's answer (a proxy's page, half an answer)
counts as no answer. Transient problems are tried again, each with a line for the person who waits.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies

from spool import jsonio
from spool.addresses import is_loopback
from spool.ctl.backend import Usage
from spool.ctl.messages import note
from spool.errors import Conflict, NotAllowed, NotFound, OffsetMismatch, SpoolError, TooLarge, Unauthorized, Unreachable
from spool.tls import Tls, TlsAdapter, explain, hushed, is_untrusted, proxies_for

T = TypeVar("T")
TRIES = 5
TIMEOUT_S = (10.0, 90.0)
_TOKEN = re.compile(r"[\x21-\x7e]+")
_KNOWN = {kind.code: kind for kind in SpoolError.__subclasses__() if kind.__module__ == "spool.errors"}
_BY_STATUS: dict[int, type[SpoolError]] = {401: Unauthorized, 403: NotAllowed, 404: NotFound, 409: Conflict, 413: TooLarge}


def is_token(text: str) -> bool:
    """True where `text` can be a token."""
    return _TOKEN.fullmatch(text) is not None


class Bearer(AuthBase):
    """The token as a header; an `AuthBase`, because requests lets ~/.netrc replace a header set by hand."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def retry_delay_s(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row (0 is the first): ``min(300, 2*2**n) * U(0.5, 1)``."""
    return float(min(300.0, 2.0 * 2.0 ** min(failures, 20)) * random.uniform(0.5, 1))


def check_url(url: str, *, allow_http: bool) -> str:
    """Return `url` without a slash at its end; `Usage` unless it is https, or http to this host, or `allow_http`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Usage(f"{url!r} is not an address", hint="such as https://mint.example:50443")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
        raise Usage(f"{url} would send the token unencrypted", hint="use https, or --allow-http where the line is safe")
    return url.rstrip("/")


def read_token(given: str) -> str:
    """Return the token in the file that ``@FILE`` names. A token itself on the command line is refused: `ps` shows it."""
    if not given.startswith("@"):
        raise Usage("--token takes @FILE", hint="write the token into a file (chmod 600) and give --token @FILE")
    path = Path(given[1:]).expanduser()
    try:
        text, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
    except (OSError, UnicodeError) as exc:
        raise Usage(f"{path}: {getattr(exc, 'strerror', '') or exc}", hint="name a file that holds the token") from exc
    if not _TOKEN.fullmatch(text):
        raise Usage(f"{path} does not hold one token", hint="one line of printable ASCII characters")
    if mode & 0o077:
        note("token_open", path=path)
    return text


class Untrusted(Unreachable):
    """Another server's certificate or key: a person is told at once, and not after `TRIES`."""


class _Adapter(TlsAdapter, HTTPAdapter):
    def __init__(self, tls: Tls) -> None:
        self.tls = tls
        super().__init__()


class Api:
    """One server. `tls`: whom to trust; none: the system's authorities."""

    def __init__(self, url: str, token: str, tls: Tls | None = None) -> None:
        self._url = url
        self._auth = Bearer(token)
        self._tls = tls or Tls(bundle=DEFAULT_CA_BUNDLE_PATH)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("https://", _Adapter(self._tls))
        self._asked_wait_s: float | None = None

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        stream: bool = False,
        read_timeout_s: float = TIMEOUT_S[1],
    ) -> requests.Response:
        """Send one request, once; return its 2xx (or 416) answer, raise what any other says."""
        self._asked_wait_s = None
        proxies = proxies_for(self._url, get_environ_proxies(self._url))
        try:
            answer = self._session.request(
                method, self._url + path, headers=dict(headers or {}), params=params, data=data, auth=self._auth,
                verify=self._tls.verify, proxies=proxies, timeout=(TIMEOUT_S[0], read_timeout_s), stream=stream,
                allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as exc:
            why, hint = explain(exc) or (_shortly(exc), "check the address, the line and the server")
            raise (Untrusted if is_untrusted(exc) else Unreachable)(f"{self._url}: {why}", hint=hint) from exc
        if answer.status_code in (200, 201, 204, 206, 416):
            return answer
        with answer:
            raise self._problem(answer)

    def _problem(self, answer: requests.Response) -> SpoolError:
        asked = answer.headers.get("Retry-After", "")
        if asked.isascii() and asked.isdigit():
            self._asked_wait_s = float(min(3600, max(1, int(asked[:6]))))
        value = _problem_document(answer)
        if value is not None:
            return _known_problem(value, answer)
        if answer.request.method == "HEAD" or answer.status_code == 413:  # no body; a proxy's 413 is as good as the server's
            kind = _BY_STATUS.get(answer.status_code)
            if kind is not None:
                return kind(f"{self._url} answered {answer.status_code}", hint="check the id and the token")
        return self.no_answer(answer)

    def no_answer(self, answer: requests.Response) -> Unreachable:
        """Return the error for an answer that is none of this API's."""
        where = answer.headers.get("Location", "")
        hint = f"it points to {where}: give that address" if where else "something else answers there, perhaps a proxy"
        return Unreachable(f"{self._url} answered {answer.status_code}, and not as a mint-spool server", hint=hint)

    def json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Send one request and return the JSON object it is answered with; retried while the problem is transient."""
        return self.retried(lambda: self._json(method, path, **more), f"{method} {path}")

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = self.request(method, path, **more)
        if answer.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise self.no_answer(answer)
        try:
            return jsonio.loads(answer.content, "the answer")
        except SpoolError as exc:
            raise self.no_answer(answer) from exc

    def retried(self, call: Callable[[], T], what: str) -> T:
        """Return what `call` returns, trying again while its problem is transient, `TRIES` times in all."""
        for failures in range(TRIES):
            try:
                return call()
            except SpoolError as exc:
                if not exc.transient or isinstance(exc, Untrusted) or failures == TRIES - 1:
                    raise
                self.pause(failures, exc, what)
        raise AssertionError("the last try returns or raises")

    def pause(self, failures: int, why: SpoolError, what: str) -> None:
        """Wait before the next try, saying so."""
        delay_s = self._asked_wait_s if self._asked_wait_s is not None else retry_delay_s(failures)
        note("retrying", what=what, message=why.message, seconds=f"{delay_s:.1f}")
        time.sleep(delay_s)


def _shortly(exc: Exception) -> str:
    """Return the innermost cause in a few words; the whole of it is pages long."""
    inner: BaseException = exc
    while inner.__context__ is not None or inner.__cause__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    return hushed(str(inner)) or type(inner).__name__


def _problem_document(answer: requests.Response) -> dict[str, Any] | None:
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() != "application/problem+json":
        return None
    try:
        value = jsonio.loads(answer.content, "the answer")
    except (SpoolError, requests.RequestException):
        return None
    texts = (value.get(key) for key in ("code", "message", "hint"))
    return value if all(isinstance(item, str) for item in texts) else None


def _known_problem(value: Mapping[str, Any], answer: requests.Response) -> SpoolError:
    code, message, hint = value["code"], value["message"], value["hint"]
    offset = answer.headers.get("Upload-Offset", "")
    if code == OffsetMismatch.code and offset.isascii() and offset.isdigit():
        return OffsetMismatch(message, offset=int(offset), hint=hint)
    kind = _KNOWN.get(code)
    if kind is None or code in ("too_many_tries", OffsetMismatch.code):
        later = answer.status_code >= 500 or answer.status_code == 429
        kind = Unreachable if later else _BY_STATUS.get(answer.status_code, Conflict)
    return kind(message, hint=hint)
