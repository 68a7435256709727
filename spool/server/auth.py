"""Who asks, and may they: roles, sites, users, and bearer tokens (docs/security.md, "Tokens")."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from spool import log
from spool.errors import NotAllowed, Unauthorized
from spool.jobs import no_job
from spool.records import JobState
from spool.server.tokens import Token, TokenFile
from spool.server.tries import Tries


@dataclass(frozen=True)
class Asker:
    """Whoever sent a request, as its token says. `again` looks the token up anew, or raises `Unauthorized`."""

    token: Token
    again: Callable[[], Token] | None = field(default=None, compare=False)

    def still(self, role: str, site: str) -> None:
        """Raise unless this asker, who has been waiting, may still act in `role` for `site`: revoked or expired meanwhile?"""
        now = Asker(self.again()) if self.again else self
        now.need(role)
        now.need_site(site)
        if now.user != self.user:
            raise no_such_token()

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


Welcome = Callable[[], "bool | None"]
"""Asked again while a large body comes in: may it? None: not known yet."""


class Auth:
    """Turns a request's headers into an `Asker`: here by the token file (``auth = file``); the others stand beside it."""

    has_tokens = True  # what `login` gives counts here

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens
        self._bad = Tries(lambda **shown: log.warning("bad_token", **shown))

    @property
    def problem(self) -> str:
        """What /health says of it, or ``""``."""
        return self._tokens.problem

    def asker(self, environ: Mapping[str, Any]) -> Asker:
        """Return who asks; raise `Unauthorized` or `TooManyTries`."""
        text = bearer(environ.get("HTTP_AUTHORIZATION", ""))
        token = self._tokens.find(text)
        if token is None:
            self._bad.note(str(environ.get("REMOTE_ADDR", "")), text[:8], what="tokens")
            raise no_such_token()
        return Asker(token, functools.partial(self._again, token.sha256))

    def _again(self, digest: str) -> Token:
        token = self._tokens.find_digest(digest)
        if token is None:
            raise no_such_token()
        return token

    def welcome(self, headers: Mapping[str, str], peer: str) -> Welcome:
        """Return whether whoever sent `headers` (as waitress names them) from the address `peer` may send a large body."""
        found = self._tokens.find(bearer(headers.get("AUTHORIZATION", ""))) is not None
        return lambda: found


def bearer(header: object) -> str:
    """Return the token of an Authorization header; `Unauthorized` where there is none."""
    scheme, _, text = str(header).partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthorized("no token was sent", hint="send the header: Authorization: Bearer TOKEN")
    return text.strip()


def no_such_token() -> Unauthorized:
    """Return the answer to a token that does not count."""
    return Unauthorized("this token does not count", hint="it is unknown, expired or revoked; ask an operator for a new one")
