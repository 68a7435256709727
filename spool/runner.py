"""The runner's Python face: writes what `runner.sh` reads, calls it, and parses what it prints.

The contract of the runner itself (files, verbs, why a command is started at most once) is the header of `runner.sh`.
This module owns the form of `run/` as it is handed to the runner and the form of the runner's lines; it never starts,
signals or judges a process itself, and it never writes below `run/` once `run/started/` is there.

What comes from a runner may come from another organisation's host: it is parsed strictly and `ValueError` is raised
for anything else. `OSError` and `subprocess.CalledProcessError` (whose `stderr` is the runner's one clear line) pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUNNER_SH = Path(__file__).with_name("runner.sh")
"""The packaged script. Inside a zip application it is no file of its own: use `install`, which works there too."""

_NUMBER = "([0-9]{1,18})"
_LINE = re.compile(
    rf"(?P<plain>absent|new|canceled|starting)"
    rf"|running pid={_NUMBER} started_at={_NUMBER}"
    rf"|exited exit={_NUMBER} started_at={_NUMBER} finished_at={_NUMBER}"
    rf"(?P<spawn_failed> spawn_failed=1)?(?P<wall_time> wall_time=1)?(?P<cancel> cancel=1)?"
    rf"|lost why=(?P<why>reboot|vanished)"
)
_SUM = re.compile(r"(\\?)([0-9a-f]{64}) [ *]\./(.+)", re.DOTALL)
_OTHER = re.compile(r"(\\?)other \./(.+)", re.DOTALL)
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_UNESCAPED = {"\\": "\\", "n": "\n", "r": "\r"}
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class RunStatus:
    """What one status line says; what the word does not carry is None, False or empty.

    `spawn_failed`, `wall_time` and `cancel` belong to `exited`: the command could not be executed, was ended by its
    wall time, was asked to stop before its end was recorded. `why` belongs to `lost`.
    """

    word: str
    pid: int | None = None
    exit_code: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    spawn_failed: bool = False
    wall_time: bool = False
    cancel: bool = False
    why: str = ""

    @property
    def is_over(self) -> bool:
        """No process of this job will ever start or record anything again."""
        return self.word in {"exited", "lost", "canceled"}

    @property
    def is_running(self) -> bool:
        """The command was launched and its end is not recorded yet."""
        return self.word == "running"


def parse_status(line: str) -> RunStatus:
    """One line of `status`, `wait`, `start` or `cancel`, with or without its newline. ValueError for anything else."""
    match = _LINE.fullmatch(line[:-1] if line.endswith("\n") else line)
    if match is None:
        raise ValueError(f"not a status line of the runner: {line[:200]!r}")
    if match["plain"]:
        return RunStatus(match["plain"])
    if match["why"]:
        return RunStatus("lost", why=match["why"])
    pid, running_since, exit_code, started_at, finished_at = (
        None if match[i] is None else int(match[i]) for i in (2, 3, 4, 5, 6)
    )
    if pid is not None:
        return RunStatus("running", pid=pid, started_at=running_since)
    if exit_code is None or exit_code > 255:
        raise ValueError(f"not an exit status: {line[:200]!r}")
    return RunStatus(
        "exited",
        exit_code=exit_code,
        started_at=started_at,
        finished_at=finished_at,
        spawn_failed=match["spawn_failed"] is not None,
        wall_time=match["wall_time"] is not None,
        cancel=match["cancel"] is not None,
    )


def parse_sums(text: str) -> tuple[dict[str, str], list[str]]:
    """The output of `sums`: SHA-256 by path, and the paths of what is neither file nor folder.

    Paths are relative to the folder asked for, without `./`, with GNU's escapes undone; they are not checked against
    any rule for names. Decode the output with `surrogateescape` to keep names that are not UTF-8. ValueError for a line
    that is neither kind, a path listed twice, or a last line without its newline, which is how a cut answer looks.
    """
    if text and not text.endswith("\n"):
        raise ValueError(f"the list of sums was cut: {text[-200:]!r}")
    sums: dict[str, str] = {}
    others: list[str] = []
    for line in text.split("\n")[:-1]:
        if match := _SUM.fullmatch(line):
            path = _unescape(match[3]) if match[1] else match[3]
            if path in sums:
                raise ValueError(f"listed twice: {path!r}")
            sums[path] = match[2]
        elif match := _OTHER.fullmatch(line):
            others.append(_unescape(match[2]) if match[1] else match[2])
        else:
            raise ValueError(f"not a line of the runner's sums: {line[:200]!r}")
    return sums, others


def _unescape(name: str) -> str:
    def plain(match: re.Match[str]) -> str:
        if match[1] not in _UNESCAPED:
            raise ValueError(f"no escape that sha256sum writes: {name[:200]!r}")
        return _UNESCAPED[match[1]]

    return _ESCAPE.sub(plain, name)


def signal_of(exit_code: int) -> int | None:
    """The signal that a shell's exit status stands for (128 + n), or None. A command may also exit so by itself."""
    return exit_code - 128 if 128 < exit_code <= 128 + 64 else None


def write_run(
    job_dir: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    wall_time_s: int | None = None,
    grace_s: int | None = None,
) -> None:
    """Write `run/`, which a later `start` obeys: argv, variables, and limits in seconds (none; the runner's 10).

    Complete or not at all (built as `run.part`, synced, renamed) and safe to repeat until a start or a cancel has taken
    the latch; then ValueError, and nothing changes. ValueError too for an empty argv, NUL in a value, a bad variable
    name, or a limit that is not positive (`grace_s` may be 0). The caller sees to it that nobody starts the job
    meanwhile.
    """
    files = _run_files(argv, env, wall_time_s, grace_s)
    run, part, old = job_dir / "run", job_dir / "run.part", job_dir / "run.old"
    _restore_interrupted(run, old)
    _refuse_started(run)
    shutil.rmtree(part, ignore_errors=True)
    if (run / "cancel").exists():
        files["cancel"] = b"1\n"  # asked for, but its latch not taken yet: must not be forgotten
    _build(part, files)
    if run.exists():
        run.rename(old)
        try:
            _refuse_started(old)
        except ValueError:
            old.rename(run)
            raise
    part.rename(run)
    _sync_folder(job_dir)
    shutil.rmtree(old, ignore_errors=True)


def _run_files(argv: Sequence[str], env: Mapping[str, str], wall_time_s: int | None, grace_s: int | None) -> dict[str, bytes]:
    if not argv:
        raise ValueError("argv is empty: there is no command")
    width = max(3, len(str(len(argv) - 1)))
    files = {f"argv/{i:0{width}}": _value_bytes(f"argument {i}", value) for i, value in enumerate(argv)}
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"not a name for an environment variable: {name!r}")
        files[f"env/{name}"] = _value_bytes(name, value)
    for name, seconds, least in (("wall_time_s", wall_time_s, 1), ("grace_s", grace_s, 0)):
        if seconds is None:
            continue
        if not least <= seconds <= 999_999_999:
            raise ValueError(f"{name} must be {least} to 999999999 seconds, not {seconds}")
        files[name] = b"%d\n" % seconds
    return files


def _value_bytes(what: str, value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"{what} holds a NUL character, which no command can be given")
    return value.encode("utf-8", "surrogateescape")  # whatever the locale: the folder's format is UTF-8


def _refuse_started(run: Path) -> None:
    if (run / "started").exists():
        raise ValueError(f"{run} was started or canceled: it must not be written again")


def _restore_interrupted(run: Path, old: Path) -> None:
    """A kill between the two renames of `write_run` leaves the former `run/` under its other name."""
    if old.exists() and not run.exists():
        old.rename(run)
    shutil.rmtree(old, ignore_errors=True)


def _build(folder: Path, files: Mapping[str, bytes]) -> None:
    for sub in (folder, folder / "argv", folder / "env"):
        sub.mkdir(mode=0o700)
    for name, data in files.items():
        _write_new(folder / name, data, 0o600)
    for sub in (folder / "argv", folder / "env", folder):
        _sync_folder(sub)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def install(base: Path) -> Path:
    """Put the script at `base/.mint-spool/runner-HASH.sh` (mode 0500) and return that path. Safe to repeat.

    The name carries the first 16 hex digits of the SHA-256, because a shell reads a script while it runs it: a new
    version gets a new name, and one that is in use is never written to, only replaced by rename if it is damaged.
    """
    script = pkgutil.get_data(__name__, "runner.sh")
    if script is None:
        raise FileNotFoundError(f"runner.sh is missing beside {__file__}")
    folder = base / ".mint-spool"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"runner-{hashlib.sha256(script).hexdigest()[:16]}.sh"
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == script:
            return path
    temporary = folder / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_new(temporary, script, 0o500)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    return path


class LocalRunner:
    """Calls the runner on this host: one process per call, nothing kept between calls.

    `script` is an installed runner (see `install`), `shell` the name or path of a POSIX sh. Every method may be
    repeated. Each raises `subprocess.CalledProcessError` if the runner fails and `ValueError` if its answer is not one.
    """

    def __init__(self, script: Path, *, shell: str = "sh") -> None:
        self._command = [shell, str(script.absolute())]

    def prepare(self, job_dir: Path) -> RunStatus:
        """Copy `in/` to `work/`, once; then the status. Takes as long as the copy."""
        self._call("prepare", _absolute(job_dir))
        return self.status(job_dir)

    def start(self, job_dir: Path, env: Mapping[str, str] | None = None) -> RunStatus:
        """Start the command unless it ever was; back when it runs, or after about 10 s.

        `env` is the complete environment the runner gets (None: this process's); `run/env` is set on top of it.
        """
        return parse_status(self._call("start", _absolute(job_dir), env=env))

    def status(self, job_dir: Path) -> RunStatus:
        """Where the job stands. Does not block."""
        return parse_status(self._call("status", _absolute(job_dir)))

    def wait(self, job_dir: Path, seconds: int) -> RunStatus:
        """The status as soon as the job is neither starting nor running, at the latest after `seconds`."""
        return parse_status(self._call("wait", str(seconds), _absolute(job_dir)))

    def cancel(self, job_dir: Path) -> RunStatus:
        """Never to be started; if it was, TERM, the grace time, KILL. Back when its session is empty."""
        return parse_status(self._call("cancel", _absolute(job_dir)))

    def _call(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            env=env,
            encoding="utf-8",
            errors="surrogateescape",
        )
        return done.stdout


def _absolute(job_dir: Path) -> str:
    return str(job_dir.absolute())
