"""What may leave: the outputs asked for, within the site's allow list, minus its deny list, within its caps (docs/security.md).

What leaves is a copy in `out/` that nobody else writes to; what stays is said to be withheld, by name only.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from spool.agent.config import AgentConfig
from spool.copying import copy_file
from spool.errors import Busy, InvalidName, Refused
from spool.files import open_beneath, parent_beneath, remove_tree, sync_tree
from spool.manifest import HASH_BYTES, hash_files, list_files, match_outputs, matches
from spool.paths import JobPaths
from spool.records import FileEntry, Job
from spool.results import Outputs

LOG_NAMES = ("stdout.txt", "stderr.txt")
WITHHELD = "withheld by the site"


def collect(config: AgentConfig, job: Job, paths: JobPaths) -> Outputs:
    """Copy what may leave from `work/` to `out/` and return its manifest. Safe to repeat: `out/` is made afresh.

    Raises `Refused` where the caps are exceeded.
    """
    listing = list_files(paths.work)
    shown = [item for item in listing.odd if _asked_and_allowed(config, job, item)]
    wanted, missing = match_outputs(listing.files, job.outputs)
    released = tuple(name for name in wanted if _may_leave(config, name))
    withheld = tuple(f"{name}: {WITHHELD}" for name in wanted if name not in released)
    _check_caps(config, [listing.files[name] for name in released])
    _clear(paths.out)
    paths.out.mkdir(mode=0o700)
    taken, odd = [], shown
    for name in released:
        try:
            _copy(paths, name)
            taken.append(name)
        except (FileNotFoundError, InvalidName, Busy) as exc:  # a process that the command left behind is still writing
            odd.append(f"{name}: {exc}")
    sync_tree(paths.out)
    entries = tuple(FileEntry(f"out/{item.path}", item.size, item.sha256) for item in hash_files(paths.out, taken))
    return Outputs(entries, missing, withheld, tuple(odd), len(wanted))


def logs(config: AgentConfig, paths: JobPaths) -> tuple[FileEntry, ...]:
    """Return the manifest of the logs that may leave. Raises `Refused` where they alone exceed the caps."""
    if config.release["logs"] != "return":
        return ()
    if paths.log.is_symlink():
        return ()
    here = [name for name in LOG_NAMES if (paths.log / name).is_file() and not (paths.log / name).is_symlink()]
    _check_caps(config, [(paths.log / name).stat().st_size for name in here])
    return tuple(_log_entry(paths, name) for name in here)


def _log_entry(paths: JobPaths, name: str) -> FileEntry:
    """Return the entry of a log as long as it is now: whoever still writes to it only adds behind that."""
    fd = open_beneath(paths.log, name, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        left = size = os.fstat(fd).st_size
        digest = hashlib.sha256()
        while left and (block := file.read(min(left, HASH_BYTES))):
            digest.update(block)
            left -= len(block)
    return FileEntry(f"log/{name}", size - left, digest.hexdigest())


def _asked_and_allowed(config: AgentConfig, job: Job, odd: str) -> bool:
    """True where the name of what cannot be carried may be told: a name is data too."""
    name = odd.rpartition(": ")[0]
    return matches(name, job.outputs) and _may_leave(config, name)


def _clear(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():  # the command put it there
        folder.unlink()
    remove_tree(folder)


def _may_leave(config: AgentConfig, name: str) -> bool:
    return matches(name, config.release["allow"]) and not any(
        matches(name if "/" in pattern else name.rpartition("/")[2], (pattern,)) for pattern in config.release["deny"]
    )


def _check_caps(config: AgentConfig, sizes: list[int]) -> None:
    max_bytes, max_files = config.release["max_bytes"], config.release["max_files"]
    if max_bytes is not None and sum(sizes) > max_bytes:
        raise Refused(f"the results have {sum(sizes)} bytes, {max_bytes} may leave", hint="the site's max_bytes decides")
    if max_files is not None and len(sizes) > max_files:
        raise Refused(f"the results are {len(sizes)} files, {max_files} may leave", hint="the site's max_files decides")


def _copy(paths: JobPaths, name: str) -> None:
    source = open_beneath(paths.work, name, os.O_RDONLY)
    try:
        with parent_beneath(paths.out, name, make=True) as (parent, last):
            copy_file(source, last, dir_fd=parent)
    finally:
        os.close(source)
