"""The line of one session at the gate, and the bytes of files that pass over it.

A line on which nothing passes for `stall_s` counts as cut: the session ends, and what it held is free for the next one. Files are
opened part by part beneath the job's folder, never following a link. What leaves is compared piece by piece with what was
measured, before it leaves (`spool.agent.snapshot`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Callable

from spool import gate, jsonio
from spool.agent.snapshot import Snapshot
from spool.errors import Busy, Conflict, InvalidRecord, NoSpace, Unreachable
from spool.files import fsync_dir, open_beneath, parent_beneath, write_all
from spool.records import FileEntry


class Later(Busy):
    """Not now, and no failure: the push tries again."""


class NoRoom(NoSpace):
    """The site's disk does not take the inputs now."""


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


def send(
    line: Line, snapshot: Snapshot, entry: FileEntry, offset: int, *, may_send: Callable[[], None],
    cut: Callable[[int], None],
) -> None:
    """Send a file of `snapshot` from `offset` on; `may_send` is asked before each piece, and raises where nothing may leave.

    Where it ends early, `cut` is told up to which byte something may have left.
    """
    if offset > entry.size:
        raise Conflict(f"{entry.path!r} has no byte {offset}", hint="ask for its result again")
    at = offset
    try:
        with snapshot.open(entry.path) as file:
            file.seek(offset)
            while at < entry.size:
                may_send()
                block = file.read(min(gate.BLOCK_BYTES, entry.size - at))
                at += len(block)
                line.write(block)
    except BaseException:
        cut(at)
        raise


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
