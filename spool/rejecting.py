"""What cannot be accepted goes to `rejected/`, with a reason.json; nothing is silently deleted (docs/format.md, "Drops")."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from spool import jsonio, log
from spool.copying import copy_tree
from spool.errors import SpoolError
from spool.files import fsync_dir, remove_tree, replace_file
from spool.instants import utc_now
from spool.manifest import printable
from spool.paths import SpoolPaths

# Of the 255 that a file name may have; the rest is for what is put before and behind.
_NAME_BYTES = 200


def reject(paths: SpoolPaths, name: str, folder: Path, why: SpoolError) -> None:
    """Move `folder`, the drop `name`, to `rejected/` and write the reason beside what it holds.

    Another uid's folder cannot be moved by a server without root: rename(2) wants to write in it. Then `rejected/` gets what
    may be read of it, and the original stays in `drop/`, hidden, so that it is not looked at again.
    """
    target = _free_name(paths.rejected, name.lstrip(".") or "drop")
    moved = True
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        os.mkdir(target, 0o2770)
        os.rename(folder, target / "drop")
    else:
        moved = _move_or_copy(folder, target)
    reason = {"at": utc_now(), "id": name, "code": why.code, "message": why.message, "hint": why.hint}
    replace_file(target / "reason.json", jsonio.dumps({key: printable(value) for key, value in reason.items()}))
    fsync_dir(paths.rejected)
    kept = "" if moved else hide(folder, paths.drop, name)
    log.warning("rejected", job=name, code=why.code, why=why.message, folder=target, original=kept)


def _move_or_copy(folder: Path, target: Path) -> bool:
    try:
        os.rename(folder, target)
        return True
    except PermissionError:
        pass
    try:
        copy_tree(folder, target, skip_denied=True)
    except BaseException:
        remove_tree(target)  # it is tried again, perhaps many times: halves must not fill the disk
        raise
    return False


def hide(folder: Path, drop: Path, name: str) -> Path:
    """Rename `folder` to `drop/.taken.NAME`, which is not looked at, and return its new path.

    From `drop` itself this needs no right to the folder, as it keeps its parent.
    """
    hidden = _free_name(drop, f".taken.{name}")
    os.rename(folder, hidden)
    return hidden


def _free_name(folder: Path, name: str) -> Path:
    """Return a path in `folder` that is not taken: `name`, cut where it is too long, with a "+" for each earlier one."""
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[:-1]
    path = folder / name
    while os.path.lexists(path):
        path = path.with_name(path.name + "+")
    return path
