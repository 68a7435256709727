"""JSON as it is written and read here: UTF-8 without escapes, objects only, strict (RFC 8259, I-JSON RFC 7493).

Stricter than the standard library where leniency would let two readers see two different records: a repeated key, NaN,
a lone surrogate and a number beyond 64 bits are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spool.errors import InvalidRecord

MAX_BYTES = 64 * 1024 * 1024
_MAX_DIGITS = 20


def loads(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in `data`; raise `InvalidRecord` naming `what` (e.g. ``job.json``) and the place."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_int=_short_int)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError as exc:
        raise InvalidRecord(f"{what} is not UTF-8 text", hint="save it as UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise InvalidRecord(
            f"{what} is not JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}", hint=f"try: jq . {what}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRecord(f"{what} is not usable JSON: {exc}", hint=f"try: jq . {what}") from exc
    if not isinstance(value, dict):
        raise InvalidRecord(f"{what} must hold a JSON object", hint='it starts with "{" and ends with "}"')
    return value


def dumps(value: Mapping[str, Any]) -> bytes:
    """Return `value` as indented JSON for people who `cat` it, ending in a newline."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def dumps_line(value: Mapping[str, Any]) -> bytes:
    """Return `value` as one line of JSON, ending in a newline."""
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _short_int(text: str) -> int:
    # int() of a very long digit string takes quadratic time on Python 3.9.
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(text)
