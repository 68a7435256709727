"""The site's audit log: one line an event, each bound by SHA-256 to all before it (docs/security.md, "Audit").

A line is a JSON object for `cat` and `jq`; its last two keys are `before`, the hash of the line before, and `hash`, the SHA-256
of the line's own bytes up to ``,"hash":``. So a line that was edited, removed, added or moved breaks the chain where that was
done; what was cut off at the end is found by a head that was told to somebody else: MInt is told it at every sync.

Only this account writes the file, under a lock, with O_APPEND, and each line is durable before the act that it tells of goes on.
A line torn by a crash stays and is named by the next one, so that it can be told from one that was spoiled later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from spool import jsonio
from spool.errors import InvalidRecord, SpoolError
from spool.files import fsync_dir, write_all
from spool.instants import utc_now
from spool.locks import file_lock

MAX_LINE_BYTES = 256 * 1024
MAX_TEXT = 4000  # characters of one text of an event
BEGIN = "0" * 64  # what the first line has before it
_START = re.compile(rb'\{"seq":([0-9]{1,15}),"at":"')
_END = re.compile(rb'(?:,"torn":"([0-9a-f]{64})")?,"before":"([0-9a-f]{64})","hash":"(?P<hash>[0-9a-f]{64})"\}\Z')
_END_BYTES = 240  # at least what _END matches
_WINDOW_BYTES = 4 * MAX_LINE_BYTES
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class AuditFailed(SpoolError):
    """The audit log takes nothing: what it must tell of waits until it does."""

    code = "no_space"
    transient = True


class Head(NamedTuple):
    """The end of a chain: the number of its last line, from 1, and that line's hash; (0, BEGIN) where there is none."""

    seq: int = 0
    hash: str = BEGIN

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``SEQ:HASH``; raise `InvalidRecord` where it is none."""
        number, _, digest = text.partition(":")
        if not (number.isascii() and number.isdigit() and len(number) <= 15) or not is_hash(digest):
            raise InvalidRecord(f"{text!r} is no head of an audit log", hint="NUMBER:64 hexadecimal digits")
        return cls(int(number), digest)


def is_hash(text: str) -> bool:
    """True for a SHA-256 as it is written here: 64 lower-case hexadecimal digits."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


class Audit:
    """The log at `path` (mode 0600, made where it is missing), for any number of processes of this account."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")

    def append(self, event: str, **details: Any) -> Head:
        """Add one line, durably, and return the new head. Raises `OSError` where that cannot be, `InvalidRecord` where the
        log's end is not readable: then nothing may go on that had to be told of.
        """
        return self.append_all([(event, details)])

    def append_all(self, events: list[tuple[str, dict[str, Any]]]) -> Head:
        """Add several lines with one fsync: all that is told of them is true only once this has returned."""
        with self._held() as fd:
            head, behind = _end_of(fd, self.path)
            closing = b"" if behind.endswith(b"\n") or (head == Head() and not behind) else b"\n"
            torn = _digest((behind + closing)[1:])
            lines = [closing]
            said = {"torn": torn} if torn else {}
            for event, details in events:
                head, line = _line(head, event, {**details, **said})
                lines.append(line)
                said = {}
            write_all(fd, b"".join(lines))
            os.fsync(fd)
            return head

    def head(self) -> Head:
        """Return the end of the chain as it is now."""
        with self._held() as fd:
            return _end_of(fd, self.path)[0]

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        os.stat(self.path.parent)  # a base that is gone for a while must not begin anew: filelock would make the folder
        with file_lock(self._lock, mode=0o600), self._open() as fd:
            yield fd

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        new = not self.path.exists()
        try:
            fd = os.open(self.path, _FLAGS, 0o600)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):
                raise InvalidRecord(f"{self.path} is not a regular file", hint="an administrator looks at it") from exc
            raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidRecord(f"{self.path} is not a regular file", hint="an administrator looks at it")
            if new:
                fsync_dir(self.path.parent)
            yield fd
        finally:
            os.close(fd)


def _cut(value: Any) -> Any:
    """Return a text as a line has room for it: a job may have a command, or a message of names, of megabytes."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT:
        return value
    return f"{value[:MAX_TEXT]}… ({len(value)} characters)"


def _line(before: Head, event: str, details: dict[str, Any]) -> tuple[Head, bytes]:
    told_of = {key: _cut(value) for key, value in details.items()}
    value = {"seq": before.seq + 1, "at": utc_now(), "event": event, **told_of, "before": before.hash}
    told = jsonio.dumps_line(value)[: -len(b"}\n")]
    digest = hashlib.sha256(told).hexdigest()
    line = told + f',"hash":"{digest}"}}\n'.encode()
    if len(line) > MAX_LINE_BYTES:
        raise InvalidRecord(f"an audit line of {len(line)} bytes is too long", hint=f"{MAX_LINE_BYTES} are kept")
    return Head(before.seq + 1, digest), line


def _end_of(fd: int, path: Path) -> tuple[Head, bytes]:
    """Return (the head, all bytes behind its line, its newline among them), reading from the end back.

    More than a newline there is what a crash has left of other lines.
    """
    size = os.fstat(fd).st_size
    start = max(0, size - _WINDOW_BYTES)
    tail = os.pread(fd, _WINDOW_BYTES, start)
    end = len(tail)
    while end:
        begin = tail.rfind(b"\n", 0, end) + 1  # a whole line may lack its newline alone
        with contextlib.suppress(InvalidRecord):
            return Entry.parse(tail[begin:end]).head, tail[end:]
        end = max(0, begin - 1)
    if start:
        raise InvalidRecord(f"the end of {path} cannot be read",
                            hint="spool_agent.py audit verify; then put the log aside, and start anew")  # fmt: skip
    return Head(), b"\n" + tail if tail else b""


def _digest(torn: bytes) -> str:
    """Return what the next line says of torn lines before it, each closed off by a newline; nothing where there are none."""
    return hashlib.sha256(torn).hexdigest() if torn else ""


class Entry(NamedTuple):
    """One line as it stands: `head` is what it claims to be, `before` what it claims to follow, `torn` what it says of torn
    lines before it; `true` tells whether its hash is that of its bytes.
    """

    head: Head
    before: str
    torn: str
    true: bool

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Read a line without its newline; raise `InvalidRecord` where it is none. What is hashed is not read as JSON."""
        start, end = _START.match(line), _END.search(line, max(0, len(line) - _END_BYTES))
        if not start or not end:
            raise InvalidRecord("it is no line of an audit log", hint="see docs/security.md")
        torn, before, digest = (part.decode() if part else "" for part in end.groups())
        told = line[: end.start("hash") - len(b',"hash":"')]
        return cls(Head(int(start[1]), digest), before, torn, hashlib.sha256(told).hexdigest() == digest)


class Finding(NamedTuple):
    """What is wrong, and at which line of the file (from 1; 0: at its end)."""

    line: int
    why: str


def verify(path: Path, heads: tuple[Head, ...] = ()) -> tuple[Head, list[Finding]]:
    """Read the whole log; return its head and what is wrong with it, in the file's order; nothing wrong: an empty list.

    `heads` were told to others: each must stand in the log, or what followed it was cut off or written anew. Nothing is
    written and no lock is taken; a line being added meanwhile is left out.
    """
    wanted = {head.seq: head.hash for head in heads if head.seq}
    findings: list[Finding] = []
    stray: list[Finding] = []
    head, torn = Head(), b""
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), 1):
            try:
                entry = Entry.parse(line)
            except InvalidRecord as exc:
                torn += line + b"\n"
                stray.append(Finding(number, f"cannot be read: {exc.message}"))
                continue
            if entry.torn != _digest(torn):
                findings += stray or [Finding(number, "tells of a torn line before it, which is gone")]
            findings += [Finding(number, why) for why in _wrong(entry, head)]
            if wanted.pop(entry.head.seq, entry.head.hash) != entry.head.hash:
                findings.append(Finding(number, f"is not the line {entry.head.seq} that was told of: the log was written anew"))
            head, torn, stray = entry.head, b"", []
    findings += stray
    for seq in sorted(wanted):
        findings.append(Finding(0, f"line {seq} was told of and is not there: the log was cut off, or is another one"))
    return head, findings


def _wrong(entry: Entry, head: Head) -> Iterator[str]:
    if not entry.true:
        yield "was changed: its hash is another"
    if entry.head.seq != head.seq + 1:
        yield f"has number {entry.head.seq} where {head.seq + 1} must stand: lines were removed, added or moved"
    elif entry.before != head.hash:
        yield "does not follow the line before it: that one was changed or replaced"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, the longest in pieces; not what is being written at the end, or was torn there."""
    while line := file.readline(2 * MAX_LINE_BYTES):
        if line.endswith((b"\n", b'"}')) or len(line) == 2 * MAX_LINE_BYTES:
            yield line[:-1] if line.endswith(b"\n") else line
