"""Redaction: what the site's patterns match is taken out of logs, names and messages before they leave (docs/security.md).

Logs are judged line by line, and only whole lines leave, so that no border of a chunk can hide a match. A line is bytes: it is
read in each encoding that Japanese programs write and that fits it. It stands against accidents, not against a command that
wants to smuggle: whoever may write to a log can write anything in a way that no pattern knows.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Callable

from spool.files import write_all

REDACTED = "[withheld by the site]"
LONG_LINE = b"[a long line: withheld by the site]"
MAX_LINE_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
_ENCODINGS = ("utf-8", "cp932", "euc_jp")
_WIDE = ("utf-16-le", "utf-16-be")


class Redactor:
    """Takes out what any of `patterns` (regular expressions) matches. No pattern: nothing is taken out."""

    def __init__(self, patterns: Iterable[re.Pattern[str]]) -> None:
        self._patterns = tuple(patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def text(self, text: str) -> str:
        """Return `text` with every match replaced by `REDACTED`; `REDACTED` alone where it matches in another form of Unicode."""
        for pattern in self._patterns:
            text = pattern.sub(lambda match: REDACTED if match[0] else "", text)
        return text if text.isascii() or not self.finds(text.replace(REDACTED, "\0")) else REDACTED

    def finds(self, text: str) -> bool:
        """True where a pattern matches anything in `text`, as it is or composed."""
        if not self._patterns:
            return False
        forms = {text}
        if not text.isascii():  # a name that macOS decomposed, or that was typed in full width, is the same name to a person
            forms |= {unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text)}
        return any(match[0] for pattern in self._patterns for form in forms for match in pattern.finditer(form))

    def hides(self, name: str) -> bool:
        """True where `name`, printable as `spool.manifest` makes it, must not be told: a pattern matches, or nobody can say.

        What was escaped (another encoding, control characters) is no text that a pattern could be held against.
        """
        return bool(self._patterns) and ("\\" in name or self.finds(name))

    def line(self, line: bytes) -> bytes:
        """Return one line of a log, without its newline, redacted; the same bytes where nothing matches."""
        if not self._patterns:
            return line
        if len(line) > MAX_LINE_BYTES:
            return LONG_LINE
        for encoding in _ENCODINGS:
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError:
                continue
            if self.finds(text):
                line = self.text(text).encode(encoding, "replace")
        if b"\0" in line and self._finds_wide(line):
            return REDACTED.encode()
        # What is no text in any encoding still holds readable parts.
        text = line.decode("latin-1")
        return self.text(text).encode("latin-1", "replace") if self.finds(text) else line

    def _finds_wide(self, line: bytes) -> bool:
        """True for a match in UTF-16, whose newline of two bytes leaves one of them at an end of the line."""
        parts = [line[start : len(line) - (len(line) - start) % 2] for start in (0, 1)]
        return any(self.finds(part.decode(encoding, "replace")) for part in parts for encoding in _WIDE)


class RedactedCopy:
    """The redacted copy of a log that grows: `advance` appends to `target_fd` what has become a whole line in `source_fd`.

    Both are open files; the copy begins at the start of the source, and the target is emptied. One thread at a time.

    Every line of the copy was a whole line of the source when it was read: where the source was cut or written anew, so that
    the bytes before the place that was reached are others now, the copy begins anew.
    """

    def __init__(self, redact: Callable[[bytes], bytes], source_fd: int, target_fd: int) -> None:
        self._redact = redact
        self._source = source_fd
        self._target = target_fd
        self._begin()

    def _begin(self) -> None:
        os.ftruncate(self._target, 0)
        self._read = 0  # bytes of the source that were read
        self._rest = b""  # of these, what is no whole line yet; never longer than a line may be
        self._skips = False  # inside a line that is too long
        self.size = 0  # bytes of the target

    def advance(self, *, finished: bool = False) -> int:
        """Copy what has come; with `finished` the last line, which may lack its newline. Return the target's size in bytes.

        What is added while this works is for the next time: a writer without end holds nobody up.
        """
        end = os.fstat(self._source).st_size
        if end < self._read:
            self._begin()
        while self._read < end:
            block = self._next(end)
            if block is None:
                self._begin()
                continue
            if not block:
                break
            self._read += len(block)
            self._take(block)
        if finished and (self._rest or self._skips):
            self._put(LONG_LINE if self._skips else self._redact(self._rest))
            self._rest, self._skips = b"", False
        return self.size

    def _next(self, end: int) -> bytes | None:
        """Return the next block up to `end`, read together with what must stand before it; None where something else does."""
        before = b"" if self._skips else (b"\n" if self._read > len(self._rest) else b"") + self._rest
        block = os.pread(self._source, len(before) + min(READ_BYTES, end - self._read), self._read - len(before))
        return block[len(before) :] if block.startswith(before) else None

    def _take(self, block: bytes) -> None:
        *lines, rest = (self._rest + block).split(b"\n")
        out = []
        for line in lines:
            out.append(LONG_LINE if self._skips else self._redact(line))
            self._skips = False
        self._skips = self._skips or len(rest) > MAX_LINE_BYTES
        self._rest = b"" if self._skips else rest
        if out:
            self._put(b"\n".join(out) + b"\n")

    def _put(self, data: bytes) -> None:
        write_all(self._target, data, self.size)
        self.size += len(data)
