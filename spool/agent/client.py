"""The agent's requests to /v1 (docs/protocol.md): one function a call, every error one of the family.

An answer that is not this API's JSON (a proxy's page) counts as no answer.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Callable
from urllib.parse import quote

import requests

from spool import errors, jsonio
from spool.agent.connection import (
    AGENT,
    MAX_RETRY_AFTER_S,
    READ_S,
    STALL_S,
    Connection,
    Stream,
    asked_to_wait,
    no_answer,
    retry_after_s,
)
from spool.errors import OffsetMismatch, SpoolError, TooManyTries, Unreachable
from spool.records import FileEntry, JobState, Result
from spool.signatures import LIMIT_BYTES
from spool.states import FINAL
from spool.tls import Tls

GOODBYE_S = 5.0
RETRY_CAP_S = 300.0
BLOCK_BYTES = 1 << 18
ENVELOPE_BYTES = 1 << 16
WORDS = 80
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>")
BLOCK_AFTER_CUT_BYTES = 1 << 14  # a cut costs at most one block: small ones from the first cut on

_OTHERWISE = (OffsetMismatch, TooManyTries, SpoolError, errors.Disabled)
_BY_CODE: dict[str, type[SpoolError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SpoolError) and kind not in _OTHERWISE
}


class NotThisApi(Unreachable):
    """What answered is not /v1. `sure`: it has no such path, or speaks the published protocol; else it may be a page."""

    def __init__(self, message: str, *, hint: str = "", sure: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.sure = sure


class ServerError(SpoolError):
    """The server answered 5xx in its own words; it is tried again."""

    transient = True


def _always() -> None:
    pass


def retry_delay_s(tries: int, error: SpoolError | None = None) -> float:
    """Return how long to wait before try number `tries` + 1: min(300, 2 * 2^n) * U(0.5, 1), or what Retry-After says.

    The one place of the retry rule (docs/protocol.md, "Trying again").
    """
    asked = getattr(error, "retry_after_s", 0)
    if asked:
        return float(min(MAX_RETRY_AFTER_S, max(1.0, float(asked))))
    return min(RETRY_CAP_S, 2.0 * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)


class _Chunk:
    """The next `length` bytes of an open file, sent with a Content-Length and never held whole."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length
        self.len = length

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(block)
        return block

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(BLOCK_BYTES), b"")


class Client:
    """Speaks /v1 to one server with one token. Threads may share one."""

    in_one_piece = False  # files leave one by one, before `finish`

    def __init__(
        self, url: str, token: Callable[[], str], *, tls: Tls | None = None, stall_s: int = STALL_S, agent: str = AGENT
    ) -> None:
        self._connection = Connection(url, token, tls=tls, stall_s=stall_s, agent=agent)
        self._block_bytes = BLOCK_BYTES
        self.may_send: Callable[[], None] = _always

    @contextmanager
    def _send(self, method: str, path: str, *, read_s: float = READ_S, **kwargs: Any) -> Iterator[requests.Response]:
        """Send one request and yield an answer below 300; raise the family's error for everything else."""
        with self._connection.send(method, path, read_s=read_s, **kwargs) as answer:
            if answer.status_code >= 300:
                raise _error(answer)
            yield answer

    def _json(self, method: str, path: str, *, read_s: float = READ_S, data: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with self._send(method, path, read_s=read_s, data=data, headers=headers) as answer:
            return _own_json(answer)

    def sync(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """POST /v1/sync; waits at the server for up to the request's ``wait_s``."""
        last = request.get("leaving") and not request["wait_s"]
        read_s = GOODBYE_S if last else float(request["wait_s"]) + 35.0
        return self._json("POST", "/v1/sync", data=jsonio.dumps_line(request), read_s=read_s)

    def login(self, user: str, password: str) -> dict[str, Any]:
        """POST user and password; return ``token``, ``user``, ``roles``, ``expires_at``. Sent once, never repeated by itself."""
        told = self._json("POST", "/v1/login", data=jsonio.dumps_line({"user": user, "password": password}))
        texts = (told.get(key) for key in ("token", "user", "expires_at"))
        if not all(isinstance(text, str) and text.isprintable() for text in texts) or not _TOKEN.fullmatch(told["token"]):
            raise Unreachable(f"{self._connection.url} answered something else than a token", hint="is that a mint-spool server?")
        return {**told, "roles": [str(role) for role in told.get("roles") or ()]}

    def job_bytes(self, job_id: str) -> bytes:
        """GET the exact bytes of job.json."""
        with self._send("GET", f"/v1/jobs/{job_id}/files/job.json") as answer:
            _need(answer, "application/octet-stream")
            data = answer.content
            if answer.headers.get("ETag", "") != f'"sha256-{hashlib.sha256(data).hexdigest()}"':
                raise _not_the_server(answer, "they are not the bytes of job.json")
            return data

    def signature_bytes(self, job_id: str) -> bytes | None:
        """GET job.json.sig, of one that is too large a little more than `LIMIT_BYTES`; None where the job is not signed."""
        try:
            with self._send("GET", f"/v1/jobs/{job_id}/files/job.json.sig") as answer:
                _need(answer, "application/octet-stream")
                data = b"".join(itertools.islice(answer.iter_content(LIMIT_BYTES), 2))
        except errors.NotFound:
            return None
        except (requests.RequestException, OSError) as exc:
            raise Unreachable(f"the signature of job {job_id} was cut off", hint="it is tried again") from exc
        return data

    def state(self, job_id: str) -> JobState:
        """GET the job's record, with the manifest of its inputs."""
        value = self._json("GET", f"/v1/jobs/{job_id}").get("state")
        if not isinstance(value, dict):
            raise Unreachable(f"the answer about job {job_id} holds no state", hint="is the URL that of a mint-spool server?")
        try:
            return JobState.parse(jsonio.dumps(value))
        except errors.InvalidRecord as exc:
            raise Unreachable(f"the answer about job {job_id} cannot be read: {exc.message}", hint="it is tried again") from exc

    def inputs(self, state: JobState) -> tuple[FileEntry, ...]:
        """Return the manifest of the inputs, which came with the record."""
        return state.inputs

    @contextmanager
    def download(self, job_id: str, name: str, offset: int, sha256: str) -> Iterator[Iterator[bytes]]:
        """GET one input from `offset` on (bytes); yields its blocks. `OffsetMismatch` where it must start at 0 again."""
        headers = {"Range": f"bytes={offset}-", "If-Range": f'"sha256-{sha256}"', "Accept-Encoding": "identity"}
        path, read_s = f"/v1/jobs/{job_id}/files/in/{quote(name)}", self._connection.stall_s
        with self._send("GET", path, headers=headers if offset else {}, read_s=read_s) as answer:
            _need(answer, "application/octet-stream")
            if answer.headers.get("ETag", "").replace("W/", "") != f'"sha256-{sha256}"':
                raise _not_the_server(answer, f"it is not the announced in/{name}")
            if offset and answer.status_code != 206:
                raise OffsetMismatch(f"the server has another {name!r}", offset=0, hint="start again")
            yield self._blocks(answer)

    def _blocks(self, answer: requests.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_content(self._block_bytes)
        except (requests.RequestException, OSError):
            self._block_bytes = BLOCK_AFTER_CUT_BYTES
            raise

    @contextmanager
    def download_tar(self, job_id: str, after: str, max_bytes: int) -> Iterator[Any]:
        """GET in.tar: the inputs of at most `max_bytes` each whose names sort after `after`."""
        path = f"/v1/jobs/{job_id}/in.tar?max_bytes={max_bytes}&after={quote(after, safe='')}"
        with self._send("GET", path, headers={"Accept-Encoding": "identity"}, read_s=self._connection.stall_s) as answer:
            _need(answer, "application/x-tar")
            yield Stream(answer.iter_content(BLOCK_BYTES))

    def upload_offset(self, job_id: str, run_id: str, name: str) -> int:
        """HEAD: return how many bytes of the result `name` (``out/...`` or ``log/...``) the server has for good."""
        with self._send("HEAD", f"/v1/jobs/{job_id}/files/{quote(name)}?run_id={run_id}") as answer:
            return _offset(answer)

    def upload(self, job_id: str, run_id: str, name: str, file: BinaryIO, offset: int, length: int) -> int:
        """PATCH the `length` bytes at `offset` of an open file; return the server's new offset. Safe to repeat."""
        self.may_send()
        digest = hashlib.sha256()
        file.seek(offset)
        for block in _Chunk(file, length):
            digest.update(block)
        file.seek(offset)
        headers = {
            "Upload-Offset": str(offset),
            "Content-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode('ascii')}:",
            "Content-Type": "application/octet-stream",
        }
        path = f"/v1/jobs/{job_id}/files/{quote(name)}?run_id={run_id}"
        body: Any = _Chunk(file, length) if length else b""
        with self._send("PATCH", path, data=body, headers=headers) as answer:
            return _offset(answer)

    def upload_tar(self, job_id: str, run_id: str, data: bytes) -> None:
        """POST out.tar. Safe to repeat."""
        self.may_send()
        headers = {"Content-Type": "application/x-tar"}
        with self._send("POST", f"/v1/jobs/{job_id}/files/out.tar?run_id={run_id}", data=data, headers=headers) as answer:
            if not isinstance(_own_json(answer).get("files"), int):
                raise _not_the_server(answer, "it does not say how many files were taken")

    def finish(self, result: Result) -> dict[str, Any]:
        """POST the result; return the job's state. Safe to repeat. What does not tell the end of this run is no answer."""
        self.may_send()
        told = self._json("POST", f"/v1/jobs/{result.id}/finish", data=result.encode(), read_s=600.0)
        if (told.get("id"), told.get("run_id")) != (result.id, result.run_id) or told.get("state") not in FINAL:
            why = f"the answer to finish does not tell the end of run {result.run_id}"
            raise Unreachable(why, hint="it is asked again; is the URL that of a mint-spool server?")
        return told

    def still_wants(self, job_id: str, run_id: str) -> bool:
        """True where MInt has this very run in hand: it has not ended, whatever a call was just refused for."""
        state = self.state(job_id)
        return state.run_id == run_id and state.state not in FINAL


def _error(answer: requests.Response) -> SpoolError:
    """Return the family's error for an answer of 300 and more."""
    status, where = answer.status_code, answer.url.partition("?")[0]
    error: SpoolError
    if status == 413 and answer.request.body:
        hint = "smaller chunks are tried; a proxy before the server must take 1 MiB (client_max_body_size, say)"
        error = errors.TooLarge(f"{where} takes no body of this size", hint=hint)
    elif "problem+json" not in answer.headers.get("Content-Type", ""):
        start = _start(answer)
        why, hint = f"{where} was answered {status} by something that is not the server{_words(answer, start)}", _advice(status)
        if no_answer(status) and status != 501:
            error = Unreachable(why, hint=hint)
        else:
            error = NotThisApi(why, hint=hint, sure=status in (404, 405) or _is_published(start))
    elif answer.request.method == "HEAD":
        code = answer.headers.get("Problem-Code", "")
        known = _BY_CODE.get(code)
        if not code:
            error = _not_the_server(answer, "a problem without its code")
        else:
            error = (known or Unreachable)(f"{where} was answered {status} {code}", hint="see the server's log")
    else:
        error = _of_problem(answer, status)
    return asked_to_wait(error, retry_after_s(answer))


def _is_published(start: bytes) -> bool:
    """True for the published protocol's envelope: its gateway answers a path that it does not have with 403 and that."""
    try:
        return isinstance(jsonio.loads(start, "answer").get("errors"), list)
    except SpoolError:
        return False


def _start(answer: requests.Response) -> bytes:
    """Return how a body begins that is nobody's answer; nothing where it cannot be read."""
    try:
        return next(answer.iter_content(ENVELOPE_BYTES), b"")
    except (requests.RequestException, OSError):
        return b""


def _words(answer: requests.Response, start: bytes) -> str:
    """Return what came, in its own first words, and where it leads to: what a person knows a proxy by."""
    text = " ".join(_MARKUP.sub(" ", start.decode("utf-8", "replace")).split())
    target = answer.headers.get("Location", "").partition("?")[0]
    said = f": {text[:WORDS]!r}" if text else ": nothing"
    return f"{said}, sent on to {target[:WORDS]}" if target else said


def _advice(status: int) -> str:
    if status < 400 or status in (401, 403, 407, 511):
        return "a proxy, or a wrong URL? what wants a login must let this host through; commands run on, it is tried again"
    return "a proxy, or a wrong URL? commands run on, it is tried again"


def _not_the_server(answer: requests.Response, why: str) -> NotThisApi:
    said = f"{answer.url.partition('?')[0]} was answered {answer.status_code} by something that is not the server"
    return NotThisApi(f"{said}: {why}", hint=_advice(answer.status_code), sure=False)


def _of_problem(answer: requests.Response, status: int) -> SpoolError:
    try:
        value = jsonio.loads(answer.content, "answer")
    except (SpoolError, requests.RequestException):
        return Unreachable(f"the answer {status} cannot be read", hint="it is tried again")
    code, message, hint = (str(value.get(key, "")) for key in ("code", "message", "hint"))
    if not code:  # a gateway that knows the same media type
        return _not_the_server(answer, f"{message or value.get('title') or 'a problem'!s:.{WORDS}} without a code")
    if code == OffsetMismatch.code:
        return OffsetMismatch(message, offset=_offset(answer), hint=hint)
    if code == TooManyTries.code:
        return TooManyTries(message, retry_after_s=60, hint=hint)
    if code in _BY_CODE:
        return _BY_CODE[code](message, hint=hint)
    return (ServerError if status >= 500 else SpoolError)(message or f"answered {status}", hint=hint)


def _own_json(answer: requests.Response) -> dict[str, Any]:
    _need(answer, "application/json")
    try:
        return jsonio.loads(answer.content, "answer")
    except errors.InvalidRecord as exc:
        raise Unreachable(f"the answer of {answer.url} cannot be read: {exc.message}", hint="it is tried again") from exc


def _need(answer: requests.Response, kind: str) -> None:
    if not answer.headers.get("Content-Type", "").startswith(kind):
        why = f"{answer.url} was answered by something that is not the server{_words(answer, _start(answer))}"
        raise NotThisApi(why, hint=_advice(answer.status_code), sure=False)


def _offset(answer: requests.Response) -> int:
    text = answer.headers.get("Upload-Offset", "")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        why = f"{answer.url} told no Upload-Offset{_words(answer, _start(answer))}"
        raise Unreachable(why, hint="a proxy that answers itself or drops headers, or a wrong URL? it is tried again")
    return int(text)
