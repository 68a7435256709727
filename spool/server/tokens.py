"""Bearer tokens: who may ask for what (docs/security.md, "Tokens").

The file `tokens.json` (mode 0600) keeps the SHA-256 of each token, its user, roles, sites and expiry; the token itself is shown
once. It is read again when it changes, so `spoolctl token add` and `revoke` count at once on a running server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spool import jsonio
from spool.errors import ConfigError, InvalidRecord, InvalidRequest, NotFound, SpoolError
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.instants import from_epoch, to_epoch, utc_now
from spool.locks import file_lock
from spool.names import check_site, check_user
from spool.paths import FORMAT

ROLES = ("submitter", "agent", "operator", "viewer")
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")


@dataclass(frozen=True)
class Token:
    """One token's record. `sites` empty means every site; `expires_at` and `revoked_at` are instants or empty."""

    id: str
    sha256: str
    last4: str
    user: str
    roles: tuple[str, ...]
    sites: tuple[str, ...]
    created_at: str
    expires_at: str = ""
    revoked_at: str = ""

    @classmethod
    def parse(cls, value: Any) -> Token:
        """Read one record."""
        if not isinstance(value, dict):
            raise InvalidRecord("tokens.json: a token must be an object", hint="make tokens with spoolctl token add")
        fields = Fields(value, "tokens.json")
        names = ("id", "sha256", "last4", "created_at")
        return cls(
            **{name: fields.string(name) for name in names},
            user=check_user(fields.string("user")),
            roles=fields.strings("roles"),
            sites=fields.strings("sites"),
            expires_at=fields.string("expires_at", ""),
            revoked_at=fields.string("revoked_at", ""),
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


class TokenFile:
    """The token file of one spool. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._tokens: tuple[Token, ...] = ()

    def all(self) -> tuple[Token, ...]:
        """Return every token, revoked ones too; none where there is no file."""
        try:
            info = self._path.stat()
        except FileNotFoundError:
            return ()
        seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        with self._lock:
            if seen != self._seen:
                self._tokens, self._seen = self._read(), seen
            return self._tokens

    def _read(self) -> tuple[Token, ...]:
        try:
            fields = Fields(jsonio.loads(read_record(self._path, jsonio.MAX_BYTES), "tokens.json"), "tokens.json")
            fields.format()
            return tuple(Token.parse(value) for value in fields.list("tokens"))
        except SpoolError as exc:
            raise ConfigError(f"{self._path} cannot be used: {exc.message}", hint="restore it, or make tokens anew") from exc

    def find(self, text: str) -> Token | None:
        """Return the token `text` stands for, if it counts. Compares with every one, in constant time each."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        found = [token for token in self.all() if hmac.compare_digest(token.sha256, digest)]
        return next((token for token in found if token.counts()), None)

    def add(
        self, user: str, roles: Iterable[str], sites: Iterable[str], *, expires_at: str = "", text: str = ""
    ) -> tuple[str, Token]:
        """Add a token and return (its text, its record). `text` imports an existing one; without it a new one is made.

        Raises `InvalidRequest` where a role is unknown or the text is unusable or taken.
        """
        roles, sites = tuple(dict.fromkeys(roles)), tuple(dict.fromkeys(sites))
        unknown = set(roles) - set(ROLES)
        if unknown or not roles:
            raise InvalidRequest(f"unknown role {', '.join(sorted(unknown)) or '(none given)'}", hint=f"roles: {' '.join(ROLES)}")
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
        )
        with file_lock(self._path.with_name(self._path.name + ".lock")):
            tokens = self.all()
            if any(known.sha256 == token.sha256 and known.counts() for known in tokens):
                raise InvalidRequest("this token is in the file already", hint="revoke it first")
            self._write((*tokens, token))
        return text, token

    def revoke(self, token_id: str) -> Token:
        """Make the token count no more, at once. Raises `NotFound`; safe to repeat."""
        with file_lock(self._path.with_name(self._path.name + ".lock")):
            tokens = self.all()
            found = next((token for token in tokens if token.id == token_id), None)
            if found is None:
                raise NotFound(f"no token {token_id}", hint="spoolctl token ls shows them")
            revoked = found if found.revoked_at else replace(found, revoked_at=utc_now())
            self._write(tuple(revoked if token.id == token_id else token for token in tokens))
            return revoked

    def _write(self, tokens: tuple[Token, ...]) -> None:
        value = {"format": FORMAT, "tokens": [token.encode() for token in tokens]}
        replace_file(self._path, jsonio.dumps(value), mode=0o600)
