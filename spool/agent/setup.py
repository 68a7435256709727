"""`init` writes a commented agent.ini; `check` tries everything that a first job would need, before there is one."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from spool.agent import checking, sample, shelf
from spool.agent.arguments import Arguments, configure, tls
from spool.agent.checking import WARNING
from spool.agent.config import AgentConfig, candidates, find_config, read_config
from spool.agent.folder import Base
from spool.agent.protocol import connect
from spool.errors import ConfigError, SpoolError
from spool.files import free_bytes, write_new
from spool.runner import install

PURGED = ("/tmp", "/var/tmp", "/run")


def init(args: Arguments, program: Path) -> int:
    """Write agent.ini where `--config` says, else into the user's configuration folder; never overwrite. Exit code 0 or 2."""
    target = args.config or candidates(program)[1]
    text = sample.agent_ini(site=args.site, url=args.url, token_file=args.token[1:])
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(target, text.encode("utf-8"), mode=0o600)
    except FileExistsError:
        print(f"spool_agent.py: {target} exists and was not touched", file=sys.stderr)
        return 2
    except OSError as exc:
        raise ConfigError(f"{target} cannot be written: {exc.strerror}", hint="name another file: init --config FILE") from exc
    print(f"{target} was written. Edit it: site, url, token_file, and a [command NAME] for each command that may run.")
    print("Then try it: spool_agent.py check" + (f" --config {target}" if args.config else ""))
    return 0


def check(args: Arguments, program: Path) -> int:
    """One line a finding: `ok`, `warning` or `problem` with what to do. Exit code 0 where nothing stands in the way, else 1."""
    read = None if args.published else read_config(find_config(args.config, program))
    of_a_gate = read is not None and not read.agent["url"]
    config = read if read is not None and of_a_gate else configure(args, program)
    problems = 0
    for what, why in _findings(config, args):
        word = "ok" if not why else "warning" if why.startswith(WARNING) else "problem"
        problems += word == "problem"
        print(f"{word:8} {what}{': ' + why.replace(WARNING, '') if why else ''}")
    return 1 if problems else 0


def _findings(config: AgentConfig, args: Arguments) -> Iterator[tuple[str, str]]:
    yield f"configuration {config.source}", "" if config.commands else "allows no command: add a [command NAME]"
    yield from checking.commands(config)
    yield "release", "" if config.release["allow"] else "allows no output to leave: set [release] allow"
    yield f"release by a person: hold = {config.release['hold']}", ""
    if config.release["scrub"]:
        program = config.release["scrub"][0]
        found = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") and shutil.which("timeout")
        yield f"scrub {program}", "" if found else "it or timeout (coreutils) is not there or not executable: nothing would leave"
    if config.release["reviewers_group"]:
        yield f"reviewers: {' '.join(config.release['reviewers'])}", _readable(config)
    yield from _base_findings(config)
    if not config.agent["url"]:
        yield "server", f"{WARNING}no url: good for `gate` only (a guarded SSH site); an agent needs url and token_file"
        return
    yield f"server {config.agent['url']}, token and site", _ask(config, args)


def _readable(config: AgentConfig) -> str:
    """Return why those who decide could not read agent.ini; nothing where they can."""
    group = config.release["reviewers_group"]
    info = os.stat(config.source or os.devnull)
    with contextlib.suppress(KeyError):  # that there is no such group is told of the base
        if not (info.st_mode & 0o004 or (info.st_mode & 0o040 and info.st_gid == grp.getgrnam(group).gr_gid)):
            return f"they cannot read {config.source}: chgrp {group} and chmod 640 (it holds no secret)"
    return ""


def _base_findings(config: AgentConfig) -> Iterator[tuple[str, str]]:
    base = Base(config.base)
    try:
        base.open()
        shelf.ready(config)
        install(base.control)
        base.audit.head()
    except (SpoolError, OSError) as exc:
        yield f"base {config.base}", _said(exc)
        return
    purged = any(str(config.base).startswith(f"{folder}/") or str(config.base) == folder for folder in PURGED)
    yield f"base {config.base}", f"{WARNING}the system purges it: use a folder of the agent's own" if purged else ""
    short = free_bytes(config.base) < config.agent["min_free"]
    yield "free space below base", "less than min_free: no job will be taken" if short else ""
    for tool in ("sh", "setsid", "find", "sha256sum"):
        yield f"tool {tool}", "" if shutil.which(tool) else "is missing: install util-linux, coreutils, findutils"


def _ask(config: AgentConfig, args: Arguments) -> str:
    server = connect(config, Base(config.base), tls(config, args))
    request = {"site": config.agent["site"], "agent": "check", "room": 0, "wait_s": 0, "leaving": True, "jobs": []}
    try:
        server.sync(request)
    except SpoolError as exc:
        return _said(exc)
    return ""


def _said(exc: SpoolError | OSError) -> str:
    return f"{exc.message} ({exc.hint})" if isinstance(exc, SpoolError) and exc.hint else str(exc)
