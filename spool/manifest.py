"""What is in a folder: listing, patterns, SHA-256 (docs/format.md, "Manifest").

Links are never followed and devices never opened; a name that cannot be carried is reported, not lost.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spool.errors import Busy
from spool.files import Place, beneath, open_beneath, walk
from spool.names import why_not_carried
from spool.patterns import compiled
from spool.records import FileEntry

HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Listing:
    """The regular files below a folder (name -> size in bytes) and what cannot be carried (``name: why``)."""

    files: Mapping[str, int]
    odd: tuple[str, ...]


def list_files(folder: Path) -> Listing:
    """List everything below `folder`, sorted by name; an absent folder is an empty one.

    What is no folder is listed as odd, and so is a folder that may not be read or whose name cannot be carried, without what
    lies below it.
    """
    files: dict[str, int] = {}
    odd: list[str] = []

    def denied(path: str) -> None:
        odd.append(f"{printable(path or folder.name)}: may not be read")

    try:
        for place in walk(folder, descend=_is_carried, on_denied=denied):
            _list_entries(place, files, odd)
    except FileNotFoundError:
        return Listing({}, ())
    except NotADirectoryError:
        return Listing({}, (f"{printable(folder.name)}: is not a folder",))
    return Listing(dict(sorted(files.items())), tuple(sorted(odd)))


def _is_carried(path: str) -> bool:
    return not why_not_carried(path)


def _list_entries(place: Place, files: dict[str, int], odd: list[str]) -> None:
    for name, info in place.entries:
        full = beneath(place.path, name)
        why = why_not_carried(full) or _why_not_kind(info.st_mode)
        if why:
            odd.append(f"{printable(full)}: {why}")
        elif stat.S_ISREG(info.st_mode):
            files[full] = info.st_size


def _why_not_kind(mode: int) -> str:
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"


def printable(name: str) -> str:
    """Return `name` with everything escaped that a terminal or a JSON file could not show as it is."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def hash_file(folder: Path, name: str) -> FileEntry:
    """Return the entry of the file `name` beneath `folder`; `Busy` where it changed while it was read."""
    fd = open_beneath(folder, name, os.O_RDONLY)
    try:
        before = os.fstat(fd)
        digest, size = hash_fd(fd)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if size != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Busy(f"{name!r} changed while it was read", hint="wait until the writer has finished")
    return FileEntry(name, size, digest)


def hash_fd(fd: int) -> tuple[str, int]:
    """Return (SHA-256 hex, bytes read) of an open file from its start, in constant memory."""
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(HASH_BYTES)
    view = memoryview(buffer)
    os.lseek(fd, 0, os.SEEK_SET)
    while count := os.readv(fd, [buffer]):
        digest.update(view[:count])
        size += count
    return digest.hexdigest(), size


def hash_files(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    """Return the entries of `names` beneath `folder`, in the order given."""
    return tuple(hash_file(folder, name) for name in names)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where `name` matches one of the patterns.

    ``*`` and ``?`` stop at ``/``, ``[...]`` is a set, ``**`` crosses folders, as gitignore(5) has them; a name without wildcards
    matches itself.
    """
    return any(name == pattern or compiled(pattern).fullmatch(name) for pattern in patterns)


def match_outputs(names: Iterable[str], patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (the names that some pattern asks for, the patterns that nothing matched)."""
    names = tuple(names)
    found: set[str] = set()
    missing: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if matches(name, (pattern,))]
        found.update(hits)
        missing += [] if hits else [pattern]
    return tuple(name for name in names if name in found), tuple(missing)
