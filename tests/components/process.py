"""A program under test, run in the foreground of a process group of its own, its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Union

from components import proc
from components.waiting import wait_until

Words = Sequence[Union[str, "os.PathLike[str]"]]

# Every program started since the last test ended or still running; conftest.py shows their logs when a test fails.
started: list[Process] = []


class Process:
    """Starts `argv` at once; `close` (or leaving the `with`) kills its whole group. Output is appended to `log`."""

    def __init__(
        self,
        argv: Words,
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = Path(argv[0]).name if len(argv) == 1 else " ".join(Path(part).name for part in argv[:2])
        self.log = log
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                [os.fspath(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            )
        started.append(self)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """All it has written so far, on both streams."""
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, deadline_s: float) -> None:
        """Until `text` stands in its log; fails at once when the program ends without having written it."""

        def seen() -> bool:
            ended = not self.running
            if text in self.output():
                return True
            assert not ended, f"{self.name} ended with {self.popen.returncode}, not saying {text!r}:\n{self.output()}"
            return False

        wait_until(seen, deadline_s, f"{text!r} in the log of {self.name}")

    def wait(self, deadline_s: float) -> int:
        """Its exit code, when it ends by itself within the deadline."""
        wait_until(lambda: not self.running, deadline_s, f"{self.name} ends")
        return self.popen.returncode

    def signal(self, how: signal.Signals) -> None:
        """To the program alone, not to its group: what an operator's `kill` does."""
        self.popen.send_signal(how)

    def stop(self, deadline_s: float = 10) -> int:
        """Ask it to end (TERM), as a service manager does; returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self) -> None:
        """SIGKILL to the program alone, as if it had crashed; what it started goes on."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """SIGKILL to the whole group, also when the program itself has ended; returns when all are gone. Repeatable."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        # Until then an orphan could hold a port: nginx's workers share the listening socket.
        wait_until(lambda: not proc.group_lives(self.pid), 10, f"the group of {self.name} is gone")

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clean_env(home: Path, **more: str) -> dict[str, str]:
    """The environment of a program under test: its own home, this interpreter first on PATH, UTF-8, nothing else."""
    path = os.pathsep.join([os.path.dirname(sys.executable), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"])
    return {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", **more}


def run(
    argv: Words,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    deadline_s: float = 60,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output captured; with `check`, a non-zero exit fails the test and shows both."""
    done = subprocess.run(
        [os.fspath(part) for part in argv],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=dict(env) if env is not None else None,
        cwd=cwd,
        timeout=deadline_s,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{done.args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
