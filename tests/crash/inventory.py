"""What goes in and what must come out, byte for byte."""

from __future__ import annotations

import hashlib

from server.spools import DECK
from spool.records import FileEntry

FILES = {"out/beam.dat": b"1.0\n", "out/d/場.frd": b"2.0" * 1000, "log/stdout.txt": b"done\n"}
MANIFEST = tuple(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items())
LATE = "0b5e7f0a-5a43-4f0c-9c57-0d6e1d1f2a3b"

__all__ = ["DECK", "FILES", "LATE", "MANIFEST"]
