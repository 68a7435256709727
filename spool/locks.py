"""The one place that locks: one lock file per last byte of a job's id, permanent, mode 0660 (docs/format.md, "Locks").

A lock is held for milliseconds, never across the network or a transfer, and never two jobs' at once. Whoever gets it reads
the record again before judging. The files are never unlinked: a lock on a file that another process has unlinked
guards nothing, which is why some releases of filelock are excluded in pyproject.toml.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spool.errors import Busy

POLL_S = 0.005
DEFAULT_TIMEOUT_S = 30.0


# Releases that know the option would otherwise fall back to a lock that guards nothing where flock(2) is missing.
_NEVER_SOFT: dict[str, Any] = (
    {"fallback_to_soft": False} if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters else {}
)


class JobLocks:
    """The locks of one spool's jobs, for many threads of many processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Threads of one process queue here first, so that they do not poll the file against each other.
        self._threads: dict[str, threading.Lock] = {f"{number:02x}": threading.Lock() for number in range(256)}
        self._held = threading.local()

    @contextlib.contextmanager
    def hold(self, job_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[None]:
        """Hold the lock of `job_id`. Raises `Busy` after `timeout_s`; not re-entrant, one job at a time per thread."""
        if getattr(self._held, "job_id", ""):
            raise RuntimeError(f"this thread holds the lock of {self._held.job_id} already")
        shard = job_id[-2:]
        with self._thread_lock(shard, job_id, timeout_s), file_lock(self._folder / shard, timeout_s=timeout_s):
            self._held.job_id = job_id
            try:
                yield
            finally:
                self._held.job_id = ""

    @contextlib.contextmanager
    def _thread_lock(self, shard: str, job_id: str, timeout_s: float) -> Iterator[None]:
        lock = self._threads[shard]
        if not lock.acquire(timeout=timeout_s):
            raise Busy(f"the lock of job {job_id} was not free for {timeout_s:g} s", hint="try again")
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S, mode: int = 0o660) -> Iterator[None]:
    """Hold an exclusive flock(2) on `path`, made (with `mode`, whatever the umask) if missing and left there.

    Raises `Busy` after `timeout_s`.
    """
    lock = FileLock(str(path), mode=mode, thread_local=False, **_NEVER_SOFT)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=POLL_S)
    except Timeout as exc:
        raise Busy(f"the lock {path} is held by another process", hint="see who holds it with: fuser -v FILE") from exc
    try:
        yield
    finally:
        lock.release()
