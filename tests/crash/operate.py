"""The process whose operations are killed: `python operate.py` reads what to do from its standard input, a line each.

A line ``SPOOL NAME CASE`` (JSON) is done in a forked child, so that no point pays for the start of an interpreter. The child says
``PID``, waits for an empty line (by then strace is attached) and says ``ACK`` after the operation has returned, never before,
or ``ERROR`` with the names of the error's classes. The parent says ``END`` with the wait status.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from crash.operations import OPERATIONS  # noqa: E402

SPOKEN = os.dup(1)
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)
LIBC = ctypes.CDLL(None)


def say(*words: object) -> None:
    os.write(SPOKEN, (json.dumps(words) + "\n").encode())


def read_line() -> bytes:
    """One line, byte by byte: what follows is for the child, or for the next turn."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


def operate(root: str, name: str, case: dict[str, str]) -> None:
    """The child."""
    LIBC.prctl(PR_SET_PTRACER, ANY, 0, 0, 0)  # where Yama guards ptrace(2), strace is no parent of this process
    say("PID", os.getpid())
    read_line()
    try:
        OPERATIONS[name].perform(Path(root), case)
    except Exception as exc:  # noqa: BLE001 - whatever it is, the test judges it
        say("ERROR", [one.__name__ for one in type(exc).__mro__], f"{exc!r}")
    else:
        say("ACK")


def main() -> None:
    os.dup2(2, 1)  # what an operation prints is no word of this conversation
    os.umask(0o007)
    gc.freeze()
    while line := read_line():
        pid = os.fork()
        if pid == 0:
            operate(*json.loads(line))
            os._exit(0)
        say("END", os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
