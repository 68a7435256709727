"""Folders in the spool's `tmp/` that one call works in: removed at its end, or, where it was killed, by whoever sweeps.

Each is locked (flock) by its maker for as long as it works, so that a sweep takes no folder that is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from spool.files import remove_tree
from spool.names import new_id
from spool.paths import SpoolPaths

KINDS = ("register", "published")
MIN_AGE_S = 60.0  # between its making and its locking a folder is protected by its age


@contextlib.contextmanager
def scratch(paths: SpoolPaths, kind: str) -> Iterator[Path]:
    """Yield a new folder ``tmp/KIND.UUID``, one of `KINDS`; what is left of it at the end is removed."""
    folder = paths.tmp / f"{kind}.{new_id()}"
    folder.mkdir(0o770)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(fd)
        remove_tree(folder)


def sweep(paths: SpoolPaths, *, min_age_s: float = MIN_AGE_S) -> list[str]:
    """Remove what killed calls have left; return the names. Safe to repeat, and beside other sweeps."""
    swept = []
    for name in os.listdir(paths.tmp):
        if name.startswith(tuple(f"{kind}." for kind in KINDS)) and _is_left(paths.tmp / name, min_age_s):
            remove_tree(paths.tmp / name)
            swept.append(name)
    return swept


def _is_left(folder: Path, min_age_s: float) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone, or none of ours
        return False
    try:
        if time.time() - os.fstat(fd).st_mtime < min_age_s:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
