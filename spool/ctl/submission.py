"""From the options of `spoolctl submit` to a checked `Job` and the files that go with it. Reads names only, writes nothing."""

from __future__ import annotations

import argparse
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from spool.ctl.backend import Usage
from spool.errors import SpoolError
from spool.instants import to_epoch
from spool.manifest import printable
from spool.names import check_name, new_id
from spool.records import Input, Job


def job_of(args: argparse.Namespace) -> tuple[Job, dict[str, Path]]:
    """Return the job that the command line asks for, and its inputs by the names they will have. `Usage` for what is wrong."""
    try:
        sources = inputs_of(args.inputs)
        job = Job(
            id=(args.id or new_id()).lower(), site=args.site, command=args.command, args=tuple(args.arg), outputs=tuple(args.out),
            inputs=tuple(Input(name) for name in sources), user=args.user, env=pairs(args.env, "--env"),
            priority=args.priority, workflow=args.workflow, wall_time_s=args.wall_time, expires_at=args.expires_at,
            give_up_after_s=args.give_up_after, require_all=args.require_all, labels=pairs(args.label, "--label"),
        )  # fmt: skip
        job = Job.parse(job.encode())
        if job.expires_at and to_epoch(job.expires_at) <= time.time():
            raise Usage(f"--expires-at {job.expires_at} has passed already", hint="give a later instant, or none")
    except UnicodeEncodeError as exc:
        raise Usage("an argument is not UTF-8 text", hint="arguments, names and values of a job are UTF-8") from exc
    except Usage:
        raise
    except SpoolError as exc:  # the job is made of nothing but the command line
        raise Usage(exc.message, hint=exc.hint) from exc
    return job, sources


def inputs_of(given: Iterable[str]) -> dict[str, Path]:
    """Return name -> path for the values of ``--in``.

    PATH is stored under its last part and NAME=PATH under NAME. A path that exists as it is given always wins, so a file whose
    name holds ``=`` needs nothing special; otherwise the first ``=`` whose right side exists divides.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, path = _divide(text)
        if name in found:
            hint = f"give one of them another name: --in NAME={printable(str(path))}"
            raise Usage(f"two inputs would both be stored as {printable(name)}", hint=hint)
        check_name(name)
        _check_kind(path)
        found[name] = path
    return found


def _divide(text: str) -> tuple[str, Path]:
    if os.path.lexists(text):
        return os.path.basename(os.path.normpath(text)), Path(text)
    for index in (place for place, char in enumerate(text) if char == "="):
        if index and os.path.lexists(text[index + 1 :]):
            return text[:index], Path(text[index + 1 :])
    raise Usage(f"there is no file {printable(text)}", hint="--in PATH, or --in NAME=PATH to store it under another name")


def _check_kind(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise Usage(f"{printable(str(path))}: {exc.strerror}", hint="name a file that can be read") from exc
    if stat.S_ISDIR(mode):
        hint = "name its files one by one; --in mesh/a.inp=mesh/a.inp keeps a folder in the name"
        raise Usage(f"{printable(str(path))} is a folder", hint=hint)
    if not stat.S_ISREG(mode):
        raise Usage(f"{printable(str(path))} is not a regular file", hint="inputs are ordinary files")


def pairs(given: Iterable[str], option: str) -> Mapping[str, str]:
    """Return the NAME=VALUE values of `option` as a mapping; `Usage` where one has no ``=`` or a name is given twice."""
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Usage(f"{option} {printable(text)} is not NAME=VALUE", hint=f"such as {option} OMP_NUM_THREADS=4")
        if name in found:
            raise Usage(f"{option} {printable(name)} is given twice", hint="give each name once")
        found[name] = value
    return found
