"""Logs: one line an event, key=value, in English, the job's id in it (docs/operations.md, "Logs").

Values from outside are quoted, so that a hostile name can neither forge a line nor a key.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

_PLAIN = re.compile(r"[\w./:@%+,*-]+", re.ASCII)
_LOGGER = logging.getLogger("mint-spool")


def quote(value: object) -> str:
    """Return `value` as it stands in a line: bare where it is plain, else in double quotes with escapes."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    shown = "".join(char if char.isprintable() and char not in '"\\' else _escape(char) for char in text)
    return f'"{shown}"'


def _escape(char: str) -> str:
    return "\\" + char if char in '"\\' else char.encode("unicode_escape", "backslashreplace").decode("ascii")


def line(event: str, **values: object) -> str:
    """Return the line for `event` with the values that are not empty."""
    pairs = (f"{key}={quote(value)}" for key, value in values.items() if value not in ("", None))
    return " ".join((f"event={quote(event)}", *pairs))


def info(event: str, **values: object) -> None:
    """Log something that happened."""
    _LOGGER.info("%s", line(event, **values))


def warning(event: str, **values: object) -> None:
    """Log something that a person should look at."""
    _LOGGER.warning("%s", line(event, **values))


def error(event: str, *, trace: bool = False, **values: object) -> None:
    """Log something that failed; with `trace` also the stack, for what nobody foresaw."""
    _LOGGER.error("%s", line(event, **values), exc_info=trace)


def debug(event: str, **values: object) -> None:
    """Log a detail, shown with debug on."""
    _LOGGER.debug("%s", line(event, **values))


def setup(path: Path | None = None, *, debug: bool = False) -> None:
    """Send the log to `path`, or to standard error. Called once by a program's `main`."""
    handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ level=%(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    _LOGGER.handlers[:] = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
