"""Repairs of what a run or a requeue left half done. All but `carry_on` are for whoever holds the job's lock; safe to repeat."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from spool.errors import Busy, Conflict
from spool.files import fsync_dir
from spool.incoming import Incoming
from spool.locks import file_lock
from spool.paths import JobPaths
from spool.records import JobState, Result
from spool.results import accept
from spool.store import Store

_PUSH = "ssh-push"


def carry_on(store: Store, state: JobState, result: Result, *, by: str) -> None:
    """End a run whose results and result.json are at their place: accept the result once more, as its repeat would.

    A run of the push is the push's as long as one is at work: it fetches into the same folders.
    """
    with contextlib.ExitStack() as stack:
        if state.agent == _PUSH:
            try:
                stack.enter_context(file_lock(store.paths.locks / _PUSH, timeout_s=0))
            except Busy as exc:
                raise Busy("ssh_push.py is at work and will end this run by itself", hint="wait") from exc
        accept(store, result, by=by)


def move_back(paths: JobPaths, run_id: str) -> None:
    """Move results without a result.json back to where they arrived, so that the site's repeated finish finds them there."""
    incoming = Incoming(paths.incoming_of(run_id))
    incoming.prepare()
    for name, place in (("out", paths.out), ("log", paths.log)):
        if os.path.lexists(place):
            _move(place, incoming.files / name)
    fsync_dir(incoming.files)
    fsync_dir(paths.folder)


def _move(source: Path, target: Path) -> None:
    """Rename `source` to `target`; folder by folder where both are there. `Conflict` where both hold the same file."""
    if not os.path.lexists(target):
        os.rename(source, target)
        return
    if not (_is_folder(source) and _is_folder(target)):
        raise Conflict(f"{source} and {target} are both there", hint="see which one is whole, and move the other away")
    for name in os.listdir(source):
        _move(source / name, target / name)
    fsync_dir(target)
    os.rmdir(source)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def aside_of_attempt(paths: JobPaths, attempt: int) -> bool:
    """True where a requeue has begun to set this attempt aside: something of it is in attempts/N/, or N/ is empty."""
    aside = paths.attempt(attempt)
    if paths.attempts.is_symlink() or not _is_folder(aside):
        return False
    names = os.listdir(aside)
    return not names or any(name in JobPaths.OF_AN_ATTEMPT for name in names)


def take_back(paths: JobPaths, attempt: int) -> None:
    """Undo a requeue that was stopped before the job was queued: what it had set aside goes back to its place."""
    aside = paths.attempt(attempt)
    taken = [name for name in JobPaths.OF_AN_ATTEMPT if os.path.lexists(aside / name) and os.path.lexists(paths.folder / name)]
    if taken:
        raise Conflict(f"{', '.join(taken)} is there and in attempts/{attempt}/ too", hint="see which one is right")
    for name in JobPaths.OF_AN_ATTEMPT:
        with contextlib.suppress(FileNotFoundError):
            os.rename(aside / name, paths.folder / name)
    fsync_dir(paths.folder)
    for folder in (aside, paths.attempts):
        with contextlib.suppress(OSError):  # something else is in it, which stays
            os.rmdir(folder)
