"""The part of `spoolctl check` that looks at what lies about: in `tmp/`, `drop/`, `rejected/`, `corrupt/`, and temporary files.

What may be the only bytes of somebody is never removed: a folder in `tmp/` that no program of ours has made is told of and
stays. What our programs make of copies goes when it is old and nobody holds its lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spool import jsonio
from spool.config import SpoolConfig, find_config, read_config
from spool.ctl.aside import add_reason
from spool.ctl.findings import Finding, remark
from spool.drops import Drops
from spool.errors import Busy, Conflict, SpoolError
from spool.files import beneath, read_record, remove_tree, walk
from spool.journal import is_plain
from spool.manifest import hash_file
from spool.names import is_id
from spool.paths import SpoolPaths
from spool.records import JOB_LIMIT_BYTES
from spool.scratch import KINDS, sweep
from spool.store import Store

LEFTOVER_S = 3600
_DROP_LATE_S = 60
_OURS = re.compile(r"submit\.[0-9a-f-]{36}|check\.[0-9a-f]{16}(?:\.lock)?|spool\.(?:json|ini)\.[0-9a-f]{16}")
_TEMP = re.compile(r"\.[^/]{1,200}\.[0-9a-f]{16}\.tmp", re.DOTALL)
_UNKNOWN = "whoever moved it here was killed before it could write why"


class Leftovers:
    """Judges them; with `eager`, for a repair, drops that were being accepted at once, however young."""

    def __init__(self, store: Store, *, eager: bool) -> None:
        self._store = store
        self._paths = store.paths
        self._eager = eager

    def all(self) -> Iterator[Finding]:
        """Yield what else lies about."""
        yield from self._in_tmp()
        yield from self._in_drop()
        yield from self._temps()
        for folder in (self._paths.rejected, self._paths.corrupt):
            for name in _names(folder):
                yield from self._kept(folder / name)

    def accepting(self) -> Iterator[Finding]:
        """Yield the drops that nobody goes on accepting; to be repaired first, as they become jobs."""
        for name in _names(self._paths.tmp):
            kind, _, rest = name.partition(".")
            if kind == "accept" and is_id(rest):
                yield from self._accepting(self._paths.tmp / name, rest)

    def _in_tmp(self) -> Iterator[Finding]:
        for name in _names(self._paths.tmp):
            path = self._paths.tmp / name
            kind, _, rest = name.partition(".")
            if (kind == "accept" and is_id(rest)) or _age_s(path) < LEFTOVER_S:
                continue
            if kind in KINDS and is_id(rest):
                yield remark("tmp_scratch", name=name, mend=partial(self._sweep, path))
            elif _OURS.fullmatch(name):
                if not _is_held(path):
                    yield remark("tmp_ours", name=name, mend=partial(_remove_unheld, path))
            else:
                yield remark("tmp_other", name=name, path=path)

    def _accepting(self, path: Path, job_id: str) -> Iterator[Finding]:
        if not _is_held(path / "lock") and (self._eager or _age_s(path) > _DROP_LATE_S):
            config = _config(self._paths)
            mend = partial(self._carry_on, path, job_id, config) if config is not None else None
            yield remark("tmp_accept", job=job_id, name=path.name, mend=mend)

    def _carry_on(self, path: Path, job_id: str, config: SpoolConfig) -> bool:
        """Do what the server would do at its next look; the drop is a job or in rejected/ then."""
        drops = Drops(self._store, workers=1)
        try:
            drops.accept(job_id, config)
        except FileNotFoundError:  # another process was faster
            return False
        finally:
            drops.close()
        if os.path.lexists(path):
            raise Busy("it cannot be decided on yet: little room on the disk, or another process has it", hint="look again")
        return True

    def _sweep(self, path: Path) -> bool:
        sweep(self._paths)
        return not os.path.lexists(path)

    def _in_drop(self) -> Iterator[Finding]:
        for name in _names(self._paths.drop):
            path = self._paths.drop / name
            if name.startswith(".taken."):
                job_id = name[len(".taken.") :].rstrip("+")
                known = is_id(job_id) and (self._paths.jobs / job_id).is_dir()
                yield remark("drop_taken", job=job_id if known else "", name=name,
                             mend=partial(self._remove_taken, path, job_id) if known else None)  # fmt: skip
            elif _age_s(path) > _DROP_LATE_S:
                yield remark("drop_waits", name=name)

    def _remove_taken(self, path: Path, job_id: str) -> bool:
        """Remove the original of a copied drop if the job has every byte of it; half of it, left by a kill, too."""
        state, job_json = self._store.state(job_id), self._store.job_bytes(job_id)
        known = {f"in/{entry.path}": entry for entry in state.inputs}
        for place in walk(path):
            for name, info in place.entries:
                file = beneath(place.path, name)
                if stat.S_ISDIR(info.st_mode):
                    same = len(os.fsencode(file)) <= 1024
                elif file == "job.json":
                    same = read_record(path / file, JOB_LIMIT_BYTES) == job_json
                else:
                    entry = known.get(file)
                    same = entry is not None and stat.S_ISREG(info.st_mode) and hash_file(path / "in", entry.path) == entry
                if not same:
                    raise Conflict(f"{file} in it is not what the job was accepted with", hint="its owner decides")
        remove_tree(path)
        return True

    def _temps(self) -> Iterator[Finding]:
        folders = [self._paths.root, self._paths.sites]
        kept = [self._paths.rejected, self._paths.corrupt]
        folders += [parent / name for parent in kept for name in _names(parent) if _is_folder(parent / name)]
        for folder in folders:
            for name in _names(folder):
                path = folder / name
                ours = _TEMP.fullmatch(name) and (folder.parent not in kept or name.startswith(".reason.json."))
                if ours and is_plain(path) and _age_s(path) >= LEFTOVER_S:
                    yield remark("temp", path=path.relative_to(self._paths.root), mend=partial(_unlink, path))

    def _kept(self, path: Path) -> Iterator[Finding]:
        place = path.parent.name
        job_id = path.name.rstrip("+") if is_id(path.name.rstrip("+")) else ""
        if _is_folder(path) and not os.path.lexists(path / "reason.json"):
            yield remark("reason_missing", job=job_id, path=f"{place}/{path.name}", mend=partial(_explain, path))
        yield remark(f"in_{place}", job=job_id, name=path.name, path=path, why=_why(path))


def _explain(path: Path) -> bool:
    if path.parent.name == "rejected":
        hint = "move the folder back to drop/ to have it judged again"
        return add_reason(path, code="internal", why=_UNKNOWN, hint=hint)
    hint = "restore the record, move the folder back to jobs/, then: spoolctl check --repair"
    return add_reason(path, code="", why=_UNKNOWN, hint=hint)


def _why(folder: Path) -> str:
    try:
        value = jsonio.loads(read_record(folder / "reason.json", jsonio.MAX_BYTES), "reason.json")
    except (SpoolError, OSError):
        return "no reason.json"
    return str(value.get("message") or value.get("why") or "no reason")


def _config(paths: SpoolPaths) -> SpoolConfig | None:
    """Return the configuration that accepting needs; None where there is none: the server has one, or says what is wrong."""
    with contextlib.suppress(SpoolError, OSError):
        path = find_config(None, paths.root)
        return read_config(path) if path else None
    return None


def _age_s(path: Path) -> float:
    """Return for how long nothing in `path` was written, in seconds; 0 where that cannot be told."""
    try:
        info = os.lstat(path)
        newest = info.st_mtime
        if stat.S_ISDIR(info.st_mode):
            for place in walk(path, on_denied=lambda denied: None):
                newest = max([newest, *(entry.st_mtime for _, entry in place.entries)])
    except OSError:
        return 0.0
    return time.time() - newest


def _open_to_lock(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_held(path: Path) -> bool:
    """True where a process holds the lock of `path`, or that cannot be told."""
    try:
        fd = _open_to_lock(path)
    except OSError as exc:
        return exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _remove_unheld(path: Path) -> bool:
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        return not _is_held(path) and _unlink(path)
    fd = _open_to_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _unlink(path: Path) -> bool:
    path.unlink(missing_ok=True)
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []
