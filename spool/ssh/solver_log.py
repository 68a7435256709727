"""The site-wide `solver_execute.log`: one line where a command starts, ends normally, or ends abnormally.

Written from the states as they change, so a line stands for a change that is durable. One write(2) a line: several
programs may share the file.
"""

from __future__ import annotations

import os
import string

from spool import log
from spool.config import Site, SpoolConfig
from spool.errors import ConfigError
from spool.manifest import printable
from spool.records import JobState
from spool.states import State

DEFAULT_FORMAT = "{at} {event} id={id} site={site} user={user} workflow={workflow} command={command} reason={reason}"
PLACEHOLDERS = ("at", "event", "id", "site", "user", "workflow", "command", "reason")
START, NORMAL_END, ABNORMAL_END = "start", "normal end", "abnormal end"


def check_format(site: Site) -> str:
    """Return the format of the site's lines; `ConfigError` where it holds a placeholder that there is not."""
    text = site.solver_log_format or DEFAULT_FORMAT
    hint = "the placeholders are " + " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as exc:
        raise ConfigError(f"[site {site.name}] solver_log_format: {exc}; write {{{{ for a brace", hint=hint) from exc
    for _, name, spec, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise ConfigError(f"[site {site.name}] solver_log_format: there is no placeholder {{{name}}}", hint=hint)
    return text


def check_formats(config: SpoolConfig) -> None:
    """Check the formats of all ssh sites."""
    for site in config.sites.values():
        if site.mode == "ssh":
            check_format(site)


def event_of(state: JobState) -> str:
    """Return the event that a change to `state` stands for, or ``""``; what never may have started has none."""
    source = state.last.source if state.last else ""
    if source == str(state.state) or not state.started_at:
        return ""
    if state.state == State.RUNNING:
        return START
    if state.state == State.COMPLETED:
        return NORMAL_END
    return ABNORMAL_END if state.state in (State.FAILED, State.CANCELED) else ""


def note(site: Site, state: JobState) -> None:
    """Append the line for this change of state, if it is one of the three; a failure is logged and harms nothing else."""
    event = event_of(state)
    if site.solver_log is None or not event:
        return
    reason = state.reason or ("canceled" if state.state == State.CANCELED else "")
    values = {
        "at": state.changed_at, "event": event, "id": state.id, "site": state.site, "user": state.user,
        "workflow": state.workflow, "command": state.command, "reason": reason,
    }  # fmt: skip
    try:
        line = check_format(site).format_map({name: printable(text) or "-" for name, text in values.items()})
        fd = os.open(site.solver_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o660)
        try:
            os.write(fd, (line + "\n").encode("utf-8", "replace"))
        finally:
            os.close(fd)
    except (OSError, ConfigError) as exc:
        log.warning("solver_log", job=state.id, file=site.solver_log, why=exc)
