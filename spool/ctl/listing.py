"""What `ls` and `show` print: columns and facts for people, JSON for programs. Every value from outside is escaped."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from spool import jsonio
from spool.ctl.backend import Facts
from spool.ctl.messages import text
from spool.ctl.waiting import next_step
from spool.manifest import printable
from spool.records import JobState, Result


def print_json(value: Any) -> None:
    """Print `value` as indented JSON. Control characters leave it escaped, as JSON demands; so do all that steer a terminal."""
    shown = json.dumps(value, ensure_ascii=False, indent=2)
    print("".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in shown))


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under the titles of `columns` (ids of the catalogue), aligned; wide characters count as two."""
    cells = [[text(f"col_{name}") for name in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells)]
    return "\n".join("  ".join(map(_padded, row, widths)).rstrip() for row in cells)


def _width(cell: str) -> int:
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in cell)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _width(cell))


def summary(state: JobState) -> dict[str, Any]:
    """Return a job's state without its manifest, as GET /v1/jobs lists it."""
    value = state_object(state)
    value.pop("inputs")
    return value


def state_object(state: JobState) -> dict[str, Any]:
    """Return state.json as an object."""
    return jsonio.loads(state.encode(), "state.json")


def jobs_table(states: Sequence[JobState]) -> str:
    """Return the table of `ls`."""
    columns = ("id", "state", "site", "user", "command", "changed", "reason")
    rows = [
        (item.id, str(item.state), item.site, item.user, item.command, item.changed_at[:19] + "Z", item.reason) for item in states
    ]
    return table(columns, rows)


def facts_object(facts: Facts) -> dict[str, Any]:
    """Return what `show --json` prints: the API's shape, and where the job lies."""
    return {
        "id": facts.id,
        "place": facts.place,
        "folder": facts.folder,
        "state": state_object(facts.state) if facts.state else None,
        "job": dict(facts.job) or None,
        "result": jsonio.loads(facts.result.encode(), "result.json") if facts.result else None,
        "history": [entry.encode() for entry in facts.history],
        "rejected": dict(facts.reason) or None,
        "signed_by": facts.signed_by,
    }


def facts_lines(facts: Facts) -> Iterator[str]:
    """Yield what `show` prints for a person: a label and a value a line."""
    pairs = [(label, value) for label, value in _facts(facts) if value]
    width = max(_width(text(f"show_{label}")) for label, _ in pairs)
    last = ""
    for label, value in pairs:
        name = text(f"show_{label}") if label != last else ""
        yield f"{_padded(name, width)}  {printable(value)}"
        last = label


def _facts(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "folder", facts.folder or facts.id
    if facts.state is None:
        yield from _not_accepted(facts)
    else:
        yield from _state(facts.state)
    if facts.signed_by:
        yield "signed", text("signed_by", name=facts.signed_by)
    job = facts.job
    for key, value in _mapping(job.get("labels")):
        yield "labels", f"{key}={value}"
    if facts.state is None:
        yield from (("inputs", str(item)) for item in _list(job.get("inputs")))
    else:
        yield from (("inputs", f"{item.path}  {item.size}  {item.sha256}") for item in facts.state.inputs)
    yield from (("wanted", str(pattern)) for pattern in _list(job.get("outputs")))
    if facts.result is not None:
        yield from _result(facts.result)
    for entry in facts.history:
        yield "history", f"{entry.at}  {entry.target}  {entry.by}  {entry.why}".rstrip()


def _not_accepted(facts: Facts) -> Iterator[tuple[str, str]]:
    reason = facts.reason
    yield "state", facts.place
    yield "at", str(reason.get("at", ""))
    yield "reason", str(reason.get("code", ""))
    yield "message", str(reason.get("message") or reason.get("why", ""))
    place = facts.place if facts.place in ("rejected", "corrupt") else "drop"
    yield "next", str(reason.get("hint") or "")
    yield "next", text(f"next_{place}")
    yield "site", str(facts.job.get("site", ""))
    yield "command", str(facts.job.get("command", ""))


def _state(state: JobState) -> Iterator[tuple[str, str]]:
    yield "state", str(state.state)
    yield "reason", state.reason
    yield "message", state.message
    yield "next", next_step(state)
    yield "site", state.site
    yield "user", state.user
    yield "command", state.command
    yield "workflow", state.workflow
    yield "priority", str(state.priority or "")
    yield "attempt", str(state.attempt)
    yield "agent", state.agent
    yield "exit", "" if state.exit_code is None else str(state.exit_code)
    yield "submitted", state.submitted_at
    yield "claimed", state.claimed_at
    yield "started", state.started_at
    yield "ended", state.ended_at
    yield "expires", state.expires_at
    yield "cancel", f"{state.cancel_requested_at} {state.cancel_requested_by}".strip()


def _result(result: Result) -> Iterator[tuple[str, str]]:
    yield from (("files", f"{item.path}  {item.size}  {item.sha256}") for item in result.files)
    for label in ("missing", "withheld", "not_carried"):
        yield from ((label, item) for item in getattr(result, label))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Sequence[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []
