"""What a reviewer is told to look at in held results: a line of the confidential table, odd names, binary or very large files.

A help, not a wall: a line is found where its words and numbers stand in the same order, however they are separated and written
(``1.0E+5`` is ``100000``); a table that was scaled, encoded or put into columns of another order is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from spool.records import FileEntry

LARGE_BYTES = 1 << 30
COMPARED_BYTES = 1 << 28  # of each file with the tables
HEAD_BYTES = 4096
HEAD_LINES = 10
MIN_CHARS, MIN_WORDS = 6, 2  # a line of a table that says less would be found everywhere
_LINE_BYTES = 1 << 16
_SEPARATORS = re.compile(r"[\s,;|]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d{1,3})?")


class Tables:
    """The lines of the files of `[release] warn_table`, to be found in others."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._lines: set[tuple[str, ...]] = set()
        self.troubles: list[str] = []
        for path in paths:
            try:
                with open(path, "rb") as file:
                    self._lines.update(filter(_says_enough, map(_words, _lines_of(file, None))))
            except OSError as exc:
                self.troubles.append(f"the confidential table {path.name} cannot be read, nothing was compared: {exc.strerror}")
        self._lengths = sorted({len(line) for line in self._lines})

    def remark(self, file: BinaryIO, size: int) -> str:
        """Return what a person is told of the open file, ``""`` where no line of a table is in it."""
        for number, line in enumerate(_lines_of(file, COMPARED_BYTES), 1):
            if self._in(_words(line)):
                return f"line {number} contains a line of the confidential table"
        short = self._lines and size > COMPARED_BYTES
        return f"only its first {COMPARED_BYTES} bytes were compared with the table" if short else ""

    def _in(self, words: tuple[str, ...]) -> bool:
        return any(
            words[start : start + length] in self._lines
            for length in self._lengths
            for start in range(len(words) - length + 1)
        )


def _lines_of(file: BinaryIO, limit_bytes: int | None) -> Iterator[bytes]:
    read = 0
    while (limit_bytes is None or read < limit_bytes) and (line := file.readline(_LINE_BYTES)):
        read += len(line)
        yield line


def _words(line: bytes) -> tuple[str, ...]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text = line.decode("cp932", "replace")
    return tuple(_plain(word) for word in _SEPARATORS.split(text.strip("\ufeff \t\r\n,;|")) if word)


def _plain(word: str) -> str:
    """Return a number as every program would write it, another word as it is."""
    return repr(float(word.upper().replace("D", "E"))) if _NUMBER.fullmatch(word) else word.strip("\"'")


def _says_enough(words: tuple[str, ...]) -> bool:
    return len(set(words)) >= MIN_WORDS and sum(map(len, words)) >= MIN_CHARS


def of_name(entry: FileEntry) -> Iterator[str]:
    """Yield what is remarkable of a file's name and size."""
    if entry.size > LARGE_BYTES:
        yield f"very large: {entry.size} bytes"
    parts = entry.path.split("/")
    if not entry.path.isprintable() or any(part != part.strip() or part.startswith(".") for part in parts):
        yield "its name has characters that do not show, or begins or ends oddly"
    elif not entry.path.isascii():
        yield "its name is not plain ASCII"


def head(file: BinaryIO) -> tuple[list[str], bool]:
    """Return (the first lines of the open file, safe for a terminal; whether it is binary)."""
    start = file.read(HEAD_BYTES)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as exc:
        cut = exc.start >= len(start) - 3 and len(start) == HEAD_BYTES  # a character may go on behind what was read
        text = start[: exc.start].decode("utf-8") if cut else ""
        if not cut:
            try:
                text = start.decode("cp932")
            except UnicodeDecodeError:
                return [], True
    if "\0" in text:
        return [], True
    return [harmless(line[:200]) for line in text.splitlines()[:HEAD_LINES]], False


def harmless(text: str) -> str:
    """Return `text` with everything escaped that could steer a terminal or hide on it."""
    return "".join(char if char.isprintable() or char == "\u3000" else char.encode("unicode_escape").decode() for char in text)
