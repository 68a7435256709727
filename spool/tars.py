"""Reading a tar from the network as it comes: what a hostile one could do to the reader is stopped here.

`tarfile` skips to the next member by reading on, also where the stream has long ended: 600 bytes that announce a member of 10^20
bytes would keep it busy for years. Names, kinds and sizes of the members are judged by whoever takes the archive apart.
"""

from __future__ import annotations

import tarfile
from typing import Any, Protocol

MAX_EMPTY_READS = 8  # a sound archive needs two: tarfile asks once more to see its end
# Whatever tarfile raises over a damaged or hostile archive: not all of it is a TarError.
DAMAGED = (tarfile.TarError, UnicodeError, ValueError, EOFError, RecursionError, OverflowError)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; ``b""`` at the end."""


class _Ending:
    """A stream that does not take being read for ever after its end: `EOFError`."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._empty_reads = 0

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        if not block:
            self._empty_reads += 1
            if self._empty_reads > MAX_EMPTY_READS:
                raise EOFError("a member is announced to be longer than the archive")
        return block


def open_tar(stream: Readable, *, errors: str = "strict") -> tarfile.TarFile:
    """Open a tar that is read member by member, once; `errors` as for decoding the names. It and its use raise `DAMAGED`."""
    ending: Any = _Ending(stream)
    return tarfile.open(fileobj=ending, mode="r|", encoding="utf-8", errors=errors)
