"""Carrying a job's files to a site and back with rsync, and judging what arrived.

To the site go job.json, in/ and run/, nothing else. Back come exactly the names that were chosen, into
``incoming/RUN_ID/files``. A site's names and files are hostile until checked: names by `spool.names`, files by kind and
SHA-256; links and devices are neither asked for nor taken. An interrupted file goes on where it stopped (`--partial-dir`).

An rsync that outlives a killed push keeps the fetch lock, which it inherited, so no two ever write into one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from spool import log
from spool.errors import Busy, InvalidName
from spool.files import open_beneath
from spool.incoming import Incoming
from spool.manifest import hash_file, match_outputs, matches, printable
from spool.names import why_not_carried
from spool.paths import JobPaths
from spool.records import FileEntry
from spool.ssh.connection import Done
from spool.ssh.site import AtSite

_TEMPORARY = re.compile(r"\.(.+)\.[A-Za-z0-9]{6}", re.DOTALL)  # rsync(1): .NAME.XXXXXX
LOGS = ("stdout.txt", "stderr.txt", "runner.log")
PARTIAL = ".mint-partial"
_PARTIAL = (f"--partial-dir={PARTIAL}",)
_COMMON = ("-t", "--sparse", "--no-links", "--safe-links", "--no-devices", "--no-specials", "--perms")
_TO_SITE = (*_COMMON, "-r", "--chmod=Du=rwx,Dgo=,Fu+rw,Fgo=")
# Sent once more: by content, and without what a killed rsync or the site has left in in/; run/ is the runner's, too.
_MENDING = ("--checksum", "--timeout=86400", "--delete", "--filter=protect /run/**")
_BACK = (*_COMMON, *_PARTIAL, "--chmod=D2770,F660", "--from0", "--files-from=-", "--ignore-missing-args")
# While both sides read their files to compare them nothing passes for a while; a dead line is found by ssh itself.
_CHECKSUM = ("--checksum", "--timeout=86400")
# Appending goes on in the very file that a reader has open; it knows neither holes nor partial files.
_TAIL = ("-t", "--append", "--no-links", "--perms", "--chmod=D2770,F660", "--from0", "--files-from=-", "--ignore-missing-args")


@dataclass(frozen=True)
class Chosen:
    """What of a run's ``work/`` comes back: SHA-256 by name, and what does not and why."""

    wanted: Mapping[str, str]
    missing: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """How many files the job asked for and the command left."""
        return len(self.wanted) + len(self.not_carried)


def send(paths: JobPaths, there: AtSite, lock: int, *, again: bool) -> None:
    """Bring job.json, in/ and run/ to the site. `again`: what looks the same is compared by content, all else leaves in/."""
    sources = [name for name in ("job.json", "in", "run") if (paths.folder / name).exists()]
    options = (*_TO_SITE, *_MENDING) if again else (*_TO_SITE, *_PARTIAL)
    words = (*options, "--", *sources, "site:./")
    _note(there, there.connection.rsync(words, there.folder, paths.folder, inherited=(lock,)))


def wrong_inputs(inputs: Iterable[FileEntry], sums: Mapping[str, str]) -> list[str]:
    """Return the names that are not at the site as they were frozen, or are there and should not be."""
    frozen = {entry.path: entry.sha256 for entry in inputs}
    return sorted(name for name in {*frozen, *sums} if frozen.get(name) != sums.get(name))


def changed_here(paths: JobPaths, inputs: Iterable[FileEntry]) -> list[str]:
    """Return the inputs that are not as they were frozen on this side."""
    changed = []
    for entry in inputs:
        try:
            same = hash_file(paths.inputs, entry.path) == entry
        except (OSError, InvalidName, Busy):
            same = False
        if not same:
            changed.append(entry.path)
    return changed


def choose(sums: Mapping[str, str], others: Sequence[str], patterns: Sequence[str]) -> Chosen:
    """Match what lies in ``work/`` with the outputs that the job asks for.

    Everything that matches comes back, an input that the command left as it was too: what must not return is removed at the site
    before the command ends.
    """
    why = {name: why_not_carried("out/" + name) for name in sums if matches(name, patterns)}
    why.update({name: "is not a regular file" for name in others if matches(name, patterns)})
    wanted, missing = match_outputs([name for name, reason in why.items() if not reason], patterns)
    unmatched = tuple(pattern for pattern in missing if not any(matches(name, (pattern,)) for name in why))
    not_carried = tuple(sorted(f"{printable(name)}: {reason}" for name, reason in why.items() if reason))
    return Chosen({name: sums[name] for name in sorted(wanted)}, unmatched, not_carried)


@contextlib.contextmanager
def fetch_lock(incoming: Path, pause: Callable[[float], None]) -> Iterator[int]:
    """Hold the lock on one run's incoming folder; yield its descriptor, for rsync to inherit. `pause` may raise `Stopped`."""
    Incoming(incoming).prepare()
    fd = os.open(incoming / "fetch.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        while not _try_lock(fd):
            pause(0.1)
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def fetch_outputs(there: AtSite, incoming: Path, names: Iterable[str], lock: int, *, checksum: bool) -> None:
    """Bring `names` from ``work/`` into ``files/out/``."""
    target = incoming / "files" / "out"
    target.mkdir(mode=0o770, exist_ok=True)
    names = list(names)
    _keep_halves(target, names)
    asked = _files_from(names)
    if asked:
        options = (*_BACK, *_CHECKSUM) if checksum else _BACK
        _rsync_back(there, options, "work", target, asked, lock)


def _keep_halves(target: Path, names: Iterable[str]) -> None:
    """What a killed rsync had received of a file becomes its partial file, so that a large one goes on where it was."""
    wanted = set(names)
    for folder, dirs, files in os.walk(target):
        dirs[:] = [name for name in dirs if name != PARTIAL]
        for name in files:
            match = _TEMPORARY.fullmatch(name)
            path = Path(folder) / name
            if match is None or str(path.relative_to(target)) in wanted:
                continue
            if str(Path(folder, match[1]).relative_to(target)) in wanted:
                (path.parent / PARTIAL).mkdir(mode=0o770, exist_ok=True)
                os.replace(path, path.parent / PARTIAL / match[1])


def fetch_logs(there: AtSite, incoming: Path, lock: int, *, append: bool) -> None:
    """Bring the logs into ``files/log/``; with `append` only what has come since the last time."""
    target = incoming / "files" / "log"
    target.mkdir(mode=0o770, exist_ok=True)
    options = _TAIL if append else (*_BACK, *_CHECKSUM)
    _rsync_back(there, options, "log", target, _files_from(LOGS), lock)


def _rsync_back(there: AtSite, options: Sequence[str], source: str, target: Path, asked: bytes, lock: int) -> None:
    words = (*options, f"site:{source}/", "./")
    _note(there, there.connection.rsync(words, there.folder, target, stdin=asked, inherited=(lock,)))


def _note(there: AtSite, done: Done) -> None:
    """What did not come is found by its digest; the message is for the log."""
    if done.code:
        log.warning("rsync", job=there.job_id, code=done.code, why=done.err[-400:])


def _files_from(names: Iterable[str]) -> bytes:
    # "./" in front: a name that starts with # or ; would be a comment.
    return b"".join(b"./" + name.encode("utf-8") + b"\0" for name in names)


def arrived(files: Path, announced: Mapping[str, str]) -> tuple[tuple[FileEntry, ...], list[str]]:
    """Return the entries of what is here, with the digests that the site announced, and the names of what is not here.

    Nothing is read: `spool.results.accept` compares the bytes.
    """
    entries, absent = [], []
    for name, digest in announced.items():
        try:
            fd = open_beneath(files, name, os.O_RDONLY)
        except (FileNotFoundError, InvalidName):
            absent.append(name)
            continue
        with open(fd, "rb") as file:
            entries.append(FileEntry(name, os.fstat(file.fileno()).st_size, digest))
    return tuple(entries), absent


def purge(files: Path, listed: Iterable[str]) -> None:
    """Remove everything below `files` that is not listed: leftovers of a killed rsync, and what nobody asked for."""
    keep = set(listed)
    for folder, dirs, names in os.walk(files, topdown=False):
        paths = [os.path.join(folder, name) for name in (*names, *dirs)]
        for path in paths:
            if os.path.islink(path) or (not os.path.isdir(path) and os.path.relpath(path, files) not in keep):
                os.unlink(path)
        if folder not in (str(files), str(files / "out"), str(files / "log")):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)
