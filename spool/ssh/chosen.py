"""Claiming only the jobs that were named on the command line."""

from __future__ import annotations

from collections.abc import Collection

from spool.paths import SpoolPaths
from spool.queue import Entry, Queue


class ChosenQueue(Queue):
    """The queue as it looks when only some jobs are wanted; indexes are written as ever."""

    def __init__(self, paths: SpoolPaths, chosen: Collection[str]) -> None:
        super().__init__(paths)
        self._chosen = frozenset(chosen)

    def waiting(self, site: str, users: list[str]) -> list[Entry]:
        """Return what waits for `site` from `users` and was chosen."""
        return [entry for entry in super().waiting(site, users) if entry.job_id in self._chosen]
