"""journal/DATE.jsonl: one line per change of any job. Derived: the truth is in the jobs' folders.

A line is written after the change it tells of, under the job's lock and without fsync: a power cut may lose the last lines.
`Book` finds what the journal lacks and appends it, by the very same write, so that nothing that others append can get lost.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from spool import jsonio
from spool.files import COPY_BYTES, append_line
from spool.paths import SpoolPaths
from spool.records import HistoryEntry, JobState

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
# A whole line as `_line` writes it; a torn one has no end.
_WRITTEN = re.compile(rb'\{"at":"[^"]{10,40}","id":"([0-9a-f-]{36})","revision":(\d{1,5}),.*\}')


def note(paths: SpoolPaths, state: JobState) -> None:
    """Append the line for the change that led to `state`; the caller holds the job's lock."""
    last = state.last or HistoryEntry(revision=state.revision, at=state.changed_at, source="", target=str(state.state), by="")
    _append(paths, state, last)


def _append(paths: SpoolPaths, state: JobState, entry: HistoryEntry) -> None:
    is_last = entry.revision == state.revision
    line = {
        "at": entry.at,
        "id": state.id,
        "revision": entry.revision,
        "site": state.site,
        "user": state.user,
        "from": entry.source,
        "to": entry.target,
        "attempt": entry.attempt,
        "run_id": state.run_id if is_last else entry.run_id,
        "reason": state.reason if is_last else "",
        "by": entry.by,
    }
    append_line(_place(paths, entry.at[:10]), jsonio.dumps_line(line), durable=False)


def _place(paths: SpoolPaths, day: str) -> Path:
    return paths.journal / f"{day}.jsonl"


class Book:
    """What the journal tells, to be held against the histories of the jobs.

    Days before the oldest file were cleaned up by someone and are not asked for again; where there is no file at all,
    everything is. Call `lacks` and `add` under the job's lock, where nothing of the job can be on its way: then no line is
    written twice. Adding day by day from the oldest lets a killed repair be taken up where it stopped.
    """

    def __init__(self, paths: SpoolPaths) -> None:
        self._paths = paths
        self._read_to: dict[str, int] = {}
        self._told: dict[str, int] = {}  # id -> one bit a revision
        days = sorted(day for day in self._days() if is_plain(_place(paths, day)))
        self.oldest = days[0] if days else ""
        for day in days:
            self._read(day)

    def _days(self) -> Iterator[str]:
        for name in os.listdir(self._paths.journal):
            day = name.partition(".")[0]
            if name == f"{day}.jsonl" and _DAY.fullmatch(day):
                yield day

    def lacks(self, state: JobState, history: Iterable[HistoryEntry], *, again: bool = False) -> list[HistoryEntry]:
        """Return the changes of a job that the journal does not tell; `again` looks first what was appended meanwhile."""
        found = [entry for entry in history if self._is_wanted(entry) and not self._has(state.id, entry.revision)]
        if again and found:
            for day in {entry.at[:10] for entry in found}:
                self._read(day)
            found = [entry for entry in found if not self._has(state.id, entry.revision)]
        return found

    def _is_wanted(self, entry: HistoryEntry) -> bool:
        day = entry.at[:10]
        return _DAY.fullmatch(day) is not None and day >= self.oldest and entry.revision < 100_000

    def _has(self, job_id: str, revision: int) -> bool:
        return bool(self._told.get(job_id, 0) >> revision & 1)

    def add(self, state: JobState, entries: Iterable[HistoryEntry]) -> None:
        """Append the lines that are missing."""
        for entry in entries:
            _append(self._paths, state, entry)
            self._told[state.id] = self._told.get(state.id, 0) | 1 << entry.revision

    def _read(self, day: str) -> None:
        """Read what the file of that day tells beyond what was read before."""
        try:
            fd = os.open(_place(self._paths, day), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # gone, or a link
            return
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._read_to[day] = self._take_in(fd, self._read_to.get(day, 0))
        finally:
            os.close(fd)

    def _take_in(self, fd: int, offset: int) -> int:
        rest = b""
        while block := os.pread(fd, COPY_BYTES, offset):
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                match = _WRITTEN.fullmatch(line)
                if match:
                    job_id = match[1].decode("ascii")
                    self._told[job_id] = self._told.get(job_id, 0) | 1 << int(match[2])
            if len(rest) > COPY_BYTES:  # no line of ours
                rest = b""
        return offset - len(rest)


def is_plain(path: Path) -> bool:
    """True where `path` is a regular file and no link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
