"""The site's own switch: `pause`, `drain`, `stop` and `resume` (docs/agent.md, "Holding back").

The order is one file, ``standing.json`` of the control folder: it counts at once for a running agent, and at the next start for
one that is not, cron's included. A file that cannot be read counts as `stopped`.

- *paused*: no new job; what is in hand goes on. *draining* is the same to the agent; the verb waits until nothing is in hand.
- *stopped*: commands are stopped, nothing is started, and nothing of any result leaves before `resume`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from spool import jsonio, log
from spool.agent.audit import Audit
from spool.agent.config import find_config, read_config
from spool.agent.folder import Base
from spool.agent.troubles import Left
from spool.errors import SpoolError
from spool.fields import Fields
from spool.files import fsync_dir, read_record, replace_file
from spool.instants import utc_now
from spool.runner import LocalRunner, install
from spool.states import State

PAUSED, DRAINING, STOPPED = "paused", "draining", "stopped"
LOOK_S = 0.25
RECORD_BYTES = 65536
EXIT_LATER = 75


@dataclass(frozen=True)
class Standing:
    """What the site's operator has ordered. `mode` is empty where nothing is held back."""

    mode: str = ""
    at: str = ""
    by: str = ""
    because: str = ""

    @classmethod
    def read(cls, path: Path) -> Standing:
        """Read the order; none where there is no file, `stopped` where it cannot be read."""
        try:
            fields = Fields(jsonio.loads(read_record(path, RECORD_BYTES), path.name), path.name)
            fields.format()
            mode = fields.string("mode")
            if mode not in (PAUSED, DRAINING, STOPPED):
                raise fields.wrong("mode", "is no order")
            return cls(mode, fields.string("at", ""), fields.string("by", ""), fields.string("because", ""))
        except FileNotFoundError:
            return cls()
        except (SpoolError, OSError) as exc:
            log.error("standing_unreadable", file=path, why=exc, hint="spool_agent.py resume, or another order, writes it anew")
            return cls(STOPPED, because=f"{path} cannot be read")


class Switch:
    """The order in `control`, read again whenever its file changes. Threads may share one."""

    def __init__(self, control: Path) -> None:
        self.path = control / "standing.json"
        self._mutex = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._standing = Standing()

    def get(self) -> Standing:
        """Return the order as it stands."""
        with self._mutex:
            seen = self._signature()
            if seen != self._seen:
                self._standing, self._seen = Standing.read(self.path), seen
            return self._standing

    def _signature(self) -> tuple[int, ...]:
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            return ()
        return info.st_ino, info.st_size, info.st_mtime_ns

    @property
    def stopped(self) -> bool:
        """True where nothing may run, and nothing leave."""
        return self.get().mode == STOPPED

    def check(self) -> None:
        """Raise `Left` where everything is stopped."""
        if self.stopped:
            raise Left


class Lookout:
    """Calls `on_change` soon after the order has changed, from a thread of its own."""

    def __init__(self, switch: Switch, on_change: Callable[[], None]) -> None:
        self._switch = switch
        self._on_change = on_change
        self._closed = threading.Event()
        self._known = switch.get()
        threading.Thread(target=self._run, name="lookout", daemon=True).start()

    def close(self) -> None:
        """End the thread soon."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_S):
            before, now = self._known, self._switch.get()
            if now != before:
                self._known = now
                log.warning("standing", before=before.mode or "works", now=now.mode or "works", by=now.by, why=now.because)
                try:
                    self._on_change()
                except Exception:  # noqa: BLE001 - outermost frame of the thread: the next order must be heard
                    log.error("standing_failed", trace=True)


# The verbs


def pause(words: list[str], program: Path) -> int:
    """``pause``: take no new job."""
    order = _Order("pause", words, program)
    order.give(PAUSED)
    print(f"paused: no new job is taken; {order.in_hand()} in hand go on. Undo it: spool_agent.py resume")
    return 0


def drain(words: list[str], program: Path) -> int:
    """``drain``: take no new job, and wait until what is in hand has ended. Exit code 75 after ``--timeout``."""
    order = _Order("drain", words, program, timeout=True)
    order.give(DRAINING)
    until = time.monotonic() + order.timeout_s
    while left := order.in_hand():
        if time.monotonic() >= until:
            held = order.held()
            people = f", {held} of them held for a person (spool_agent.py held)" if held else ""
            print(f"draining: {left} jobs are in hand still{people}; no new one is taken. Wait again: spool_agent.py drain")
            return EXIT_LATER
        time.sleep(LOOK_S)
    print("drained: nothing is in hand, and no new job is taken. Undo it: spool_agent.py resume")
    return 0


def stop(words: list[str], program: Path) -> int:
    """``stop``: stop every command here, whether an agent runs or not; nothing is returned before ``resume``."""
    order = _Order("stop", words, program)
    order.give(STOPPED)
    failed = 0
    runner = LocalRunner(install(order.base.control))
    for job in [job for job in order.base.jobs() if job.state.state == State.RUNNING]:
        try:
            word = runner.cancel(job.paths.folder).word
        except (OSError, ValueError, subprocess.CalledProcessError) as exc:
            failed, word = failed + 1, f"could not be stopped: {exc}"
        print(f"{job.state.id}  {word}")
    print("stopped: nothing runs, nothing is taken, nothing is returned. Undo it: spool_agent.py resume")
    return EXIT_LATER if failed else 0


def resume(words: list[str], program: Path) -> int:
    """``resume``: undo pause, drain and stop."""
    order = _Order("resume", words, program)
    was = order.give("")
    print(f"resumed: it was {was.mode}" if was.mode else "resumed: nothing was held back")
    return 0


class _Order:
    """One verb's command line, and its act."""

    def __init__(self, verb: str, words: list[str], program: Path, *, timeout: bool = False) -> None:
        parser = argparse.ArgumentParser(prog=f"spool_agent.py {verb}", allow_abbrev=False)
        parser.add_argument("--config", type=Path, metavar="INI", help="the agent.ini, which names the base")
        parser.add_argument("--base", type=Path, metavar="DIR", help="the base, where it is another one (calc_base)")
        parser.add_argument("--because", default="", metavar="WHY", help="kept here, in the audit log; MInt is not told")
        if timeout:
            parser.add_argument("--timeout", type=float, default=float("inf"), metavar="S", help="seconds to wait at most")
        given = parser.parse_args(words)
        self.timeout_s = float(given.timeout) if timeout else 0.0
        self._because = str(given.because)
        self.base = Base(given.base.absolute() if given.base else read_config(find_config(given.config, program)).base)
        self.base.open()

    def give(self, mode: str) -> Standing:
        """Write the order, durably, and tell the audit log; return what held before. Nobody else's file is followed."""
        switch = Switch(self.base.control)
        was, by = switch.get(), _person()
        if mode:
            value = {"format": 1, "mode": mode, "at": utc_now(), "by": by, "because": self._because}
            replace_file(switch.path, jsonio.dumps(value), mode=0o600)
        else:
            with contextlib.suppress(FileNotFoundError):
                switch.path.unlink()
            fsync_dir(self.base.control)
        Audit(self.base.control / "audit.jsonl").append(mode or "resumed", by=by, because=self._because, before=was.mode)
        return was

    def in_hand(self) -> int:
        """Return how many jobs here have not ended."""
        return sum(1 for _ in self.base.jobs())

    def held(self) -> int:
        """Return how many of them wait for a person."""
        return sum(job.state.state == State.HELD for job in self.base.jobs())


def _person() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
