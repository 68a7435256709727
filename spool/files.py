"""The one place that writes files, and that opens a name from outside beneath a folder.

Order of a replace: a temporary file in the same directory (`O_EXCL|O_NOFOLLOW`), write all, fsync, close, rename, fsync the
directory. A reader sees the old bytes or the new ones, never a mixture, and what was acknowledged survives a power
cut (docs/format.md, "Writing order"; rename(2), fsync(2)).

Every function lets `OSError` through; `spool.errors.from_os_error` turns it into a word for a person.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

from spool.errors import InvalidName, InvalidRecord
from spool.names import MAX_NAME_BYTES, check_name

SHARED_FILE = 0o660
COPY_BYTES = 1 << 20
# On a FIFO open(2) waits for a writer, on a device it may do anything; with these it opens a real folder or nothing.
_FOLDER_ONLY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes, *, mode: int = SHARED_FILE) -> None:
    """Set the whole content of `path` to `data`, atomically and durably. Safe to repeat.

    `mode` is narrowed by the umask. On any failure the temporary file is removed and the old content stays; a failed
    fsync is never retried on the same file, because the kernel may have dropped the pages (fsync(2)).
    """
    temp = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        write_new(temp, data, mode=mode)
        os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    fsync_dir(path.parent)


def write_new(path: Path, data: bytes, *, mode: int = SHARED_FILE) -> None:
    """Create `path` with `data` and fsync it; `FileExistsError` where it exists. The directory is not synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of `data` at the file's position, or at `offset` (bytes) with pwrite(2); a short write goes on."""
    view = memoryview(data)
    while view:
        count = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        view = view[count:]
        offset = None if offset is None else offset + count


def append_line(path: Path, line: bytes, *, durable: bool = True) -> None:
    """Append one line with one write(2). A line torn by a crash is closed off first, so it spoils only itself.

    `OSError` where something else than a regular file stands there: a FIFO would hold the caller, and its lock, for ever.
    """
    fd = _open_lines(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        write_all(fd, line)
        if durable:
            os.fsync(fd)
            if not size:  # perhaps a new file, whose name is not durable yet
                fsync_dir(path.parent)
    finally:
        os.close(fd)


def _open_lines(path: Path, flags: int) -> int:
    """Open a regular file without following a link or waiting; `OSError` for anything else."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, SHARED_FILE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file; put the file itself there", str(path))
    return fd


def last_line(path: Path) -> bytes:
    """Return the last complete line of `path` (of its last 64 KiB), or ``b""`` where there is none; errors as `append_line`."""
    try:
        fd = _open_lines(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, 65536, max(0, size - 65536))
    finally:
        os.close(fd)
    complete = tail[: max(0, tail.rfind(b"\n"))]
    return complete[complete.rfind(b"\n") + 1 :]


def read_record(path: Path, limit_bytes: int) -> bytes:
    """Return all of a small regular file without following a link; `InvalidRecord` where it is larger or not a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise InvalidRecord(f"{path.name} is a symbolic link", hint="put the file itself there") from exc
        if exc.errno == errno.ENXIO:  # a socket
            raise InvalidRecord(f"{path.name} is not a regular file", hint="put a regular file there") from exc
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRecord(f"{path.name} is not a regular file", hint="put a regular file there")
        chunks, left = [], limit_bytes + 1
        while left and (chunk := os.read(fd, min(left, COPY_BYTES))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if not left:
        raise InvalidRecord(f"{path.name} is larger than {limit_bytes} bytes", hint="it is meant to be small")
    return b"".join(chunks)


@contextlib.contextmanager
def parent_beneath(folder: Path, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (descriptor of the directory that holds `name`, last part of `name`), never having followed a link.

    `name` is a file name from outside, relative to `folder`. With `make` missing directories are made (and their parents
    synced). Raises `InvalidName` where the name or something on its way is not allowed or `folder` itself is a link,
    `FileNotFoundError` where a directory is missing. Use the descriptor with `dir_fd=` and `O_NOFOLLOW`.
    """
    parts = check_name(name).split("/")
    try:
        fd = os.open(folder, _FOLDER_ONLY)
    except OSError as exc:
        if exc.errno in _NO_FOLDER:
            raise InvalidName(f"{folder.name}/ is a link or a file", hint="use real folders") from exc
        raise
    try:
        for part in parts[:-1]:
            below = _step(fd, part, name, make=make)
            os.close(fd)
            fd = below
        yield fd, parts[-1]
    finally:
        os.close(fd)


def _step(fd: int, part: str, name: str, *, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o770, dir_fd=fd)
            os.fsync(fd)
    try:
        return os.open(part, _FOLDER_ONLY, dir_fd=fd)
    except OSError as exc:
        if exc.errno in _NO_FOLDER:
            raise InvalidName(f"a folder of {name!r} is a link or a file", hint="use real folders") from exc
        raise


def open_beneath(folder: Path, name: str, flags: int, *, make: bool = False) -> int:
    """Open the file `name` from outside beneath `folder` and return its descriptor; links are never followed.

    `InvalidName` where it is a link or not a regular file, `FileNotFoundError` where it is missing.
    """
    with parent_beneath(folder, name, make=make) as (parent, last):
        try:
            fd = os.open(last, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, SHARED_FILE, dir_fd=parent)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise InvalidName(f"{name!r} is not a regular file", hint="links and devices are not carried") from exc
            raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidName(f"{name!r} is not a regular file", hint="links and devices are not carried")
    return fd


class Place(NamedTuple):
    """One folder that `walk` has come to."""

    path: str  # below the folder the walk began at, "" for that folder itself
    fd: int  # of this folder, for `dir_fd=`; open until the next step of the walk
    entries: list[tuple[str, os.stat_result]]  # what it holds, as lstat(2) tells


def fits(path: str) -> bool:
    """True where a relative path is short enough for `walk` to go there; this bounds the depth of a tree too."""
    return len(os.fsencode(path)) <= MAX_NAME_BYTES


def walk(
    folder: Path, *, descend: Callable[[str], bool] = fits, on_denied: Callable[[str], object] | None = None
) -> Iterator[Place]:
    """Yield `folder` and every real folder below it, parents first; safe where a stranger owns and changes the tree.

    Nothing but folders is opened and no link is followed (up to Python 3.11 os.fwalk waits for ever on a FIFO). A few
    descriptors are open at a time, however deep the tree is. A folder whose relative path is not `descend` is an entry of its
    parent and no `Place`. Raises `FileNotFoundError` or `NotADirectoryError` where `folder` itself is none, and
    `PermissionError` where something may not be read; with `on_denied` that is called with its relative path instead. What
    vanishes meanwhile is left out.
    """
    try:
        root = os.open(folder, _FOLDER_ONLY)
    except PermissionError:
        if on_denied is None:
            raise
        on_denied("")
        return
    try:
        yield from _places(root, descend, on_denied)
    finally:
        os.close(root)


def _places(root: int, descend: Callable[[str], bool], on_denied: Callable[[str], object] | None) -> Iterator[Place]:
    path, fd, waiting = "", os.dup(root), [""]
    try:
        while waiting:
            below = waiting.pop()
            # From the folder before where it is the parent: from the root each time, a deep tree takes quadratic time.
            start, way = (fd, below[len(path) + 1 :]) if below.startswith(f"{path}/") else (root, below)
            try:
                opened = _open_below(start, way)
            except PermissionError:
                if on_denied is None:
                    raise
                on_denied(below)
                continue
            if opened is None:
                continue
            os.close(fd)
            path, fd = below, opened
            entries = list(_entries(fd, path, on_denied))
            yield Place(path, fd, entries)
            folders = (beneath(path, name) for name, info in entries if stat.S_ISDIR(info.st_mode))
            waiting += [folder for folder in folders if fits(folder) and descend(folder)]
    finally:
        os.close(fd)


def beneath(path: str, name: str) -> str:
    """Return the relative path of `name` in the folder `path`, which is ``""`` for the folder where a walk began."""
    return f"{path}/{name}" if path else name


def _open_below(start: int, way: str) -> int | None:
    """Return a descriptor of the folder `way` below `start`, opened part by part; None where it is gone meanwhile."""
    fd = os.dup(start)
    for part in way.split("/") if way else ():
        try:
            below = os.open(part, _FOLDER_ONLY, dir_fd=fd)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, *_NO_FOLDER):
                return None
            raise
        finally:
            os.close(fd)
        fd = below
    return fd


def _entries(fd: int, path: str, on_denied: Callable[[str], object] | None) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(fd):
        try:
            yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:  # removed while we looked
            continue
        except PermissionError:
            if on_denied is None:
                raise
            on_denied(beneath(path, name))


def sync_file(path: Path) -> None:
    """fsync the content of one file; no link is followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Make every regular file and directory below `folder` durable; links are not followed."""
    for place in walk(folder):
        for name, info in place.entries:
            if stat.S_ISREG(info.st_mode):
                _sync_at(name, place.fd)
        os.fsync(place.fd)


def _sync_at(name: str, dir_fd: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours with all it holds; nothing where it is gone already."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def free_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged writer can still store on the file system of `folder`."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize
