"""File systems in an image file, mounted by a loop device, and their power cuts.

A *cut* is the file system's own shutdown (ioctl_xfs_goingdown(2), flag NOLOGFLUSH): what was not written to the device, and the
part of the journal that was not flushed, are gone; from then on everything answers EIO. A *snapshot* is a copy of the image
by shared blocks (FICLONE), made at one instant while the file system is at work: the same, and the work goes on.
Mounting either replays the journal, as after a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from components import proc
from components.process import run
from components.waiting import wait_until

_SHUTDOWN = 0x8004587D
_NOLOGFLUSH = 2
_FICLONE = 0x40049409
SHM = Path("/dev/shm")
MIB = 1 << 20

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-m", "single"],
}
# Nothing is to reach the device by itself within a test: what does was synced.
OPTIONS = {"ext4": "commit=300", "xfs": "nouuid", "btrfs": "commit=300"}
SIZE_MIB = 400  # sparse; mkfs.xfs wants 300


class Image:
    """One file system of a `kind` of MKFS in the file `path`, mounted at `mount_point`; `close` unmounts it."""

    def __init__(self, path: Path, kind: str, mount_point: Path, *, fresh: bool = True, size_mib: int = SIZE_MIB) -> None:
        self.path, self.kind, self.mount_point = path, kind, mount_point
        if fresh:
            with open(path, "wb") as file:
                file.truncate(size_mib * MIB)
            run([*MKFS[kind], path])
        mount_point.mkdir(parents=True, exist_ok=True)

    @property
    def mounted(self) -> bool:
        # os.path.ismount is False where the root answers EIO.
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return str(self.mount_point.absolute()) in (line.split()[4] for line in lines)

    def mount(self) -> None:
        """Replays the journal where there is something to replay."""
        run(["mount", "-o", f"loop,{OPTIONS[self.kind]}", self.path, self.mount_point])

    def unmount(self) -> None:
        """Whoever was killed a moment ago may still hold a file open."""
        wait_until(lambda: run(["umount", self.mount_point], check=False).returncode == 0, 60, f"{self.mount_point} is unmounted")

    def sync(self) -> None:
        """All that was written is durable."""
        run(["sync", "-f", self.mount_point])

    def shut_down(self) -> None:
        """The cut itself."""
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(fd)

    def cut(self, pids: Callable[[], list[int]] = list) -> None:
        """Power off: the processes `pids` stop at one moment, with them what was not synced; then power on: it is mounted again.

        They are frozen first, because none may see the EIO of the others' disk, or the others' end.
        """
        frozen: set[int] = set()
        while more := set(pids()) - frozen:  # what they started before they stopped
            proc.kill(sorted(more), signal.SIGSTOP)
            frozen |= more
            wait_until(partial(_stand_still, more), 60, "what is cut off stands still")
        self.shut_down()
        proc.kill(sorted(frozen))
        wait_until(lambda: not any(map(proc.alive, frozen)), 60, "what was cut off is gone")
        self.unmount()
        self._move_on()
        self.mount()

    def _move_on(self) -> None:
        """A mount namespace that others made meanwhile may keep the dead file system, and with it the loop device: so from here
        on in a copy of the file.
        """
        copy = self.path.with_name(f"{self.path.name}+")
        run(["cp", "--sparse=always", self.path, copy])
        copy.replace(self.path)

    def snapshot(self, target: Path) -> None:
        """What a power cut at this instant would leave; `target` lies beside the image, on a file system with reflinks."""
        with open(self.path, "rb") as source, open(target, "wb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())

    def close(self) -> None:
        """Always leaves no mount behind: where something still works in it, the mount goes as soon as that ends."""
        proc.kill(proc.working_in(self.mount_point))
        while self.mounted:
            run(["umount", "-l", self.mount_point])


def _stand_still(pids: set[int]) -> bool:
    """One in the middle of a system call (D) counts as well: it comes no further than the call's end."""
    processes = map(proc.stat, pids)
    return not any(process is not None and process.state in "RS" for process in processes)


@contextlib.contextmanager
def image_of(kind: str, mount_point: Path) -> Iterator[Image]:
    """A fresh mounted file system; its image lies in memory where there is room."""
    with _place() as folder:
        image = Image(folder / "image", kind, mount_point)
        try:
            image.mount()
            yield image
        finally:
            image.close()


@contextlib.contextmanager
def image_with_snapshots(kind: str, mount_point: Path) -> Iterator[Image]:
    """The same, its image file on a file system that can copy it by shared blocks."""
    with _place() as folder:
        outer = Image(folder / "outer", "xfs", folder / "below", size_mib=SIZE_MIB * 4)
        try:
            outer.mount()
            image = Image(outer.mount_point / "image", kind, mount_point)
            try:
                image.mount()
                yield image
            finally:
                image.close()
        finally:
            outer.close()


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    in_memory = SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 2 * SIZE_MIB * MIB
    with tempfile.TemporaryDirectory(prefix="mint-image-", dir=SHM if in_memory else None) as name:
        yield Path(name)
