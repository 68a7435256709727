"""The part of `spoolctl check` that holds the journal against the histories of the jobs, and appends what it lacks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

from spool.ctl.aside import set_aside
from spool.ctl.findings import Finding, remark
from spool.ctl.jobcheck import LOCK_WAIT_S, read_state
from spool.errors import SpoolError
from spool.journal import Book, is_plain
from spool.names import is_id
from spool.records import HistoryEntry, JobState
from spool.store import Store

Lacking = tuple[str, str]  # day, job id: sorted, the oldest day comes first


class Journal:
    """Judges journal/."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paths = store.paths

    def all(self) -> Iterator[Finding]:
        """Yield what is wrong with the journal."""
        for name in sorted(os.listdir(self._paths.journal)):
            if name.endswith(".jsonl") and not is_plain(self._paths.journal / name):
                yield remark("journal_odd", name=name, mend=partial(self._set_aside, name))
        book = Book(self._paths)
        lacking = sorted(set(self._lacking(book)))
        if lacking:
            jobs = len({job_id for _, job_id in lacking})
            yield remark("journal_lacks", jobs=jobs, day=lacking[0][0], mend=partial(self._complete, book, lacking))

    def _set_aside(self, name: str) -> bool:
        why = f"journal/{name} is not a regular file"
        set_aside(self._paths, self._paths.journal / name, f"journal.{name}", why=why, hint="see what it is; remove it when done")
        return True

    def _lacking(self, book: Book) -> Iterator[Lacking]:
        for job_id in sorted(filter(is_id, os.listdir(self._paths.jobs))):
            if self._of(book, job_id):
                with self._held(job_id):
                    yield from ((entry.at[:10], job_id) for entry in self._of(book, job_id, again=True))

    def _of(self, book: Book, job_id: str, *, again: bool = False) -> list[HistoryEntry]:
        read = self._read(job_id)
        return book.lacks(*read, again=again) if read else []

    def _read(self, job_id: str) -> tuple[JobState, list[HistoryEntry]] | None:
        """Return state and history, None where they cannot be read: that is told by others."""
        try:
            state = read_state(self._store, job_id)
            if os.path.lexists(self._paths.job(job_id).history) and not is_plain(self._paths.job(job_id).history):
                return None
            return (state, self._store.history(state)) if state.id == job_id else None
        except (SpoolError, OSError):
            return None

    @contextlib.contextmanager
    def _held(self, job_id: str) -> Iterator[None]:
        with self._store.locks.hold(job_id, timeout_s=LOCK_WAIT_S):
            yield

    def _complete(self, book: Book, lacking: list[Lacking]) -> bool:
        added = False
        for day, job_id in lacking:
            with self._held(job_id):
                read = self._read(job_id)
                if read is None:
                    continue
                missing = [entry for entry in book.lacks(*read, again=True) if entry.at[:10] == day]
                book.add(read[0], missing)
                added = added or bool(missing)
        return added
