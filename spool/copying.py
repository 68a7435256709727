"""Copies of files and trees: holes stay holes, nothing is followed, and whoever owns the source cannot point it elsewhere."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from functools import partial
from pathlib import Path
from typing import Callable

from spool.files import COPY_BYTES, SHARED_FILE, beneath, walk, write_all

_FICLONE = 0x40049409


def copy_file(source_fd: int, target: Path | str, *, dir_fd: int | None = None) -> None:
    """Copy an open file to the new file `target`: shared blocks where the file system can, holes kept, else bytes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(target, flags, SHARED_FILE, dir_fd=dir_fd)
    try:
        try:
            fcntl.ioctl(fd, _FICLONE, source_fd)
        except OSError:
            _copy_data(source_fd, fd)
    finally:
        os.close(fd)


def _copy_data(source_fd: int, target_fd: int) -> None:
    size, offset = os.fstat(source_fd).st_size, 0
    os.ftruncate(target_fd, size)
    while offset < size:
        try:
            offset = os.lseek(source_fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(source_fd, offset, os.SEEK_HOLE)
        while offset < end and (chunk := os.pread(source_fd, min(COPY_BYTES, end - offset), offset)):
            write_all(target_fd, chunk, offset)
            offset += len(chunk)


Check = Callable[[str, os.stat_result], None]
"""Gets the path of an opened file below what is copied, and what fstat(2) says of it."""


def copy_tree(source: Path, target: Path, *, skip_denied: bool = False, check: Check = lambda path, info: None) -> None:
    """Copy the regular files and folders of `source` to the new folder `target`; links and devices are left behind.

    Nothing is followed on the way, so whoever owns `source` cannot point the copy elsewhere while it runs. What may not
    be read is a `PermissionError`, or left behind too with `skip_denied`. `check` is called for `source` itself, as ``""``,
    and for each file before it is copied: it sees what is copied, whatever takes its name meanwhile, and may raise.
    """
    os.mkdir(target, 0o770)
    with contextlib.suppress(NotADirectoryError):  # `source` itself is a link or a device
        for number, place in enumerate(walk(source, on_denied=(lambda path: None) if skip_denied else None)):
            if number == 0:
                check("", os.fstat(place.fd))
            for name, info in place.entries:
                if stat.S_ISDIR(info.st_mode):
                    os.mkdir(target / place.path / name, 0o770)
                elif stat.S_ISREG(info.st_mode):
                    _copy_at(name, place.fd, target / place.path / name, skip_denied, partial(check, beneath(place.path, name)))


def _copy_at(name: str, dir_fd: int, target: Path, skip_denied: bool, check: Callable[[os.stat_result], None]) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except PermissionError:
        if skip_denied:
            return
        raise
    try:
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):  # it may have been swapped since the walk looked
            check(info)
            copy_file(fd, target)
    finally:
        os.close(fd)
