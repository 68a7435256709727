"""What /proc says about processes: who is whose child, who works where, how much memory was used."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NamedTuple


class Stat(NamedTuple):
    """A line of /proc/PID/stat, as far as it is wanted here; see proc(5)."""

    pid: int
    name: str
    state: str
    parent: int
    group: int


def stat(pid: int) -> Stat | None:
    """That process, or None when there is none."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name_at, rest_at = line.index("("), line.rindex(")")
    state, parent, group = line[rest_at + 2 :].split()[:3]
    return Stat(pid, line[name_at + 1 : rest_at], state, int(parent), int(group))


def all_processes() -> list[Stat]:
    """Every process there is."""
    found = (stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def descendants(pid: int) -> list[Stat]:
    """The children of `pid`, their children, and so on."""
    everyone = all_processes()
    family = {pid}
    while grown := {process.pid for process in everyone if process.parent in family} - family:
        family |= grown
    return [process for process in everyone if process.pid in family and process.pid != pid]


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not: process 1 may reap orphans late."""
    process = stat(pid)
    return process is not None and process.state not in "ZX"


def group_lives(group: int) -> bool:
    """Whether any process of that group still runs."""
    return any(process.group == group and process.state not in "ZX" for process in all_processes())


def working_in(folder: Path) -> list[int]:
    """The processes whose current directory is `folder` or beneath it: jobs that left their starter's session too."""
    inside = os.path.realpath(folder)
    found = []
    for process in all_processes():
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{process.pid}/cwd")
            if (cwd + "/").startswith(inside + "/") and process.pid != os.getpid():
                found.append(process.pid)
    return found


def kill(pids: list[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to each; those that are gone already do not matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


def peak_rss_mb(pid: int) -> float:
    """The most memory that the process ever had resident (VmHWM), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no VmHWM: it has ended")
