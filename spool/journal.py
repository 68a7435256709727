"""journal/DATE.jsonl: one line per change of any job. Derived: the truth is in the jobs' folders.

A line is written after the change it tells of, without fsync: a power cut may lose the last lines, and `spoolctl check`
says where journal and folders differ.
"""

from __future__ import annotations

from spool import jsonio
from spool.files import append_line
from spool.paths import SpoolPaths
from spool.records import JobState


def note(paths: SpoolPaths, state: JobState) -> None:
    """Append the line for the change that led to `state`."""
    line = {
        "at": state.changed_at,
        "id": state.id,
        "revision": state.revision,
        "site": state.site,
        "user": state.user,
        "from": state.last.source if state.last else "",
        "to": str(state.state),
        "attempt": state.attempt,
        "run_id": state.run_id,
        "reason": state.reason,
        "by": state.last.by if state.last else "",
    }
    append_line(paths.journal / f"{state.changed_at[:10]}.jsonl", jsonio.dumps_line(line), durable=False)
