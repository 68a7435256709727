"""Files on their way into a job folder, in chunks that may be repeated (docs/format.md, "incoming").

One `Incoming` is one folder, `incoming/RUN_ID/`: `files/` holds the bytes, `offsets/` one small record per file that is
appended to; each append locks the very file it writes. A chunk is written at the declared offset,
synced, and only then is the offset recorded; after a crash the file is cut back to the recorded offset. Nothing here
counts as a result before `spool.results` has verified it; `closed` keeps a stray chunk from changing what was verified.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spool import jsonio
from spool.errors import Busy, DigestMismatch, InvalidRequest, OffsetMismatch
from spool.fields import Fields
from spool.files import COPY_BYTES, fsync_dir, open_beneath, parent_beneath, read_record, remove_tree, write_all
from spool.manifest import hash_fd
from spool.names import TogetherNames, check_names
from spool.records import FileEntry
from spool.streams import Stored

_MAX_DIGESTS = 20000
_REMOVALS = 20  # each stray request makes its file once
_ZEROS = bytes(COPY_BYTES)


FileIdentity = tuple[int, ...]


class Digests:
    """SHA-256 of what was appended so far, kept in memory so that a finished file need not be read again.

    A cache: what is not in it is computed from the disk. An entry holds for the very file it was made of (inode, size and
    time of modification), so bytes that another process has put there are never vouched for. Threads may share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[FileIdentity, hashlib._Hash]] = OrderedDict()

    def of(self, path: str, fd: int) -> hashlib._Hash | None:
        """Return a copy of the digest of all bytes of the open file, or None where it is not known."""
        if os.fstat(fd).st_size == 0:
            return hashlib.sha256()
        with self._lock:
            seen, digest = self._known.get(path, ((), None))
        return digest.copy() if digest is not None and seen == identity_of(fd) else None

    def keep(self, path: str, file: FileIdentity, digest: hashlib._Hash | None) -> None:
        """Remember the digest of all bytes of the file as `identity_of` saw it."""
        with self._lock:
            self._known.pop(path, None)
            if digest is not None:
                self._known[path] = (file, digest)
            if len(self._known) > _MAX_DIGESTS:
                self._known.popitem(last=False)


def identity_of(fd: int) -> FileIdentity:
    """Return what tells this file and this content of it from others: device, inode, size, time of modification."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


@dataclass
class _Aside:
    """One received member of a group, not placed yet."""

    path: Path
    identity: FileIdentity
    digest: hashlib._Hash


class Incoming:
    """The files of one run on their way in. `folder` is made on first use."""

    def __init__(self, folder: Path, digests: Digests | None = None) -> None:
        self.folder = folder
        self._digests = digests or Digests()
        self.files = folder / "files"
        self._offsets = folder / "offsets"

    def prepare(self) -> None:
        """Make the folders. Safe to repeat."""
        for folder in (self.folder.parent, self.folder, self.files, self._offsets):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o770)
                fsync_dir(folder.parent)

    def offset(self, name: str) -> int:
        """Return how many bytes of `name` are here for good; 0 where nothing is."""
        with contextlib.suppress(FileNotFoundError), parent_beneath(self._offsets, name) as (parent, last):
            recorded = _read_offset(parent, last)
            if recorded is not None:
                return recorded
        try:
            fd = open_beneath(self.files, name, os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            return os.fstat(fd).st_size  # put whole, by rename
        finally:
            os.close(fd)

    def append(self, name: str, offset: int, stream: BinaryIO, length: int, *, sha256: str = "") -> int:
        """Append `length` bytes of `stream` at `offset`; return the new offset, which is durable then.

        `sha256` (hex) of the chunk is checked before the offset counts. Raises `OffsetMismatch` with the true offset where
        another is here, `DigestMismatch` or `InvalidRequest` where the chunk is damaged or short: nothing of it counts.
        """
        self.prepare()
        with parent_beneath(self._offsets, name, make=True) as (parent, last), self._unclosed(), self._locked_file(name) as fd:
            here = self._recorded(name, fd, parent, last)
            if offset != here:
                raise OffsetMismatch(f"{here} bytes of {name!r} are here, not {offset}", offset=here, hint="go on from there")
            os.ftruncate(fd, here)
            key = f"{self.folder}\0{name}"
            whole = self._digests.of(key, fd)
            try:
                _receive(fd, here, stream, length, sha256, whole)
                os.fsync(fd)
            except BaseException:
                os.ftruncate(fd, here)
                raise
            _write_offset(parent, last, here + length)
            self._digests.keep(key, identity_of(fd), whole)
            return here + length

    def _recorded(self, name: str, fd: int, parent: int, last: str) -> int:
        """Return the offset that counts, under the file's lock; a record is made before the first byte is written.

        A record never outlives the file it is of: the file's name is made durable first.
        """
        here = _read_offset(parent, last)
        if here is None:
            with parent_beneath(self.files, name) as (beside, _):
                os.fsync(beside)
            here = os.fstat(fd).st_size  # 0: new, or a crash came before the record; else put whole, by rename
            _write_offset(parent, last, here)
        return here

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Take nothing while the result is judged and moved in: what is being written is waited for, the rest is `Busy`."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # nothing has come
                stack.enter_context(self._lock(fcntl.LOCK_EX))
            yield

    @contextlib.contextmanager
    def _unclosed(self) -> Iterator[None]:
        """Hold off `closed`; `Busy` where it came first, and where the folder went with it."""
        busy = Busy("the run's result is being judged: nothing more is taken meanwhile", hint="ask HEAD, then go on")
        try:
            with self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB) as fd:
                if os.fstat(fd).st_nlink == 0:
                    raise busy
                yield
        except BlockingIOError as exc:
            raise busy from exc

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[int]:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(fd, how)
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _locked_file(self, name: str) -> Iterator[int]:
        fd = open_beneath(self.files, name, os.O_RDWR | os.O_CREAT, make=True)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink == 0:
                raise OffsetMismatch(f"{name!r} was started afresh meanwhile", offset=0, hint="go on from 0")
            yield fd
        finally:
            os.close(fd)

    def restart(self, name: str) -> None:
        """Throw away what is here of `name`, whose bytes turned out wrong."""
        with contextlib.suppress(FileNotFoundError), parent_beneath(self._offsets, name) as (parent, last):
            os.unlink(last, dir_fd=parent)
        with contextlib.suppress(FileNotFoundError), parent_beneath(self.files, name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def put_group(self, members: Iterator[tuple[str, BinaryIO, int]]) -> int:
        """Put many whole files (name, stream, size in bytes) as a group; return how many.

        Nothing is placed before every member was received, its name checked and its bytes synced; each then appears by
        rename, so a crash leaves whole files or none.
        """
        self.prepare()
        written: dict[str, _Aside] = {}
        together = TogetherNames()
        try:
            for name, stream, size in members:
                together.add(name)
                written[name] = self._write_aside(stream, size)
            with self._unclosed():
                for name, aside in written.items():
                    self._place(name, aside)
        finally:
            for aside in written.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside.path)
        sync_folders(self.files)
        return len(written)

    def _write_aside(self, stream: BinaryIO, size: int) -> _Aside:
        temp = self.folder / f"put.{secrets.token_hex(8)}"
        fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
        digest = hashlib.sha256()
        try:
            _receive(fd, 0, stream, size, "", digest)
            os.fsync(fd)
            return _Aside(temp, identity_of(fd), digest)
        except BaseException:
            os.unlink(temp)
            raise
        finally:
            os.close(fd)

    def adopt(self, files: Mapping[str, Stored]) -> None:
        """Take whole files over from elsewhere on this file system, by rename: what `put_group` does without copying.

        Their bytes must be synced already (`spool.files.sync_file`), so that nothing long is done under a lock.
        Safe to repeat with other files: those of an earlier sending are replaced, or taken away where they are not among them.
        """
        self.prepare()
        check_names(files)
        for old, _, names in os.walk(self.files):
            for name in {str((Path(old) / name).relative_to(self.files)) for name in names} - set(files):
                self.restart(name)
        for name, item in files.items():
            with open(item.path, "rb") as file:
                identity = identity_of(file.fileno())
            self._place(name, _Aside(item.path, identity, item.digest))
        sync_folders(self.files)

    def _place(self, name: str, aside: _Aside) -> None:
        with contextlib.suppress(FileNotFoundError), parent_beneath(self._offsets, name) as (parent, last):
            os.unlink(last, dir_fd=parent)
        with parent_beneath(self.files, name, make=True) as (parent, last):
            os.rename(aside.path, last, dst_dir_fd=parent)
        self._digests.keep(f"{self.folder}\0{name}", aside.identity, aside.digest)

    def move_folder(self, name: str, target: Path) -> None:
        """Move what arrived below `name` to the folder `target`, durably. Safe to repeat.

        Where a crash has moved an earlier sending there already (or `target` is not empty), it goes file by file.
        """
        source = self.files / name
        if not source.exists():
            return
        sync_folders(source)
        try:
            os.rename(source, target)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _merge(source, target)
        fsync_dir(target.parent)

    def entry(self, name: str) -> FileEntry:
        """Return size and SHA-256 of what is here of `name`; `FileNotFoundError` where nothing is."""
        fd = open_beneath(self.files, name, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            known = self._digests.of(f"{self.folder}\0{name}", fd)
            digest = known.hexdigest() if known is not None else hash_fd(fd)[0]
        finally:
            os.close(fd)
        return FileEntry(name, size, digest)


def _receive(fd: int, offset: int, stream: BinaryIO, length: int, sha256: str, whole: hashlib._Hash | None) -> None:
    chunk_digest, left = hashlib.sha256(), length
    while left:
        block = stream.read(min(left, COPY_BYTES))
        if not block:
            raise InvalidRequest(f"the body ended {left} bytes early", hint="send it again")
        if block != _ZEROS[: len(block)]:  # zeros stay a hole: sparse files arrive sparse
            write_all(fd, block, offset)
        chunk_digest.update(block)
        if whole is not None:
            whole.update(block)
        offset, left = offset + len(block), left - len(block)
    os.ftruncate(fd, offset)
    if sha256 and chunk_digest.hexdigest() != sha256:
        raise DigestMismatch("the chunk does not have the announced SHA-256", hint="it was damaged on its way: send it again")


def _read_offset(parent: int, last: str) -> int | None:
    path = Path(f"/proc/self/fd/{parent}/{last}")
    try:
        data = read_record(path, 4096)
    except FileNotFoundError:
        return None
    return Fields(jsonio.loads(data, "offset record"), "offset record").integer("offset", low=0)


def _write_offset(parent: int, last: str, offset: int) -> None:
    temp = f".{secrets.token_hex(8)}.tmp"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660, dir_fd=parent)
    try:
        write_all(fd, jsonio.dumps_line({"offset": offset}))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temp, last, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)


def remove_incoming(folder: Path) -> None:
    """Remove `incoming/` of a job that has ended; a stray chunk may just be making its file there. Safe to repeat."""
    for _ in range(_REMOVALS):
        try:
            remove_tree(folder)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    remove_tree(folder)


def sync_folders(folder: Path) -> None:
    """Make the names in `folder` and in every folder below it durable."""
    for path, _, _ in os.walk(folder):
        fsync_dir(Path(path))


def _merge(source: Path, target: Path) -> None:
    for path, _, names in os.walk(source):
        below = target / Path(path).relative_to(source)
        below.mkdir(mode=0o770, exist_ok=True)
        for name in names:
            os.rename(Path(path) / name, below / name)
    sync_folders(target)  # at the end: a folder made below one that was synced before would have no durable name
    remove_tree(source)
