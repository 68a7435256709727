"""What stands in a job's way: in words, and whether waiting can help."""

from __future__ import annotations

import errno
import subprocess

from spool.errors import NoSpace, NotAllowed, SpoolError, TooLarge, Unauthorized, Unreachable

_SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}


def said(exc: Exception) -> str:
    """Return what went wrong in words: the runner's own line where it was the runner."""
    if isinstance(exc, subprocess.CalledProcessError) and exc.stderr:
        return str(exc.stderr).strip()[-400:]
    return str(exc)


def is_tried_again(exc: SpoolError) -> bool:
    """True for what passes by itself, and for what a person's word ends: a token that does not count, a proxy's limit."""
    return exc.transient or isinstance(exc, (Unauthorized, NotAllowed, TooLarge))


def may_pass(exc: Exception) -> bool:
    """True where waiting can help: the line, or a lack of resources."""
    if isinstance(exc, OSError):
        return exc.errno in _SCARCE
    return isinstance(exc, (NoSpace, Unreachable, Unauthorized, NotAllowed))
