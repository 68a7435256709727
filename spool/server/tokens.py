"""Bearer tokens: who may ask for what (docs/security.md, "Tokens").

The file `tokens.json` (mode 0600) keeps the SHA-256 of each token, its user, roles, sites and expiry; the token itself is shown
once. It is read again when it changes (`spool.server.livefile`), so `spoolctl token add` and `revoke` count at once on a running
server.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spool import jsonio
from spool.errors import ConfigError, Conflict, InvalidRecord, InvalidRequest, NotFound
from spool.fields import Fields
from spool.files import replace_file
from spool.instants import from_epoch, to_epoch, utc_now
from spool.locks import file_lock
from spool.names import check_site, check_user
from spool.paths import FORMAT
from spool.server.livefile import LiveFile

ROLES = ("submitter", "agent", "operator", "viewer")
LOGIN = "login"
MOST_LOGINS = 20  # tokens of one user, given by login, that count at a time
KEPT_ENDED_S = 90 * 86400.0  # how long an ended token of a login stays in the file
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")


@dataclass(frozen=True)
class Token:
    """One token's record. `sites` empty means every site; `expires_at` and `revoked_at` are instants or empty.

    `via` is ``login`` where a login gave it. Where no token file says who asks, this is how a gateway or a command names him.
    """

    id: str
    sha256: str
    last4: str
    user: str
    roles: tuple[str, ...]
    sites: tuple[str, ...]
    created_at: str
    expires_at: str = ""
    revoked_at: str = ""
    via: str = ""

    @classmethod
    def parse(cls, value: Any) -> Token:
        """Read one record."""
        if not isinstance(value, dict):
            raise InvalidRecord("tokens.json: a token must be an object", hint="make tokens with spoolctl token add")
        fields = Fields(value, "tokens.json")
        names = ("id", "sha256", "last4", "created_at")
        if not fields.has("sites"):  # a list that is lost must not mean every site
            raise fields.wrong("sites", "is missing; [] means every site")
        return cls(
            **{name: fields.string(name) for name in names},
            user=check_user(fields.string("user")),
            roles=check_roles(fields.strings("roles")),
            sites=tuple(map(check_site, fields.strings("sites"))),
            expires_at=_instant(fields.string("expires_at", "")),
            revoked_at=_instant(fields.string("revoked_at", "")),
            via=fields.string("via", ""),
        )

    def encode(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.__dict__, "roles": list(self.roles), "sites": list(self.sites)}

    def counts(self) -> bool:
        """True unless revoked or expired."""
        return not self.revoked_at and (not self.expires_at or to_epoch(self.expires_at) > time.time())

    def covers(self, site: str) -> bool:
        """True where the token is good for `site`."""
        return not self.sites or site in self.sites


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Return `roles` without repetition; `InvalidRequest` where one is unknown or there is none."""
    found = tuple(dict.fromkeys(roles))
    unknown = set(found) - set(ROLES)
    if unknown or not found:
        raise InvalidRequest(f"unknown role {', '.join(sorted(unknown)) or '(none given)'}", hint=f"roles: {' '.join(ROLES)}")
    return found


def _instant(text: str) -> str:
    if text:
        to_epoch(text)
    return text


def _parse(fields: Fields) -> tuple[Token, ...]:
    return tuple(Token.parse(value) for value in fields.list("tokens"))


class TokenFile:
    """The token file of one spool. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = LiveFile(path, _parse)

    @property
    def problem(self) -> str:
        """Why the file cannot be used as it stands, or ``""``."""
        with contextlib.suppress(ConfigError):
            self._file.get()
        return self._file.problem

    def all(self) -> tuple[Token, ...]:
        """Return every token, revoked ones too; none where there is no file."""
        return self._file.get()

    def find(self, text: str) -> Token | None:
        """Return the token `text` stands for, if it counts. Compares with every one, in constant time each."""
        return self.find_digest(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())

    def find_digest(self, digest: str) -> Token | None:
        """Return the token of that SHA-256 (hex), if it counts now; `ConfigError` where the file cannot say."""
        known = self.all()
        found = next((token for token in known if hmac.compare_digest(token.sha256, digest) and token.counts()), None)
        if found is None and self._file.problem:  # it may be in there: whoever asks is not told that it does not count
            raise ConfigError(f"{self._path.name} cannot be used", hint="an operator finds why in the server's log")
        return found

    def add(
        self, user: str, roles: Iterable[str], sites: Iterable[str], *, expires_at: str = "", text: str = "", via: str = ""
    ) -> tuple[str, Token]:
        """Add a token and return (its text, its record). `text` imports an existing one; without it a new one is made.

        Raises `InvalidRequest` where a role is unknown or the text is unusable or taken, `Conflict` where a login has given
        the user too many already.
        """
        roles, sites = check_roles(roles), tuple(dict.fromkeys(sites))
        for site in sites:
            check_site(site)
        if text and not _TOKEN.fullmatch(text):
            raise InvalidRequest("this token cannot be imported", hint="16 to 512 printable ASCII characters without blanks")
        text = text or secrets.token_hex(32)
        token = Token(
            id=secrets.token_hex(4),
            sha256=hashlib.sha256(text.encode("ascii")).hexdigest(),
            last4=text[-4:],
            user=check_user(user),
            roles=roles,
            sites=sites,
            created_at=utc_now(),
            expires_at=from_epoch(to_epoch(expires_at)) if expires_at else "",
            via=via,
        )
        with self._locked():
            tokens = self._file.read()
            if any(known.sha256 == token.sha256 and known.counts() for known in tokens):
                raise InvalidRequest("this token is in the file already", hint="revoke it first")
            if via == LOGIN:
                tokens = _with_room(tokens, token.user)
            self._write((*tokens, token))
        return text, token

    def revoke(self, token_id: str) -> Token:
        """Make the token count no more, at once. Raises `NotFound`; safe to repeat."""
        with self._locked():
            tokens = self._file.read()
            found = next((token for token in tokens if token.id == token_id), None)
            if found is None:
                raise NotFound(f"no token {token_id}", hint="spoolctl token ls shows them")
            revoked = found if found.revoked_at else replace(found, revoked_at=utc_now())
            self._write(tuple(revoked if token.id == token_id else token for token in tokens))
            return revoked

    def revoke_logins(self, user: str) -> int:
        """Make the tokens that `user` got by login count no more; return how many there were. Safe to repeat."""
        with self._locked():
            tokens = self._file.read()
            ended = {token.id for token in tokens if token.via == LOGIN and token.user == user and token.counts()}
            if ended:
                now = utc_now()
                self._write(tuple(replace(token, revoked_at=now) if token.id in ended else token for token in tokens))
            return len(ended)

    def _locked(self) -> AbstractContextManager[object]:
        return file_lock(self._path.with_name(self._path.name + ".lock"))

    def _write(self, tokens: tuple[Token, ...]) -> None:
        value = {"format": FORMAT, "tokens": [token.encode() for token in tokens]}
        replace_file(self._path, jsonio.dumps(value), mode=0o600)


def _with_room(tokens: tuple[Token, ...], user: str) -> tuple[Token, ...]:
    """Return the tokens without those of logins that ended long ago; `Conflict` where `user` has too many that count."""
    if sum(token.via == LOGIN and token.user == user and token.counts() for token in tokens) >= MOST_LOGINS:
        hint = "go on with one of them, or ask an operator: spoolctl token ls, token revoke ID"
        raise Conflict(f"{user} has {MOST_LOGINS} tokens by login already", hint=hint)
    before = time.time() - KEPT_ENDED_S
    return tuple(token for token in tokens if token.via != LOGIN or token.counts() or _ended_at(token) > before)


def _ended_at(token: Token) -> float:
    return min(to_epoch(at) for at in (token.revoked_at, token.expires_at) if at)
