"""The history of a job, one line a change (docs/format.md, "history.jsonl")."""

from __future__ import annotations

from spool import jsonio
from spool.files import append_line, last_line
from spool.paths import JobPaths
from spool.records import JobState

MAX_WHY = 2000


def clip(text: str) -> str:
    """Return `text` cut to what a line of the history takes."""
    return text if len(text) <= MAX_WHY else text[: MAX_WHY - 4] + " ..."


def complete_history(paths: JobPaths, state: JobState) -> None:
    """Append the history line of `state` if a crash kept it from being written."""
    if state.last is None:
        return
    wanted = jsonio.dumps_line(state.last.encode())
    if last_line(paths.history) + b"\n" != wanted:
        append_line(paths.history, wanted)
