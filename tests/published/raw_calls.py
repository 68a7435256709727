"""Calls as no published program makes them: any bytes from any loopback address, the answer checked to be the envelope."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, TypeVar, Union
from urllib.parse import urlencode

BASE = "/mi-distcomp-api"
HERE, THERE = "127.0.0.1", "127.0.0.2"
ESCAPED = re.compile(rb"(?<!\\)(?:\\\\)*\\u")
BARE = ("calc-params", "get-calcinfo")

Body = Union[bytes, Mapping[str, Any], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One answer as it came."""

    call: str
    status: int
    raw: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object; fails where it is no such thing, or escaped."""
        assert not ESCAPED.search(self.raw), self.raw
        document = json.loads(self.raw.decode("utf-8"))
        assert isinstance(document, dict), self
        return document

    @property
    def error(self) -> dict[str, Any]:
        """The one object of the envelope."""
        (only,) = self.document["errors"]
        assert "code" in only, self
        assert isinstance(only["message"], str), self
        return dict(only)

    @property
    def told(self) -> tuple[int, Any]:
        """(HTTP status, code); the bare answers have the code 200."""
        bare = self.status == 200 and self.call in BARE and "errors" not in self.document
        return self.status, 200 if bare else self.error["code"]


class Caller:
    """A client of the server at `port` with a token and an address of its own; it has every call of the poller."""

    def __init__(self, port: int, token: str, site: str, address: str = HERE) -> None:
        self.port, self.token, self.site, self.address = port, token, site, address

    def call(
        self, method: str, call: str, body: Body = None, *, base: str = BASE, timeout_s: float = 60, **headers: str
    ) -> Answer:
        """Send it, and return what is answered."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        connection = http.client.HTTPConnection(HERE, self.port, timeout=timeout_s, source_address=(self.address, 0))
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            given.setdefault("Authorization", f"Bearer {self.token}")
        try:
            connection.request(method, f"{base}/{call}", data, given)
            answer = connection.getresponse()
            return Answer(call.partition("?")[0], answer.status, answer.read())
        finally:
            connection.close()

    def get(self, call: str, **query: str) -> Answer:
        """A question."""
        return self.call("GET", f"{call}?{urlencode(query)}")

    def post(self, call: str, **body: Any) -> Answer:
        """A step."""
        return self.call("POST", call, body)

    def request(self) -> Answer:
        return self.get("calc-request", site_id=self.site)

    def params(self, job: str) -> Answer:
        return self.get("calc-params", accept_id=job, site_id=self.site)

    def params_complete(self, job: str) -> Answer:
        return self.post("calc-params-complete", accept_id=job, site_id=self.site)

    def start(self, job: str) -> Answer:
        return self.post("calc-start", accept_id=job, site_id=self.site)

    def end(self, job: str, word: str = "calc end") -> Answer:
        return self.post("calc-end", accept_id=job, site_id=self.site, result=word)

    def send_results(self, job: str, files: Any) -> Answer:
        return self.post("send-results", accept_id=job, site_id=self.site, result_files=files)

    def end_send(self, job: str) -> Answer:
        return self.post("end-send", accept_id=job, site_id=self.site, result="end send")

    def up_to(self, job: str, word: str, files: Any = None) -> None:
        """Take every step up to the one of that name, each with success."""
        steps: list[tuple[str, Callable[[], Answer]]] = [
            ("params", lambda: self.params(job)), ("complete", lambda: self.params_complete(job)),
            ("start", lambda: self.start(job)), ("end", lambda: self.end(job)),
            ("results", lambda: self.send_results(job, files)), ("end send", lambda: self.end_send(job)),
        ]  # fmt: skip
        for name, step in steps:
            assert step().told == (200, 200), name
            if name == word:
                return


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each call returned, all of them started together."""
    barrier = threading.Barrier(len(calls))
    found: dict[int, T] = {}

    def one(number: int, call: Callable[[], T]) -> None:
        barrier.wait(30)
        found[number] = call()

    threads = [threading.Thread(target=one, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(found) == len(calls), "some call did not return"
    return [found[number] for number in sorted(found)]


def raw(port: int, parts: Iterable[bytes], *, shut: bool = False, timeout_s: float = 20) -> bytes:
    """What is answered to these bytes until the server closes the connection; with `shut` the sending side is closed first."""
    answer = b""
    with socket.create_connection((HERE, port), timeout=timeout_s) as line:
        try:
            for part in parts:
                line.sendall(part)
            if shut:
                line.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has said what it had to say
        while block := line.recv(65536):
            answer += block
    return answer


def parsed(call: str, answer: bytes) -> Answer:
    """A raw answer's status and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return Answer(call, int(head.split()[1]), body)
