"""Instants as the records hold them: UTC, ISO 8601 with milliseconds and `Z` (RFC 3339 section 5.6).

The wall clock is for records only; whatever waits uses `time.monotonic()`.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from spool.errors import InvalidRecord

_FRACTION = re.compile(r"\.([0-9]+)")


def utc_now() -> str:
    """Return now, e.g. ``2026-11-23T00:05:45.123Z``."""
    return from_epoch(datetime.now(timezone.utc).timestamp())


def from_epoch(seconds: float) -> str:
    """Return the instant `seconds` after 1970-01-01T00:00:00Z."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def to_epoch(instant: str) -> float:
    """Return the seconds since 1970 of an RFC 3339 instant.

    Raises `InvalidRecord` where it is not one, or has no time zone.
    """
    text = instant[:-1] + "+00:00" if instant.endswith(("Z", "z")) else instant
    # Python 3.9 reads fractions of three or six digits only.
    text = _FRACTION.sub(lambda match: "." + match[1][:6].ljust(6, "0"), text)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        seconds = moment.timestamp()
        from_epoch(seconds)
        return seconds
    except (ValueError, OverflowError) as exc:
        raise InvalidRecord(f"{instant!r} is not an instant", hint="write it like 2026-11-23T00:05:45Z") from exc
