"""JSON documents that carry whole files as base64 strings, read to disk and written from disk as streams.

The published protocol (docs/protocol.md, "The published protocol") has files of up to 2 GiB inside of its JSON. Here such a
string never stands in memory: reading, the strings that the caller points out are decoded into new files block by block, and
the document that is returned has a `Stored` in their place; writing, a `Source` is encoded block by block. Everything
else in a document is bounded and parsed as strictly as `spool.jsonio` does (RFC 8259; base64: RFC 4648 section 4).
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Callable, Protocol, Union

from spool.errors import Conflict, InvalidRecord

BLOCK_BYTES = 1 << 20
SOURCE_BLOCK_BYTES = 3 << 18  # a multiple of three, so that its base64 can be joined to the next
MAX_PLAIN_BYTES = 8 << 20  # of one document, everything but the files
MAX_VALUES = 200_000
MAX_DEPTH = 16
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BLANKS = b" \t\r\n"
_MARK = b"\xef\xbb\xbf"
_NO_BLANK = re.compile(rb"[^ \t\r\n]")
_RUN = re.compile(rb"(?s)(?:[^\"\\]+|\\u[0-9A-Fa-f]{4}|\\[^u])*")
_LONGEST_ESCAPE = 6
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]{1,40}")

Place = tuple[Union[str, int], ...]


class Readable(Protocol):
    """What a document is read from: `read` returns at most so many bytes, none at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Stored:
    """A string that was base64, decoded into the file `path`: its size in bytes, and SHA-256 as hashlib's object.

    `damaged`: it was not base64, and what the file holds means nothing; whether that matters the reader of the document knows.
    """

    path: Path
    size: int
    digest: hashlib._Hash = field(compare=False, repr=False)
    damaged: bool = False

    @property
    def sha256(self) -> str:
        """The digest in hex."""
        return self.digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A file to be written as a base64 string: exactly `size` bytes of what `open` returns."""

    open: Callable[[], BinaryIO]
    size: int


# Reading


def read_document(
    stream: Readable, folder: Path, is_file: Callable[[Place], bool], *, what: str, keep_damaged: bool = False
) -> dict[str, Any]:
    """Return the JSON object that `stream` holds, each string at a place that `is_file` points out being a `Stored`.

    A place is the way from the top: ``("result_files", "a.dat", "content")``. The files are made in `folder`, numbered, mode
    0660 less the umask, not synced; the caller removes `folder` where this raises. Raises `InvalidRecord` naming `what` for
    anything that is not such a document, `OSError` where it cannot be stored. With `keep_damaged` a file whose content is not
    base64 is no error here; it is `damaged`, and the caller decides.
    """
    reader = _Reader(stream, folder, is_file, what, keep_damaged)
    reader.skip_mark()
    value = reader.value((), 0)
    if not isinstance(value, dict):
        raise reader.wrong("it must be a JSON object")
    reader.end()
    return value


class _Reader:
    """A recursive-descent parser over a stream, of which one block at a time stands in memory."""

    def __init__(
        self, stream: Readable, folder: Path, is_file: Callable[[Place], bool], what: str, keep_damaged: bool
    ) -> None:
        self._keep_damaged = keep_damaged
        self._stream = stream
        self._folder = folder
        self._is_file = is_file
        self._what = what
        self._buffer = b""
        self._at = 0
        self._before = 0
        self._plain_bytes = 0
        self._values = 0
        self._files = 0
        self._damaged = False

    def wrong(self, why: str) -> InvalidRecord:
        """Return the error for what stands here."""
        return InvalidRecord(f"{self._what}: {why} (byte {self._before + self._at})", hint="send it as JSON in UTF-8")

    def _more(self) -> bool:
        block = self._stream.read(BLOCK_BYTES)
        if block:
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)

    def skip_mark(self) -> None:
        """Pass over a byte order mark (RFC 8259 section 8.1 lets a reader do so)."""
        while len(self._buffer) < len(_MARK) and self._more():
            pass
        if self._buffer.startswith(_MARK):
            self._at = len(_MARK)

    def _peek(self) -> bytes:
        """Return the next byte that is no blank, which stays; none at the end."""
        while True:
            match = _NO_BLANK.search(self._buffer, self._at)
            self._at = match.start() if match else len(self._buffer)
            if match:
                return match[0]
            if not self._more():
                return b""

    def _take(self, wanted: bytes) -> None:
        found = self._peek()
        if found != wanted:
            seen = repr(found.decode("latin-1")) if found else "the end"
            raise self.wrong(f"{wanted.decode()!r} was expected, not {seen}")
        self._at += 1

    def _if_next(self, wanted: bytes) -> bool:
        if self._peek() != wanted:
            return False
        self._at += 1
        return True

    def end(self) -> None:
        """Raise unless nothing follows."""
        if self._peek():
            raise self.wrong("something follows the document")

    def _spend(self, size: int) -> None:
        self._plain_bytes += size
        self._values += 1
        if self._plain_bytes > MAX_PLAIN_BYTES or self._values > MAX_VALUES:
            raise self.wrong(f"it holds more than {MAX_PLAIN_BYTES} bytes or {MAX_VALUES} values besides its files")

    def value(self, place: Place, depth: int) -> Any:
        """Read the value at `place`."""
        if depth > MAX_DEPTH:
            raise self.wrong("it is nested too deep")
        first = self._peek()
        if first == b"{":
            return self._object(place, depth)
        if first == b"[":
            return self._array(place, depth)
        if first == b'"':
            return self._file() if self._is_file(place) else self._text()
        return self._scalar()

    def _object(self, place: Place, depth: int) -> dict[str, Any]:
        self._take(b"{")
        found: dict[str, Any] = {}
        while not self._if_next(b"}"):
            if found:
                self._take(b",")
            if self._peek() != b'"':
                raise self.wrong("a key was expected")
            key = self._text()
            if key in found:
                raise self.wrong(f"the key {key!r} stands twice")
            self._take(b":")
            found[key] = self.value((*place, key), depth + 1)
        return found

    def _array(self, place: Place, depth: int) -> list[Any]:
        self._take(b"[")
        found: list[Any] = []
        while not self._if_next(b"]"):
            if found:
                self._take(b",")
            found.append(self.value((*place, len(found)), depth + 1))
        return found

    def _scalar(self) -> Any:
        self._peek()
        while len(self._buffer) - self._at <= 40 and self._more():
            pass
        match = _SCALAR.match(self._buffer, self._at)
        text = match[0].decode("ascii") if match else ""
        if text.lstrip("+") in ("NaN", "Infinity", "-Infinity", "") or len(text) > 24:
            raise self.wrong("a value was expected")
        try:
            value = json.loads(text)
        except ValueError as exc:
            raise self.wrong(f"{text!r} is no JSON value") from exc
        self._at += len(text)
        self._spend(len(text))
        return value

    def _text(self) -> str:
        self._take(b'"')
        searched = self._at
        while True:
            end = self._buffer.find(b'"', searched)
            if end < 0:
                searched = len(self._buffer) - self._at
                if searched > MAX_PLAIN_BYTES or not self._more():
                    raise self.wrong("a string is too long, or does not end")
                searched += self._at
            elif _is_escaped(self._buffer, self._at, end):
                searched = end + 1
            else:
                break
        raw = self._buffer[self._at : end]
        self._spend(len(raw) + 1)
        text = self._unescaped(raw)
        self._at = end + 1
        return text

    def _unescaped(self, raw: bytes) -> str:
        try:
            text = str(json.loads(b'"' + raw + b'"'))
            text.encode("utf-8")
        except ValueError as exc:  # UnicodeError too: not UTF-8, or half of a surrogate pair
            raise self.wrong("a string is not UTF-8 or badly escaped") from exc
        return text

    # Files

    def _file(self) -> Stored:
        self._take(b'"')
        self._spend(1)
        path = self._folder / f"{self._files:06d}"
        self._files += 1
        digest, size = hashlib.sha256(), 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        with open(fd, "wb", buffering=0) as file:
            for data in self._decoded():
                digest.update(data)
                size += len(data)
                while data:  # an unbuffered write may be a short one
                    data = data[file.write(data) :]
        return Stored(path, size, digest, self._damaged)

    def _decoded(self) -> Iterator[bytes]:
        """Yield what the base64 string stands for, to its closing quote."""
        left, padded, self._damaged = b"", False, False
        for part in self._parts():
            text = left + part.translate(None, _BLANKS)
            whole = len(text) - len(text) % 4
            text, left = text[:whole], text[whole:]
            padding = len(text) - len(text.rstrip(b"="))
            if (text and padded) or padding > 2 or text[: len(text) - padding].translate(None, _ALPHABET):
                self._damaged = True
            if self._damaged:
                left = b""
                continue
            padded = padded or padding > 0
            yield binascii.a2b_base64(text)
        self._damaged = self._damaged or bool(left)
        if self._damaged and not self._keep_damaged:
            raise self.wrong("a file's content is not base64, or is cut short")

    def _parts(self) -> Iterator[bytes]:
        """Yield the raw string in parts, escapes resolved; no escape is cut in two."""
        while True:
            end = self._buffer.find(b'"', self._at)
            stop = end if end >= 0 else len(self._buffer)
            part = self._buffer[self._at : stop]
            if b"\\" in part:  # rare in base64: then the quote that was found may be an escaped one
                stop = self._end_of_run()
                end = stop if self._buffer[stop : stop + 1] == b'"' else -1
                part = self._unescaped(self._buffer[self._at : stop]).encode("utf-8")
            self._at = stop
            yield part
            if end >= 0:
                self._at += 1
                return
            if not self._more():
                raise self.wrong("a file's content does not end")

    def _end_of_run(self) -> int:
        """Return where the string's quote stands, or an escape that is not whole yet, or the end of the buffer."""
        match = _RUN.match(self._buffer, self._at)
        stop = match.end() if match else self._at
        if len(self._buffer) - stop > _LONGEST_ESCAPE and self._buffer[stop : stop + 1] != b'"':
            raise self.wrong("a string is badly escaped")
        return stop


def _is_escaped(buffer: bytes, start: int, at: int) -> bool:
    first = at
    while first > start and buffer[first - 1] == 0x5C:
        first -= 1
    return (at - first) % 2 == 1


# Writing


def write_document(document: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield `document` as JSON in UTF-8 without escapes, every `Source` in it as base64, in blocks.

    Raises `Conflict` where a source has fewer bytes than it was announced with.
    """
    for piece in _pieces(document):
        if isinstance(piece, Source):
            yield from _encoded(piece)
        else:
            yield piece


def length_of(document: Mapping[str, Any]) -> int:
    """Return how many bytes `write_document` yields, without opening a source."""
    return sum((piece.size + 2) // 3 * 4 if isinstance(piece, Source) else len(piece) for piece in _pieces(document))


def _pieces(value: Any) -> Iterator[bytes | Source]:
    if isinstance(value, Source):
        yield b'"'
        yield value
        yield b'"'
    elif isinstance(value, Mapping):
        yield b"{"
        for number, (key, item) in enumerate(value.items()):
            yield (", " if number else "").encode() + _dumped(str(key)) + b": "
            yield from _pieces(item)
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        for number, item in enumerate(value):
            if number:
                yield b", "
            yield from _pieces(item)
        yield b"]"
    else:
        yield _dumped(value)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _encoded(source: Source) -> Iterator[bytes]:
    with contextlib.closing(source.open()) as file:
        left = source.size
        while left:
            block = _filled(file, min(left, SOURCE_BLOCK_BYTES))
            left -= len(block)
            yield binascii.b2a_base64(block, newline=False)


def _filled(file: BinaryIO, size: int) -> bytes:
    block = file.read(size)
    while len(block) < size:
        more = file.read(size - len(block))
        if not more:
            raise Conflict("a file became shorter while it was sent", hint="it is sent again")
        block += more
    return block
