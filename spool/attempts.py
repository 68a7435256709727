"""What an attempt leaves behind when the job is queued once more (docs/format.md, "The job folder")."""

from __future__ import annotations

import contextlib
import os

from spool.files import fsync_dir
from spool.paths import JobPaths


def set_attempt_aside(paths: JobPaths, attempt: int) -> None:
    """Move what an attempt left to `attempts/N/`. Safe to repeat: what has moved already is not there any more.

    A late chunk may have made `incoming/` again after a crash; it is kept as well, with a "+" behind its name.
    """
    aside = paths.attempt(attempt)
    os.makedirs(aside, 0o770, exist_ok=True)
    for name in JobPaths.OF_AN_ATTEMPT:
        target = aside / name
        while target.exists():
            target = target.with_name(target.name + "+")
        with contextlib.suppress(FileNotFoundError):
            os.rename(paths.folder / name, target)
    fsync_dir(aside)
    fsync_dir(paths.attempts)
    fsync_dir(paths.folder)
