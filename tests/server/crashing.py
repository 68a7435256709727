"""Killing a process between any two changes that it makes to the disk."""

from __future__ import annotations

import itertools
import os
import signal
import traceback
from collections.abc import Iterator
from typing import Any, Callable

from components.waiting import wait_until

KILLED = 9
CHANGES = ("open", "mkdir", "rename", "link", "symlink", "unlink", "rmdir", "write", "pwrite", "ftruncate", "fsync", "chmod")


def in_child(work: Callable[[], object], *, kill_at: int | None = None, deadline_s: float = 20) -> int:
    """Run `work` in a forked child and return its exit code: 0, 1 after an exception, KILLED.

    With `kill_at` the child ends by `os._exit`, cleaning nothing up, right before the change of that number (from 0). A
    child that hangs, in a regular expression or in open(2), fails the test after `deadline_s`.
    """

    def armed() -> None:
        if kill_at is not None:
            _arm(kill_at)
        work()

    return exit_code(fork(armed), deadline_s)


def exit_code(pid: int, deadline_s: float) -> int:
    """The exit code of the child `pid` (negative: the signal), which is killed when it does not end in time."""
    ended: list[int] = []

    def over() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([status] if found else [])
        return bool(ended)

    try:
        wait_until(over, deadline_s, f"child {pid} ends", every_s=0.002)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    status = ended[0]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def fork(work: Callable[[], object]) -> int:
    """Start `work` in a child and return its pid; `exit_code` waits for it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  (the child ends here, whatever it was)
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _arm(kill_at: int) -> None:
    left = itertools.count(kill_at, -1)
    for name in CHANGES:
        setattr(os, name, _counting(name, getattr(os, name), left))


def _counting(name: str, real: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        changes = name != "open" or bool(args[1] & os.O_CREAT)
        if changes and next(left) == 0:
            os._exit(KILLED)
        return real(*args, **kwargs)

    return counted


def each_crash(prepare: Callable[[int], Callable[[], object]]) -> Iterator[int]:
    """Kill `prepare(step)()` before its change number 0, 1, 2, ... and yield the step each time, until it runs to its end.

    `prepare` makes a fresh case in this process and returns the work; what must hold afterwards is the caller's to judge.
    """
    for step in itertools.count():
        code = in_child(prepare(step), kill_at=step)
        assert code in (0, KILLED), f"step {step} ended with {code}"
        yield step
        if code == 0:
            assert step > 3, "nothing was interrupted: are the changes still made through the os module?"
            return
