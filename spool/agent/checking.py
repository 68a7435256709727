"""What `check` finds about each command: program, pins, hook, and its wall, tried with a command that tries to get out."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from spool.agent import pins, policy, walls
from spool.agent.config import AgentConfig, Command, walled
from spool.agent.folder import Base
from spool.errors import ConfigError, SpoolError
from spool.files import remove_tree, write_new
from spool.paths import JobPaths

WARNING = "warning: "
WALL_S = 30
# Each line is one thing that a wall is there to prevent; the last says that the command ran at all. In a wall with an empty /tmp
# of its own an agent.ini below /tmp can be made, which is not the one that counts: that one is not empty.
_TRY = r"""
(cd "$1" && : >written) 2>/dev/null || echo "cannot write its work folder"
cat "$2" >/dev/null 2>&1 && echo "can read the token"
[ -s "$3" ] && (: >>"$3") 2>/dev/null && echo "can write agent.ini"
ls "$4" >/dev/null 2>&1 && echo "can read the agent's own folder"
cat "$5" >/dev/null 2>&1 && echo "can read other files of the base"
(: >>"$5") 2>/dev/null && echo "can write other files of the base"
echo ran
"""


def commands(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield (what was tried, what is wrong with it or nothing) for every command."""
    for command in config.commands.values():
        found = shutil.which(command.argv[0], path=policy.PATH)
        yield f"command {command.name}: {command.argv[0]}", "" if found else "is not there or not executable: correct argv"
        yield from _pins(command)
        if command.pre_run:
            usable = shutil.which(command.pre_run[0])
            yield f"pre_run of {command.name}: {command.pre_run[0]}", "" if usable else "is not there or not executable"
        yield f"wall of {command.name}", _wall(config, command)


def check_walls(config: AgentConfig, names: Iterable[str]) -> None:
    """Raise `ConfigError` where results are held for a person and one of these commands gets out of its wall.

    Each wall is tried, which takes as long as starting it does. Safe to repeat.
    """
    if not config.release["hold"]:
        return
    for name in names:
        if why := _wall(config, config.commands[name]):
            hint = "correct wrapper or run_as; spool_agent.py check tries them all"
            raise ConfigError(f"[release] hold needs a wall that holds; that of {name}: {why}", hint=hint)


def _pins(command: Command) -> Iterator[tuple[str, str]]:
    for path, digest in command.sha256:
        why = pins.why_not(path, digest)
        if not why and (open_at := pins.writable(path)):
            why = f"{WARNING}others than root may change {open_at}, also between the check and the start"
        yield f"sha256 of {command.name}: {path}", why


def _wall(config: AgentConfig, command: Command) -> str:
    if not walled(command):
        return f"{WARNING}none: it can read the token and change agent.ini as the agent can; set wrapper or run_as"
    try:
        Base(config.base).open()
    except SpoolError as exc:
        return f"{exc.message} ({exc.hint})"
    paths = JobPaths(config.base / f"probe.{secrets.token_hex(8)}")
    try:
        paths.work.mkdir(mode=0o700, parents=True)
        paths.folder.chmod(0o700)
        write_new(paths.state, b"", mode=0o600)
        return "; ".join(_attempts(config, command, paths))
    except (ValueError, OSError, subprocess.SubprocessError) as exc:
        return str(exc)
    finally:
        remove_tree(paths.folder)


def _attempts(config: AgentConfig, command: Command, paths: JobPaths) -> Iterator[str]:
    for account in command.run_as.split() or [""]:
        words: tuple[str, ...] = ()
        if account:
            who = walls.find_account(account)
            walls.give(paths, who)
            words = walls.words(who)
        token = config.agent["token_file"] or Path("/")
        things = (paths.work, token, config.source or Path("/"), Base(config.base).control, paths.state)
        inner = ("/bin/sh", "-c", _TRY, "probe", *map(os.path.abspath, things))
        argv = (*words, *policy.behind_wall(command, inner, {}, paths.folder.name, paths.work))
        done = subprocess.run(
            argv, cwd=paths.work, env={"PATH": policy.PATH, "LANG": "C.UTF-8"}, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=WALL_S, check=False, text=True, errors="replace",
        )  # fmt: skip
        *out, last = done.stdout.splitlines() or [""]
        yield from (f"the command {line}{f' as {account}' if account else ''}" for line in out if last == "ran")
        if last != "ran":
            yield f"it does not run a command (exit {done.returncode}): {done.stderr.strip()[-300:]}"
