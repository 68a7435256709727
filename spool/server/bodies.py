"""How large a request may be, by its path, decided before its body is taken in.

waitress takes the whole body before it calls the application, with one limit for all. The calls of /v1 need a chunk, two of
the published protocol up to 2 GiB: only these get it, and only for a token that counts, while the disk has room.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.utilities import Error

from spool.files import free_bytes
from spool.published import BASE, MAX_BODY_BYTES, no_permission

LARGE_CALLS = (f"{BASE}/add-calcinfo", f"{BASE}/send-results")
IN_MEMORY_BYTES = 1 << 20  # of a large body; the rest goes to a file in the spool's tmp/
FACTOR = 2  # the body is on disk encoded, and then decoded beside it


class Refusal(Error):  # type: ignore[misc]
    """An answer in the published envelope to a request whose body is not taken in; the connection ends."""

    def __init__(self, status: int, reason: str, code: Any, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = status, reason
        self._errors = {"errors": [{"code": code, "message": message}]}

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return (status line, headers, body), as waitress asks for."""
        body = json.dumps(self._errors, ensure_ascii=False).encode("utf-8")
        headers = [("Content-Type", "application/json; charset=utf-8"), ("Connection", "close")]
        return f"{self.code} {self.reason}", headers, body


class Limits:
    """Judges large bodies: `known` tells whether a bearer token counts, `spool` is the folder whose disk takes them."""

    def __init__(self, known: Callable[[str], bool], spool: Path, min_free_bytes: int) -> None:
        self._known = known
        self._spool = spool
        self._min_free_bytes = min_free_bytes

    def refusal(self, path: str, authorization: str, length: int) -> Refusal | None:
        """Return why a body of `length` bytes (0: not told, it comes in pieces) is not taken in, or None where it is."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not self._known(token.strip()):
            return Refusal(403, "Forbidden", "0005", no_permission(path))
        if length > MAX_BODY_BYTES:
            why = f"the request has {length} bytes, {MAX_BODY_BYTES} are taken; send smaller files, or use tools/spoolctl"
            return Refusal(413, "Request Entity Too Large", 413, why)
        if free_bytes(self._spool) - FACTOR * length < self._min_free_bytes:
            return Refusal(507, "Insufficient Storage", 507, "the disk is nearly full: nothing new is taken; try again later")
        return None


def channel_class(limits: Limits) -> type[HTTPChannel]:
    """Return waitress's channel with these limits."""

    class Parser(HTTPRequestParser):  # type: ignore[misc]
        """waitress's parser; for large calls it looks before the body comes."""

        adj: Any

        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            if self.path in LARGE_CALLS and self.body_rcv is not None:
                # A length that is told is judged here, once; waitress counts where the body comes in pieces.
                self.adj = _Large(self.adj, max(self.content_length, MAX_BODY_BYTES) + 1)
                self.body_rcv.getbuf().overflow = IN_MEMORY_BYTES
                self.error = limits.refusal(self.path, self.headers.get("AUTHORIZATION", ""), self.content_length)
                self.completed = self.error is not None

    class Channel(HTTPChannel):  # type: ignore[misc]
        """waitress's channel with that parser."""

        parser_class = Parser

    return Channel


class _Large:
    """The server's adjustments with another limit of the body."""

    def __init__(self, adjustments: Adjustments, limit_bytes: int) -> None:
        self._adjustments = adjustments
        self.max_request_body_size = limit_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adjustments, name)
