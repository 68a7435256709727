"""``auth = gateway``: a gateway in front has checked who asks, and says so in headers (docs/operations.md, "Who is asked").

Believed only from `trusted_proxy`, and with the secret where one is configured; from anybody else they are refused. Every header
must be there once: user, roles (separated by blanks) and sites (the same, or ``*``). Nothing is guessed for one that is missing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spool import log
from spool.errors import ConfigError, SpoolError, Unauthorized
from spool.files import read_record
from spool.names import check_site, check_user
from spool.server.auth import Asker, Auth, Welcome
from spool.server.proxied import PEER, TRUSTED, Trusted
from spool.server.tokens import Token, check_roles
from spool.server.tries import Tries

EVERY_SITE = "*"
LEAST_SECRET_BYTES = 16


class Gateway(Auth):
    """Believes the headers `names` (user, roles, sites, secret) from `trusted` addresses."""

    has_tokens = False
    problem = ""

    def __init__(self, names: tuple[str, ...], trusted: Trusted, secret: Path | None) -> None:
        self._names = tuple(name.upper().replace("-", "_") for name in names)
        self._trusted = trusted
        self._secret = read_secret(secret) if secret else b""
        self._strangers = Tries(lambda **shown: log.warning("not_the_gateway", **shown))

    def asker(self, environ: Mapping[str, Any]) -> Asker:
        """Return who asks, as the gateway says; raise `Unauthorized` or `TooManyTries`."""
        headers = {name: environ[f"HTTP_{name}"] for name in self._names if f"HTTP_{name}" in environ}
        if not environ.get(TRUSTED) or not self._has_secret(headers):
            why = "the secret is wrong or missing" if environ.get(TRUSTED) else "not from trusted_proxy"
            self._strangers.note(str(environ.get(PEER, "")), "", what="requests", why=why, claims=", ".join(headers))
            raise Unauthorized("who asks is told by the gateway alone", hint="ask through the gateway's address")
        try:
            return Asker(self._identity(headers))
        except SpoolError as exc:
            log.warning("bad_identity", address=environ.get(PEER, ""), why=exc)
            raise Unauthorized("the gateway's word is unusable", hint="an operator finds why in the server's log") from exc

    def _has_secret(self, headers: Mapping[str, str]) -> bool:
        given = headers.get(self._names[3], "").encode("latin-1", "replace")
        return not self._secret or hmac.compare_digest(given, self._secret)

    def _identity(self, headers: Mapping[str, str]) -> Token:
        user, roles, sites = (_text(headers, name) for name in self._names[:3])
        check_user(user)
        covered = () if sites == EVERY_SITE else tuple(map(check_site, sites.split(" ")))
        return Token(
            id="g" + hashlib.sha256(user.encode()).hexdigest()[:8], sha256="", last4="", user=user,
            roles=check_roles(roles.split(" ")), sites=covered, created_at="", via="gateway",
        )  # fmt: skip

    def welcome(self, headers: Mapping[str, str], peer: str) -> Welcome:
        """True where the gateway itself sends."""
        found = self._trusted.has(peer) and self._has_secret(headers)
        return lambda: found


def _text(headers: Mapping[str, str], name: str) -> str:
    # waitress joins what comes twice with ", ", which no name and no list of ours holds: such a header is refused.
    try:
        return headers[name].encode("latin-1").decode("utf-8")
    except KeyError as exc:
        raise Unauthorized(f"the header {name.replace('_', '-')} is missing", hint="") from exc
    except UnicodeError as exc:
        raise Unauthorized(f"the header {name.replace('_', '-')} is not UTF-8", hint="") from exc


def read_secret(path: Path) -> bytes:
    """Return the secret in `path`; `ConfigError` where it is short, has blanks, or others can read it."""
    try:
        data, mode = read_record(path, 4096).strip(), path.stat().st_mode
    except (OSError, SpoolError) as exc:
        raise ConfigError(f"gateway_secret {path} cannot be read: {exc}", hint="put a line of random letters into it") from exc
    if mode & 0o077:
        raise ConfigError(f"gateway_secret {path} can be read by others", hint=f"chmod 600 {path}")
    if len(data) < LEAST_SECRET_BYTES or not all(0x21 <= byte <= 0x7E for byte in data):
        raise ConfigError(f"gateway_secret {path} is no secret", hint="write one with: openssl rand -hex 32")
    return data
