"""What stands in a job's way: in words, and whether waiting can help."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from spool.agent.audit import AuditFailed
from spool.errors import NoSpace, NotAllowed, SpoolError, TooLarge, Unauthorized, Unreachable, from_os_error
from spool.room import try_to_write

_SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}


class Left(Exception):
    """The agent is stopping: the job stays as it is, for the next start."""


def said(exc: Exception) -> str:
    """Return what went wrong in words: the runner's own line where it was the runner."""
    if isinstance(exc, subprocess.CalledProcessError) and exc.stderr:
        return str(exc.stderr).strip()[-400:]
    return str(exc)


def hint_for(exc: Exception, folder: Path) -> str:
    """Return what to do about it."""
    if isinstance(exc, subprocess.CalledProcessError):
        exc = try_to_write(folder) or exc
    if isinstance(exc, OSError):
        return from_os_error(exc, "").hint
    return exc.hint if isinstance(exc, SpoolError) else ""


def is_tried_again(exc: SpoolError) -> bool:
    """True for what passes by itself, and for what a person's word ends: a token that does not count, a proxy's limit."""
    return exc.transient or isinstance(exc, (Unauthorized, NotAllowed, TooLarge))


def may_pass(exc: Exception, folder: Path) -> bool:
    """True where waiting can help: the line, or a lack of resources. A runner tells no more than that it could not write to
    the job's `folder`: then it is tried here.
    """
    if isinstance(exc, subprocess.CalledProcessError):
        exc = try_to_write(folder) or exc
    if isinstance(exc, OSError):
        return exc.errno in _SCARCE
    return isinstance(exc, (NoSpace, Unreachable, Unauthorized, NotAllowed, AuditFailed))
