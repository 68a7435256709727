"""`spoolctl site|workflow`, `pause`, `resume`, `drain`, `stop-all`: what operators hold back (docs/operations.md).

All of it is `controls.json` of the spool, see `spool.controls`; nothing is deleted and nothing but ``--kill`` touches a job.
"""

from __future__ import annotations

import argparse
import contextlib
import pwd
import time
from collections.abc import Iterator
from dataclasses import replace
from os import geteuid
from typing import Any

from spool import jsonio
from spool.config import SpoolConfig, default_config, find_config, read_config
from spool.controls import ALL, Controls, Mark, mark
from spool.ctl import exits
from spool.ctl.backend import Usage
from spool.ctl.folder import FolderBackend
from spool.ctl.listing import print_json, table
from spool.ctl.messages import note, say, text
from spool.errors import SpoolError, from_os_error
from spool.files import read_record
from spool.names import check_site
from spool.records import JobState
from spool.states import WITH_SITE

LOOK_S = 0.5
COMMANDS = ("site", "workflow", "pause", "resume", "drain", "stop-all")


def run(args: argparse.Namespace, backend: FolderBackend) -> int:
    """Run one of `COMMANDS`; return the exit code."""
    try:
        if args.command_name in ("site", "workflow"):
            return _of_one_kind(args, backend)
        return {"pause": _pause, "resume": _resume, "drain": _drain, "stop-all": _stop_all}[args.command_name](args, backend)
    except OSError as exc:
        raise from_os_error(exc, f"writing {backend.paths.controls}") from exc


def _config(backend: FolderBackend) -> SpoolConfig:
    path = find_config(None, backend.paths.root)
    return read_config(path) if path else default_config()


def _of_one_kind(args: argparse.Namespace, backend: FolderBackend) -> int:
    noun, verb = args.command_name, args.holding_command
    if verb == "ls":
        return _list_sites(args, backend) if noun == "site" else _list_workflows(args, backend)
    if noun == "site":
        _known_site(backend, args.name)
    given = _mark(args) if verb == "disable" else None
    backend.store.controls.change(lambda found: found.with_mark(f"disabled_{noun}s", args.name, given))
    say(f"{noun}_{verb}d", name=args.name)
    if noun == "site" and verb == "enable" and not _config(backend).sites[args.name].enabled:
        note("site_disabled_in_ini", name=args.name)
    return exits.DONE


def _known_site(backend: FolderBackend, name: str) -> None:
    known = _config(backend).sites
    if check_site(name) not in known:
        raise Usage(f"site {name!r} is not known here", hint=f"known: {', '.join(known) or 'none'}")


def _mark(args: argparse.Namespace) -> Mark:
    try:
        by = pwd.getpwuid(geteuid()).pw_name
    except KeyError:
        by = f"uid {geteuid()}"
    return mark(by, args.because)


def _list_sites(args: argparse.Namespace, backend: FolderBackend) -> int:
    controls = backend.store.controls.get()
    rows = [_site(backend, controls, name, site.enabled) for name, site in sorted(_config(backend).sites.items())]
    if args.json:
        print_json({"sites": rows, "stopped": vars(controls.stopped) if controls.stopped else None})
        return exits.DONE
    if rows:
        columns = ("site", "held_back", "standing", "contact")
        print(table(columns, [(row["site"], row["held_back"], row["standing"], row["at"]) for row in rows]))
    else:
        note("site_none")
    return exits.DONE


def _site(backend: FolderBackend, controls: Controls, name: str, enabled: bool) -> dict[str, Any]:
    """Return one site: what is held back here, and what its own operator has ordered there, as its agent last told."""
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, SpoolError):  # derived, and missing before the first contact
        told = jsonio.loads(read_record(backend.paths.site(name), 65536), "the site's last contact")
    held_back = controls.why_not_claimed(name) or ("" if enabled else text("disabled_in_ini"))
    return {"site": name, "held_back": held_back, "standing": str(told.get("standing", "")), "at": str(told.get("at", ""))}


def _list_workflows(args: argparse.Namespace, backend: FolderBackend) -> int:
    marks = backend.store.controls.get().disabled_workflows
    if args.json:
        print_json({"disabled": {name: vars(found) for name, found in marks.items()}})
    elif marks:
        print(table(("workflow", "held_back"), [(name, str(found)) for name, found in sorted(marks.items())]))
    else:
        note("workflow_none")
    return exits.DONE


def _chosen(args: argparse.Namespace, backend: FolderBackend) -> str:
    if args.all == bool(args.site_name):
        raise Usage("name a site, or --all", hint=f"such as: spoolctl {args.command_name} nims-dev")
    if args.site_name:
        _known_site(backend, args.site_name)
    return args.site_name or ALL


def _pause(args: argparse.Namespace, backend: FolderBackend) -> int:
    chosen, given = _chosen(args, backend), _mark(args)
    backend.store.controls.change(lambda found: found.with_mark("paused_sites", chosen, given))
    say("paused_all" if chosen == ALL else "paused", name=chosen)
    return exits.DONE


def _resume(args: argparse.Namespace, backend: FolderBackend) -> int:
    chosen = _chosen(args, backend)

    def resumed(found: Controls) -> Controls:
        if chosen != ALL:
            return found.with_mark("paused_sites", chosen, None)
        return Controls(found.disabled_sites, found.disabled_workflows)

    left = backend.store.controls.change(resumed)
    say("resumed_all" if chosen == ALL else "resumed", name=chosen)
    if chosen != ALL and (why := left.why_not_claimed(chosen)):
        note("held_back_still", why=why)
    return exits.DONE


def _drain(args: argparse.Namespace, backend: FolderBackend) -> int:
    """Pause, and wait until nothing is with the site; exit code 75 after ``--timeout``."""
    _pause(args, backend)
    until = None if args.timeout is None else time.monotonic() + args.timeout
    while left := len(list(_with_site(backend, args.site_name))):
        if until is not None and time.monotonic() >= until:
            note("not_drained", count=left)
            return exits.TRY_LATER
        time.sleep(LOOK_S)
    say("drained")
    return exits.DONE


def _with_site(backend: FolderBackend, site: str) -> Iterator[JobState]:
    """Yield the jobs that are with `site` (empty: any), by the index of these: it may list too much, never too little."""
    queue = backend.store.queue
    for name in [site] if site else queue.active_sites():
        for job_id in [job_id for agent in queue.agents(name) for job_id in queue.active(name, agent)]:
            with contextlib.suppress(SpoolError):  # gone, or in corrupt/
                state = backend.store.state(job_id)
                if state.state in WITH_SITE:
                    yield state


def _stop_all(args: argparse.Namespace, backend: FolderBackend) -> int:
    given = _mark(args)
    backend.store.controls.change(lambda found: replace(found, stopped=given))
    say("stopped_all")
    codes = [exits.DONE]
    for state in list(_with_site(backend, "")):
        if not args.kill:
            say("goes_on", id=state.id, state=state.state, site=state.site)
            continue
        try:
            say("cancel_asked", id=state.id, state=backend.cancel(state.id).state)
        except SpoolError as exc:  # it has just ended; the others are canceled
            note("not_canceled", id=state.id, message=exc.message)
    return exits.worst(codes)
