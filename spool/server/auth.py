"""Who asks, and may they: bearer tokens, roles, and the limit on bad tries (docs/security.md)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spool import log
from spool.errors import NotAllowed, TooManyTries, Unauthorized
from spool.jobs import no_job
from spool.records import JobState
from spool.server.tokens import Token, TokenFile

TRIES = 10
WINDOW_S = 60.0
_MAX_TRACKED = 10000


@dataclass(frozen=True)
class Asker:
    """Whoever sent a request, as its token says."""

    token: Token

    @property
    def user(self) -> str:
        """The token's user."""
        return self.token.user

    def has(self, *roles: str) -> bool:
        """True where the token has one of `roles`."""
        return any(role in self.token.roles for role in roles)

    def need(self, *roles: str) -> None:
        """Raise `NotAllowed` unless the token has one of `roles`."""
        if not self.has(*roles):
            raise NotAllowed(f"this needs the role {' or '.join(roles)}", hint="an operator gives tokens: spoolctl token add")

    def need_site(self, site: str) -> None:
        """Raise `NotAllowed` unless the token covers `site`."""
        if not self.token.covers(site):
            raise NotAllowed(f"this token is not for site {site!r}", hint="an operator gives tokens: spoolctl token add --site")

    def may_see(self, state: JobState) -> bool:
        """True for the job's own user, and for operators and viewers, within the token's sites."""
        mine = state.user == self.user and self.has("submitter", "agent")
        return self.token.covers(state.site) and (mine or self.has("operator", "viewer"))

    def need_seen(self, state: JobState) -> None:
        """Raise `NotFound`, word for word as if there were no such job, where this asker may not see it."""
        if not self.may_see(state):
            raise no_job(state.id)

    def need_change(self, state: JobState) -> None:
        """Raise unless this asker may cancel the job or add to it: its submitter, or an operator."""
        self.need_seen(state)
        if not (self.has("operator") or (self.has("submitter") and state.user == self.user)):
            raise NotAllowed("only the job's submitter or an operator may do this", hint="use a submitter's token")

    def need_agent(self, state: JobState) -> None:
        """Raise unless this asker is an agent of the job's site and user."""
        self.need_seen(state)
        if not self.has("agent") or state.user != self.user:
            raise NotAllowed("only an agent of the job's user may do this", hint="use the token of the site's agent")


class BadTries:
    """Counts bad tokens per address and token prefix; never consulted for a token that counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def note(self, address: str, text: str) -> None:
        """Count a bad try; raise `TooManyTries` after ten within a minute."""
        now, key = time.monotonic(), (address, text[:8])
        with self._lock:
            recent = [at for at in self._tries.pop(key, []) if now - at < WINDOW_S]
            self._tries[key] = [*recent, now][-TRIES - 1 :]
            if len(self._tries) > _MAX_TRACKED:
                self._tries.popitem(last=False)
        log.warning("bad_token", address=address, tries=len(recent) + 1)
        if len(recent) >= TRIES:
            wait_s = int(WINDOW_S - (now - recent[0])) + 1
            raise TooManyTries("too many bad tokens from here", retry_after_s=wait_s, hint="check the token, then wait")


class Auth:
    """Turns a request's headers into an `Asker`."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens
        self._bad = BadTries()

    def asker(self, environ: Mapping[str, Any]) -> Asker:
        """Return who asks; raise `Unauthorized` or `TooManyTries`."""
        scheme, _, text = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise Unauthorized("no token was sent", hint="send the header: Authorization: Bearer TOKEN")
        token = self._tokens.find(text)
        if token is None:
            self._bad.note(str(environ.get("REMOTE_ADDR", "")), text)
            raise Unauthorized(
                "this token does not count", hint="it is unknown, expired or revoked; ask an operator for a new one"
            )
        return Asker(token)
