"""Waking waiting syncs: at once for what this process changes, within 50 ms for what others write into the spool.

Each waiting sync registers the folders whose change concerns it; one thread per process looks at their modification times. A
newer sync of the same agent ends an older one that still waits, so an agent never has two.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from pathlib import Path

WATCH_S = 0.05


class Waiter:
    """One waiting sync: of whom, and which one in the order of that agent's syncs."""

    def __init__(self, agent: tuple[str, str, str], order: tuple[int, int], folders: Iterable[Path]) -> None:
        self.agent = agent
        self.order = order
        self.superseded = False
        self._folders = tuple(folders)
        self._seen = self._look()
        self._event = threading.Event()

    def _look(self) -> tuple[int, ...]:
        return tuple(_mtime_ns(folder) for folder in self._folders)

    def changed(self) -> bool:
        """True where a watched folder changed since the last call."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def wake(self) -> None:
        """End the wait."""
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until woken, at most `timeout_s`; return whether woken, and be ready for another wait."""
        woken = self._event.wait(timeout_s)
        self._event.clear()
        return woken


def _mtime_ns(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


class Wakeups:
    """The waiting syncs of one process, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiters: set[Waiter] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let nobody wait any more. Returns at once; a signal handler may call it."""
        self._closed.set()
        for waiter in self._all():
            waiter.superseded = True
            waiter.wake()

    def close(self) -> None:
        """Let nobody wait any more, and end the watching thread."""
        self.stop()
        self._thread.join()

    def enter(self, agent: tuple[str, str, str], order: tuple[int, int], folders: Iterable[Path]) -> Waiter | None:
        """Register a waiter of `agent` (site, user, name), or return None where the limit is reached or the server stops.

        It ends the waits of older syncs of that agent, never that of a newer one which was quicker to get here.
        """
        self.supersede(agent, order)
        waiter = Waiter(agent, order, folders)
        with self._lock:
            if len(self._waiters) >= self._limit or self._closed.is_set():
                return None
            self._waiters.add(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Forget a waiter."""
        with self._lock:
            self._waiters.discard(waiter)

    def supersede(self, agent: tuple[str, str, str], order: tuple[int, int]) -> None:
        """End the waits of this agent's syncs before `order`: a newer one is here."""
        for waiter in self._all():
            if waiter.agent == agent and waiter.order < order:
                waiter.superseded = True
                waiter.wake()

    def notify(self, site: str) -> None:
        """Wake the waiting syncs of `site`."""
        for waiter in self._all():
            if waiter.agent[0] == site:
                waiter.wake()

    def count(self) -> int:
        """Return how many wait."""
        return len(self._all())

    def _all(self) -> tuple[Waiter, ...]:
        with self._lock:
            return tuple(self._waiters)

    def _watch(self) -> None:
        # Directory times tick with the kernel's clock (4 ms or so): a change in the very tick of the last look would be
        # missed, so every waiter is woken once more a while later by its own timeout; see `sync`.
        for _ in itertools.takewhile(lambda _: not self._closed.wait(WATCH_S), itertools.count()):
            for waiter in self._all():
                if waiter.changed():
                    waiter.wake()
