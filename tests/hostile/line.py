"""Requests as raw bytes over one socket, several at once where wanted; nothing here corrects what a test says."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)\r?$")
_BODYLESS = (204, 304)
# Words of a Python stack, which no client may see.
TRACES = (b"Traceback (most recent", b'File "/', b"raise ", b"site-packages", b"Unhandled exception")


@dataclass(frozen=True)
class Told:
    """One answer."""

    status: int
    head: bytes
    body: bytes

    def is_traced(self) -> bool:
        """True where it shows a stack."""
        return any(word in self.body or word in self.head for word in TRACES)


def request(method: str, target: bytes | str, body: bytes = b"", headers: Mapping[str, str] | None = None, *,
    token: str = "") -> bytes:
    """The bytes of a request; Content-Length is set where there is a body or the method wants one."""
    path = target if isinstance(target, bytes) else target.encode()
    fields = {"Host": "localhost", **({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    if (body or method in ("POST", "PATCH", "PUT")) and "Content-Length" not in fields:
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1", "replace")
    return method.encode() + b" " + path + b" HTTP/1.1\r\n" + head + b"\r\n" + body


def ask(
    port: int, requests: Sequence[bytes], *, methods: Sequence[str], wait_s: float = 60, address: str = ""
) -> list[Told]:
    """Send them in one go over one connection; return the answers, fewer where the server closes or says nothing for `wait_s`.

    `address` is where they come from, another one of the loopback's.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(address, 0)) as line:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(b"".join(requests))
        line.settimeout(wait_s)
        return answers(line, methods)


def answers(line: socket.socket, methods: Sequence[str]) -> list[Told]:
    """The answers to requests of these methods, in order."""
    found: list[Told] = []
    data = b""
    with contextlib.suppress(TimeoutError, socket.timeout, ConnectionResetError):
        while len(found) < len(methods):
            told, data = _first(data, methods[len(found)])
            if told is not None:
                found.append(told)
                if b"connection: close" in told.head.lower():  # an error to HEAD may have a body: nothing behind it counts
                    break
                continue
            block = line.recv(1 << 16)
            if not block:
                break
            data += block
    return found


def _first(data: bytes, method: str) -> tuple[Told | None, bytes]:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None, data
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        return _first(rest, method)
    match = _LENGTH.search(head)
    size = 0 if method == "HEAD" or status in _BODYLESS else int(match[1]) if match else len(rest)
    if b"transfer-encoding: chunked" in head.lower() and method != "HEAD":
        return _chunked(status, head, rest, data)
    if len(rest) < size:
        return None, data
    return Told(status, head, rest[:size]), rest[size:]


def _chunked(status: int, head: bytes, rest: bytes, data: bytes) -> tuple[Told | None, bytes]:
    body = b""
    while True:
        line, end, after = rest.partition(b"\r\n")
        if not end:
            return None, data
        size = int(line.split(b";")[0], 16)
        if len(after) < size + 2:
            return None, data
        body, rest = body + after[:size], after[size + 2 :]
        if size == 0:
            return Told(status, head, body), rest
