"""What lies around a spool or an agent's base, and must neither change nor be read: every escape is seen here.

`outside/` holds canary files under the names that hostile paths ask for. `check` compares every file around with how it was, and
the product's own folders with what may stand in them. `CANARY` stands in each canary file: whoever is served it has escaped.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CANARY = b"canary-of-the-outside-1f6d0c"
NAMES = ("beam.inp", "beam.dat", "pwned", "job.json", "state.json", "stdout.txt", "stderr.txt", "a/b", "sub/beam.inp",
    "sub/beam.dat")


class Surroundings:
    """Watches `root` but for the folders in `but` (relative; what the product may write to). Make it before the attack."""

    def __init__(self, root: Path, but: Iterable[str]) -> None:
        self.root = root
        self.outside = root / "outside"
        self._but = {root / name for name in but}
        for name in NAMES:
            path = self.outside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CANARY + name.encode() + b"\n")
        self.before = self.snapshot()

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Path -> kind, mode, size, content, link's target, time of change; of folders without the time."""
        return tree(self.root, self._but)

    def check(self) -> None:
        """Fail where anything around has come, gone or changed."""
        after = self.snapshot()
        changed = sorted(path for path in {*self.before, *after} if self.before.get(path) != after.get(path))
        assert changed == [], f"changed around: {changed}"


def tree(root: Path, but: Iterable[Path] = ()) -> dict[str, tuple[object, ...]]:
    """Everything below `root`, and what tells whether it was changed."""
    found: dict[str, tuple[object, ...]] = {}
    left_out = set(but)
    for folder, dirs, files in os.walk(root):
        here = Path(folder)
        dirs[:] = [name for name in dirs if here / name not in left_out]
        for name in (*dirs, *files):
            path = here / name
            if path not in left_out:
                found[os.fsencode(path).decode("utf-8", "backslashreplace")] = _seen(path)
    return found


def _seen(path: Path) -> tuple[object, ...]:
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return kind, os.readlink(path)
    if stat.S_ISREG(info.st_mode):
        return kind, info.st_mode, info.st_size, info.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()
    return kind, info.st_mode


def odd_below(folder: Path) -> list[str]:
    """What is neither a plain file nor a folder, below a folder that may hold nothing else."""
    found = []
    for here, dirs, files in os.walk(folder):
        for name in (*dirs, *files):
            mode = os.lstat(os.path.join(here, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                found.append(os.path.join(here, name))
    return found


def holds_canary(folder: Path) -> list[str]:
    """The plain files below `folder` that hold a canary's words."""
    found = []
    for here, _, files in os.walk(folder):
        for name in files:
            path = Path(here) / name
            if stat.S_ISREG(os.lstat(path).st_mode) and CANARY in path.read_bytes():
                found.append(str(path))
    return found
