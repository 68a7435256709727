"""Whole programs under strace, one of which is killed, or fails once, at a call that it makes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from components import strace
from components.process import Process
from components.rig import REPO, Rig
from components.strace import KILL, Point
from crash.harness import EXHAUSTIVE

SAMPLE = 10  # points of each program in CI


class TracedRig(Rig):
    """A rig that starts `traced` below strace while `expressions` is not None."""

    def __init__(self, root: Path, traced: str) -> None:
        super().__init__(root)
        self.traced = traced
        self.trace = root / "trace"
        self.expressions: Sequence[str] | None = None

    def _run_program(
        self, program: str, args: Iterable[str], cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        if program != self.traced or self.expressions is None:
            return super()._run_program(program, args, cwd, log, env)
        words = [*strace.command(self.trace, *self.expressions), sys.executable, str(REPO / program), *args]
        process = Process(words, log=log, env={**self.env, **(env or {})}, cwd=cwd)
        self._processes.append(process)
        return process

    def injected(self) -> bool:
        """True where the fault has come in the trace that was written last."""
        text = self.trace.read_text(errors="replace")
        return "killed by SIGKILL" in text or "(INJECTED)" in text


def chosen(found: list[Point]) -> list[tuple[Point, str]]:
    """All points with all faults, or without `MINT_EXHAUSTIVE` a few, evenly spread, every third an error."""
    errors = [f"error={word}" for word in strace.ERRORS]
    if EXHAUSTIVE:
        return [(point, fault) for point in found for fault in (KILL, *errors)]
    spread = [found[number * len(found) // SAMPLE] for number in range(SAMPLE)]
    return [(point, errors[number // 3 % 4] if number % 3 == 2 else KILL) for number, point in enumerate(spread)]

