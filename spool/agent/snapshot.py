"""Files as their manifest has them: no byte is given out that is not one of theirs.

Before a file is read for the first time it is hashed once, whole and in pieces: where the whole has the manifest's SHA-256, the
pieces' are true. Then each piece is read into memory, compared, and only from there given out. So a change is found before a
byte of it leaves, whoever makes it and at whatever moment, and nothing on disk has to be believed but the manifest.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from spool.agent.held import ChangedAfterSnapshot
from spool.copying import copy_file
from spool.errors import InvalidName
from spool.files import fsync_dir, open_beneath, parent_beneath
from spool.paths import JobPaths
from spool.records import FileEntry

PIECE_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 18


class Snapshot:
    """The files of one manifest beneath a job's folder. `exact`: none may have become longer."""

    def __init__(self, folder: Path, entries: Iterable[FileEntry], *, exact: bool = True) -> None:
        self._folder = folder
        self._entries = {entry.path: entry for entry in entries}
        self._exact = exact
        self._pieces: dict[str, tuple[bytes, ...]] = {}

    def open(self, name: str) -> BinaryIO:
        """Open a file that the manifest lists; reading it raises `ChangedAfterSnapshot` rather than give out another byte."""
        entry = self._entries.get(name)
        if entry is None:
            raise _changed(name, "is not in the manifest")
        fd = self._fd(name)
        try:
            size = os.fstat(fd).st_size
            if size < entry.size or (self._exact and size != entry.size):
                raise _changed(name, f"has {size} bytes, not {entry.size}")
            if name not in self._pieces:
                self._pieces[name] = tuple(_pieces_of(fd, entry))
            return cast(BinaryIO, io.BufferedReader(_Pieces(fd, entry, self._pieces[name]), _BUFFER_BYTES))
        except BaseException:
            os.close(fd)
            raise

    def check(self) -> None:
        """Read every file once. Raises `ChangedAfterSnapshot` at the first that is not as listed."""
        for name in self._entries:
            self.open(name).close()

    def _fd(self, name: str) -> int:
        top, _, rest = name.partition("/")
        try:  # a reviewer may go through the job's folder, but not list it
            return open_beneath(self._folder / top, rest, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, PermissionError, InvalidName) as exc:
            raise _changed(name, f"cannot be opened: {exc}") from exc


class _Pieces(io.RawIOBase):
    """A file read piece by piece, each compared before a byte of it is given out. Closes `fd`."""

    def __init__(self, fd: int, entry: FileEntry, pieces: tuple[bytes, ...]) -> None:
        self._fd = fd
        self._entry = entry
        self._pieces = pieces
        self._at = 0
        self._number = -1
        self._piece = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._entry.size}[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        if self._at >= self._entry.size:
            return 0
        number, start = divmod(self._at, PIECE_BYTES)
        if number != self._number:
            piece = _read(self._fd, self._entry, number * PIECE_BYTES)
            if hashlib.sha256(piece).digest() != self._pieces[number]:
                raise _changed(self._entry.path, "changed while it was sent")
            self._number, self._piece = number, piece
        found = self._piece[start : start + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _pieces_of(fd: int, entry: FileEntry) -> Iterator[bytes]:
    whole = hashlib.sha256()
    for offset in range(0, entry.size, PIECE_BYTES):
        piece = _read(fd, entry, offset)
        whole.update(piece)
        yield hashlib.sha256(piece).digest()
    if whole.hexdigest() != entry.sha256:
        raise _changed(entry.path, "does not have its SHA-256")


def _read(fd: int, entry: FileEntry, offset: int) -> bytes:
    wanted = min(PIECE_BYTES, entry.size - offset)
    found = b""
    while len(found) < wanted and (block := os.pread(fd, wanted - len(found), offset + len(found))):
        found += block
    if len(found) < wanted:
        raise _changed(entry.path, "became shorter")
    return found


def _changed(name: str, why: str) -> ChangedAfterSnapshot:
    return ChangedAfterSnapshot(f"{name} {why}", hint="nothing of it leaves; who can write to the agent's base?")


# Making one


def own_logs(paths: JobPaths, names: Iterable[str]) -> None:
    """Put a copy in the place of each log, which a process that the command left behind may still write to. Safe to repeat."""
    if paths.log.is_symlink():
        return
    for name in names:
        try:
            fd = open_beneath(paths.log, name, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, InvalidName):
            continue
        temp = f"{name}.{secrets.token_hex(8)}.part"
        try:
            with parent_beneath(paths.log, name) as (parent, last):
                copy_file(fd, temp, dir_fd=parent)
                os.rename(temp, last, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(fd)
    if paths.log.is_dir():
        fsync_dir(paths.log)


def freeze(paths: JobPaths, entries: Iterable[FileEntry], gid: int | None) -> None:
    """Make what would leave read-only, for the agent alone or for the group `gid` to read too, and for nobody else.

    The owner could still change it: what keeps it is the wall around the command, and that it is compared when it is sent.
    """
    _give(paths.folder, gid, None, 0o010)
    if paths.log.is_dir() and not paths.log.is_symlink():
        _give(paths.log, gid, None, 0o050)
    for folder, _, _ in os.walk(paths.out):
        _give(Path(folder), gid, 0o700, 0o050)
    for entry in entries:
        fd = open_beneath(paths.folder, entry.path, os.O_RDONLY)
        _give_fd(fd, gid, 0o400, 0o040)
    _give(paths.result, gid, 0o600, 0o040)


def _give(path: Path, gid: int | None, mode: int | None, more: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    _give_fd(fd, gid, stat.S_IMODE(os.fstat(fd).st_mode) if mode is None else mode, more)


def _give_fd(fd: int, gid: int | None, mode: int, more: int) -> None:
    try:
        if gid is not None:
            os.fchown(fd, -1, gid)
        os.fchmod(fd, mode | (more if gid is not None else 0))
    finally:
        os.close(fd)
