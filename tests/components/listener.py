"""Servers in threads of the test: one that shows a certificate and keeps what it is told, and a CONNECT proxy."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from types import TracebackType

_BLOCK = 65536


class Listener:
    """Takes connections on a loopback port until `close`; each gets a thread that runs `serve`."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._run, args=(line,), daemon=True)
            with self._lock:
                self._open.append(line)
                self._threads.append(thread)
            thread.start()

    def _run(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError, ValueError):  # whoever is refused goes away in any way
            self.serve(line)

    def serve(self, line: socket.socket) -> None:
        """What is done with one connection."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, its connections too."""
        for one in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(20)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Teller(Listener):
    """Answers every request's head with `answer`, then listens until the client goes. `told` is all that clients have said to it,
    after the handshake where there is a `context`. `calls` counts connections, `shaken` those whose handshake was done.
    """

    def __init__(self, context: ssl.SSLContext | None = None, answer: bytes = b"") -> None:
        self._context = context
        self._answer = answer
        self.told = b""
        self.calls = self.shaken = 0
        super().__init__()

    def serve(self, line: socket.socket) -> None:
        self.calls += 1
        if self._context is not None:
            line = self._shake(line, self._context)
        said = b""
        with line:
            while block := line.recv(_BLOCK):
                had_head, said = b"\r\n\r\n" in said, said + block
                self.told += block
                if b"\r\n\r\n" in said and not had_head and self._answer:
                    line.sendall(self._answer)

    def _shake(self, line: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        raw = line.dup()  # a socket that is closed over unread bytes is reset, and the client never reads the alert
        with raw:
            try:
                shaken = context.wrap_socket(line, server_side=True)
            except ssl.SSLError:
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(_BLOCK):
                    pass
                raise
        self.shaken += 1
        self._open.append(shaken)
        return shaken


class ConnectProxy(Listener):
    """A CONNECT proxy (RFC 9110, 9.3.6). `asked` holds the heads of the requests as they came.

    `demand` is the USER:PASSWORD without which it answers 407; `answer` a status line that everybody gets; `cut_after` the bytes
    towards the client after which the line is cut, once for each entry; `ways` maps HOST:PORT to the port that is meant.
    """

    def __init__(self, *, demand: str = "", answer: str = "", cut_after: list[int] | None = None) -> None:
        self.asked: list[bytes] = []
        self.cuts = 0
        self.ways: dict[str, int] = {}
        self._demand = demand
        self._answer = answer
        self._cut_after = cut_after or []
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, line: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            block = line.recv(_BLOCK)
            if not block:
                return
            head += block
        self.asked.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
        refusal = self._refusal(head) if method == "CONNECT" else "HTTP/1.1 501 Only CONNECT"
        if refusal:
            line.sendall(f"{refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        port = self.ways.get(target, int(target.rpartition(":")[2]))
        with socket.create_connection(("127.0.0.1", port)) as server:
            line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._carry(line, server)

    def _refusal(self, head: bytes) -> str:
        if self._answer:
            return f"HTTP/1.1 {self._answer}"
        wanted = b"proxy-authorization: basic " + base64.b64encode(self._demand.encode()).lower()
        if self._demand and wanted not in head.lower():
            return 'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="company"'
        return ""

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        left = self._cut_after[0] if self._cut_after else None
        while True:
            ready, _, _ = select.select([client, server], [], [])
            for source in ready:
                block = source.recv(_BLOCK)
                if not block:
                    return
                if source is client:
                    server.sendall(block)
                    continue
                client.sendall(block if left is None else block[:left])
                if left is not None:
                    left -= len(block)
                    if left <= 0 and self._cut_after:
                        self._cut_after.pop(0)
                        self.cuts += 1
                        return
