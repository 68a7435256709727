"""The part of `spoolctl check` that judges the entries of `new/`, `queue/` and `active/` by the jobs they tell of.

An entry too many is harmless, and is removed only under its job's lock and only where the job's state can be read and says so,
or there is no such job: what cannot be told stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spool.ctl.aside import set_aside
from spool.ctl.findings import Finding, remark
from spool.ctl.house import SHARED_FOLDER, chmod, shared_mode
from spool.ctl.jobcheck import LOCK_WAIT_S, read_state
from spool.errors import SpoolError
from spool.names import is_id
from spool.queue import parse_key
from spool.states import WITH_SITE, State
from spool.store import Store


class Indexes:
    """Judges the three indexes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paths = store.paths

    def structure(self) -> Iterator[Finding]:
        """Yield what is no folder or no entry where one should be; to be repaired before the jobs get their entries."""
        for path, info, depth in self._walk():
            if depth and stat.S_ISDIR(info.st_mode):
                yield from self._mode(path, info)
            elif depth or not stat.S_ISREG(info.st_mode) or not self._job_of(path):
                yield self._strange(path)

    def entries(self) -> Iterator[Finding]:
        """Yield the entries that no job stands behind."""
        for path, info, depth in self._walk():
            job_id = "" if depth or not stat.S_ISREG(info.st_mode) else self._job_of(path)
            if job_id and self._backed(path, job_id) is False and self._judged(path, job_id, remove=False):
                mend = partial(self._judged, path, job_id, remove=True)
                yield remark("entry_stale", job=job_id, path=self._shown(path), mend=mend)

    def _walk(self) -> Iterator[tuple[Path, os.stat_result, int]]:
        """Yield everything in the indexes and how many levels of folders should lie below it."""
        for index, depth in ((self._paths.new, 0), (self._paths.queue, 2), (self._paths.active, 2)):
            yield from _below(index, depth)

    def _mode(self, folder: Path, info: os.stat_result) -> Iterator[Finding]:
        if info.st_mode & 0o777 != 0o770:
            mend = partial(chmod, folder, SHARED_FOLDER)
            yield shared_mode("index_mode", info.st_mode, path=self._shown(folder), mend=mend)

    def _job_of(self, path: Path) -> str:
        """Return the id of the job that the entry's name tells of, else ``""``."""
        if not self._is_in(path, self._paths.queue):
            return path.name if is_id(path.name) else ""
        entry = parse_key(path.name, path.parent.name)
        return entry.job_id if entry is not None else ""

    def _is_in(self, path: Path, index: Path) -> bool:
        return index in path.parents

    def _backed(self, path: Path, job_id: str) -> bool | None:
        """True where the job's state stands behind the entry, None where that cannot be told."""
        try:
            state = read_state(self._store, job_id)
        except FileNotFoundError:
            return None if os.path.lexists(self._paths.jobs / job_id) else False
        except (SpoolError, OSError):
            return None
        if state.id != job_id:
            return None
        if path.parent == self._paths.new:
            return state.state == State.NEW
        site, word = path.parent.parent.name, path.parent.name
        if self._is_in(path, self._paths.queue):
            return state.state == State.QUEUED and (state.site, state.user, state.queue_key) == (site, word, path.name)
        return state.state in WITH_SITE and (state.site, state.agent) == (site, word)

    def _judged(self, path: Path, job_id: str, *, remove: bool) -> bool:
        """True where the entry is surely stale; with `remove` it is gone then."""
        try:
            with self._store.locks.hold(job_id, timeout_s=LOCK_WAIT_S):
                stale = self._backed(path, job_id) is False and os.path.lexists(path)
                if stale and remove:
                    os.unlink(path)
                return stale
        except (SpoolError, OSError):
            if remove:
                raise
            return False

    def _strange(self, path: Path) -> Finding:
        return remark("entry_strange", path=self._shown(path), mend=partial(self._take_away, path))

    def _take_away(self, path: Path) -> bool:
        """Remove what is empty; everything else is kept in corrupt/."""
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) and not info.st_size:
            os.unlink(path)
        else:
            why = f"{self._shown(path)} is no entry of the index"
            set_aside(self._paths, path, self._shown(path).replace("/", "."), why=why, hint="see what it is; remove it when done")
        return True

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._paths.root))


def _below(folder: Path, depth: int) -> Iterator[tuple[Path, os.stat_result, int]]:
    for name in _names(folder):
        path = folder / name
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        yield path, info, depth
        if depth and stat.S_ISDIR(info.st_mode):
            yield from _below(path, depth - 1)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
