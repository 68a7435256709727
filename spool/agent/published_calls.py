"""The seven calls of the published poller, and the question how far a job is (docs/agent.md, "With the published server").

One function a call; nothing is repeated and nothing remembered here. Every request and what it was answered is printed in the
manual's words on standard output. An answer without the envelope (a proxy's page) counts as no answer, as does a 5xx, 408 or 429
with it. Where such a one says Retry-After, nothing more is sent before that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests

from spool import jsonio
from spool.agent.client import NotThisApi
from spool.agent.connection import READ_S, Connection, Stream, asked_to_wait, no_answer, retry_after_s
from spool.errors import InvalidRecord, NotAllowed, SpoolError, TooLarge, UnknownSite, Unreachable
from spool.manifest import printable
from spool.published import BASE
from spool.streams import BLOCK_BYTES, Place, length_of, read_document, write_document

FILES_READ_S = 600.0  # the server takes a whole body apart, or puts one together, before it answers
ANSWER_BYTES = 1 << 20
SHOWN_CHARS = 2000

Words = Mapping[str, str]


class NoRight(NotAllowed):
    """401 or 403 in the published envelope: an answer, so no try of `retry` is used up."""


class NoSuchSite(UnknownSite):
    """The server does not know the site: an answer as well."""


ANSWERED = (NoRight, NoSuchSite)


@dataclass(frozen=True)
class Answer:
    """The first entry of an envelope. `code` is a number or a word there, and a string here."""

    status: int
    code: str
    message: str
    accept_id: str = ""

    @property
    def ok(self) -> bool:
        """True where the call was done."""
        return self.status < 300 and self.code == "200"


class Calls:
    """The calls over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.url = connection.url
        self._quiet_until = 0.0  # by the monotonic clock

    def request(self, site: str) -> Answer:
        """Ask for the first job that waits for `site`; claims nothing. Safe to repeat."""
        return self._call("GET", "calc-request", {"site_id": site})

    def params(self, accept_id: str, site: str, folder: Path) -> tuple[Answer, dict[str, Any]]:
        """Claim a job: its ``calc-info``, the inputs decoded into numbered files in `folder`; empty where it was not answered so.

        Raises `InvalidRecord` where what came is no such document, or was cut without anyone noticing.
        """
        path = self._path("calc-params", {"accept_id": accept_id, "site_id": site})
        with self._sent("GET", path, read_s=FILES_READ_S, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code >= 300:
                return self._envelope(answer), {}
            stream = Stream(answer.iter_content(BLOCK_BYTES))
            document = read_document(stream, folder, _is_input, what="the answer to calc-params")
        if isinstance(document.get("calc-info"), dict):
            _say("calc-info")
            return Answer(200, "200", ""), document["calc-info"]
        found = _first(document)
        if found is None:
            raise InvalidRecord("the answer to calc-params holds no calc-info", hint="is it the published server?")
        return _told(answer.status_code, found), {}

    def step(self, call: str, document: Mapping[str, Any]) -> Answer:
        """POST one step; the files in `document` are sent as a stream, its length told before. May not be safe to repeat."""
        headers = {"Content-Type": "application/json"}
        read_s = FILES_READ_S if "result_files" in document else READ_S
        return self._call("POST", call, data=_Body(document), headers=headers, read_s=read_s)

    def progress(self, accept_id: str) -> str | None:
        """Ask how far a job is: the published word, "" where the server has no such job, None where it does not tell."""
        try:
            answer = self._call("GET", "calc-progress", {"accept_id": accept_id})
        except (NotThisApi, NoRight):  # this is a call of the submitter's side
            return None
        if answer.ok and answer.message.startswith("status:"):
            return answer.message.partition(":")[2].strip()
        return "" if (answer.status, answer.code) == (200, "400") else None

    @staticmethod
    def _path(call: str, query: Words) -> str:
        return f"{BASE}/{call}?{urlencode(query)}" if query else f"{BASE}/{call}"

    @contextlib.contextmanager
    def _sent(self, method: str, path: str, **kwargs: Any) -> Iterator[requests.Response]:
        left_s = self._quiet_until - time.monotonic()
        if left_s > 0:
            raise asked_to_wait(Unreachable(f"{self.url} asked not to be asked yet", hint="it is busy; see MInt's log"), left_s)
        _say(f"{_now()}send {self.url}{path}")
        with self._connection.send(method, path, **kwargs) as answer:
            yield answer

    def _call(self, method: str, call: str, query: Words | None = None, *, read_s: float = READ_S, **kwargs: Any) -> Answer:
        with self._sent(method, self._path(call, query or {}), read_s=read_s, **kwargs) as answer:
            return self._envelope(answer)

    def _envelope(self, answer: requests.Response) -> Answer:
        """Return what was answered; raise the family's error where nothing of this protocol was."""
        content, status = _bounded(answer), answer.status_code
        found = _first(_parsed(content))
        if found is None or no_answer(status) or status in (401, 403, 413):
            _say(f"{_now()}status code = {status} / reason = {_shown(content.decode('utf-8', 'backslashreplace'))}")
            error, asked_s = _error(answer.url.partition("?")[0], status, found), retry_after_s(answer)
            if asked_s:
                self._quiet_until = time.monotonic() + asked_s
            raise asked_to_wait(error, asked_s)
        return _told(status, found)


def _is_input(place: Place) -> bool:
    return len(place) == 4 and place[:2] == ("calc-info", "parameter_files") and place[3] == 0


def _bounded(answer: requests.Response) -> bytes:
    content = b""
    for block in answer.iter_content(ANSWER_BYTES):
        content += block
        if len(content) > ANSWER_BYTES:
            break
    return content


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return jsonio.loads(content, "answer")
    except SpoolError:
        return {}


def _first(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the first entry of the envelope, None where `document` is none."""
    entries = document.get("errors")
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict) or "code" not in entries[0]:
        return None
    return entries[0]


def _told(status: int, entry: Mapping[str, Any]) -> Answer:
    answer = Answer(status, str(entry["code"]), str(entry.get("message", "")), str(entry.get("accept_id") or ""))
    _say(f"code = {_shown(answer.code)} / message = {_shown(answer.message)}")
    return answer


def _error(where: str, status: int, entry: Mapping[str, Any] | None) -> SpoolError:
    if status == 413:
        return TooLarge(f"{where} takes no body of this size", hint="a proxy's limit?")
    said = _shown(str(entry.get("message", ""))) if entry else ""
    if entry and no_answer(status):
        return Unreachable(f"{where} was answered {status}: {said}", hint="the server or a gateway is busy; see MInt's log")
    if entry:
        return NoRight(f"{where}: {said}", hint="is it the right token, of this user?")
    kind = NotThisApi if status in (404, 405) else Unreachable
    return kind(f"{where} was answered {status} by something that is not the server", hint="a proxy, or a wrong URL?")


class _Body:
    """A document on its way out. requests sends `len` as Content-Length, and iterates."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.len = length_of(document)

    def __iter__(self) -> Iterator[bytes]:
        return write_document(self._document)


def _now() -> str:
    return time.strftime("%Y/%m/%d %H:%M:%S:")


def _shown(text: str) -> str:
    return printable(text.strip()[:SHOWN_CHARS])


def _say(text: str) -> None:
    """Print one of the manual's lines; what stands against that is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)
