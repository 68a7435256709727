"""The site's own program that cleans up after a command, before anything is measured (docs/agent.md, "What may leave").

It is run without a shell, in `work/`, with an environment from empty, under coreutils' `timeout`, which ends it also where the
agent was killed meanwhile. It may be run again after such a restart, never twice at a time: each run holds a lock file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from spool import log
from spool.agent.config import AgentConfig
from spool.errors import Refused
from spool.paths import JobPaths
from spool.runner import RunStatus

LOOK_S = 0.05
SAID_BYTES = 400
FAILED = "what the command left was not cleaned up by the site, so nothing of it leaves"
VARIABLES = ("PATH", "HOME", "LANG", "MINT_SPOOL_JOB", "MINT_SPOOL_COMMAND", "MINT_SPOOL_LOG", "MINT_SPOOL_EXIT")


def scrub(
    config: AgentConfig, job_id: str, command: str, paths: JobPaths, status: RunStatus, locks: Path,
    pause: Callable[[float], object],
) -> None:
    """Run the site's `scrub`, if there is one; raise `Refused` with a fixed sentence where it does not end with 0 in time.

    `locks` is a folder of the agent's own; `pause` waits some seconds and may raise. Safe to repeat.
    """
    argv, limit_s = config.release["scrub"], config.release["scrub_timeout_s"]
    if not argv:
        return
    exit_code = "" if status.exit_code is None else str(status.exit_code)
    values = ("/usr/local/bin:/usr/bin:/bin", str(paths.work), "C.UTF-8", job_id, command, str(paths.log), exit_code)
    deadline = time.monotonic() + 2 * limit_s
    with _alone(locks / f"{job_id}.lock", deadline, pause) as lock, tempfile.TemporaryFile(dir=locks) as said:
        try:
            work = os.open(paths.work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)  # no link put in its place
        except OSError as exc:
            raise _hopeless(job_id, exc) from exc
        try:
            process = subprocess.Popen(
                ["timeout", "-s", "KILL", str(limit_s), *argv], cwd=f"/proc/self/fd/{work}", env=dict(zip(VARIABLES, values)),
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=(lock, work), start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise _hopeless(job_id, exc) from exc
        finally:
            os.close(work)
        while process.poll() is None:
            pause(LOOK_S)
        if process.returncode:
            said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES))
            why = "it took too long" if process.returncode in (124, 137, -9) else f"it ended with {process.returncode}"
            raise _refused(job_id, f"{why}: {said.read().decode('utf-8', 'replace').strip()}")
    log.info("scrubbed", job=job_id)


def _hopeless(job_id: str, exc: OSError) -> Exception:
    """Return what to raise: a refusal where waiting does not help (no such program or folder, no rights), else `exc`."""
    never = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP)
    return _refused(job_id, str(exc)) if exc.errno in never else exc


def _refused(job_id: str, why: str) -> Refused:
    log.error("scrub_failed", job=job_id, why=why, hint="nothing of this job leaves but its exit code; see [release] scrub")
    return Refused(FAILED, hint="the site's administrator decides")


@contextlib.contextmanager
def _alone(path: Path, deadline: float, pause: Callable[[float], object]) -> Iterator[int]:
    """Hold the lock that a run of before this agent's start may still hold, which its own time limit ends."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _refused(path.stem, "an earlier run of it does not end") from None
                pause(LOOK_S)
        yield fd
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)
