"""The site's own word before a start: `pre_run`, a program that looks at a job and may refuse it.

It runs as the agent's account, in `work/`, with the inputs there, before the start is asked. Exit 0 allows; everything else
refuses: another exit, a signal, a time that ran out, a program that is not there. It is asked again after a restart of the agent
that came before the start, so it must be safe to repeat.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import unicodedata
from collections.abc import Mapping
from typing import Callable

from spool import log
from spool.agent.config import Command
from spool.agent.policy import PATH
from spool.errors import Refused
from spool.paths import JobPaths
from spool.records import JobState

LOOK_S = 0.05
WORDS = 200
REFUSED = "the site's own check refused the job"


def ask(command: Command, state: JobState, paths: JobPaths, pause: Callable[[float], None]) -> None:
    """Return where the command has no `pre_run`, or it allows the job; raise `Refused` otherwise.

    What it said stands in the agent's log, and leaves only where `pre_run_words` says so. `pause(seconds)` may raise where the
    agent stops: the program is ended then.
    """
    if not command.pre_run:
        return
    why, said = _run(command, _environment(state, paths), paths, pause)
    if why:
        log.warning("pre_run_refused", job=state.id, command=command.name, why=why, said=said)
        words = f": {said}" if said and command.pre_run_words == "return" else ""
        raise Refused(REFUSED + words, hint="the site's administrator decides")
    log.info("pre_run_allowed", job=state.id, command=command.name)


def _environment(state: JobState, paths: JobPaths) -> dict[str, str]:
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "MINT_SPOOL_JOB": state.id,
        "MINT_SPOOL_COMMAND": state.command,
        "MINT_SPOOL_USER": state.user,
        "MINT_SPOOL_SITE": state.site,
        "MINT_SPOOL_FOLDER": str(paths.folder),
    }


def _run(command: Command, env: Mapping[str, str], paths: JobPaths, pause: Callable[[float], None]) -> tuple[str, str]:
    """Return (why the job is refused or nothing, the first line on standard error)."""
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command.pre_run, cwd=paths.work, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            return f"it cannot be run: {exc.strerror}", ""
        try:
            why = _wait(process, command.pre_run_s, pause)
        finally:
            _end(process)
        return why, _first_line(os.pread(stderr.fileno(), 4 * WORDS, 0))


def _wait(process: subprocess.Popen[bytes], limit_s: int, pause: Callable[[float], None]) -> str:
    deadline = time.monotonic() + limit_s
    while (code := process.poll()) is None:
        if time.monotonic() >= deadline:
            return f"it did not end within {limit_s} s"
        pause(LOOK_S)
    return "" if code == 0 else f"it ended by signal {-code}" if code < 0 else f"it ended with {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of its session's first group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _first_line(text: bytes) -> str:
    """Return the first line, cut and without control characters: it may hold pieces of a hostile input."""
    line = (text.splitlines() or [b""])[0].decode("utf-8", "replace")
    return "".join(char if unicodedata.category(char)[0] != "C" else "?" for char in line)[:WORDS]
