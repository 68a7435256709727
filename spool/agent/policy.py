"""What may run here: a job against the site's commands (docs/security.md, "What may run").

Everything is refused that no rule allows. `Refused` carries the words that the submitter gets to see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spool.agent import params
from spool.agent.config import AgentConfig, Command, walled
from spool.errors import Refused
from spool.manifest import matches
from spool.paths import JobPaths
from spool.records import Job, JobState
from spool.room import why_no_room

PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Order:
    """What the runner is told: the argument vector, the variables asked for by the job, the site's environment, the limit.

    Behind a wall the job's variables are part of `argv`: what stands outside the wall must not see them.
    """

    argv: tuple[str, ...]
    job_env: Mapping[str, str]
    site_env: Mapping[str, str]
    wall_time_s: int | None


def allow(config: AgentConfig, job: Job, state: JobState, work: Path) -> Order:
    """Return what to run for `job`, or raise `Refused` saying which rule stands against it."""
    command = config.commands.get(job.command)
    if command is None:
        raise Refused(f"command {job.command!r} is not allowed at site {state.site}", hint="the site's administrator decides")
    if state.site != config.agent["site"] or job.site != state.site:
        raise Refused(f"the job is for site {job.site}, this is {config.agent['site']}", hint="submit it to this site")
    if command.users and state.user not in command.users:
        raise Refused(f"user {state.user!r} may not run {job.command!r} here", hint="the site's administrator decides")
    _check_inputs(command, state)
    argv, job_env = _argv(command, job, state), _job_env(command, job)
    if walled(command):
        argv, job_env = behind_wall(command, argv, job_env, state.id, work), {}
    return Order(argv, job_env, _site_env(command, job, state, work), limit_s(config, job))


def check_room(config: AgentConfig, job: Job, state: JobState, paths: JobPaths) -> None:
    """Raise `Refused` where the job's inputs would leave less than its command's ``min_free`` on the disk of the base.

    Asked before a byte is fetched, and not again: from then on some of the inputs are here. They count twice, because `work/`
    is a copy.
    """
    command = config.commands[job.command]
    if command.min_free is None or paths.inputs.exists():
        return
    coming = 2 * sum(entry.size for entry in state.inputs)
    if why_no_room(paths.folder.parent, command.min_free, coming=coming):
        raise Refused(f"the site has too little disk for the inputs of this {job.command!r}", hint="submit it again later")


def _check_inputs(command: Command, state: JobState) -> None:
    if command.max_inputs is not None and len(state.inputs) > command.max_inputs:
        raise Refused(f"{_job_inputs(state)}; {command.name!r} takes {command.max_inputs} here", hint="pack them, or send fewer")
    if command.max_input_bytes is not None and sum(entry.size for entry in state.inputs) > command.max_input_bytes:
        raise Refused(f"{_job_inputs(state)}; {command.name!r} takes {command.max_input_bytes} bytes here", hint="send less")
    for entry in state.inputs:
        # Solvers execute files such as abaqus_v6.env or .bashrc: these need a pattern that is written for them.
        special = entry.path.endswith(".env") or any(part.startswith(".") for part in entry.path.split("/"))
        if not any(
            matches(entry.path, (item,)) and (not special or _spells_out(entry.path, item)) for item in command.inputs_allow
        ):
            raise Refused(f"the input name {entry.path!r} is not allowed here", hint="the site's inputs_allow decides")


def _spells_out(name: str, pattern: str) -> bool:
    """True where `pattern` writes what makes `name` special itself, as a shell wants a leading dot written."""
    dots = [part for part in name.split("/") if part.startswith(".")]
    written = [part for part in pattern.split("/") if part.startswith(".")]
    return len(written) >= len(dots) and (not name.endswith(".env") or pattern.endswith(".env"))


def _job_inputs(state: JobState) -> str:
    """Return how much comes with the job, in words."""
    return f"the job has {len(state.inputs)} inputs of {sum(entry.size for entry in state.inputs)} bytes"


def _argv(command: Command, job: Job, state: JobState) -> tuple[str, ...]:
    if command.param:
        inputs = {entry.path for entry in state.inputs}
        return tuple(params.fill(command.name, command.argv, command.param, job.args, inputs))
    if job.args and "{args}" not in command.argv:
        raise Refused(f"{command.name!r} takes no arguments here", hint="submit without arguments")
    for number, arg in enumerate(job.args, 1):
        if command.args is None or not command.args.fullmatch(arg):
            raise Refused(f"argument {number} of {command.name!r} is not allowed here", hint="the site's args pattern decides")
    found: list[str] = []
    for item in command.argv:
        found.extend(job.args if item == "{args}" else (item,))
    return tuple(found)


def behind_wall(
    command: Command, argv: tuple[str, ...], job_env: Mapping[str, str], job_id: str, work: Path
) -> tuple[str, ...]:
    """Return the argv that runs `argv` with the variables `job_env` behind the command's wrapper."""
    # The job's variables are set inside: with LD_LIBRARY_PATH, say, a job would have its own code run in the wrapper.
    inner = ("/usr/bin/env", *(f"{name}={value}" for name, value in job_env.items()), *argv) if job_env else argv
    places = {"work": str(work), "job": job_id, "base": str(work.parent.parent)}
    return (*(params.put(item, places) for item in command.wrapper), *inner)


def _job_env(command: Command, job: Job) -> dict[str, str]:
    refused = sorted(set(job.env) - set(command.env_allow))
    if refused:
        raise Refused(f"the variables {', '.join(refused)} may not be set here", hint="the site's env_allow decides")
    return dict(job.env)


def _site_env(command: Command, job: Job, state: JobState, work: Path) -> dict[str, str]:
    # From empty: nothing of the agent's own environment, and so no token or proxy password, reaches a command.
    base = {"PATH": PATH, "HOME": str(work), "LANG": "C.UTF-8", "MINT_SPOOL_JOB": state.id, "MINT_SPOOL_COMMAND": job.command}
    return {**base, **command.env}


def limit_s(config: AgentConfig, job: Job) -> int | None:
    """Return the wall-time limit that holds for `job`, in seconds: the smaller of the site's and its own, if any."""
    command = config.commands.get(job.command)
    limits = [limit for limit in (command.wall_time_s if command else None, job.wall_time_s) if limit is not None]
    return min(limits, default=None)
