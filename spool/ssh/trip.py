"""One job on its way to a site and back: what all its steps need, and how long it may be tried."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spool import jsonio, log
from spool.config import Site
from spool.errors import NotFound, SpoolError, Unreachable
from spool.fields import Fields
from spool.files import fsync_dir, read_record, replace_file
from spool.heads import Heads
from spool.incoming import Incoming
from spool.paths import JobPaths
from spool.records import Job, JobState
from spool.ssh import transfer
from spool.ssh.connection import Connection, Stopped
from spool.ssh.gated import GatedSite
from spool.ssh.site import AtSite
from spool.states import WITH_SITE
from spool.store import Store

AGENT = "ssh-push"
GUARDED = "guarded"
GATED_LOGS = ("log/stdout.txt", "log/stderr.txt")
TAIL_EVERY_S = 2.0


class HeldThere(Exception):
    """The results wait for a person of the site, and this pass does not."""


class NoLongerOurs(Exception):
    """The job was canceled, given up or requeued meanwhile: this run is over for us."""


@dataclass
class Trip:
    """One run of one job. What it remembers of the site is in `incoming/RUN_ID/site.json`: base and disk as they were when the
    run first went there, whatever spool.ini says now, and whether the site has ever said that it `was_started`. `heads` keeps
    the ends of audit logs; a pass that does not wait for persons ends with `HeldThere`."""

    store: Store
    job: Job
    site: Site
    there: AtSite | GatedSite
    stop: threading.Event
    heads: Heads
    waits_for_person: bool = True
    was_started: bool = False
    tailed_at: float = 0.0
    tail_trouble: str = ""
    here: Mapping[str, int] = field(default_factory=dict)  # bytes of each input at a guarded site, as `enter` was told

    @classmethod
    def of(
        cls, store: Store, site: Site, connection: Connection, state: JobState, stop: threading.Event, heads: Heads,
        *, waits_for_person: bool = True,
    ) -> Trip:  # fmt: skip
        """Return the trip of the job's current run."""
        kind = GatedSite if site.kind == GUARDED else AtSite
        there = kind(connection, site.base, state.id, state.run_id)
        trip = cls(store, store.job(state.id), site, there, stop, heads, waits_for_person)
        trip.recall()
        return trip

    @property
    def guarded(self) -> bool:
        """True for a guarded site."""
        return isinstance(self.there, GatedSite)

    @property
    def at_gate(self) -> GatedSite:
        """The folder at a guarded site."""
        assert isinstance(self.there, GatedSite)
        return self.there

    @property
    def at_open(self) -> AtSite:
        """The folder at an open site."""
        assert isinstance(self.there, AtSite)
        return self.there

    @property
    def paths(self) -> JobPaths:
        """The job's folder at MInt."""
        return self.store.paths.job(self.there.job_id)

    @property
    def incoming(self) -> Path:
        """Where the results of this run arrive."""
        return self.paths.incoming_of(self.there.run_id)

    def state(self) -> JobState:
        """Return where the job stands; `NoLongerOurs` where this run is not its current one any more."""
        state = self.store.state(self.there.job_id)
        if state.run_id != self.there.run_id or state.state not in WITH_SITE:
            raise NoLongerOurs
        return state

    def recall(self) -> None:
        """Take what was remembered of this run; on its first call there is nothing, and its base is recorded."""
        try:
            known = Fields(jsonio.loads(read_record(self.incoming / "site.json", 65536), "site.json"), "site.json")
        except FileNotFoundError:
            self._remember()
            return
        at = self.there
        kind = GatedSite if known.string("kind", "open") == GUARDED else AtSite
        self.there = kind(at.connection, known.string("base"), at.job_id, at.run_id, known.string("disk", ""))
        self.was_started = known.boolean("was_started", False)

    def _remember(self) -> None:
        Incoming(self.incoming).prepare()
        at = self.there
        value = {"base": at.base, "disk": at.disk, "was_started": self.was_started}
        if isinstance(at, GatedSite):
            value["kind"] = GUARDED
        replace_file(self.incoming / "site.json", jsonio.dumps(value))

    def note_started(self) -> None:
        """Remember that the site has said so: should it ever forget, it is not asked to start the command again."""
        if not self.was_started:
            self.was_started = True
            self._remember()

    def enter(self) -> bool:
        """Make the folder at the site this run's; False where another run, which this spool has forgotten, was started there.

        The job is that run's then: the spool comes from a backup, and its command is not started a second time.
        """
        state, before = self.state(), self.there.disk
        earlier = sorted({entry.run_id for entry in self.store.history(state) if entry.run_id and entry.attempt < state.attempt})
        if isinstance(self.there, GatedSite):
            found, self.here = self.there.enter(earlier, state, self.paths)
        else:
            found = self.there.enter(earlier)
        if not found:
            if self.there.disk != before:
                self._remember()
            return True
        at = self.there
        self.store.adopt_found(at.job_id, found, by=AGENT, instead_of=at.run_id)
        log.warning("adopted", job=at.job_id, run=found, why="the site has this run, which the spool does not know (a restore?)")
        self.there = type(at)(at.connection, at.base, at.job_id, found, at.disk)
        self._remember()
        return False

    def pause(self, seconds: float) -> None:
        """Wait; `Stopped` where the push is ending."""
        if self.stop.wait(seconds):
            raise Stopped

    def pause_unless_canceled(self, seconds: float) -> None:
        """Wait, but not longer than until somebody asks for a cancel."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.state().cancel_requested_at:
            self.pause(min(left, 1.0))

    def tail_logs(self) -> None:
        """Fetch what has come to the logs, so that they can be read while the command runs; at most every two seconds."""
        if time.monotonic() - self.tailed_at < TAIL_EVERY_S:
            return
        self.tailed_at = time.monotonic()
        try:
            with transfer.fetch_lock(self.incoming, self.pause) as lock:
                if isinstance(self.there, GatedSite):
                    self.there.tail(GATED_LOGS, self.incoming / "files")
                else:
                    transfer.fetch_logs(self.there, self.incoming, lock, append=True)
        except Unreachable:
            raise
        except (SpoolError, OSError) as exc:  # no room here, say: they come with the results
            if self.tail_trouble != str(exc):
                self.tail_trouble = str(exc)
                log.warning("logs_not_fetched", job=self.there.job_id, why=exc)

    def take_back_half_moved(self) -> None:
        """Undo what a crash left between the move of the results to their place and the final state: fetching goes on from it."""
        Incoming(self.incoming).prepare()
        with self.store.locked(self.there.job_id):
            self.state()
            for name, place in (("out", self.paths.out), ("log", self.paths.log)):
                if place.exists() and not (self.incoming / "files" / name).exists():
                    os.rename(place, self.incoming / "files" / name)
            fsync_dir(self.paths.folder)

    def note_audit(self, *, last_word: bool = False) -> None:
        """Keep where the site's audit log ended, as its gate has told."""
        if isinstance(self.there, GatedSite) and self.there.audit:
            key = (self.site.name, AGENT, self.there.disk)
            if self.heads.is_behind(key, self.there.audit):  # this answer may only have been overtaken by another job's
                self.there.hello()
            self.heads.note(key, self.there.audit, last_word=last_word)

    def mark_if_over(self, spool_id: str) -> None:
        """Where this run is over, tell the site, whose folder may be cleaned away in time; not worth a failure."""
        try:
            with contextlib.suppress(NoLongerOurs):
                self.state()
                return
            if isinstance(self.there, GatedSite):
                ended = self.store.state(self.there.job_id)
                ours = ended.run_id == self.there.run_id
                self.there.over(str(ended.state) if ours else "", ended.reason if ours else "")
                self.note_audit(last_word=True)
            else:
                self.there.delivered(spool_id, self.site.keep_days)
        except (SpoolError, OSError, Stopped) as exc:
            log.warning("not_marked_delivered", job=self.there.job_id, why=exc)


def forget(store: Store, site: str, job_id: str) -> None:
    """Drop a stale index entry of a job that is not in our hands, judged under the job's lock."""
    with store.locks.hold(job_id):
        try:
            state = store.state(job_id)
            ours = state.agent == AGENT and state.site == site and state.state in WITH_SITE
        except NotFound:
            ours = False
        if not ours:
            store.queue.remove_active(site, AGENT, job_id)
