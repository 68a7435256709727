"""strace: which system calls a process makes, and one of them killed before it is made, or failed (strace(1), "Tampering").

`Tracer` is attached to a process that waits to be let go, so that a point costs no start of an interpreter; `command` puts strace
in front of a program. A call is counted from the attaching on, by its name, in the thread that makes it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = "strace"
# What changes a disk, and what makes a change durable. "?": not every architecture has it.
NAMES = (
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "mkdir",
    "mkdirat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "chmod", "fchmod", "fchmodat", "openat",
)  # fmt: skip
KILL = "signal=KILL"  # before the call: it is not made
ERRORS = ("EIO", "ENOSPC", "EROFS", "ESTALE")

_LINE = re.compile(r"(?:(\d+)\s+)?([a-z_0-9]+)\((.*)")


@dataclass(frozen=True)
class Point:
    """The call `name` number `number` (from 1) of a thread; `text` is the line of the recording, for people."""

    name: str
    number: int
    text: str = ""

    def inject(self, fault: str) -> str:
        """The argument of strace that brings `fault` there: `KILL`, or ``error=EIO``."""
        return f"inject={self.name}:{fault}:when={self.number}"


class Tracer:
    """strace at the process `pid`, writing to `log`; returns when it is attached. `wait` when the process has ended."""

    def __init__(self, pid: int, log: Path, *expressions: str) -> None:
        words = [STRACE, "-y", "-s", "64", "-e", "signal=none", "-o", str(log), "-p", str(pid)]
        self._popen = subprocess.Popen(
            [*words, *_expressions(expressions)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._popen.stderr
        said = self._popen.stderr.readline()
        assert "attached" in said, f"strace did not attach: {said}{self._popen.stderr.read()}"

    def wait(self) -> None:
        """Until the traced process is gone."""
        self._popen.communicate(timeout=60)


def command(log: Path, *expressions: str) -> list[str]:
    """The words to put before a program, whose threads are traced as well; other programs that it starts are not."""
    return [STRACE, "-f", "-b", "execve", "-y", "-s", "64", "-o", str(log), *_expressions(expressions)]


def _expressions(more: Sequence[str]) -> list[str]:
    words = ["-e", "trace=" + ",".join(f"?{name}" for name in NAMES)]
    return words + [word for one in more for word in ("-e", one)]


def points(log: Path, *roots: Path, but: Sequence[str] = ()) -> Iterator[Point]:
    """The calls of a recording that touch something below `roots` and nothing named in `but`, in their order.

    An openat(2) counts where it may create. Of several threads that make the same call equally often, the first is named: a
    fault there hits whoever comes to that number first.
    """
    seen: set[tuple[str, int]] = set()
    count: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or match[2] not in NAMES:
            continue
        thread, name, rest = match[1] or "", match[2], match[3]
        count[thread, name] += 1
        here = any(str(root) in rest for root in roots) and not any(word in rest for word in but)
        creates = name != "openat" or "O_CREAT" in rest
        key = (name, count[thread, name])
        if here and creates and key not in seen:
            seen.add(key)
            yield Point(*key, text=line)
