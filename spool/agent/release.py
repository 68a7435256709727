"""What may leave: the outputs asked for, within the site's allow list, minus its deny list, within its caps (docs/security.md).

What leaves is a copy in `out/` that nobody else writes to. What stays is said to be withheld: by its name where the job itself
wrote that name out, else as a number, because names are data too. Words leave only through `words` and `spoken`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from spool import log
from spool.agent.config import AgentConfig
from spool.agent.held import Mark
from spool.copying import copy_file
from spool.errors import Busy, InvalidName, Refused, SpoolError, StaleRun, TransferFailed
from spool.files import open_beneath, parent_beneath, remove_tree, sync_tree
from spool.manifest import HASH_BYTES, hash_files, list_files, match_outputs, matches
from spool.paths import JobPaths
from spool.patterns import literal
from spool.published import WITHHELD
from spool.records import CANCELED, FileEntry, Job, JobState, Result
from spool.results import Outputs

LOG_NAMES = ("stdout.txt", "stderr.txt")
LAW = "law"  # in the local state.json: what `content_law` was when the results were measured
LAW_CHANGED = "the site changed its rules before the results left"
UNTOLD = "the site could not carry this job on; its own log says why"
SPOKEN = (Refused, TransferFailed, StaleRun)  # their words are made for MInt: what a job asked for, no path and no errno


def collect(config: AgentConfig, job: Job, paths: JobPaths) -> Outputs:
    """Copy what may leave from `work/` to `out/` and return its manifest. Safe to repeat: `out/` is made afresh.

    Raises `Refused` where the caps are exceeded.
    """
    listing, redactor = list_files(paths.work), config.redactor
    asked_odd = [item for item in listing.odd if _asked_and_allowed(config, job, item)]
    shown = [item for item in asked_odd if not redactor.hides(item.rpartition(": ")[0])]
    wanted, missing = match_outputs(listing.files, job.outputs)
    released = tuple(name for name in wanted if _may_leave(config, name) and not redactor.finds(name))
    withheld = _withheld(config, job, set(wanted) - set(released), len(asked_odd) - len(shown))
    check_caps(config, [listing.files[name] for name in released])
    _clear(paths.out)
    paths.out.mkdir(mode=0o700)
    taken, odd = [], shown
    for name in released:
        try:
            _copy(paths, name)
            taken.append(name)
        except (FileNotFoundError, InvalidName, Busy) as exc:  # a process that the command left behind is still writing
            log.warning("not_copied", job=paths.folder.name, file=name, why=exc, hint="does the command leave processes behind?")
            odd.append(f"{name}: changed while it was copied")
    sync_tree(paths.out)
    entries = tuple(FileEntry(f"out/{item.path}", item.size, item.sha256) for item in hash_files(paths.out, taken))
    return Outputs(entries, missing, withheld, tuple(odd), len(wanted))


def _withheld(config: AgentConfig, job: Job, names: set[str], more: int) -> tuple[str, ...]:
    """Say what stays: a name that the job wrote out is told, unless a pattern of `redact` matches; all others are counted."""
    known = {name for name in map(literal, job.outputs) if name and not config.redactor.finds(name)}
    told = [f"{name}: {WITHHELD}" for name in sorted(names & known)]
    count = len(names - known) + more
    if count:
        told.append(f"{count} {'more ' if told else ''}{'file' if count == 1 else 'files'}: {WITHHELD}")
    if config.release["logs"] == "withhold":
        told += [f"log/{name}: {WITHHELD}" for name in LOG_NAMES]
    return tuple(told)


def content_law(config: AgentConfig) -> dict[str, str]:
    """Return the rules that change what files hold and words say, as a job's local record keeps them."""
    law = config.release
    texts = {"scrub": law["scrub"], "redact": [pattern.pattern for pattern in law["redact"]], "logs": [law["logs"]]}
    return {name: hashlib.sha256("\0".join(words).encode()).hexdigest() if words else "" for name, words in texts.items()}


def check_still(config: AgentConfig, state: JobState, result: Result) -> None:
    """Raise `Refused` where the law of now would not let `result` leave, which was measured under that of then.

    What persons have released they have seen: for it names, caps and `logs = withhold` count alone.
    """
    law, now, then = config.release, content_law(config), state.extra.get(LAW) or {}
    logs = any(entry.path.startswith("log/") for entry in result.files)
    names = [entry.path[len("out/") :] for entry in result.files if entry.path.startswith("out/")]
    fine = all(_may_leave(config, name) and not config.redactor.finds(name) for name in names)
    if Mark.of(state) is None:
        other = {name for name, value in now.items() if value and value != then.get(name)}
        raw_logs = logs and law["logs"] == "redact" and other & {"redact", "logs"}
        raw_words = "redact" in other and spoken(config, result) != result
        to_hold = law["hold"] and result.reason != CANCELED and law["hold"].why(state, result, False)
        fine = fine and not (raw_logs or raw_words or to_hold or ("scrub" in other and result.files))
    if not fine or (logs and law["logs"] == "withhold"):
        raise Refused(LAW_CHANGED, hint="the site's administrator decides; the results are in the job's folder there")
    check_caps(config, [entry.size for entry in result.files])


def words(config: AgentConfig, exc: Exception, *, spoken: tuple[type[Exception], ...] = SPOKEN) -> str:
    """Return what may be told to MInt of `exc`: the words of an error that is made for it, redacted, else that there was one."""
    text = exc.message if isinstance(exc, spoken) and isinstance(exc, SpoolError) else UNTOLD
    return config.redactor.text(text.replace(str(config.base), "BASE"))


def spoken(config: AgentConfig, result: Result) -> Result:
    """Return `result` with every word in it redacted; the names of its files were judged when they were taken."""
    redact = config.redactor.text
    return replace(
        result, message=redact(result.message), missing=tuple(map(redact, result.missing)),
        withheld=tuple(map(redact, result.withheld)), not_carried=tuple(map(redact, result.not_carried)),
    )  # fmt: skip


def logs(config: AgentConfig, paths: JobPaths) -> tuple[FileEntry, ...]:
    """Return the manifest of the logs that leave as they are. Raises `Refused` where they alone exceed the caps."""
    if config.release["logs"] != "return":
        return ()
    if paths.log.is_symlink():
        return ()
    here = [name for name in LOG_NAMES if (paths.log / name).is_file() and not (paths.log / name).is_symlink()]
    check_caps(config, [(paths.log / name).stat().st_size for name in here])
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


def check_caps(config: AgentConfig, sizes: list[int]) -> None:
    """Raise `Refused`, in words without the sizes, where files of `sizes` (bytes) are more than may leave."""
    max_bytes, max_files = config.release["max_bytes"], config.release["max_files"]
    if max_bytes is not None and sum(sizes) > max_bytes:
        log.warning("too_much_to_return", bytes=sum(sizes), max_bytes=max_bytes, hint="see [release] max_bytes")
        raise Refused("the results have more bytes than the site lets leave", hint="the site's max_bytes decides")
    if max_files is not None and len(sizes) > max_files:
        log.warning("too_much_to_return", files=len(sizes), max_files=max_files, hint="see [release] max_files")
        raise Refused("the results are more files than the site lets leave", hint="the site's max_files decides")


def _copy(paths: JobPaths, name: str) -> None:
    source = open_beneath(paths.work, name, os.O_RDONLY)
    try:
        with parent_beneath(paths.out, name, make=True) as (parent, last):
            copy_file(source, last, dir_fd=parent)
    finally:
        os.close(source)
