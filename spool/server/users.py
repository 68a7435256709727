"""Users and passwords for `login`: `users.json`, mode 0600 (docs/operations.md, "Tokens and users").

A password is kept as scrypt (RFC 7914) of its NFC form, with a salt of its own and the parameters beside it: stronger ones can
come later. Nobody learns from the time of an answer whether a user exists. Roles and sites are those of the tokens that
login gives.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spool import jsonio
from spool.errors import Conflict, InvalidRecord, InvalidRequest, NotFound
from spool.fields import Fields
from spool.files import replace_file
from spool.instants import utc_now
from spool.locks import file_lock
from spool.names import check_site, check_user
from spool.paths import FORMAT
from spool.server.livefile import LiveFile
from spool.server.tokens import check_roles

COST, BLOCK, PARALLEL = 2**15, 8, 1  # 32 MiB and a tenth of a second each (RFC 7914, section 2)
AT_A_TIME = 2  # derivations in one process: what bounds their memory
MOST_MEMORY = 64 << 20  # 128 * cost * block of an entry
SHORTEST, LONGEST = 10, 1024  # characters of a password
KEY_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{32,128}")
_derivations = threading.BoundedSemaphore(AT_A_TIME)


@dataclass(frozen=True)
class User:
    """One entry. `salt` and `key` are hexadecimal; `sites` empty means every site."""

    user: str
    salt: str
    key: str
    cost: int
    block: int
    parallel: int
    roles: tuple[str, ...]
    sites: tuple[str, ...]
    changed_at: str

    @classmethod
    def parse(cls, value: Any) -> User:
        """Read one entry; refuse parameters that would take too much memory, or next to nothing."""
        if not isinstance(value, dict):
            raise InvalidRecord("users.json: a user must be an object", hint="make users with spoolctl user add")
        fields = Fields(value, "users.json")
        if not fields.has("sites"):
            raise fields.wrong("sites", "is missing; [] means every site")
        found = cls(
            check_user(fields.string("user")), fields.string("salt"), fields.string("key"),
            fields.integer("cost", low=2**14, high=2**20), fields.integer("block", low=1, high=32),
            fields.integer("parallel", low=1, high=4), check_roles(fields.strings("roles")),
            tuple(map(check_site, fields.strings("sites"))), fields.string("changed_at", ""),
        )  # fmt: skip
        if found.cost & (found.cost - 1) or 128 * found.cost * found.block > MOST_MEMORY:
            raise fields.wrong("cost", f"must be a power of 2, and 128 * cost * block at most {MOST_MEMORY}")
        if not (_HEX.fullmatch(found.salt) and _HEX.fullmatch(found.key)):
            raise fields.wrong("salt", "and key must be hexadecimal")
        return found

    def encode(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.__dict__, "roles": list(self.roles), "sites": list(self.sites)}


def _parse(fields: Fields) -> tuple[User, ...]:
    found = tuple(User.parse(value) for value in fields.list("users"))
    twice = [name for name, count in Counter(user.user for user in found).items() if count > 1]
    if twice:
        raise InvalidRecord(f"{', '.join(twice)} is there twice", hint="remove one of them")
    return found


class UserFile:
    """The users of one spool. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = LiveFile(path, _parse)

    def all(self) -> tuple[User, ...]:
        """Return every user; none where there is no file."""
        return self._file.get()

    def check(self, name: str, password: str) -> User | None:
        """Return the user where the password is his. Takes as long for a user that is not there."""
        known = self.all()
        found = next((user for user in known if user.user == name), None)
        params = Counter((user.cost, user.block, user.parallel) for user in known).most_common(1)
        dummy = User(name, "0" * 32, "0" * 64, *(params[0][0] if params else (COST, BLOCK, PARALLEL)), (), (), "")
        good = hmac.compare_digest(_derive(found or dummy, password), (found or dummy).key)
        return found if good else None

    def add(self, name: str, password: str, roles: Iterable[str], sites: Iterable[str]) -> User:
        """Add a user; raise `Conflict` where there is one of that name."""
        made = _with_password(
            User(check_user(name), "", "", COST, BLOCK, PARALLEL, check_roles(roles), tuple(map(check_site, sites)), ""), password
        )
        with self._locked():
            users = self._file.read()
            if any(user.user == name for user in users):
                raise Conflict(f"there is a user {name} already", hint="spoolctl user passwd changes the password")
            self._write((*users, made))
        return made

    def set_password(self, name: str, password: str) -> User:
        """Change a password, with today's parameters; raise `NotFound`."""
        return self._change(name, lambda user: _with_password(user, password))

    def remove(self, name: str) -> User:
        """Remove a user; raise `NotFound`."""
        return self._change(name, lambda user: None)

    def _change(self, name: str, change: Any) -> User:
        with self._locked():
            users = self._file.read()
            found = next((user for user in users if user.user == name), None)
            if found is None:
                raise NotFound(f"no user {name}", hint="spoolctl user ls shows them")
            changed: User | None = change(found)
            kept = [changed if user is found else user for user in users]
            self._write(tuple(user for user in kept if user is not None))
        return changed or found

    def _locked(self) -> AbstractContextManager[object]:
        return file_lock(self._path.with_name(self._path.name + ".lock"))

    def _write(self, users: tuple[User, ...]) -> None:
        value = {"format": FORMAT, "users": [user.encode() for user in users]}
        replace_file(self._path, jsonio.dumps(value), mode=0o600)


def check_password(password: str) -> str:
    """Return `password` where it can be one; `InvalidRequest`, which does not hold it, otherwise."""
    if not SHORTEST <= len(password) <= LONGEST or not all(char.isprintable() for char in password):
        raise InvalidRequest(
            "this password cannot be used", hint=f"{SHORTEST} to {LONGEST} characters, without control characters"
        )
    return password


def _with_password(user: User, password: str) -> User:
    check_password(password)
    fresh = replace(user, salt=secrets.token_hex(16), cost=COST, block=BLOCK, parallel=PARALLEL, changed_at=utc_now())
    return replace(fresh, key=_derive(fresh, password))


def _derive(user: User, password: str) -> str:
    data = unicodedata.normalize("NFC", password).encode("utf-8", "replace")
    with _derivations:
        key = hashlib.scrypt(
            data, salt=bytes.fromhex(user.salt), n=user.cost, r=user.block, p=user.parallel,
            maxmem=2 * MOST_MEMORY, dklen=KEY_BYTES,
        )  # fmt: skip
    return key.hex()
