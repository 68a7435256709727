"""The submitter's files: what it sends from here, and how results come to stand in the current directory.

Results arrive in a folder of their own inside the current directory and appear whole, by rename. Only names that were asked for
are written, whatever the answer holds, and links are never followed. The folder goes with the program, unless it is killed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spool.ctl.backend import Usage
from spool.errors import from_os_error
from spool.files import fsync_dir, parent_beneath, remove_tree, sync_file
from spool.manifest import printable
from spool.names import check_name, check_names
from spool.published import ERROR, LOGS, last_part, media_type
from spool.streams import Source, Stored

_FOLDER = ".mi-system-wf."


def inputs_of(given: str) -> dict[str, Path]:
    """Return name -> path for INS (``:`` separates): a file goes by the last part of its path, as pollers keep it."""
    found: dict[str, Path] = {}
    for word in filter(None, given.split(":")):
        path = Path(word)
        name = check_name(last_part(word))
        if name in found:
            hint = "pollers keep the last part of a name: rename one of them"
            raise Usage(f"{printable(word)} and {printable(str(found[name]))} would be one file there", hint=hint)
        _check_kind(path)
        found[name] = path
    return found


def _check_kind(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise Usage(f"{printable(str(path))}: {exc.strerror}", hint="INS are files that can be read, separated by ':'") from exc
    if not stat.S_ISREG(mode):
        raise Usage(f"{printable(str(path))} is not a regular file", hint="inputs are ordinary files")


def outputs_of(given: str, folder: Path) -> tuple[str, ...]:
    """Return the names in OUTS (``:`` separates), and the two logs; `Usage` for one that `folder` could not get."""
    names = tuple(dict.fromkeys([*filter(None, given.split(":")), *LOGS]))
    check_names(names)
    for name in names:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise Usage(f"{printable(name)} is a folder here", hint="a result of that name could not be written")
    return names


def parameter_file(path: Path) -> list[Any]:
    """Return the entry of an input: its content, to be read when it is sent, and its kind."""
    try:
        with path.open("rb") as file:
            kind = media_type(file)
            size = os.fstat(file.fileno()).st_size
    except OSError as exc:
        raise Usage(f"{printable(str(path))}: {exc.strerror}", hint="inputs must be readable") from exc
    return [Source(lambda: path.open("rb"), size), *kind]


def why_missing(entry: object) -> str:
    """Return why the entry of RESULTS brings no file, or ``""`` where it brings one."""
    if not isinstance(entry, Mapping):
        return "the answer has nothing of it"
    if entry.get("mimetype1") == ERROR:
        return str(entry.get("mimetype2", "")) or ERROR
    return "" if isinstance(entry.get("content"), Stored) else "the answer has no content of it"


class Landing:
    """A folder inside `folder` for what is on its way; `close` removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=folder))
        except OSError as exc:
            raise from_os_error(exc, f"making a folder in {printable(str(folder.absolute()))}") from exc

    def close(self) -> None:
        """Remove it. Safe to repeat."""
        remove_tree(self.path)

    @contextlib.contextmanager
    def empty(self) -> Iterator[Path]:
        """Yield an empty folder for one answer, which is gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.path))
        try:
            yield folder
        finally:
            remove_tree(folder)

    def put(self, files: Mapping[str, Stored]) -> None:
        """Have each file appear whole under its name, replacing what is there, with the rights that the umask leaves."""
        mode = 0o666 & ~_umask()
        for name, stored in files.items():
            os.chmod(stored.path, mode)
            sync_file(stored.path)
            with parent_beneath(self._folder.resolve(), name, make=True) as (parent, last):
                os.rename(stored.path, last, dst_dir_fd=parent)
                os.fsync(parent)
        fsync_dir(self._folder)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before
