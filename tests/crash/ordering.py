"""The order of writes, read from a recording: what must be synced before what (docs/format.md, "Writing order").

A killed process loses nothing that it has written, so no kill shows a missing fsync(2). Here each call that changes the spool
makes a file or a folder *dirty*, each fsync makes it clean, and whatever must not be dirty at a rename or at the end is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"(?:\d+\s+)?([a-z_0-9]+)\((.*)\)\s+= (\d+)(?:<(.*)>)?$")
_ARGUMENT = re.compile(r'(?:\d+|AT_FDCWD)<([^>]*)>|"((?:[^"\\]|\\.)*)"')
_TEMPORARY = re.compile(r"\.[^/]*\.tmp|put\.[0-9a-f]+|spool\.(?:json|ini)\.[0-9a-f]+")
_ON_ONE_FILE = ("write", "pwrite64", "ftruncate", "fsync", "fdatasync")
# Derived, for a moment only, or empty and made anew where it is missing.
_MAY_BE_LOST = ("journal", "tmp", "locks", "in.part")


class Call(NamedTuple):
    """One call that succeeded: its name, the paths it names, and whether it may make a file."""

    name: str
    paths: tuple[str, ...]
    creates: bool


def calls(recording: Path) -> list[Call]:
    found = []
    for line in recording.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is not None:
            # What follows the descriptor of a write is data.
            arguments = match[2].partition(", ")[0] if match[1] in _ON_ONE_FILE else match[2]
            found.append(Call(match[1], _paths(arguments), "O_CREAT" in match[2]))
    return found


def _paths(arguments: str) -> tuple[str, ...]:
    """The paths among the arguments; a relative one belongs to the descriptor before it."""
    found: list[str] = []
    folder = ""
    for match in _ARGUMENT.finditer(arguments):
        if match[1] is not None:
            folder = match[1]
            found.append(folder)
            continue
        text = match[2].encode("ascii", "replace").decode("unicode_escape").encode("latin-1").decode("utf-8", "replace")
        if folder and found and found[-1] == folder:
            found.pop()
        found.append(text if text.startswith("/") else f"{folder}/{text}")
        folder = ""
    return tuple(found)


class Order:
    """Follows the calls of one recording below `root`, where `there` was before; `wrong` says what was not synced in time."""

    def __init__(self, root: Path, there: Iterable[Path] = ()) -> None:
        self._root = str(root)
        self._there = {str(path) for path in there}
        self.wrong: list[str] = []
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def follow(self, recorded: list[Call]) -> list[str]:
        for call in recorded:
            if any((path + "/").startswith(self._root + "/") for path in call.paths):
                self._one(call)
        self._none_dirty("", "acknowledged")
        return self.wrong

    def _one(self, call: Call) -> None:
        first = call.paths[0]
        if call.name in _ON_ONE_FILE[:3]:
            self._files.add(first)
        elif call.name in _ON_ONE_FILE[3:]:
            self._files.discard(first)
            self._folders.pop(first, None)
        elif call.name.startswith("rename"):
            self._rename(first, call.paths[-1])
        elif call.name in ("mkdir", "mkdirat", "link", "linkat") or (call.name == "openat" and call.creates):
            self._named(call.paths[-1])
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            self._files.discard(first)
            self._folders.pop(first, None)

    def _named(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if path not in self._there and name != "lock" and not _TEMPORARY.fullmatch(name):
            self._folders.setdefault(parent, path)

    def _rename(self, source: str, target: str) -> None:
        if not source.startswith(f"{self._root}/drop/"):
            self._none_dirty(source, f"renamed to {self._short(target)}")
        elif target.endswith("/original"):
            self._none_dirty(target[: -len("/original")], "the original of a copied drop was taken away")
        if target.startswith(f"{self._root}/jobs/"):
            self._before_the_state(target)
        self._files = {self._moved(path, source, target) for path in self._files}
        self._folders = {self._moved(path, source, target): why for path, why in self._folders.items()}
        self._there.discard(target)  # another file has that name now
        self._named(target)

    def _before_the_state(self, target: str) -> None:
        """What a new state speaks of, files and entries of the indexes, is durable before it is."""
        job = target[: len(self._root) + len("/jobs/") + 36]
        if target == job:
            for index in ("queue", "new"):
                self._none_dirty(f"{self._root}/{index}", "the job was published")
        elif target == f"{job}/state.json":
            for place in (job, f"{self._root}/queue", f"{self._root}/new", f"{self._root}/active"):
                self._none_dirty(place, "the state was written")

    @staticmethod
    def _moved(path: str, source: str, target: str) -> str:
        return target + path[len(source) :] if path == source or path.startswith(source + "/") else path

    def _none_dirty(self, place: str, what: str) -> None:
        """Nothing at or below `place`, a path or everything, is dirty when `what` happens."""
        for path in sorted(self._files):
            if self._within(path, place):
                self.wrong.append(f"{self._short(path)} was not synced before: {what}")
        for path, why in sorted(self._folders.items()):
            if self._within(path, place):
                self.wrong.append(f"{self._short(path)}/ was not synced, which got {self._short(why)}, before: {what}")

    def _within(self, path: str, place: str) -> bool:
        if place:
            return path == place or path.startswith(place + "/")
        return path.startswith(self._root) and self._short(path).split("/")[0] not in _MAY_BE_LOST

    def _short(self, path: str) -> str:
        return path[len(self._root) + 1 :]


def unsynced_at_publishing(root: Path, recorded: list[Call]) -> list[str]:
    """What a folder that became a job in this recording holds and what was not synced before it did."""
    synced: set[str] = set()
    missing: list[str] = []
    for call in recorded:
        if call.name == "fsync":
            synced.add(call.paths[0])
        if call.name == "rename" and Path(call.paths[-1]).parent == root / "jobs":
            source, job = call.paths[0], Path(call.paths[-1])
            inside = [path.relative_to(job) for path in (job, *job.rglob("*")) if not path.name.startswith(".")]
            missing += [str(name) for name in inside if str(Path(source) / name) not in synced]
    return missing
