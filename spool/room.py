"""Whether a disk takes anything new: free bytes, free inodes, mounted writable, and, where asked for, tried (a quota)."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from spool.files import remove_tree, write_new

MIN_INODES = 100  # a job's records, its queue entry and its lock take some; what runs must find the rest
_PROBE_FILES = 6


def why_no_room(folder: Path, min_free: int, *, coming: int = 0) -> str:
    """Return why nothing new is taken on the disk of `folder`, or ``""``: `coming` bytes must leave `min_free` bytes free."""
    info = os.statvfs(folder)
    if info.f_flag & os.ST_RDONLY:
        return "the disk is mounted read-only"
    if info.f_files and info.f_favail < MIN_INODES:  # a file system without a fixed number says 0
        return f"the disk is nearly out of inodes ({info.f_favail} left)"
    free = info.f_bavail * info.f_frsize
    return f"the disk is nearly full ({free} bytes free, {min_free} must stay free)" if free - coming < min_free else ""


def try_to_write(folder: Path) -> OSError | None:
    """Write a few small files into `folder` and remove them; return what stood in the way: quotas show only so."""
    probe = folder / f".probe.{secrets.token_hex(8)}"
    try:
        probe.mkdir(0o700)
        for number in range(_PROBE_FILES):
            write_new(probe / str(number), bytes(512), mode=0o600)
        return None
    except OSError as exc:
        return exc
    finally:
        with contextlib.suppress(OSError):
            remove_tree(probe)
