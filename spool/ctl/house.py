"""The part of `spoolctl check` that looks at the house of a spool: its folders, its lock files, their modes."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from spool.ctl.aside import set_aside
from spool.ctl.findings import Finding, Mend, problem, remark
from spool.errors import ConfigError
from spool.files import fsync_dir
from spool.paths import SpoolPaths

SHARED_FOLDER = 0o2770
_LOCK_MODE = 0o660
# A program may hold a lock file that somebody has unlinked; it does so for milliseconds.
_HOLDERS_ARE_DONE_S = 1.0


def house(paths: SpoolPaths) -> Iterator[Finding]:
    """Yield what is wrong with the folders and the lock files."""
    for name in SpoolPaths.FOLDERS:
        yield from _folder(paths, paths.root / name)
    if paths.locks.is_dir():
        yield from _locks(paths, paths.locks)
    owner = paths.spool_json.stat().st_uid
    if owner != os.geteuid():
        yield remark("not_owner", owner=owner, uid=os.geteuid())


def _folder(paths: SpoolPaths, folder: Path) -> Iterator[Finding]:
    name = folder.name
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        yield problem("folder_missing", where=name, name=name, mend=partial(_make, folder))
        return
    if stat.S_ISLNK(mode):  # someone wanted it so, and the jobs may lie behind it
        yield problem("folder_link", where=name, name=name)
    elif not stat.S_ISDIR(mode):
        yield problem("folder_not", where=name, name=name, mend=partial(_replace, paths, folder))
    elif stat.S_IMODE(mode) != SHARED_FOLDER:
        mend = partial(chmod, folder, SHARED_FOLDER)
        yield problem("folder_mode", name=name, mode=f"{stat.S_IMODE(mode):04o}", mend=mend)


def _make(folder: Path) -> bool:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o770)
    chmod(folder, SHARED_FOLDER)
    fsync_dir(folder.parent)
    return True


def _replace(paths: SpoolPaths, path: Path) -> bool:
    why = f"{path.name} is not a folder"
    set_aside(paths, path, path.name, why=why, hint="remove it when nobody needs it; the folder was made anew")
    return _make(path)


def shared_mode(code: str, mode: int, *, job: str = "", mend: Mend | None = None, **values: Any) -> Finding:
    """Return the finding for a shared folder of a wrong mode: a problem where owner or group cannot work in it."""
    found = problem if mode & 0o770 != 0o770 else remark
    return found(code, job=job, mode=f"{stat.S_IMODE(mode):04o}", mend=mend, **values)


def chmod(path: Path, mode: int) -> bool:
    """Set the mode of something of ours that is no link."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        return False
    os.chmod(path, mode)
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:  # chmod(2) drops the setgid bit without a word
        raise ConfigError(f"the system does not set {mode:04o}", hint="is the owner a member of the folder's group?")
    return True


def _locks(paths: SpoolPaths, folder: Path) -> Iterator[Finding]:
    missing, odd, wrong = [], [], []
    for number in range(256):
        path = folder / f"{number:02x}"
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            missing.append(path)
            continue
        if not stat.S_ISREG(mode):
            odd.append(path)
        elif stat.S_IMODE(mode) != _LOCK_MODE:
            wrong.append(path)
    if missing:
        yield problem("locks_missing", where="locks", count=len(missing), names=_some(missing), mend=partial(_add_locks, missing))
    if odd:
        mend = partial(_replace_locks, paths, odd)
        yield problem("locks_odd", where="locks", count=len(odd), names=_some(odd), mend=mend)
    if wrong:
        mend = partial(_each_mode, wrong)
        yield problem("locks_mode", count=len(wrong), names=_some(wrong), folder=folder, mend=mend)


def _add_locks(missing: list[Path]) -> bool:
    for path in missing:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _LOCK_MODE))
        os.chmod(path, _LOCK_MODE)
    fsync_dir(missing[0].parent)
    time.sleep(_HOLDERS_ARE_DONE_S)
    return True


def _replace_locks(paths: SpoolPaths, odd: list[Path]) -> bool:
    for path in odd:
        hint = "remove it when nobody needs it; the lock file was made anew"
        set_aside(paths, path, f"locks.{path.name}", why=f"locks/{path.name} is not a regular file", hint=hint)
    return _add_locks(odd)


def _each_mode(wrong: list[Path]) -> bool:
    for path in wrong:
        chmod(path, _LOCK_MODE)
    return True


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
