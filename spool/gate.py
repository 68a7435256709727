"""What passes between the push and a guarded site's gate: command lines, answers, streams (docs/protocol.md has none of it).

A command line is ``mint-gate 1 VERB [JOB RUN]``: a few plain words, matched as a whole, so that there is nothing to quote and
nothing to interpret. What is asked further comes as one JSON line on standard input. The answer is one JSON line on standard
output and exit code 0, or exit code `REFUSED` and one line on standard error that says why. Bytes of files follow a JSON
line that names them, one file after the other, each as long as was said before: there are no file names in command lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from spool import jsonio
from spool.errors import InvalidRecord
from spool.fields import Fields
from spool.names import check_name

GATE_FORMAT = 1
REFUSED = 65
ERROR_MARK = b'{"gate_error":'
VERBS = ("enter", "put", "prepare", "start", "status", "cancel", "finish", "get", "tail", "delivered")
BLOCK_BYTES = 256 * 1024
MAX_LINE_BYTES = jsonio.MAX_BYTES
_ID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_COMMAND = re.compile(rb"mint-gate 1 (?:(hello)|(%s) (%s) (%s))" % ("|".join(VERBS).encode(), _ID, _ID))


@dataclass(frozen=True)
class Asked:
    """One command line, taken apart; `job_id` and `run_id` are empty for ``hello``."""

    verb: str
    job_id: str = ""
    run_id: str = ""


def words(verb: str, job_id: str = "", run_id: str = "") -> tuple[str, ...]:
    """Return the words of a command line."""
    return tuple(word for word in ("mint-gate", str(GATE_FORMAT), verb, job_id, run_id) if word)


def parse(command: bytes) -> Asked | None:
    """Take a command line apart; None for anything but the exact form. Pure: nothing is looked up, expanded or run."""
    match = _COMMAND.fullmatch(command)
    if match is None:
        return None
    if match[1]:
        return Asked("hello")
    return Asked(match[2].decode(), match[3].decode(), match[4].decode())


def encode_parts(parts: list[tuple[str, int]], key: str) -> bytes:
    """Return the JSON line that names files; the number is called `key`: the ``offset`` to go on from, or the ``length``."""
    return jsonio.dumps_line({"files": [{"path": path, key: number} for path, number in parts]})


def parse_parts(line: bytes, key: str) -> list[tuple[str, int]]:
    """Read that line; names are checked, none may come twice. Raises `InvalidRecord` or `InvalidName`."""
    fields = Fields(jsonio.loads(line, "the list of files"), "the list of files")
    found: dict[str, int] = {}
    for value in fields.list("files"):
        part = Fields(_object(value), "the list of files")
        path = check_name(part.string("path"))
        if path in found:
            raise InvalidRecord(f"the list of files names {path!r} twice", hint="name each once")
        found[path] = part.integer(key, low=0)
    return list(found.items())


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRecord("the list of files must hold objects", hint='{"path": ..., ...}')
    return value
