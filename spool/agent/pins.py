"""Programs pinned by their SHA-256: what is run is what the site's administrator has looked at, or nothing.

Read just before the start, by the agent. Between this and the kernel's own opening of the file lie some milliseconds, and an
interpreter reads its script while it runs: whoever can write there can change it in between. A file that only root can write, in
folders that only root can write, has no such window; `check` warns of others (docs/agent.md, "Walls").
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from spool import log
from spool.agent.config import Command
from spool.errors import Refused
from spool.manifest import HASH_BYTES


def check(command: Command, job_id: str) -> None:
    """Raise `Refused` unless every pinned file of `command` has its digest now. The paths and digests stay in the agent's log."""
    for path, digest in command.sha256:
        if why := why_not(path, digest):
            log.error("pin_broken", job=job_id, command=command.name, path=path, why=why,
                      hint="look at who changed it; then correct sha256 in agent.ini, or the file")  # fmt: skip
            raise Refused(f"a program of {command.name!r} is not the one that the site has approved", hint="ask the site")


def why_not(path: Path, digest: str) -> str:
    """Return what is wrong with a pinned file, in words for the site's administrator, or ``""``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "is not a regular file"
        found = hashlib.sha256()
        while chunk := os.read(fd, HASH_BYTES):
            found.update(chunk)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    finally:
        os.close(fd)
    return "" if found.hexdigest() == digest else f"has SHA-256 {found.hexdigest()}, agent.ini says {digest}"


def writable(path: Path) -> str:
    """Return the first of the file and the folders above it that others than root could change, or ``""``.

    Judged by owner and mode bits; access control lists are not looked at.
    """
    real = Path(os.path.realpath(path))
    for item in (real, *real.parents):
        info = os.stat(item)
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_uid != 0 or (info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky):
            return str(item)
    return ""
