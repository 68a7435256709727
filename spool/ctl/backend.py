"""What every command of spoolctl works through: one spool, as a folder or behind a server.

`spool.ctl.folder` and `spool.ctl.remote` are the two kinds. Errors are `SpoolError`s.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from spool.errors import Conflict, InvalidRequest
from spool.names import is_id
from spool.records import FileEntry, HistoryEntry, Job, JobState, Result

MIN_PREFIX = 4
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all)."""


class Usage(InvalidRequest):
    """The command line asks for something that makes no sense; exit code 2."""


class Rejected(Conflict):
    """The drop was looked at and cannot be accepted; exit code 1."""


@dataclass(frozen=True)
class Facts:
    """All that is known of one job; `signed_by` is the key that a signature names, unverified.

    `place` is jobs, drop, tmp, rejected or corrupt; only jobs/ has a state.
    """

    id: str
    place: str
    folder: str = ""
    state: JobState | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    result: Result | None = None
    history: tuple[HistoryEntry, ...] = ()
    reason: Mapping[str, Any] = field(default_factory=dict)
    signed_by: str = ""


@dataclass(frozen=True)
class Wanted:
    """Which jobs to list; empty means every."""

    state: str = ""
    site: str = ""
    user: str = ""
    limit: int = 200


class Backend(abc.ABC):
    """One spool. `options` are the words that name it on spoolctl's command line; `poll_s` how often to ask while waiting."""

    options: tuple[str, ...] = ()
    poll_s: tuple[float, float] = (0.05, 0.5)

    @abc.abstractmethod
    def submit(
        self, job: Job, sources: Mapping[str, Path], progress: Progress, *, document: bytes = b"", signature: bytes | None = None
    ) -> JobState | None:
        """Hand in `job` (its id is set) with its input files; None where nobody has accepted it yet. `Rejected` where refused.

        `document` are the bytes of its job.json (none: as `job` is encoded); with a `signature` they arrive as they are.
        """

    @abc.abstractmethod
    def ids(self, prefix: str) -> list[str]:
        """Return the ids that start with `prefix`, wherever in the spool they are."""

    @abc.abstractmethod
    def look(self, job_id: str) -> JobState | None:
        """Return where the job stands, None while it is not accepted yet. `NotFound`, or `Rejected` with the reason."""

    @abc.abstractmethod
    def facts(self, job_id: str) -> Facts:
        """Return all that is known of the job."""

    @abc.abstractmethod
    def jobs(self, wanted: Wanted) -> tuple[list[JobState], int]:
        """Return (the newest jobs that are wanted, how many there are in all)."""

    @abc.abstractmethod
    def changes(self, state: JobState, after: int) -> list[HistoryEntry]:
        """Return the history of `state` after revision `after`, as far as it can be had."""

    @abc.abstractmethod
    def result(self, job_id: str) -> Result | None:
        """Return how the latest run ended."""

    @abc.abstractmethod
    def cancel(self, job_id: str) -> JobState:
        """Cancel the job, or ask its site to."""

    @abc.abstractmethod
    def requeue(self, job_id: str, *, force: bool = False) -> JobState:
        """Queue the ended job once more; with `force` give up the run it is in."""

    @abc.abstractmethod
    def blocks(self, job_id: str, entry: FileEntry) -> Iterator[bytes]:
        """Yield the bytes of one returned file, block by block."""

    @abc.abstractmethod
    def log(self, state: JobState, name: str, offset: int) -> Iterator[bytes]:
        """Yield what ``log/NAME`` holds from `offset` (bytes) on, of a running job what has arrived so far."""

    def full_id(self, text: str) -> str:
        """Return the one id that `text` is or begins; `Usage` where it is too short or fits several."""
        text = text.lower()
        if is_id(text):
            return text
        if len(text) < MIN_PREFIX:
            raise Usage(f"{text!r} is too short for a job id", hint=f"give the id or at least {MIN_PREFIX} characters of it")
        found = sorted(set(self.ids(text)))
        if not found:
            raise Usage(f"no job id starts with {text!r}", hint="spoolctl ls shows what there is")
        if len(found) > 1:
            raise Usage(f"{len(found)} job ids start with {text!r}", hint=f"such as {' '.join(found[:3])}")
        return found[0]
