"""The one family of errors.

Every error that a person may meet is a `SpoolError`: the message says what happened and to what, the hint says
what to do next, `code` is the stable word that travels in API answers and `reason.json`, and `transient` says whether
trying again later can help. `spool/server/problems.py` is the only place that maps a code to an HTTP status.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class SpoolError(Exception):
    """Base of the family. `hint` is one sentence telling the person what to do; it may be empty."""

    code: ClassVar[str] = "internal"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidName(SpoolError):
    """A job id, site, user or file name that the format does not allow."""

    code = "invalid_name"


class InvalidRecord(SpoolError):
    """A record (job.json, state.json, result.json, ...) that cannot be read or does not hold what it must."""

    code = "invalid_record"


class InvalidRequest(SpoolError):
    """A request whose parameters, headers or body are not what the call takes."""

    code = "invalid_request"


class UnknownFormat(SpoolError):
    """A spool or record of a major format that this program does not know; it is left untouched."""

    code = "unknown_format"


class NotFound(SpoolError):
    """No such job, file or route, or none that the asker may see."""

    code = "not_found"


class Unauthorized(SpoolError):
    """No token, or none that counts."""

    code = "unauthorized"


class NotAllowed(SpoolError):
    """Understood, and refused by a rule: role, site, user, or the site's list of commands."""

    code = "not_allowed"


class Disabled(NotAllowed):
    """The site or the workflow is disabled at MInt."""


class UnknownSite(SpoolError):
    """The job names a site that the configuration does not have."""

    code = "unknown_site"


class CommandNotAllowed(SpoolError):
    """The job names a command that its site's list does not have."""

    code = "command_not_allowed"


class MissingInputs(SpoolError):
    """The job names inputs that are not in its `in/` folder, or `in/` holds files that the job does not name."""

    code = "missing_inputs"


class Conflict(SpoolError):
    """The job's state does not allow this."""

    code = "conflict"


class Duplicate(SpoolError):
    """This UUID is taken by a job with other bytes."""

    code = "duplicate"


class StaleRun(SpoolError):
    """The `run_id` is not the job's current one: the run was fenced off; its data is kept aside, never merged."""

    code = "stale_run"


class UnknownRun(StaleRun):
    """A run that this spool has never heard of, as after a restore from a backup: not merged, and not thrown away."""

    code = "unknown_run"


class Twin(SpoolError):
    """Another agent works under the same identity."""

    code = "twin"


class OffsetMismatch(SpoolError):
    """A chunk was offered at an offset other than what is here; `offset` (bytes) is the true one."""

    code = "offset_mismatch"

    def __init__(self, message: str, *, offset: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class DigestMismatch(SpoolError):
    """Bytes arrived that are not the announced ones."""

    code = "digest_mismatch"
    transient = True


class TooLarge(SpoolError):
    """More bytes than this call or this site takes."""

    code = "too_large"


class TooManyTries(SpoolError):
    """Too many bad tokens from one address; `retry_after_s` says when to try again."""

    code = "too_many_tries"
    transient = True

    def __init__(self, message: str, *, retry_after_s: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NoSpace(SpoolError):
    """The disk cannot take more: full, out of inodes, over quota or mounted read-only."""

    code = "no_space"
    transient = True


class Busy(SpoolError):
    """A lock was not to be had in time."""

    code = "busy"
    transient = True


class Unreachable(SpoolError):
    """The other side did not answer, or what answered was not the other side."""

    code = "unreachable"
    transient = True


class TransferFailed(SpoolError):
    """A file could not be carried although it was tried again."""

    code = "transfer"


class Refused(SpoolError):
    """The company's policy does not allow this job."""

    code = "refused_by_site"


class ConfigError(SpoolError):
    """A configuration file or option that cannot be used; programs end with exit code 78."""

    code = "configuration"


_NO_FILES = {errno.EMFILE, errno.ENFILE}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def from_os_error(exc: OSError, what: str) -> SpoolError:
    """Return the family's error for an `OSError` met while doing `what` (a phrase such as "writing state.json")."""
    detail = f"{what}: {exc.strerror or exc}"
    if exc.errno in _NO_SPACE:
        return NoSpace(detail, hint="free space or inodes on that disk, or remount it writable; it is tried again")
    if exc.errno in _NO_FILES:
        return Busy(detail, hint="raise the limit of open files (ulimit -n, LimitNOFILE=); it is tried again")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return NotAllowed(detail, hint="check owner, group and mode of the folder (docs/operations.md, permissions)")
    return Busy(detail, hint="see the system's log; it is tried again")


def is_no_space(exc: OSError) -> bool:
    """True where the disk is full, out of inodes, over quota or read-only."""
    return exc.errno in _NO_SPACE
