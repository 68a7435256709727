"""What may leave: the outputs asked for, within the site's allow list, minus its deny list, within its caps (docs/security.md).

What leaves is a copy in `out/` that nobody else writes to; what stays is said to be withheld, by name only.
"""

from __future__ import annotations

import os

from spool.agent.config import AgentConfig
from spool.errors import Busy, InvalidName, Refused
from spool.files import copy_file, open_beneath, parent_beneath, remove_tree, sync_tree
from spool.manifest import hash_files, list_files, match_outputs, matches
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
    wanted, missing = match_outputs(listing.files, job.outputs)
    released = tuple(name for name in wanted if _may_leave(config, name))
    withheld = tuple(f"{name}: {WITHHELD}" for name in wanted if name not in released)
    _check_caps(config, [listing.files[name] for name in released])
    remove_tree(paths.out)
    paths.out.mkdir(mode=0o700)
    taken, odd = [], list(listing.odd)
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
    """Return the manifest of the logs that may leave."""
    if config.release["logs"] != "return":
        return ()
    here = [name for name in LOG_NAMES if (paths.log / name).is_file()]
    return tuple(FileEntry(f"log/{item.path}", item.size, item.sha256) for item in hash_files(paths.log, here))


def _may_leave(config: AgentConfig, name: str) -> bool:
    return matches(name, config.release["allow"]) and not matches(name, config.release["deny"])


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
