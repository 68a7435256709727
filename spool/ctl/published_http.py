"""The submitter's calls of the published protocol, one request each, and what counts as an answer (docs/protocol.md).

Guarantees, as `spool.ctl.http` has them: a time limit on every request; the token is never replaced by ~/.netrc and never
follows a redirect; what is not an answer of that protocol (a proxy's page, half an answer) counts as no answer. Files never
stand in memory, on their way out or in. Nothing is tried again here: `spool.ctl.published` decides that.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from spool import jsonio
from spool.ctl.backend import Rejected, Usage
from spool.ctl.http import Bearer
from spool.errors import Conflict, NotAllowed, NotFound, SpoolError, TooLarge, Unreachable
from spool.published import BASE, MAX_BODY_BYTES
from spool.streams import BLOCK_BYTES, Place, length_of, read_document, write_document

# Seconds to connect, also for one `SENT_BYTES` of a body, and seconds of silence. A server that keeps a whole body in memory
# before it looks at it is silent for long.
TIMEOUT_S = (30.0, 90.0)
LONG_TIMEOUT_S = (60.0, 660.0)
SHORT_TIMEOUT_S = (3.0, 6.0)
SENT_BYTES = 1 << 16
MAX_SAID_BYTES = 1 << 20
_FILES = ("errors", 0, "result-info", "result_files")


class NoAnswer(Unreachable):
    """Nothing came, or not from the server. `asked_s`: the wait that it asked for (Retry-After), in seconds."""

    def __init__(self, message: str, *, hint: str = "", asked_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.asked_s = asked_s


class Untrusted(Unreachable):
    """The server's certificate does not verify."""


class Gone(NotFound):
    """The server does not know the calculation, or not any more."""


class Document:
    """A request's body: what requests needs to send it as a stream with a Content-Length, as often as it takes."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._size = length_of(document)
        if self._size >= MAX_BODY_BYTES:
            raise TooLarge(
                f"the inputs are {self._size} bytes once encoded, and the protocol carries less than {MAX_BODY_BYTES}",
                hint="tools/spoolctl submit has no such limit",
            )

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        # What goes wrong with a file here is not to be taken for a cut line, which would be an OSError too.
        try:
            for block in write_document(self._document):
                for start in range(0, len(block), SENT_BYTES):
                    yield block[start : start + SENT_BYTES]
        except Conflict as exc:
            raise Conflict(exc.message, hint="leave the inputs alone until they are sent") from exc
        except OSError as exc:
            raise Usage(str(exc), hint="leave the inputs alone until they are sent") from exc


@dataclass(frozen=True)
class Said:
    """The envelope of an answer: HTTP status, `code` as a number (-1 where it is none), `message`, and what stands beside."""

    status: int
    code: int
    message: str
    more: Mapping[str, Any]

    @property
    def good(self) -> bool:
        """True where the call worked."""
        return self.status in (200, 201) and self.code == 200


class Calculations:
    """The MInt side of one server, as the submitter sees it. A `SpoolError` for whatever is no good answer."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._auth = Bearer(token)
        self._session = requests.Session()

    def add(self, calc: Document) -> str:
        """Register a calculation; return its accept_id. Repeated, it registers another one: none runs before `allow`."""
        said = self._said(self._send("POST", "add-calcinfo", body=calc, timeout_s=LONG_TIMEOUT_S))
        accept_id = said.more.get("accept_id")
        if not said.good:
            raise Rejected(said.message, hint="the server decides which sites there are and which commands each has")
        if not isinstance(accept_id, str) or not accept_id:
            raise NoAnswer(f"{self._url} registered it without an accept_id")
        return accept_id

    def allow(self, accept_id: str) -> None:
        """Let the pollers have it. Safe to repeat: one that waits already, or was started, is as good."""
        said = self._said(self._send("POST", "allow-wait-calc", body=Document({"accept_id": accept_id})))
        if not said.good and said.code != 401:
            raise self._refused(said)

    def progress(self, accept_id: str) -> str:
        """Return how far it is, in the published words."""
        return self._word("calc-progress", accept_id)

    def status(self, accept_id: str) -> str:
        """Return how it ended: ``none``, ``completed`` or ``abnormal``."""
        return self._word("calc-status", accept_id)

    def result(self, accept_id: str, folder: Path) -> dict[str, Any]:
        """Return RESULTS, each content being a `Stored` in `folder`.

        Raises `InvalidRecord` for an answer that cannot be read, `OSError` where it cannot be stored; `folder` is then to be
        thrown away.
        """
        body = Document({"accept_id": accept_id})  # the published submitter sends it along
        answer = self._send("GET", "get-calc-result", accept_id, body=body, timeout_s=LONG_TIMEOUT_S)
        if answer.status_code != 200:
            raise self._refused(self._said(answer))
        with answer:
            value = read_document(_Arriving(answer, self._url), folder, _is_content, what="the result")
        said = _envelope(200, value)
        if said is None:
            raise NoAnswer(f"{self._url} answered 200, and not as a server of this protocol")
        if not said.good:
            raise self._refused(said)
        info = said.more.get("result-info")
        files = info.get("result_files") if isinstance(info, dict) else None
        if not isinstance(files, dict):
            raise NoAnswer(f"{self._url} answered without result_files")
        return files

    def cancel(self, accept_id: str) -> None:
        """Take it back, also where it runs; any answer will do, as it may be gone already."""
        body = Document({"accept_id": accept_id, "delete": "force"})
        self._said(self._send("POST", "cancel-wait-calc", body=body, timeout_s=SHORT_TIMEOUT_S))

    def _word(self, call: str, accept_id: str) -> str:
        said = self._said(self._send("GET", call, accept_id))
        if not said.good:
            raise self._refused(said)
        return said.message.partition(":")[2]

    @staticmethod
    def _refused(said: Said) -> SpoolError:
        if said.code == 400:
            hint = "it was canceled, or no poller took it for 30 minutes, or a server that keeps it in memory was restarted"
            return Gone(said.message, hint=hint)
        return Rejected(said.message, hint="see the server's log")

    def _send(
        self, method: str, call: str, accept_id: str = "", *, body: Document | None = None,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ) -> requests.Response:  # fmt: skip
        """Send one request, once; return whatever answers, its body unread."""
        # Files do not get smaller, and an answer that is unpacked while it is read has no bounds.
        headers = {"Accept-Encoding": "identity", **({"Content-Type": "application/json"} if body else {})}
        try:
            return self._session.request(
                method, f"{self._url}{BASE}/{call}", headers=headers, params={"accept_id": accept_id} if accept_id else None,
                data=body, auth=self._auth, timeout=timeout_s, stream=True, allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as exc:
            causes = list(_causes(exc))
            if isinstance(exc, ValueError):
                raise Usage(f"{self._url}: {exc}", hint="correct the address, or the proxy's in the environment") from exc
            if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
                raise Untrusted(f"{self._url}: {causes[-1]}", hint="REQUESTS_CA_BUNDLE names the authorities to trust") from exc
            raise NoAnswer(f"{self._url}: {_shortly(causes)}", hint="check the address, the line and the server") from exc
        except OSError as exc:  # requests says so of a CA bundle that is not there
            raise Usage(str(exc), hint="REQUESTS_CA_BUNDLE must name a file") from exc

    def _said(self, answer: requests.Response) -> Said:
        """Return what the server says; raise where that is nothing, or no permission."""
        status = answer.status_code
        with answer:
            said = _envelope(status, _small(answer, self._url))
        if said is None and status == 413:
            raise TooLarge(f"{self._url} takes no body of this size", hint="raise the body limit of the server or its proxy")
        if said is None or status >= 500 or status in (408, 429):
            where = answer.headers.get("Location", "")
            why = f"answered {status}: {said.message}" if said else f"answered {status}, and not as a server of this protocol"
            hint = f"it points to {where}: give that address" if where else "something else answers there, perhaps a proxy"
            raise NoAnswer(f"{self._url} {why}", hint=hint, asked_s=_asked_s(answer))
        if status in (401, 403):
            raise NotAllowed(said.message, hint="check the token, its roles and sites")
        return said


class _Arriving:
    """The body of an answer as `read_document` takes it. It must begin as a document: a proxy's page is no answer."""

    def __init__(self, answer: requests.Response, url: str) -> None:
        self._blocks = answer.iter_content(BLOCK_BYTES)
        self._url = url
        self._first = True

    def read(self, size: int, /) -> bytes:
        try:
            block = next(self._blocks, b"")
        except requests.RequestException as exc:
            raise NoAnswer(f"{self._url}: {_shortly(list(_causes(exc)))}", hint="check the line") from exc
        if self._first and not block.lstrip().startswith(b"{"):
            raise NoAnswer(f"{self._url} answered 200, and not as a server of this protocol", hint="perhaps it is a proxy's page")
        self._first = False
        return block


def _is_content(place: Place) -> bool:
    return len(place) == 6 and place[:4] == _FILES and place[5] == "content"


def _small(answer: requests.Response, url: str) -> dict[str, Any] | None:
    """Return the JSON object that the answer holds; None where it holds none, or a large one."""
    found = b""
    try:
        for block in answer.iter_content(SENT_BYTES):
            found += block
            if len(found) > MAX_SAID_BYTES:
                return None
    except requests.RequestException as exc:
        raise NoAnswer(f"{url}: {_shortly(list(_causes(exc)))}", hint="check the line") from exc
    try:
        return jsonio.loads(found, "the answer")
    except SpoolError:
        return None


def _envelope(status: int, value: Mapping[str, Any] | None) -> Said | None:
    errors = value.get("errors") if value else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict) or "code" not in first:
        return None
    code = str(first["code"])
    number = int(code) if code.isascii() and code.isdigit() and len(code) < 10 else -1
    return Said(status, number, str(first.get("message", "")), first)


def _asked_s(answer: requests.Response) -> float | None:
    asked = answer.headers.get("Retry-After", "")
    return float(min(3600, max(1, int(asked[:6])))) if asked.isascii() and asked.isdigit() else None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield the error and what is behind it, the innermost last."""
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _shortly(causes: list[BaseException]) -> str:
    """Return the innermost cause in a few words; the whole of it is pages long."""
    return str(causes[-1]) or type(causes[-1]).__name__
