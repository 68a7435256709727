"""Small file systems of a test's own that run full, out of inodes, over quota or read-only while programs use them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from components.privilege import need_root
from components.waiting import wait_until

SHORTAGES = ("full", "inodes", "read_only", "quota")
_MB = 1 << 20
_FIRST = "0/256"  # of btrfs: the first subvolume that is made


class Disk:
    """A file system mounted at `folder`, of `size_mb`. tmpfs, or btrfs where a quota is wanted (the one kind this kernel has).

    `take(shortage)` brings one of `SHORTAGES` about, `give()` ends it; what programs have written stays.
    """

    def __init__(self, folder: Path, shortage: str, *, size_mb: int = 24, mode: int = 0o755) -> None:
        need_root()
        self.folder = folder
        self._size_mb = size_mb
        self.shortage = shortage
        self._image = folder.with_name(folder.name + ".img")
        self._top = folder.with_name(folder.name + ".top")  # of btrfs: the quota is on a part of it
        self._ballast = folder / ".ballast"
        folder.mkdir(parents=True, exist_ok=True)
        if shortage == "quota":
            self._image.touch()
            os.truncate(self._image, 160 * _MB)
            _run("mkfs.btrfs", "-q", self._image)
            self._top.mkdir()
            _run("mount", "-o", "loop", self._image, self._top)
            _run("btrfs", "quota", "enable", self._top)
            _run("btrfs", "subvolume", "create", self._top / "limited")
            _run("mount", "--bind", self._top / "limited", folder)
        else:
            _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m,nr_inodes=8000", "tmpfs", folder)
        folder.chmod(mode)

    def take(self, *, leave: int = 0) -> None:
        """From now on nothing can be written; `leave` bytes stay free of a full disk, so many inodes of one without."""
        if self.shortage == "full":
            _fill(self._ballast, leave)
        elif self.shortage == "inodes":
            self._take_inodes(leave)
        elif self.shortage == "read_only":
            wait_until(lambda: self._remount("ro"), 60, f"{self.folder} is read-only (somebody writes)")
        else:
            _run("btrfs", "filesystem", "sync", self._top)
            _run("btrfs", "qgroup", "limit", "1M", _FIRST, self._top)
            _fill(self._ballast, 0)

    def give(self) -> None:
        """There is room again."""
        if self.shortage == "read_only":
            assert self._remount("rw")
        elif self.shortage == "quota":
            _run("btrfs", "qgroup", "limit", "none", _FIRST, self._top)
        elif self.shortage == "inodes":
            _run("mount", "-o", "remount,nr_inodes=20000", self.folder)
        else:
            self._ballast.unlink()

    def grow(self, size_mb: int) -> None:
        """Make the disk (a tmpfs) larger."""
        _run("mount", "-o", f"remount,size={size_mb}m", self.folder)

    def _take_inodes(self, leave: int) -> None:
        info = os.statvfs(self.folder)
        used = info.f_files - info.f_ffree
        _run("mount", "-o", f"remount,nr_inodes={used + leave}", self.folder)

    def _remount(self, how: str) -> bool:
        done = subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], capture_output=True, check=False)
        return done.returncode == 0

    def close(self) -> None:
        """Unmount; a process that still works in it keeps it until its own end."""
        for folder in (self.folder, self._top):
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
        with contextlib.suppress(FileNotFoundError):
            self._image.unlink()


def _run(*words: str | os.PathLike[str]) -> str:
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _fill(path: Path, leave: int) -> None:
    """Write zeros until nothing more goes in, then give `leave` bytes back."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        for size in (_MB, 4096, 512):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    os.fsync(file.fileno())
    if leave:
        os.truncate(path, max(0, path.stat().st_size - leave))


@contextlib.contextmanager
def immutable(folder: Path) -> Iterator[Callable[[], None]]:
    """Let nobody, root included, change what `folder` holds (chattr(1)); yields what ends it."""
    need_root()
    _run("chattr", "+i", folder)
    over = threading.Event()

    def end() -> None:
        if not over.is_set():
            _run("chattr", "-i", folder)
            over.set()

    try:
        yield end
    finally:
        end()
