"""What is run for a job at an open site: command line and environment."""

from __future__ import annotations

from spool import log
from spool.config import Site
from spool.errors import CommandNotAllowed
from spool.records import Job, JobState


def argv_of(job: Job, site: Site) -> list[str]:
    """Return the command line: the site's program with the command as its first argument, or the command itself.

    `CommandNotAllowed` where the site's list has it no longer, or where it would be looked for among the job's own files.
    """
    site.check_command(job.command)
    if site.program:
        return [site.program, job.command, *job.args]
    if "/" in job.command and not job.command.startswith("/"):
        raise CommandNotAllowed(
            f"command {job.command!r} is a relative path", hint="register a name on the site's PATH, or an absolute path"
        )
    return [job.command, *job.args]


def env_of(job: Job, site: Site, state: JobState) -> dict[str, str]:
    """Return the variables that the site's `env_allow` permits, and the job's id and command, as in WebAPI mode."""
    allowed = {name: text for name, text in job.env.items() if "*" in site.env_allow or name in site.env_allow}
    if refused := sorted(set(job.env) - set(allowed)):
        log.warning("env_not_passed", job=state.id, names=" ".join(refused), hint=f"[site {site.name}] env_allow")
    return {**allowed, "MINT_SPOOL_JOB": state.id, "MINT_SPOOL_COMMAND": job.command}
