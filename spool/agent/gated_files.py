"""The line of one session at the gate, and the bytes of files that pass over it.

A line on which nothing passes for `stall_s` counts as cut: the session ends, and what it held is free for the next one. Files are
opened part by part beneath the job's folder, never following a link. What leaves is hashed while it leaves, and its last block
goes only where the whole is still what was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from spool import gate, jsonio
from spool.errors import Conflict, DigestMismatch, InvalidRecord, Unreachable
from spool.files import fsync_dir, open_beneath, parent_beneath, write_all
from spool.records import FileEntry


class Stalled(Unreachable):
    """Nothing passed for `stall_s` seconds."""


class Line:
    """Standard input and output of this session."""

    def __init__(self, stall_s: int) -> None:
        self._stall_s = stall_s
        self._rest = b""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Have a wait of more than `stall_s` end with `Stalled`; what is computed meanwhile takes as long as it takes."""
        before = signal.signal(signal.SIGALRM, _stalled)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, self._stall_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def read(self, most: int) -> bytes:
        """Return some bytes, at most `most`; none at the end."""
        if self._rest:
            block, self._rest = self._rest[:most], self._rest[most:]
            return block
        with self._waiting():
            return os.read(0, min(most, gate.BLOCK_BYTES))

    def read_line(self) -> bytes:
        """Return the first line without its newline; `InvalidRecord` where it is longer than a record may be, or was cut."""
        found: list[bytes] = []
        size = 0
        while block := self.read(gate.BLOCK_BYTES):
            head, newline, rest = block.partition(b"\n")
            found.append(head)
            size += len(head)
            if size > gate.MAX_LINE_BYTES:
                raise InvalidRecord("what was asked is too long", hint=f"{gate.MAX_LINE_BYTES} bytes are read")
            if newline:
                self._rest = rest
                return b"".join(found)
        raise Unreachable("the line broke off", hint="it is tried again")

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            with self._waiting():
                count = os.write(1, view[: 64 * 1024])
            view = view[count:]

    def answer(self, value: Mapping[str, Any]) -> None:
        """Write one JSON line."""
        self.write(jsonio.dumps_line(value))


def _stalled(signum: int, frame: FrameType | None) -> None:
    raise Stalled("nothing passed on the line", hint="it is tried again")


# ---- Inputs


def sizes_here(folder: Path, announced: Mapping[str, FileEntry]) -> dict[str, int]:
    """Return how many bytes of each announced file are here; what is longer than announced, or no file, is removed."""
    found = {}
    for name, entry in announced.items():
        with contextlib.suppress(FileNotFoundError), parent_beneath(folder, name) as (parent, last):
            info = os.stat(last, dir_fd=parent, follow_symlinks=False)
            if info.st_size > entry.size or not _is_file(info.st_mode):
                os.unlink(last, dir_fd=parent)
            else:
                found[name] = info.st_size
    return found


def _is_file(mode: int) -> bool:
    return mode & 0o170000 == 0o100000


def receive(line: Line, folder: Path, entry: FileEntry, offset: int) -> None:
    """Append what is missing of one announced file, never more than was announced; durable when this returns."""
    fd = open_beneath(folder, entry.path, os.O_WRONLY | os.O_CREAT, make=True)
    try:
        here = os.fstat(fd).st_size
        if offset != here:
            raise Conflict(f"{here} bytes of {entry.path!r} are here, not {offset}", hint="ask again, and go on from there")
        while offset < entry.size:
            block = line.read(min(gate.BLOCK_BYTES, entry.size - offset))
            if not block:
                raise Unreachable(f"the line broke off within {entry.path!r}", hint="it is tried again")
            write_all(fd, block, offset)
            offset += len(block)
        os.fsync(fd)
    finally:
        os.close(fd)
    with parent_beneath(folder, entry.path) as (parent, _):
        os.fsync(parent)


def remove(folder: Path, name: str) -> None:
    """Remove one file, durably, where it is there."""
    with contextlib.suppress(FileNotFoundError), parent_beneath(folder, name) as (parent, last):
        os.unlink(last, dir_fd=parent)
    fsync_dir(folder)


# ---- Results


def send(line: Line, folder: Path, entry: FileEntry, offset: int) -> None:
    """Send a measured file from `offset` on. `DigestMismatch`, and its end stays here, where it is not as it was measured."""
    fd = open_beneath(folder, entry.path, os.O_RDONLY)
    try:
        if os.fstat(fd).st_size < entry.size or offset > entry.size:
            raise _changed(entry)
        digest, at, kept = hashlib.sha256(), 0, b""
        while at < entry.size:
            block = os.pread(fd, min(gate.BLOCK_BYTES, entry.size - at), at)
            if not block:
                raise _changed(entry)
            digest.update(block)
            at += len(block)
            if at > offset:
                line.write(kept)
                kept = block[max(0, len(block) - (at - offset)) :]
        if digest.hexdigest() != entry.sha256:
            raise _changed(entry)
        line.write(kept)
    finally:
        os.close(fd)


def _changed(entry: FileEntry) -> DigestMismatch:
    return DigestMismatch(f"{entry.path!r} was changed since it was measured", hint="it does not leave; ask the site")


def grown(folder: Path, name: str, offset: int, most: int) -> bytes:
    """Return what a log has beyond `offset`, at most `most` bytes; nothing where there is no such log."""
    try:
        fd = open_beneath(folder, name, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(fd, most, offset)
    finally:
        os.close(fd)
