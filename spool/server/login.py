"""POST /v1/login: user and password once, a token back (docs/protocol.md, "login").

The token is one like any other: its hash is in `tokens.json`, `spoolctl token ls` shows it, `token revoke` ends it. A password is
never logged, never in an error, and not kept. Guesses are counted per user and address, before they are judged: the right
password from another address still works, so nobody can lock a user out everywhere.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Callable

from bottle import Bottle, HTTPResponse, request

from spool import jsonio, log
from spool.errors import Busy, InvalidName, InvalidRequest, NotFound, SpoolError, Unauthorized
from spool.fields import Fields
from spool.instants import from_epoch
from spool.names import check_user
from spool.server import files
from spool.server.tokens import LOGIN, TokenFile
from spool.server.tries import Tries, block_of
from spool.server.users import LONGEST, UserFile
from spool.server.v1 import answer

LIMIT_BYTES = 16_384
PLACES = 4  # threads in a login at a time; two of them derive, the others wait for those


class Login:
    """The call; `offered` is False where tokens are none of the server's business."""

    def __init__(self, users: UserFile, tokens: TokenFile, *, days: int, offered: bool) -> None:
        self._users = users
        self._tokens = tokens
        self._days = days
        self._offered = offered
        self._tries = Tries(lambda **shown: log.warning("bad_login", **shown))
        self._lock = threading.Lock()
        self._inside: list[str] = []

    def mount(self, app: Bottle) -> None:
        """Add the route to `app`."""
        for method, path, call in self.routes():
            app.route(path, method, call)

    def routes(self) -> Iterator[tuple[str, str, Callable[[], HTTPResponse]]]:
        """Yield (method, path, function); the documentation's table is checked against this."""
        yield "POST", "/v1/login", self.login

    def login(self) -> HTTPResponse:
        """POST /v1/login"""
        if not self._offered or not self._users.all():
            raise NotFound("no login is offered here", hint="ask an operator for a token")
        name, password = _asked(files.read_body(request.environ, LIMIT_BYTES))
        address = str(request.environ.get("REMOTE_ADDR", ""))
        self._tries.take(address, name, what="logins")
        try:
            with self._place(address):
                user = self._users.check(name, password)
        except SpoolError:
            self._tries.took_well(address, name)
            raise
        if user is None:
            self._tries.took_well(address, name)  # `note` counts it, in its own words
            self._tries.note(address, name, what="logins", user=name)
            raise Unauthorized("user and password do not fit", hint="type them again; an operator sets a new password")
        self._tries.took_well(address, name)
        expires_at = from_epoch(time.time() + self._days * 86400.0)
        text, token = self._tokens.add(user.user, user.roles, user.sites, expires_at=expires_at, via=LOGIN)
        if user not in self._users.all():  # removed, or given a new password, while this went on
            self._tokens.revoke(token.id)
            raise Unauthorized("user and password do not fit", hint="type them again")
        log.info("login", user=user.user, token=token.id, address=address)
        told = {"token": text, "id": token.id, "user": token.user, "expires_at": token.expires_at}
        return answer({**told, "roles": list(token.roles), "sites": list(token.sites)})

    @contextlib.contextmanager
    def _place(self, address: str) -> Iterator[None]:
        """Hold one of the places; `Busy` where none is free. An address with many bad tries gets one: others have the rest."""
        block = block_of(address)
        with self._lock:
            crowding = block in self._inside and self._tries.crowded(address)
            if len(self._inside) >= PLACES or crowding:
                raise Busy("too many log in just now", hint="it is tried again")
            self._inside.append(block)
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(block)


def _asked(body: bytes) -> tuple[str, str]:
    """Return (user, password) of a body. No error holds a piece of it."""
    try:
        fields = Fields(jsonio.loads(body, "the body"), "the body")
        name, password = check_user(fields.string("user")), fields.string("password")
    except (SpoolError, InvalidName):
        raise InvalidRequest("the body is no login", hint='send {"user": "…", "password": "…"}') from None
    if len(password) > LONGEST:
        raise InvalidRequest("the body is no login", hint=f"a password has at most {LONGEST} characters")
    return name, password
