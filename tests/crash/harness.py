"""One operation, one fault, one judgement: the spool is copied, the operation hit and repeated, its job brought to its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.strace import KILL, Point, Tracer, points
from crash.api import Refused
from crash.cases import Case
from crash.checks import at_any_moment, places, to_the_end
from crash.operations import OPERATIONS
from crash.ordering import Call, calls
from server.spools import new_store
from spool.errors import SpoolError
from spool.store import Store

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
KILLED = 9
INI = "[server]\nmin_free = 0\n[site site-a]\ncommands = *\n"
CLEAN = ("SpoolError", "OSError", "Refused")  # what an operation may end with when the disk fails


@dataclass(frozen=True)
class Outcome:
    """How an operation went: killed, acknowledged, or which error it raised."""

    killed: bool
    acked: bool
    error: tuple[str, ...] = ()
    text: str = ""


class Operator:
    """The process of `operate.py`, which does one operation at a time."""

    def __init__(self, log: Path) -> None:
        program = Path(__file__).with_name("operate.py")
        with open(log, "ab") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def close(self) -> None:
        self._popen.communicate(timeout=20)

    def run(self, root: Path, name: str, case: Case, log: Path, *expressions: str) -> Outcome:
        """Do it under strace, which writes to `log`."""
        self._say(json.dumps([str(root), name, case]))
        (pid,) = self._hear("PID")
        tracer = Tracer(pid, log, *expressions)
        self._say("")
        acked, error, text = False, (), ""
        while (words := self._heard())[0] != "END":
            acked = words[0] == "ACK"
            if words[0] == "ERROR":
                error, text = tuple(words[1]), words[2]
        tracer.wait()
        return Outcome(os.WIFSIGNALED(words[1]) and os.WTERMSIG(words[1]) == KILLED, acked, error, text)

    def _say(self, line: str) -> None:
        assert self._popen.stdin
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def _heard(self) -> list[Any]:
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        assert line, "the operator is gone; its log tells why"
        return list(json.loads(line))

    def _hear(self, word: str) -> list[Any]:
        heard = self._heard()
        assert heard[0] == word, heard
        return heard[1:]


class Bench:
    """One operation on its prepared spool. `hit` makes one point and judges it."""

    def __init__(self, operator: Operator, folder: Path, name: str) -> None:
        self._operator, self._name, self._folder = operator, name, folder
        self.operation = OPERATIONS[name]
        self._template, self.root = folder / "template", folder / "spool"
        store = new_store(self._template)
        store.paths.ini.write_text(INI)
        self.case = self.operation.prepare(store)
        self.there: list[Path] = []
        self._before = len(places(store, self.case["job"])) if store.paths.jobs.exists() else 0

    def run(self) -> list[Call]:
        """The operation undisturbed; what it did."""
        self._fresh()
        self.there = list(self.root.rglob("*"))
        outcome = self._operator.run(self.root, self._name, self.case, self._folder / "recording")
        assert outcome.acked, outcome
        return calls(self._folder / "recording")

    def record(self) -> list[Point]:
        """The operation undisturbed, and judged; the points at which it can be hit."""
        self.run()
        self._judge(Outcome(killed=False, acked=True))
        return list(points(self._folder / "recording", self.root, but=() if self._name == "create" else ("/locks/",)))

    def hit(self, point: Point, fault: str) -> None:
        """Bring the fault there, then restart, repeat and finish; an `AssertionError` says what does not hold."""
        self._fresh()
        log = self._folder / "log"
        outcome = self._operator.run(self.root, self._name, self.case, log, point.inject(fault))
        if fault == KILL:
            assert outcome.killed, f"was not killed: {outcome}"
        else:
            assert "(INJECTED)" in log.read_text(errors="replace"), "the fault did not come"
            assert outcome.acked or set(CLEAN) & set(outcome.error), f"not a clean error: {outcome}"
            assert "'internal'" not in outcome.text
            assert '"internal"' not in outcome.text, outcome.text
        self._judge(outcome)

    def _judge(self, outcome: Outcome) -> None:
        case, twice = dict(self.case), self.operation.twice
        if self._name != "create" or outcome.acked:
            store = Store.open(self.root)
            at_any_moment(store, case, self._before, twice=twice)
            assert not outcome.acked or self.operation.done(store, case), "acknowledged, and not there"
            self.operation.after_crash(store, case)
        if not outcome.acked:
            self._repeat(case)
            store = Store.open(self.root)
            at_any_moment(store, case, self._before, twice=twice)
        to_the_end(store, case, self.operation)

    def _repeat(self, case: Case) -> None:
        try:
            self.operation.perform(self.root, case)
        except (SpoolError, Refused, AssertionError):
            if self.operation.repeatable or not self.operation.done(Store.open(self.root), case):
                raise
        assert self.operation.done(Store.open(self.root), case), "repeated, and still not done"

    def _fresh(self) -> None:
        for name in ("spool", "seen"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        _copy(self._template, self.root)


def _copy(source: Path, target: Path) -> None:
    """A copy; the lock files, which hold nothing, are links to the same ones."""

    def copy(old: str, new: str) -> None:
        os.link(old, new) if "/locks/" in old else shutil.copy(old, new)

    shutil.copytree(source, target, copy_function=copy)
