"""`tmp/accept.UUID/`: where a drop is while it is checked and hashed, out of its submitter's reach (see `spool.drops`).

It holds `lock`, then `job/`, the drop itself; for a drop that had to be copied also `owner`, the uid that handed it in,
`copy/` while the copy is made, and `original/`, which goes once the copy is complete. One process at a time works on it, and
whoever gets the lock after a crash finds `job/` complete or not there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from spool import log
from spool.copying import copy_tree
from spool.errors import Busy, InvalidName, InvalidRecord
from spool.files import fsync_dir, read_record, remove_tree, replace_file, sync_tree
from spool.paths import SpoolPaths
from spool.rejecting import hide


class Staging:
    """The staging folder of one drop. All but `held` is for whoever holds it."""

    def __init__(self, paths: SpoolPaths, job_id: str) -> None:
        self.job_id = job_id
        self.folder = folder = paths.accepting(job_id)
        self.job = folder / "job"
        self._drop = paths.drop
        self._lock = folder / "lock"
        self._owner = folder / "owner"
        self._copy = folder / "copy"
        self._original = folder / "original"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be and hold its lock, with flock(2). Raises `Busy` at once where another holds it.

        The lock file goes with its folder. Whoever opened it before that and got the lock after holds a lock on nothing.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.folder, 0o770)
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        except FileNotFoundError as exc:
            raise self._busy() from exc
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise self._busy() from exc
            if os.fstat(fd).st_nlink == 0:
                raise self._busy()
            yield
        finally:
            os.close(fd)

    def _busy(self) -> Busy:
        return Busy(f"{self.folder.name} is in the hands of another process", hint="see who holds it with: fuser -v FILE")

    def owner(self) -> int | None:
        """Return the uid that handed a copied drop in, None for one that was renamed."""
        try:
            return int(read_record(self._owner, 32))
        except FileNotFoundError:
            return None

    def move_in(self, source: Path) -> None:
        """Make `source` itself `job/`."""
        with contextlib.suppress(FileNotFoundError):  # of a copy that a crash cut off
            os.unlink(self._owner)
        os.rename(source, self.job)

    def copy_in(self, source: Path) -> None:
        """Make `job/` a copy of `source`, durably, because the original goes. Safe to repeat."""
        self._remove_original()  # of another drop under this id, rejected before a crash
        remove_tree(self._copy)
        owners: list[int] = []
        copy_tree(source, self._copy, check=lambda path, info: _check_owner(path, info, owners))
        if not owners:  # a link by now
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(source))
        sync_tree(self._copy)
        replace_file(self._owner, str(owners[0]).encode("ascii"))
        os.rename(self._copy, self.job)
        fsync_dir(self.folder)

    def set_aside(self, source: Path) -> None:
        """Take the submitter's original of a copied drop out of `drop/`, in one step.

        Half of it, left by a crash, would be taken for another drop. Where its modes forbid to move it they forbid to empty
        it as well: then it is hidden.
        """
        try:
            os.rename(source, self._original)
        except PermissionError as exc:
            self._hide(source, exc)

    def _hide(self, original: Path, why: Exception) -> None:
        hidden = hide(original, self._drop, self.job_id)
        log.warning("drop_original_kept", job=self.job_id, folder=hidden, why=why)

    def _remove_original(self) -> None:
        try:
            remove_tree(self._original)
        except (OSError, RecursionError) as exc:  # of other uids in parts, or very deep
            self._hide(self._original, exc)

    def clear(self) -> None:
        """Remove the folder, the lock last: as long as something else is in it, nobody else may take hold of it.

        An original that cannot be removed goes back to `drop/`, hidden.
        """
        self._remove_original()
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):  # what a crash left of a file in the making, too
                if name != self._lock.name:
                    _remove(self.folder / name)
            os.unlink(self._lock)
        try:
            os.rmdir(self.folder)
        except OSError as exc:
            # Someone has made a new lock in it meanwhile, will find nothing to do, and clears it.
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _check_owner(path: str, info: os.stat_result, owners: list[int]) -> None:
    """Note who owns the folder itself (``""``); raise where what is about to be copied is not the owner's to hand in.

    Whoever may write into `drop/` can rename another's folder, put a job.json of his own into it, or a hard link to a file that
    only this program may read, and swap all of it while it is copied: what is judged is what is being copied.
    """
    if not path:
        owners.append(info.st_uid)
    elif path == "job.json":
        check_same_owner(owners[0], info.st_uid)
    elif info.st_nlink > 1 and info.st_uid == os.geteuid() != owners[0]:
        raise InvalidName(f"{path} is a hard link to a file of the spool's own", hint="put copies of files there")


def check_same_owner(folder: int, job_json: int) -> None:
    """Raise unless the uid that owns job.json is that of its folder: one of them says whose job it is."""
    if folder != job_json:
        raise InvalidRecord(
            f"the folder belongs to uid {folder}, its job.json to uid {job_json}", hint="hand in folder and job.json as one user"
        )


def _remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        remove_tree(path)
    else:
        os.unlink(path)
