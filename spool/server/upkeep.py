"""What the server does between requests: take in drops, give back what was never started, expire what is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from spool import log
from spool.config import LiveConfig
from spool.drops import Drops, may_accept
from spool.errors import NotFound, SpoolError
from spool.published import VIA, is_poller
from spool.records import JobState
from spool.scratch import sweep
from spool.server.contacts import Contacts
from spool.states import Reason, State
from spool.store import Store

DROP_EVERY_S = 0.05
AFTER_FAILURE_S = 2.0  # what stands in the way is told every two seconds, not twenty times in one
CONTACT_EVERY_S = 5.0
EXPIRY_EVERY_S = 30.0
MAX_STEP_S = 60.0
SWEEP_EVERY_S = 600.0
POLLER_RETURN_S = 6 * 3600.0  # its next calc-request gives the job back at once


class Upkeep:
    """A thread that looks after the spool while the server runs. One bad job never stops the round."""

    def __init__(self, store: Store, config: LiveConfig, contacts: Contacts) -> None:
        self._store = store
        self._config = config
        self._next_sweep = 0.0
        self._contacts = contacts
        self._drops = Drops(store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._next_contact = self._next_expiry = 0.0
        self._problem = ""
        self._waited: dict[tuple[str, int], float] = {}
        self._looked_at = time.monotonic()

    def start(self) -> None:
        """Start the rounds."""
        if not may_accept(self._store.paths):
            log.warning(
                "not_the_owner",
                why="drops are accepted only by the uid that owns spool.json",
                spool=self._store.paths.root,
            )
        self._thread.start()

    def stop(self) -> None:
        """Finish the round and what is under way."""
        self._stop.set()
        self._thread.join()
        self._drops.close()

    def _run(self) -> None:
        accepting = may_accept(self._store.paths)
        while not self._stop.wait(DROP_EVERY_S):
            try:
                self._round(accepting)
            except (SpoolError, OSError) as exc:
                log.error("upkeep_failed", why=exc)
                self._stop.wait(AFTER_FAILURE_S)
            except Exception:  # noqa: BLE001 - outermost frame of the thread: a defect, but the server goes on
                log.error("upkeep_failed", trace=True)
                self._stop.wait(AFTER_FAILURE_S)

    def _round(self, accepting: bool) -> None:
        config = self._config.get()
        if self._config.problem != self._problem:
            self._problem = self._config.problem
            log.warning("configuration", why=self._problem or "good again")
        if accepting:
            self._drops.scan(config)
        self._store.clock.settle_s = config.server["clock_settle_s"]
        self._store.clock.certain()  # a jump is seen when it comes
        now = time.monotonic()
        if now >= self._next_contact:
            self._next_contact = now + CONTACT_EVERY_S
            self._look_at_silent_agents()
        if now >= self._next_expiry:
            self._next_expiry = now + min(EXPIRY_EVERY_S, config.server["unclaimed_s"] / 4)
            self._expire()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_EVERY_S
            for name in sweep(self._store.paths):
                log.info("swept", name=name)

    def _look_at_silent_agents(self) -> None:
        sites = self._config.get().sites
        for site in self._store.queue.active_sites():
            if site in sites and sites[site].mode == "ssh":
                continue  # the push looks after its own
            for agent in self._store.queue.agents(site):
                for job_id in self._store.queue.active(site, agent):
                    self._judge_silence(job_id)

    def _judge_silence(self, job_id: str) -> None:
        try:
            state = self._store.state(job_id)
            silent_s = self._contacts.silent_s((state.site, state.user, state.agent))
            if state.state == State.CLAIMED and silent_s > self._return_s(state):
                self._store.give_back(job_id, state.run_id, by="server", why=f"no contact with {state.agent}")
            limit_s = self._limit_s(state)
            if is_poller(state.agent) and state.state == State.RUNNING:
                return  # silent by its protocol until the command has ended
            if state.state in (State.RUNNING, State.HELD, State.RETURNING) and limit_s and silent_s > limit_s:
                message = f"no contact with {state.agent} for {silent_s:.0f} s"
                self._store.fail(job_id, state.run_id, by="server", reason=Reason.UNREACHABLE.value, message=message)
        except NotFound:
            return
        except (SpoolError, OSError) as exc:  # this one waits; the others are looked at
            log.warning("upkeep_job", job=job_id, why=exc)

    def _return_s(self, state: JobState) -> float:
        """Return the silence after which a claimed job goes back; a poller says nothing while it reads its inputs."""
        limit_s = float(self._config.get().server["claim_return_s"])
        return max(limit_s, POLLER_RETURN_S) if is_poller(state.agent) else limit_s

    def _limit_s(self, state: JobState) -> int | None:
        site = self._config.get().sites.get(state.site)
        return self._store.job(state.id).give_up_after_s or (site.give_up_after_s if site else None)

    def _expire(self) -> None:
        """Expire what is due. Waiting counts in observed steps, so that a clock that jumps or a pause expires nothing."""
        now = time.monotonic()
        step_s, self._looked_at = min(MAX_STEP_S, now - self._looked_at), now
        waited: dict[tuple[str, int], float] = {}
        for job_id in self._waiting():
            try:
                state = self._store.state(job_id)
                if state.state not in (State.NEW, State.QUEUED):
                    self._forget_new(state)
                    continue
                if state.expires_at:
                    self._store.expire(job_id)
                if state.via == VIA:
                    key = (job_id, state.attempt)
                    waited[key] = self._waited.get(key, -step_s) + step_s
                    self._expire_unclaimed(state, waited[key])
            except NotFound:
                with self._store.locks.hold(job_id):  # a registration may be between its entry and its rename
                    if not self._store.paths.job(job_id).folder.exists():
                        self._store.queue.remove_new(job_id)
            except (SpoolError, OSError) as exc:
                log.debug("expiry", job=job_id, why=exc)
        self._waited = waited

    def _waiting(self) -> Iterator[str]:
        yield from self._store.queue.new()
        for site in self._store.queue.sites():
            yield from (entry.job_id for entry in self._store.queue.waiting(site, self._store.queue.users(site)))

    def _forget_new(self, state: JobState) -> None:
        """Remove an entry of `new/` that a crash has left; one of `queue/` is removed by whoever claims."""
        with self._store.locked(state.id) as current:
            if current.state != State.NEW:
                self._store.queue.remove_new(state.id)

    def _expire_unclaimed(self, state: JobState, waited_s: float) -> None:
        limit_s = self._config.get().server["unclaimed_s"]
        if waited_s >= limit_s:
            self._store.expire(state.id, unclaimed=f"not claimed within {limit_s:g} s of waiting")
