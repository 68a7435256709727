"""From the options of `spoolctl submit` to a checked `Job` and the files that go with it. Writes nothing."""

from __future__ import annotations

import argparse
import os
import pwd
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from spool.ctl import messages
from spool.ctl.backend import Progress, Usage
from spool.errors import InvalidName, SpoolError
from spool.instants import from_epoch, to_epoch
from spool.manifest import hash_fd, printable
from spool.names import check_name, check_user, new_id
from spool.records import Input, Job
from spool.signed import DEFAULT_ATTEMPTS, DEFAULT_DAYS


def job_of(args: argparse.Namespace) -> tuple[Job, dict[str, Path]]:
    """Return the job that the command line asks for, and its inputs by the names they will have. `Usage` for what is wrong."""
    try:
        sources = inputs_of(args.inputs)
        job = Job(
            id=(args.id or new_id()).lower(), site=args.site, command=args.command, args=tuple(args.arg), outputs=tuple(args.out),
            inputs=tuple(Input(name) for name in sources), user=args.user, env=pairs(args.env, "--env"),
            priority=args.priority, workflow=args.workflow, wall_time_s=args.wall_time, expires_at=args.expires_at,
            max_attempts=args.max_attempts,
            give_up_after_s=args.give_up_after, require_all=args.require_all, labels=pairs(args.label, "--label"),
        )  # fmt: skip
        if args.sign:
            job = replace(
                job, user=job.user or _login_name(), expires_at=job.expires_at or _default_expiry(),
                max_attempts=job.max_attempts or DEFAULT_ATTEMPTS,
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


def _login_name() -> str:
    try:
        return check_user(pwd.getpwuid(os.getuid()).pw_name)
    except (KeyError, InvalidName) as exc:
        raise Usage("a signed job names its user", hint="give --user: the name by which the site knows the key") from exc


def _default_expiry() -> str:
    """Return the midnight (UTC) after `DEFAULT_DAYS` days: the same command on the same day signs the same bytes."""
    return from_epoch((time.time() // 86400 + DEFAULT_DAYS + 1) * 86400)


def fixed(job: Job, sources: Mapping[str, Path], progress: Progress) -> Job:
    """Return `job` with size and SHA-256 of every input, read now."""
    return replace(job, inputs=tuple(_fixed(name, source, progress) for name, source in sources.items()))


def _fixed(name: str, source: Path, progress: Progress) -> Input:
    progress(messages.text("hashing", name=name), 0, 0)
    with open(source, "rb") as file:
        digest, size = hash_fd(file.fileno())
    return Input(name, size, digest)


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
