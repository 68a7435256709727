"""Any piece of work in a child of its own under strace, and what of it was not synced in time (`crash.ordering`)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from components.strace import Tracer
from crash.ordering import Order, calls
from server.crashing import exit_code, fork

_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)
_LIBC = ctypes.CDLL(None)


def unsynced(work: Callable[[], object], root: Path, log: Path) -> list[str]:
    """Do `work` in a child; return what it changed below `root` and did not sync before a rename, or before it was done."""
    there = list(root.rglob("*"))
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        _LIBC.prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)  # where Yama guards ptrace(2), strace is no parent of this process
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        work()

    pid = fork(child)
    os.read(ready[0], 1)
    tracer = Tracer(pid, log)
    os.write(go[1], b"x")
    assert exit_code(pid, 60) == 0
    tracer.wait()
    for fd in (*ready, *go):
        os.close(fd)
    recorded = calls(log)
    assert any(str(root) in path for call in recorded for path in call.paths), "it changed nothing"
    return Order(root, there).follow(recorded)
