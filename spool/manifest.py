"""What is in a folder: listing, patterns, SHA-256 (docs/format.md, "Manifest").

Links are never followed and devices never opened; a name that cannot be carried is reported, not lost.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spool.errors import Busy
from spool.files import open_beneath
from spool.names import why_not_carried
from spool.records import FileEntry

HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Listing:
    """The regular files below a folder (name -> size in bytes) and what cannot be carried (``name: why``)."""

    files: Mapping[str, int]
    odd: tuple[str, ...]


def list_files(folder: Path) -> Listing:
    """List everything below `folder`, sorted by name; an absent folder is an empty one."""
    files: dict[str, int] = {}
    odd: list[str] = []
    if not os.path.lexists(folder):
        return Listing({}, ())
    for path, dirs, names, dir_fd in os.fwalk(folder, follow_symlinks=False):
        below = os.path.relpath(path, folder)
        for name in [*names, *dirs]:
            full = name if below == "." else f"{below}/{name}"
            info = _stat_at(name, dir_fd)
            if info is None or (stat.S_ISDIR(info.st_mode) and not why_not_carried(full)):
                continue
            why = why_not_carried(full) or _why_not_kind(info.st_mode)
            if why:
                odd.append(f"{printable(full)}: {why}")
            else:
                files[full] = info.st_size
    return Listing(dict(sorted(files.items())), tuple(sorted(odd)))


def _stat_at(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:  # removed while we looked
        return None


def _why_not_kind(mode: int) -> str:
    if stat.S_ISREG(mode):
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


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    out, index = "", 0
    while index < len(pattern):
        part, index = _translate(pattern, index)
        out += part
    return re.compile(out, re.DOTALL)


def _translate(pattern: str, index: int) -> tuple[str, int]:
    if pattern.startswith("**/", index):
        return "(?:[^/]+/)*", index + 3
    if pattern.startswith("**", index):
        return ".*", index + 2
    char = pattern[index]
    if char == "[":
        return _translate_set(pattern, index)
    return {"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char), index + 1


def _translate_set(pattern: str, index: int) -> tuple[str, int]:
    start = index + 1 + (pattern[index + 1 : index + 2] in ("!", "^"))
    end = pattern.find("]", start + 1)
    if end < 0:
        return re.escape("["), index + 1
    negate = "^/" if start > index + 1 else ""
    inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", pattern[start:end])
    try:
        re.compile(f"[{negate}{inside}]")
    except re.error:  # a range that runs backwards matches itself, as in a shell
        return re.escape("["), index + 1
    return f"(?!/)[{negate}{inside}]", end + 1


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where `name` matches one of the patterns.

    ``*`` and ``?`` stop at ``/``, ``[...]`` is a set, ``**`` crosses folders, as gitignore(5) has them; a name without wildcards
    matches itself.
    """
    return any(name == pattern or _compiled(pattern).fullmatch(name) for pattern in patterns)


def match_outputs(names: Iterable[str], patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (the names that some pattern asks for, the patterns that nothing matched)."""
    names = tuple(names)
    wanted = tuple(name for name in names if matches(name, patterns))
    missing = tuple(pattern for pattern in patterns if not any(matches(name, (pattern,)) for name in names))
    return wanted, missing
