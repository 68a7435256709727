"""A thread that swaps what lies at two paths for each other, as fast as the kernel does it: renameat2(2), RENAME_EXCHANGE."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType

_AT_FDCWD, _EXCHANGE = -100, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap atomically; both must exist."""
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(one))


class Swapper:
    """While entered, `place` is by turns itself and a link to `target`; `swaps` counts. At the end it is itself again."""

    def __init__(self, place: Path, target: Path) -> None:
        self._place = place
        self._link = place.with_name(f"{place.name}.swapped") if place.parent.name != "in" else place.parent.parent / "swapped"
        self._target = target
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.swaps = 0

    def _work(self) -> None:
        while not self._ends.is_set():
            exchange(self._place, self._link)
            self.swaps += 1
        if self._place.is_symlink():
            exchange(self._place, self._link)

    def __enter__(self) -> Swapper:
        self._link.symlink_to(self._target)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ends.set()
        self._thread.join()
        self._link.unlink()
