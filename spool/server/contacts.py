"""Who was heard of, when, and whether two work under one name (docs/protocol.md, "sync")."""

from __future__ import annotations

import threading
import time

from spool import jsonio, log
from spool.errors import Twin
from spool.files import replace_file
from spool.heads import Heads
from spool.instants import utc_now
from spool.server.request import Request
from spool.store import Store

CONTACT_EVERY_S = 10.0
TWIN_SILENT_S = 600.0  # so long after its last word an agent's identity is free for a process with an older count of starts

AgentKey = tuple[str, str, str]  # site, user, the agent's own name: two users' agents may have one name


class Contacts:
    """When each agent was last heard of, by this server's monotonic clock alone, and the order of its syncs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: dict[AgentKey, tuple[float, tuple[int, int]]] = {}
        self._written: dict[str, float] = {}
        self._standings: dict[AgentKey, str] = {}
        self._instances: dict[AgentKey, tuple[str, int]] = {}
        self._twins: set[tuple[AgentKey, str]] = set()
        self._heads = Heads(store.paths)
        self.started = time.monotonic()

    def note(self, key: AgentKey, request: Request) -> bool:
        """Note a contact; return False for a sync that was overtaken by a newer one of the same agent on its way here."""
        newest = self._hear(key, request.order)
        current = request.order >= newest
        self._write(key, request.version, request.standing if current else None)
        if request.audit and current:
            self._heads.note(key, request.audit, last_word=request.leaving)
        return current

    def check_alone(self, key: AgentKey, request: Request) -> None:
        """Raise `Twin` where another process of this identity is at work: not an earlier start of this agent.

        A start makes the generation one more, so a process of the same or an older one than was heard lately is a copy's.
        """
        silent_s = self.silent_s(key)
        with self._lock:
            instance, generation = self._instances.get(key, (request.instance, request.generation))
            if instance == request.instance or request.generation > generation or silent_s > TWIN_SILENT_S:
                self._instances[key] = (request.instance, request.generation)
                return
            first = (key, request.instance) not in self._twins
            self._twins.add((key, request.instance))
        if first:  # it asks again every few seconds
            log.warning("twin", site=request.site, agent=request.agent, user=key[1], generation=request.generation,
                        why="two processes work under one identity; this one is refused", at_work=generation)  # fmt: skip
        raise Twin(
            f"another process works as agent {request.agent} of {request.site}: two with one identity take each other's jobs",
            hint="stop one of them; a copied base gets an identity of its own by removing agent.json and its job folders",
        )

    def heard(self, key: AgentKey, version: str) -> None:
        """Note a contact of an agent that does not sync: a published poller."""
        self._hear(key, (0, 0))
        self._write(key, version)

    def _hear(self, key: AgentKey, order: tuple[int, int]) -> tuple[int, int]:
        """Return the order of the newest contact before this one."""
        with self._lock:
            _, newest = self._seen.get(key, (0.0, (-1, -1)))
            self._seen[key] = (time.monotonic(), max(order, newest))
        return newest

    def overtaken(self, key: AgentKey, order: tuple[int, int]) -> bool:
        """True where a newer sync of this agent has been noted."""
        with self._lock:
            return self._seen.get(key, (0.0, order))[1] > order

    def silent_s(self, key: AgentKey) -> float:
        """Return for how many observed seconds the agent was not heard of (since this server's start, if never)."""
        with self._lock:
            at, _ = self._seen.get(key, (self.started, (0, 0)))
        return time.monotonic() - at

    def known(self) -> dict[AgentKey, float]:
        """Return (site, user, agent) -> seconds since its last contact."""
        with self._lock:
            return {key: time.monotonic() - at for key, (at, _) in self._seen.items()}

    def standings(self) -> dict[AgentKey, str]:
        """Return what each agent's own operator has ordered there: `paused`, `draining`, `stopped`, or nothing."""
        with self._lock:
            return dict(self._standings)

    def _write(self, key: AgentKey, version: str, standing: str | None = "") -> None:
        now, (site, _, agent) = time.monotonic(), key
        with self._lock:
            standing = self._standings.get(key, "") if standing is None else standing
            news = self._standings.get(key, "") != standing
            self._standings[key] = standing
            if now - self._written.get(site, -CONTACT_EVERY_S) < CONTACT_EVERY_S and not news:
                return
            self._written[site] = now
        if news:
            log.info("standing", site=site, agent=agent, user=key[1], standing=standing or "works")
        value = {"format": 1, "site": site, "agent": agent, "at": utc_now(), "version": version, "standing": standing}
        try:
            replace_file(self._store.paths.site(site), jsonio.dumps(value))
        except OSError as exc:  # derived: the call itself goes on
            log.warning("contact_not_written", site=site, why=exc)
