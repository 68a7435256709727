"""The body of a sync: what the agent says of itself and of each job it has (docs/protocol.md, "sync")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spool import jsonio
from spool.errors import InvalidRequest
from spool.fields import Fields
from spool.heads import HEAD
from spool.names import check_id, check_site, check_user

MAX_WAIT_S = 25.0
MAX_ROOM = 1000
STANDINGS = ("paused", "draining", "stopped")  # what a site's own operator has ordered there; nothing: it works


@dataclass(frozen=True)
class Held:
    """One job as the agent reports it."""

    id: str
    run_id: str
    state: str
    ready: bool
    told: str
    attempt: int
    exit_code: int | None

    @classmethod
    def parse(cls, value: Any) -> Held:
        """Read one entry of ``jobs``."""
        if not isinstance(value, dict):
            raise InvalidRequest("jobs must list objects", hint="see docs/protocol.md, sync")
        fields = Fields(value, "sync: jobs")
        return cls(
            check_id(fields.string("id")),
            check_id(fields.string("run_id")),
            fields.string("state"),
            fields.boolean("ready", False),
            fields.string("told", ""),
            fields.integer("attempt", 0, low=0),
            fields.optional_integer("exit_code"),
        )


def _head(text: str) -> str:
    """Return the head of an agent's audit log (``NUMBER:SHA-256``), or nothing, as it was told."""
    if text and not HEAD.fullmatch(text):
        raise InvalidRequest("audit must be NUMBER:64 hexadecimal digits", hint="see docs/protocol.md, sync")
    return text


@dataclass(frozen=True)
class Request:
    """A sync request."""

    site: str
    agent: str
    instance: str
    generation: int
    seq: int
    room: int
    wait_s: float
    version: str
    audit: str
    leaving: bool
    standing: str
    epoch: str
    jobs: tuple[Held, ...]

    @property
    def order(self) -> tuple[int, int]:
        """What orders the syncs of one agent: its start's generation, then the number within it."""
        return self.generation, self.seq

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Read and check the body."""
        fields = Fields(jsonio.loads(body, "sync"), "sync")
        return cls(
            site=check_site(fields.string("site")),
            agent=check_user(fields.string("agent")),
            instance=fields.string("instance", ""),
            generation=fields.integer("generation", 0, low=0),
            seq=fields.integer("seq", 0, low=0),
            room=min(MAX_ROOM, fields.integer("room", 0, low=0)),
            wait_s=min(MAX_WAIT_S, float(fields.integer("wait_s", 0, low=0))),
            version=fields.string("version", ""),
            audit=_head(fields.string("audit", "")),
            leaving=fields.boolean("leaving", False),
            standing=_standing(fields.string("standing", "")),
            epoch=fields.string("epoch", ""),
            jobs=tuple(Held.parse(value) for value in fields.list("jobs")),
        )


def _standing(word: str) -> str:
    if word and word not in STANDINGS:
        raise InvalidRequest(f"standing {word!r} is not known", hint=f"nothing, or one of: {', '.join(STANDINGS)}")
    return word
