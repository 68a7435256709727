"""The one rule of trying again: for ever while a site is silent, a few times where it answers and something does not work,
for a day (or `give_up_after_s`) where it answers and cannot tell how the run stands."""

from __future__ import annotations

import contextlib
import random
import threading
import time

from spool import log
from spool.config import Site
from spool.errors import CommandNotAllowed, Conflict, NotAllowed, Refused, SpoolError, StaleRun, Unreachable, from_os_error
from spool.records import JobState
from spool.ssh.connection import Connection, SiteTrouble
from spool.ssh.site import CannotTell, FolderGone, Replaced
from spool.ssh.trip import AGENT
from spool.states import Reason, State
from spool.store import Store

TROUBLES = 5
MAX_BACKOFF_S = 300.0
BLIND_S = 24 * 3600.0


class Patience:
    """What has gone wrong with one job since this process took it up."""

    def __init__(self, store: Store, job_id: str) -> None:
        self._store = store
        self._job_id = job_id
        self._began_at = time.monotonic()
        self._failed_at = self._began_at
        self._troubles = 0
        self.failures = 0

    def settles(self, exc: SpoolError | OSError) -> bool:
        """Judge what went wrong: True where the job has ended by it, False where it is to be tried again."""
        told = from_os_error(exc, "here") if isinstance(exc, OSError) else exc
        log.warning("trouble", job=self._job_id, why=exc, hint=told.hint)
        if isinstance(exc, CannotTell):
            return False
        try:
            state = self._store.state(self._job_id)
        except OSError as failed:  # no descriptor is left, say
            log.warning("trouble", job=self._job_id, why=failed, hint=from_os_error(failed, "here").hint)
            return False
        if isinstance(exc, SiteTrouble):
            return self._exhausted() and self._fail(state, exc.reason, exc)
        if isinstance(exc, FolderGone) and state.state == State.CLAIMED and not isinstance(exc, Replaced):
            # Nothing was started: it is sent again.
            return self._exhausted() and self._fail(state, Reason.TRANSFER, exc)
        if isinstance(exc, FolderGone):
            return self._fail(state, Reason.LOST, exc)
        if isinstance(exc, OSError) or exc.transient:
            return False
        refused = isinstance(exc, (NotAllowed, CommandNotAllowed, Refused))
        return self._fail(state, Reason.REFUSED_BY_SITE if refused else Reason.TRANSFER, exc)

    def wait(self, site: Site, connection: Connection, exc: SpoolError | OSError, stop: threading.Event) -> bool:
        """Wait for the next try, shorter where another job got through; False where there is none: stopped, or given up."""
        silent, failed_at = isinstance(exc, Unreachable), time.monotonic()
        if silent and connection.contact_at > self._failed_at:
            self.failures = 0  # the line was back meanwhile
        self._failed_at = failed_at
        limit_s = self._store.job(self._job_id).give_up_after_s or site.give_up_after_s
        if isinstance(exc, CannotTell) and exc.since_s > (limit_s or BLIND_S):
            state = self._store.state(self._job_id)
            reason = Reason.TRANSFER if state.state == State.CLAIMED else Reason.LOST
            return not self._fail(state, reason, f"for {exc.since_s:.0f} s: {exc}")
        until = failed_at + self._backoff_s()
        while (now := time.monotonic()) < until:
            if silent and connection.contact_at > failed_at and now > failed_at + 1:
                break
            if stop.wait(0.2):
                return False
            silent_s = now - max(connection.contact_at, self._began_at)
            if silent and limit_s and silent_s > limit_s:
                why = f"no contact with the site for {silent_s:.0f} s: {exc}"
                return not self._fail(self._store.state(self._job_id), Reason.UNREACHABLE, why)
        return True

    def _backoff_s(self) -> float:
        """Return the seconds until the next try: doubling from two to five minutes, spread so that not all come at once."""
        self.failures += 1
        return min(MAX_BACKOFF_S, 2.0 * 2.0 ** min(self.failures - 1, 10)) * random.uniform(0.5, 1.0)

    def _exhausted(self) -> bool:
        self._troubles += 1
        return self._troubles >= TROUBLES

    def _fail(self, state: JobState, reason: Reason, why: object) -> bool:
        with contextlib.suppress(StaleRun, Conflict):
            self._store.fail(state.id, state.run_id, by=AGENT, reason=reason.value, message=str(why))
        return True
