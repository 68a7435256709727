"""An HTTP proxy that can do to a request what the world does: cut, lose, damage, delay, or answer something else."""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

BLOCK = 65536


@dataclass(frozen=True)
class Request:
    """One request as it arrived at the proxy; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body_bytes: int


@dataclass
class Act:
    """What is done to one request; nothing set: it passes.

    `cut_body`, `cut_answer`: so many bytes of the body pass, then the line is cut. `lose`: the server answers, nobody hears
    it. `damage`: that byte of the answer's body is changed. `hold_body`, `hold_answer`: so many bytes pass, the rest when
    `go` is set. `status`: the proxy answers that itself, with `page` (HTML unless `headers` say otherwise); with `after` only
    when the server has answered, whose answer nobody hears. `only`: what the server's answer must hold for `after`, `lose` and
    `hold_answer` to be done; `met` is set when they are.
    """

    cut_body: int | None = None
    cut_answer: int | None = None
    lose: bool = False
    damage: int | None = None
    hold_body: int | None = None
    hold_answer: int | None = None
    go: threading.Event = field(default_factory=threading.Event)
    status: int = 0
    page: bytes = b"<html><body>a proxy's page</body></html>"
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/html"})
    after: bool = False
    only: bytes = b""
    met: threading.Event = field(default_factory=threading.Event)


Rule = Callable[[Request], "Act | None"]


def once(matches: Callable[[Request], bool], *acts: Act) -> Rule:
    """The first matching request meets the first act, and so on; the rest pass."""
    left, lock = list(acts), threading.Lock()

    def rule(request: Request) -> Act | None:
        with lock:
            return left.pop(0) if left and matches(request) else None

    return rule


class Cut(Exception):
    """The connection ends here."""


class Wire:
    """Listens on `url` and passes requests to a port of this host; `rule` decides, `seen` has every request."""

    def __init__(self, port: int, rule: Rule | None = None) -> None:
        self.upstream = port
        self.rule: Rule = rule or (lambda request: None)
        self.seen: list[Request] = []
        wire = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, Cut, ValueError):
                    wire._serve(self.connection, self.rfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, method: str, part: str) -> list[Request]:
        """The requests of that method whose path holds `part`."""
        return [request for request in list(self.seen) if request.method == method and part in request.path]

    def _serve(self, client: socket.socket, reader: Any) -> None:
        line, headers = _head(reader)
        method, path, _ = line.split(" ", 2)
        request = Request(method, path, headers, int(headers.get("content-length", "0")))
        self.seen.append(request)
        act = self.rule(request) or Act()
        if act.status and not act.after:
            _skip(reader, request.body_bytes)
            _page(client, act, method)
            return
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            kept = "".join(f"{key}: {value}\r\n" for key, value in headers.items() if key != "connection")
            server.sendall(f"{line}\r\n{kept}Connection: close\r\n\r\n".encode("latin-1"))
            _pass(reader, server, request.body_bytes, act.cut_body, act.hold_body, act.go)
            self._answer(client, server, act, method)

    @staticmethod
    def _answer(client: socket.socket, server: socket.socket, act: Act, method: str) -> None:
        with server.makefile("rb") as reader:
            line, headers = _head(reader)
            if act.only or act.after:
                body = reader.read()
                reader = io.BufferedReader(io.BytesIO(body))
                act = act if act.only in body else Act()
            act.met.set()
            if act.after:
                _page(client, act, method)
                return
            if act.lose:
                while reader.read(BLOCK):
                    pass
                raise Cut
            kept = "".join(f"{key}: {value}\r\n" for key, value in headers.items() if key != "connection")
            client.sendall(f"{line}\r\n{kept}Connection: close\r\n\r\n".encode("latin-1"))
            if act.damage is not None:
                before = reader.read(act.damage)
                client.sendall(before + bytes([reader.read(1)[0] ^ 0xFF]))
            _pass(reader, client, None, act.cut_answer, act.hold_answer, act.go)


def _page(client: socket.socket, act: Act, method: str) -> None:
    extra = "".join(f"{key}: {value}\r\n" for key, value in act.headers.items())
    head = f"HTTP/1.1 {act.status} Nothing\r\nContent-Length: {len(act.page)}\r\n{extra}Connection: close\r\n\r\n"
    client.sendall(head.encode() + (b"" if method == "HEAD" else act.page))


def _head(reader: Any) -> tuple[str, dict[str, str]]:
    line = reader.readline().decode("latin-1").strip()
    if not line:
        raise Cut
    headers: dict[str, str] = {}
    while text := reader.readline().decode("latin-1").strip():
        key, _, value = text.partition(":")
        headers[key.lower()] = value.strip()
    return line, headers


def _skip(reader: Any, size: int) -> None:
    while size > 0:
        size -= len(reader.read(min(size, BLOCK)) or b"x" * size)


def _pass(reader: Any, target: socket.socket, size: int | None, cut: int | None, hold: int | None, go: threading.Event) -> None:
    """Pass `size` bytes (None: all there are), stopping for good after `cut`, and after `hold` until `go`."""
    done = 0
    while size is None or done < size:
        stops = [stop for stop in (size, cut, hold) if stop is not None and stop > done]
        if cut is not None and done >= cut:
            raise Cut
        if hold is not None and done >= hold and not go.wait(60):
            raise Cut
        block = reader.read1(min([BLOCK, *(stop - done for stop in stops)]))
        if not block:
            return
        target.sendall(block)
        done += len(block)
