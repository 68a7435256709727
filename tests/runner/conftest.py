"""Real jobs under a real runner: each shell in turn, in a folder whose name holds what shells trip over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from components import proc
from components.waiting import wait_until
from spool.runner import RunStatus, install, parse_status, write_run

SHELLS = ("dash", "bash", "busybox", "only_busybox")
DEADLINE_S = 20.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def triple(pid: int) -> str:
    """What the runner would record of a living process."""
    return f"{pid} {_fields(pid)[19]} {BOOT_ID}\n"


def session(pid: int) -> int:
    return int(_fields(pid)[3])


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace").rpartition(") ")[2].split()


@dataclass
class Job:
    """One job folder, the runner under one shell, and a mark in the environment of all that it starts."""

    path: Path
    script: Path
    environment: dict[str, str]

    def command(self, verb: str, *arguments: str) -> list[str]:
        before = ["wait", *arguments] if verb == "wait" else [verb]
        after = [] if verb == "wait" else arguments
        return ["sh", str(self.script), *before, str(self.path), *after]

    def call(self, verb: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
        """The runner, to its end; `changes` come on top of the environment."""
        return subprocess.run(
            self.command(verb, *arguments),
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def spawn(self, verb: str, **changes: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(verb),
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def line(self, verb: str = "status", *arguments: str, **changes: str) -> str:
        done = self.call(verb, *arguments, **changes)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def ask(self, verb: str = "status", *arguments: str, **changes: str) -> RunStatus:
        return parse_status(self.line(verb, *arguments, **changes))

    def finish(self, **changes: str) -> RunStatus:
        """Prepared, started and over."""
        self.line("prepare")
        self.ask("start", **changes)
        return self.over()

    def over(self) -> RunStatus:
        status = self.ask("wait", "30")
        assert status.is_over, (status, self.log("runner.log"))
        return status

    def log(self, name: str) -> bytes:
        path = self.path / "log" / name
        return path.read_bytes() if path.exists() else b""

    def output(self) -> bytes:
        return self.log("stdout.txt")

    def work(self, name: str) -> Path:
        return self.path / "work" / name

    def run_file(self, name: str) -> Path:
        return self.path / "run" / name

    def pid(self, name: str = "pid") -> int:
        return int(self.run_file(name).read_text().split()[0])

    def kill_supervisor(self) -> None:
        pid = self.pid("supervisor")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not proc.alive(pid), DEADLINE_S, "the supervisor is dead")

    def wait_for(self, name: str) -> Path:
        """A file that the command makes in work/ when it is ready."""
        path = self.work(name)
        wait_until(path.exists, DEADLINE_S, f"the command makes {name}")
        return path


class Jobs:
    """Makes jobs for one shell, and ends all they have started when the test is over."""

    def __init__(self, root: Path, shell: str) -> None:
        self.mark = uuid.uuid4().hex
        self.root = root / "a b  'c' \"d\" $(touch pwned) `e` %s 入力\n;& #*?[x] \\t"
        self.root.mkdir()
        self.bin = root / "bin"
        self.script = install(self.root)
        self.environment = {"PATH": _path_for(shell, self.bin), "MARK": self.mark, "LANG": "C.UTF-8"}

    def new(self, name: str = "job") -> Job:
        """A folder with `in/` and nothing else."""
        path = self.root / name
        (path / "in").mkdir(parents=True)
        return Job(path, self.script, self.environment)

    def make(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        name: str = "job",
        wall_time_s: int | None = None,
        grace_s: int | None = None,
    ) -> Job:
        job = self.new(name)
        write_run(job.path, argv, env or {}, wall_time_s=wall_time_s, grace_s=grace_s)
        return job

    def python(
        self,
        code: str,
        *arguments: str,
        name: str = "job",
        wall_time_s: int | None = None,
        grace_s: int | None = None,
    ) -> Job:
        argv = [sys.executable, "-c", code, *arguments]
        return self.make(argv, name=name, wall_time_s=wall_time_s, grace_s=grace_s)

    def sh(self, code: str, *, name: str = "job", wall_time_s: int | None = None) -> Job:
        return self.make(["/bin/sh", "-c", code], name=name, wall_time_s=wall_time_s)

    def running(self, code: str, *, wall_time_s: int | None = None, grace_s: int | None = None) -> Job:
        """A job whose command is past the line of `code` that makes `ready`."""
        job = self.python(code, wall_time_s=wall_time_s, grace_s=grace_s)
        job.line("prepare")
        assert job.ask("start").is_running
        job.wait_for("ready")
        return job

    def left(self) -> list[int]:
        """Every living process that any of these jobs has started, runners and sleeps included."""
        wanted = b"MARK=" + self.mark.encode()
        found = []
        for one in proc.all_processes():
            try:
                environment = Path(f"/proc/{one.pid}/environ").read_bytes()
            except OSError:
                continue
            if wanted in environment.split(b"\0") and proc.alive(one.pid):
                found.append(one.pid)
        return found

    def close(self) -> None:
        proc.kill(proc.working_in(self.root))
        wait_until(self._killed_all, DEADLINE_S, "all processes of the test are gone")

    def _killed_all(self) -> bool:
        proc.kill(self.left())
        return not self.left()


def _path_for(shell: str, folder: Path) -> str:
    """A PATH on which `sh` is that shell; for `only_busybox` there is nothing else than busybox on it."""
    folder.mkdir()
    binary = shutil.which("busybox" if shell == "only_busybox" else shell)
    assert binary, f"{shell} is not installed: apt-get install dash bash busybox"
    if shell != "only_busybox":
        (folder / "sh").symlink_to(binary)
        return f"{folder}:{os.environ['PATH']}"
    subprocess.run([binary, "--install", "-s", str(folder)], check=True)
    return str(folder)


@pytest.fixture(params=SHELLS)
def jobs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Jobs]:
    """`jobs.make(argv)`, `jobs.sh(code)`, `jobs.python(code)`: jobs under each shell."""
    made = Jobs(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def dash_jobs(tmp_path: Path) -> Iterator[Jobs]:
    """The same under dash alone, where the shell makes no difference."""
    made = Jobs(tmp_path, "dash")
    yield made
    made.close()
