"""Keeping a program's memory, which holds tokens and passwords, to itself."""

from __future__ import annotations

import ctypes
import resource

PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Leave no core file, and let no other process of this account read this one's memory (prctl(2), PR_SET_DUMPABLE).

    It holds for this program only: what it starts, a solver say, is as dumpable as ever. Where the system has no prctl, core
    files are switched off by their limit, which children get too. Safe to repeat.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None or prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
