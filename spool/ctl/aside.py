"""Taking things out of the way for `spoolctl check --repair`: whole and with a reason to `corrupt/`, or, where they are ours and
nobody needs them, to the bin. Nothing is followed or opened on the way, and a kill at any point leaves both whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from functools import partial
from pathlib import Path
from typing import Callable

from spool import jsonio
from spool.files import fsync_dir, remove_tree, replace_file, write_new
from spool.instants import utc_now
from spool.manifest import printable
from spool.names import is_id
from spool.paths import SpoolPaths

FOUND = "found"
_REASON = "reason.json"
_NAME_BYTES = 200  # of the 255 that a name may have; the rest is for "+"


def set_aside(paths: SpoolPaths, path: Path, name: str, *, why: str, hint: str) -> None:
    """Move what lies at `path` to ``corrupt/NAME``, with a reason.json; what is no folder becomes ``corrupt/NAME/found``."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        target = _free_name(paths.corrupt, name)
        os.rename(path, target)
        with contextlib.suppress(IsADirectoryError):  # a folder of that name is there: then the folder tells nothing
            replace_file(target / _REASON, _reason(name, why, hint))
    else:
        target = _box(paths.corrupt, name)
        replace_file(target / _REASON, _reason(name, why, hint))
        os.rename(path, target / FOUND)
        fsync_dir(target)
    fsync_dir(paths.corrupt)
    fsync_dir(path.parent)


def add_reason(folder: Path, *, code: str, why: str, hint: str) -> bool:
    """Write reason.json where there is none; True where it was written. One that appears meanwhile stays."""
    temp = folder / f".{_REASON}.{secrets.token_hex(8)}.tmp"
    try:
        write_new(temp, _reason(folder.name, why, hint, code))
        os.link(temp, folder / _REASON)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temp)
    fsync_dir(folder)
    return True


def discard(paths: SpoolPaths, path: Path) -> Callable[[], None]:
    """Take a folder of ours out of the way in one step; the call that is returned removes it, which may take long."""
    bin_folder = paths.tmp / f"check.{secrets.token_hex(8)}"
    os.mkdir(bin_folder, 0o770)
    os.rename(path, bin_folder / path.name)
    fsync_dir(path.parent)
    return partial(remove_tree, bin_folder)


def _reason(name: str, why: str, hint: str, code: str = "") -> bytes:
    """What is written: of a drop as `spool.rejecting` does it (with `code`), of a job as `spool.jobs`."""
    job_id = name.rstrip("+")
    value = {"at": utc_now(), "id": job_id if is_id(job_id) else printable(name)}
    value.update({"code": code, "message": why} if code else {"why": printable(why)})
    return jsonio.dumps({**value, "hint": hint})


def _box(folder: Path, name: str) -> Path:
    """Return a folder for something that is no folder: a new one, or one that a killed repair has made and not filled."""
    box = folder / _cut(name)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(box, 0o770)
        if stat.S_ISDIR(os.lstat(box).st_mode) and not any(_counts(entry) for entry in os.listdir(box)):
            return box
        box = box.with_name(box.name + "+")


def _counts(entry: str) -> bool:
    return entry != _REASON and not (entry.startswith(f".{_REASON}.") and entry.endswith(".tmp"))


def _free_name(folder: Path, name: str) -> Path:
    path = folder / _cut(name)
    while os.path.lexists(path):
        path = path.with_name(path.name + "+")
    return path


def _cut(name: str) -> str:
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[:-1]
    return name
