"""What stands in a job's way: in words, and whether waiting can help."""

from __future__ import annotations

import errno
import subprocess

from spool.errors import NoSpace, NotAllowed, Unauthorized, Unreachable

_SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}


def said(exc: Exception) -> str:
    """Return what went wrong in words: the runner's own line where it was the runner."""
    if isinstance(exc, subprocess.CalledProcessError) and exc.stderr:
        return str(exc.stderr).strip()[-400:]
    return str(exc)


def may_pass(exc: Exception) -> bool:
    """True where waiting can help: the line, or a lack of resources."""
    if isinstance(exc, OSError):
        return exc.errno in _SCARCE
    return isinstance(exc, (NoSpace, Unreachable, Unauthorized, NotAllowed))
