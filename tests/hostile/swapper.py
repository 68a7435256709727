"""A process that swaps what lies at two paths for each other, as fast as the kernel does it: renameat2(2), RENAME_EXCHANGE.

A process, not a thread: under the interpreter's lock the two would take turns, and the opener would always find the same side.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

_AT_FDCWD, _EXCHANGE = -100, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def exchange(one: str | Path, other: str | Path) -> None:
    """Swap atomically; both must exist."""
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(one))


class Racer:
    """The process; `swaps` counts since its start. One at a time: `go` begins with a pair of paths, `rest` ends that."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._file.truncate(8)
        self._count = mmap.mmap(self._file.fileno(), 8)
        words = [sys.executable, __file__, str(self._file.fileno())]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._file.fileno(),), text=True, bufsize=1
        )

    @property
    def swaps(self) -> int:
        return int.from_bytes(self._count[:], "little")

    def go(self, one: Path, other: Path) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{one}\0{other}\n")
        self._process.stdin.flush()

    def rest(self) -> None:
        """Returns when it swaps no more; it ends by itself too where one of the two is gone."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "rests\n"

    def __enter__(self) -> Racer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._count.close()
        self._file.close()


def _work(count: mmap.mmap) -> None:
    swaps = 0
    while line := sys.stdin.readline():
        one, _, other = line.rstrip("\n").partition("\0")
        try:
            while other and not select.select([sys.stdin], [], [], 0)[0]:
                for _ in range(7):  # an odd number: it rests on either side
                    exchange(one, other)
                    swaps += 1
                count[:] = swaps.to_bytes(8, "little")
        except FileNotFoundError:
            pass
        if not other:
            print("rests", flush=True)


if __name__ == "__main__":
    _work(mmap.mmap(int(sys.argv[1]), 8))
