"""Waiting for what other processes do. The only place under tests/ that sleeps."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")
SLACK = 3  # times every deadline: a machine that many share stalls for a minute now and then, and that is no defect


def wait_until(predicate: Callable[[], T], deadline_s: float, what: str, every_s: float = 0.02) -> T:
    """Ask `predicate` until it answers with something true, and return that.

    Fails the test after `SLACK` × `deadline_s`, naming `what` was waited for and the last answer. What `predicate` raises passes
    through.
    """
    end = time.monotonic() + SLACK * deadline_s
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= end:
            raise AssertionError(f"not within {SLACK * deadline_s:g} s: {what} (last answer: {answer!r})")
        time.sleep(every_s)


def stays(predicate: Callable[[], object], for_s: float, what: str, every_s: float = 0.05) -> None:
    """Ask `predicate` again and again for `for_s`; fails at the first answer that is not true."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        answer = predicate()
        assert answer, f"did not stay so for {for_s:g} s: {what} (answer: {answer!r})"
        time.sleep(every_s)
