"""What the push does beside its jobs: expire what is due, note the sites' last contact, clean up there."""

from __future__ import annotations

import contextlib
import threading
import time

from spool import __version__, jsonio, log
from spool.config import Site
from spool.creation import identity
from spool.errors import SpoolError
from spool.files import replace_file
from spool.instants import utc_now
from spool.ssh.connection import Connection, Connections, Stopped
from spool.ssh.site import clean
from spool.ssh.trip import AGENT
from spool.store import Store

EXPIRY_EVERY_S = 30.0
CLEAN_EVERY_S = 3600.0
CONTACT_EVERY_S = 10.0


class Upkeep:
    """Called every round; each thing is done when its time has come."""

    def __init__(self, store: Store, connections: Connections) -> None:
        self._store = store
        self._connections = connections
        self._next: dict[tuple[str, str], float] = {}

    def look_after(self, site: Site) -> None:
        """Do what is due for one site."""
        if self._due("expiry", site.name, EXPIRY_EVERY_S):
            self._expire(site)
        connection = self._connections.known(site.name)
        if connection is None or time.monotonic() - connection.contact_at > CONTACT_EVERY_S:
            return
        if self._due("contact", site.name, CONTACT_EVERY_S):
            value = {"format": 1, "site": site.name, "agent": AGENT, "at": utc_now(), "version": __version__}
            replace_file(self._store.paths.site(site.name), jsonio.dumps(value))
        if site.kind != "guarded" and self._due("clean", site.name, CLEAN_EVERY_S):
            threading.Thread(target=self._clean, args=(site, connection), name=f"clean-{site.name}", daemon=True).start()

    def _due(self, what: str, site: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._next.get((what, site), 0.0):
            return False
        self._next[what, site] = now + every_s
        return True

    def _expire(self, site: Site) -> None:
        for entry in self._store.queue.waiting(site.name, self._store.queue.users(site.name)):
            with contextlib.suppress(SpoolError, OSError):  # the next round looks again
                self._store.expire(entry.job_id)

    def _clean(self, site: Site, connection: Connection) -> None:
        with contextlib.suppress(SpoolError, OSError, Stopped):  # tried again in an hour
            for job_id in clean(connection, site.base, identity(self._store.paths)[0], site.keep_days):
                log.info("cleaned", job=job_id, site=site.name)
