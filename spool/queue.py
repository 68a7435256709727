"""The indexes over the jobs: what waits (`queue/SITE/USER/KEY`), what is with a site (`active/SITE/AGENT/ID`), what is `new/`.

An entry is an empty file; the truth is the job's `state.json`. The indexes may list too much, never too little: whoever
writes them keeps the order of docs/format.md, "Writing order", and whoever reads them judges each entry by the job's state.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from spool.files import fsync_dir
from spool.names import is_id
from spool.paths import SpoolPaths
from spool.records import MAX_PRIORITY

_KEY = re.compile(r"\d{4}\.\d{8}T\d{12}Z\.([0-9a-f-]{36})\.(\d{1,9})")


@dataclass(frozen=True, order=True)
class Entry:
    """One waiting entry; sorts by priority (high first), then by the time it was enqueued."""

    key: str
    user: str
    job_id: str
    attempt: int


def make_key(job_id: str, attempt: int, priority: int) -> str:
    """Return the KEY of an attempt enqueued now: ``PPPP.TIME.ID.ATTEMPT``, sorting as it is to be claimed."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    return f"{MAX_PRIORITY - priority:04d}.{now}.{job_id}.{attempt}"


def parse_key(key: str, user: str) -> Entry | None:
    """Return the entry a KEY stands for, or None where the name is none of ours."""
    match = _KEY.fullmatch(key)
    return Entry(key, user, match[1], int(match[2])) if match and is_id(match[1]) else None


class Queue:
    """The entries of one spool."""

    def __init__(self, paths: SpoolPaths) -> None:
        self._paths = paths

    def add(self, site: str, user: str, key: str) -> None:
        """Add a waiting entry, durably. Safe to repeat. Call before the state becomes queued."""
        _add(self._paths.root, self._paths.queue_of(site, user) / key)

    def remove(self, site: str, user: str, key: str) -> None:
        """Remove a waiting entry; nothing where it is gone. Call after the state has left queued."""
        if key:
            _remove(self._paths.queue_of(site, user) / key)

    def add_new(self, job_id: str) -> None:
        """Note a registered job that is not enqueued yet, durably. Safe to repeat. Call before it is published."""
        _add(self._paths.root, self._paths.new / job_id)

    def remove_new(self, job_id: str) -> None:
        """Remove that note. Call after the state has left new."""
        _remove(self._paths.new / job_id)

    def new(self) -> list[str]:
        """Return the ids of the jobs that may be new."""
        return sorted(filter(is_id, _names(self._paths.new)))

    def users(self, site: str) -> list[str]:
        """Return the users that have, or once had, something waiting for `site`."""
        return _names(self._paths.queue / site)

    def waiting(self, site: str, users: list[str]) -> list[Entry]:
        """Return what waits for `site` from `users`, first to claim first."""
        found = (parse_key(key, user) for user in users for key in _names(self._paths.queue_of(site, user)))
        return sorted(entry for entry in found if entry is not None)

    def sites(self) -> list[str]:
        """Return the sites that have, or once had, something waiting."""
        return _names(self._paths.queue)

    def add_active(self, site: str, agent: str, job_id: str) -> None:
        """Note that `agent` of `site` has the job, durably. Safe to repeat. Call before the state becomes claimed."""
        _add(self._paths.root, self._paths.active / site / agent / job_id)

    def remove_active(self, site: str, agent: str, job_id: str) -> None:
        """Remove that note. Call after the state has become final or queued."""
        if agent:
            _remove(self._paths.active / site / agent / job_id)

    def active(self, site: str, agent: str) -> list[str]:
        """Return the ids of the jobs that `agent` of `site` may have."""
        return sorted(filter(is_id, _names(self._paths.active / site / agent)))

    def active_sites(self) -> list[str]:
        """Return the sites that have, or once had, a job in hand."""
        return _names(self._paths.active)

    def agents(self, site: str) -> list[str]:
        """Return the agents that have, or once had, a job of `site`."""
        return _names(self._paths.active / site)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _add(root: Path, path: Path) -> None:
    _make_folders(root, path.parent)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660))
    fsync_dir(path.parent)


def _make_folders(root: Path, folder: Path) -> None:
    if folder == root or folder.is_dir():
        return
    _make_folders(root, folder.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o770)
    fsync_dir(folder.parent)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
