"""How large a request may be, by its path, decided before its body is taken in.

waitress takes the whole body before it calls the application, with one limit for all. The calls of /v1 need a chunk, two of
the published protocol up to 2 GiB: only these get it, and only for a token that counts, while the disk has room. A request
with another token goes to the application without its body, which counts the bad try and answers. Where it takes a while to find
out (``auth = command``), the body comes in meanwhile and ends with the answer.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import Error

from spool.errors import SpoolError
from spool.files import free_bytes
from spool.published import BASE, MAX_BODY_BYTES, no_permission
from spool.server.auth import Welcome

RESULTS_CALL = f"{BASE}/send-results"
LARGE_CALLS = (f"{BASE}/add-calcinfo", RESULTS_CALL)
SMALL_BYTES = 1 << 20  # the limit of every other published call
IN_MEMORY_BYTES = 1 << 20  # of a large body; the rest goes to a file in the spool's tmp/
LOOK_EVERY_BYTES = 16 << 20
LINGER_S = 30.0
FACTOR = 2  # the body is on disk encoded, and then decoded beside it


class Refusal(Error):  # type: ignore[misc]
    """An answer in the published envelope to a request whose body is not taken in; the connection ends."""

    def __init__(self, status: int, reason: str, message: str, code: int | str = 0) -> None:
        super().__init__(message)
        self.code, self.reason = status, reason
        self._errors = {"errors": [{"code": code or status, "message": message}]}

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return (status line, headers, body), as waitress asks for."""
        body = json.dumps(self._errors, ensure_ascii=False).encode("utf-8")
        headers = [("Content-Type", "application/json; charset=utf-8"), ("Connection", "close")]
        return f"{self.code} {self.reason}", headers, body


class Limits:
    """Judges bodies: `welcome` tells who may send large ones (`Auth.welcome`), `spool` is the folder whose disk takes them."""

    def __init__(self, welcome: Callable[[Mapping[str, str], str], Welcome], spool: Path, min_free_bytes: int) -> None:
        self.welcome = welcome
        self._spool = spool
        self._min_free_bytes = min_free_bytes

    def refusal(self, length: int, limit: int, *, finished: bool) -> Refusal | None:
        """Return why a body of `length` bytes (0: not told, it comes in pieces) is not taken in, or None where it is.

        `finished`: results of a command that has run, which get the last of the disk.
        """
        if length > limit:
            why = f"the request has {length} bytes, {limit} are taken; send smaller files, or use tools/spoolctl"
            return Refusal(413, "Request Entity Too Large", why)
        keep_free = 0 if finished else self._min_free_bytes
        if limit > SMALL_BYTES and free_bytes(self._spool) - FACTOR * length < keep_free:
            return Refusal(507, "Insufficient Storage", "the disk is nearly full: nothing new is taken; try again later")
        return None


def channel_class(limits: Limits) -> type[HTTPChannel]:
    """Return waitress's channel with these limits."""

    class Parser(HTTPRequestParser):  # type: ignore[misc]
        """waitress's parser; for published calls it looks before the body comes, and answers in their envelope."""

        adj: Any
        path: Any = ""  # waitress names it in its log also where the request line could not be read
        error: Error | None
        refused: Refusal | None = None
        bodyless = False  # given to the application, which refuses it, without its body
        _welcome: Welcome | None = None
        _limit = 0
        _looked = 0

        def __init__(self, adj: Any, peer: str) -> None:
            super().__init__(adj)
            self._peer = peer

        def parse_header(self, header_plus: bytes) -> None:
            try:
                super().parse_header(header_plus)
            except ValueError as exc:  # of urlsplit: http://[ ; nobody above would catch it, nor answer
                raise ParsingError("Bad URI") from exc
            if self._is_published() and self.body_rcv is not None:
                self._limit = MAX_BODY_BYTES if self.path in LARGE_CALLS else SMALL_BYTES
                self.adj = _Limited(self.adj, self._limit)
                self.body_rcv.getbuf().overflow = IN_MEMORY_BYTES
                if not self._is_welcome():
                    self._drop_body()

        def _is_welcome(self) -> bool:
            try:
                if self._limit > SMALL_BYTES:
                    self._welcome = limits.welcome(self.headers, self._peer)
                    if self._welcome() is False:
                        return False
                self.refused = limits.refusal(self.content_length, self._limit, finished=self._is_finished())
            except (SpoolError, OSError):  # the application meets it again, and says so
                return False
            return True

        def _is_finished(self) -> bool:
            return str(self.path) == RESULTS_CALL

        def _is_published(self) -> bool:
            return f" {BASE}/".encode() in getattr(self, "first_line", b"")

        def _drop_body(self) -> None:
            self.body_rcv, self.content_length, self.chunked = None, 0, False
            self._welcome = None  # the application answers, and counts the bad try
            self.headers.update(CONTENT_LENGTH="0", CONNECTION="close")
            self.expect_continue, self.bodyless = False, True

        def received(self, data: bytes) -> int:
            consumed: int = super().received(data)
            if self._is_published():
                self._look()
            return consumed

        def _look(self) -> None:
            if self._welcome is not None and self.refused is None and self._welcome() is False:
                self.refused = Refusal(403, "Forbidden", no_permission(self.path), "0005")
            if self._limit > SMALL_BYTES and self.body_bytes_received - self._looked > LOOK_EVERY_BYTES:
                self._looked = self.body_bytes_received
                self.refused = self.refused or limits.refusal(0, self._limit, finished=self._is_finished())
            if self.refused is None and self.error is not None:
                why = f"more than {self._limit} bytes" if self.error.code == 413 else str(self.error.body)
                self.refused = Refusal(self.error.code, self.error.reason, f"the request cannot be taken: {why}")
            if self.refused is not None:  # waitress would still ask for the body where the client waits to be asked
                self.error, self.completed, self.expect_continue = self.refused, True, False

    class Channel(HTTPChannel):  # type: ignore[misc]
        """waitress's channel with that parser.

        What still comes of a refused body is read and thrown away for a while: a connection that is closed over unread bytes is
        reset, and its client never reads why. A slow reader holds no thread: what it has not taken of a published answer waits
        in files, in several, since a buffer keeps in memory what it held before until it is left (docs/operations.md).
        """

        _refused = False
        _lingers_until = 0.0

        def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Adjustments, map: Any = None) -> None:
            super().__init__(server, sock, addr, adj, map)
            self.parser_class = functools.partial(Parser, peer=str(addr[0]) if isinstance(addr, tuple) else "")

        def received(self, data: bytes) -> bool:
            if self._lingers_until:
                if time.monotonic() > self._lingers_until:
                    self.handle_close()
                return False
            taken: bool = super().received(data)
            found = [*self.requests, self.request]
            self._refused = self._refused or any(isinstance(one, Parser) and (one.refused or one.bodyless) for one in found)
            return taken

        def _flush_outbufs_below_high_watermark(self) -> None:  # waitress waits here for the reader, in a thread
            if self.total_outbufs_len > MAX_BODY_BYTES:
                super()._flush_outbufs_below_high_watermark()

        def readable(self) -> bool:
            return bool(self._lingers_until) or super().readable()

        def handle_close(self) -> None:
            if self._refused and not self._lingers_until and self.connected and not self.total_outbufs_len:
                self._lingers_until = time.monotonic() + LINGER_S
                self.will_close = self.close_when_flushed = False
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_WR)
                return
            super().handle_close()

    return Channel


class _Limited:
    """The server's adjustments with another limit of the body."""

    def __init__(self, adjustments: Adjustments, limit: int) -> None:
        self._adjustments = adjustments
        self.max_request_body_size = limit + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adjustments, name)
