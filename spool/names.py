"""The rules for every name that comes from outside: job ids, sites, users, file names (docs/format.md, "Names").

Nothing here touches a disk. A name that passes is safe to use as a path component below a job's own folder; opening it
without following links is the business of `spool.files`.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable

from spool.errors import InvalidName

MAX_PART_BYTES = 255
MAX_NAME_BYTES = 1024
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_USER = re.compile(r"\w[\w.@+-]{0,63}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Bidirectional overrides show a person another name than the one that is released or run.
_DECEIVING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def new_id() -> str:
    """Return a fresh job or run id: a random UUID (RFC 9562 version 4) in lower case."""
    return str(uuid.uuid4())


def check_id(text: str) -> str:
    """Return `text` if it is a UUID in its canonical lower-case form; raise `InvalidName` otherwise."""
    if not _UUID.fullmatch(text):
        raise InvalidName(f"{text!r} is not a job id", hint="a job id is a UUID in lower case, as uuidgen prints it")
    return text


def is_id(text: str) -> bool:
    """True where `text` is a canonical UUID."""
    return _UUID.fullmatch(text) is not None


def check_site(text: str) -> str:
    """Return `text` if it can name a site; raise `InvalidName` otherwise."""
    if not _SITE.fullmatch(text):
        raise InvalidName(f"{text!r} cannot name a site", hint="use letters, digits, '.', '_' and '-', at most 64")
    return text


def check_user(text: str) -> str:
    """Return `text` if it can name a user; raise `InvalidName` otherwise. Japanese letters are fine."""
    if not _USER.fullmatch(text) or len(text.encode("utf-8", "replace")) > MAX_PART_BYTES:
        raise InvalidName(f"{text!r} cannot name a user", hint="use letters, digits and '._@+-', at most 64, no blanks")
    return text


def check_env_name(text: str) -> str:
    """Return `text` if it can name an environment variable (POSIX XBD 8.1, letters of both cases)."""
    if not _ENV.fullmatch(text):
        raise InvalidName(f"{text!r} cannot name an environment variable", hint="use letters, digits and '_'")
    return text


def why_not_carried(name: str) -> str:
    """Return why the file name `name` cannot be carried, or ``""`` where it can.

    A file name inside a job is relative, ``/``-separated UTF-8 without control characters; no part is empty,
    ``.``, ``..`` or starts with ``-``; a part has at most 255 bytes, the whole at most 1024.
    """
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not name or name.startswith("/"):
        return "is empty or absolute"
    if size > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") or char in _DECEIVING for char in name):
        return "holds a control character"
    return next(filter(None, map(_why_not_part, name.split("/"))), "")


def _why_not_part(part: str) -> str:
    if part in ("", ".", ".."):
        return f"holds an empty, '.' or '..' part ({part!r})"
    if part.startswith("-"):
        return "has a part that starts with '-'"
    if len(part.encode("utf-8")) > MAX_PART_BYTES:
        return f"has a part longer than {MAX_PART_BYTES} bytes"
    return ""


def check_name(name: str) -> str:
    """Return the file name `name` unchanged if it can be carried; raise `InvalidName` saying why otherwise."""
    why = why_not_carried(name)
    if why:
        raise InvalidName(
            f"the file name {name!r} {why}",
            hint="file names in a job are relative paths such as mesh/beam.inp, without '..' and control characters",
        )
    return name


def check_names(names: Iterable[str]) -> None:
    """Check each name, and that no name is given twice or is at once a file and a folder of another."""
    together = TogetherNames()
    for name in names:
        together.add(name)


class TogetherNames:
    """Names of files that are to lie in one folder, checked as they come: the time for each does not grow with their number."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}  # -> a file beneath

    def add(self, name: str) -> str:
        """Return `name`; raise `InvalidName` as `check_names` does."""
        if check_name(name) in self._files:
            raise InvalidName(f"the file name {name!r} is given twice", hint="name each file once")
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            self._folders.setdefault(above, name)
            if above in self._files:
                raise _both(above, name)
        if name in self._folders:
            raise _both(name, self._folders[name])
        self._files.add(name)
        return name


def _both(name: str, below: str) -> InvalidName:
    return InvalidName(f"{name!r} is both a file and the folder of {below!r}", hint="rename one of them")
