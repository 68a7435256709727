"""spoolctl's exit codes (docs/operations.md, "Exit codes") and how an error turns into one."""

from __future__ import annotations

from spool.errors import SpoolError

DONE = 0
FAILED = 1
USAGE = 2
TRY_LATER = 75
NOT_ALLOWED = 77
CONFIGURATION = 78
INTERRUPTED = 130

_BY_CODE = {
    "invalid_request": USAGE,
    "invalid_name": USAGE,
    "not_allowed": NOT_ALLOWED,
    "unauthorized": NOT_ALLOWED,
    "configuration": CONFIGURATION,
    "unknown_format": CONFIGURATION,
    "internal": TRY_LATER,
}


def of_error(error: SpoolError) -> int:
    """Return the exit code for `error`."""
    return TRY_LATER if error.transient else _BY_CODE.get(error.code, FAILED)


def worst(codes: list[int]) -> int:
    """Return the code for several jobs: what may still change comes first, then what went wrong."""
    for code in (TRY_LATER, NOT_ALLOWED, CONFIGURATION, USAGE, FAILED):
        if code in codes:
            return code
    return DONE
