"""The part of `spoolctl check` that looks at what a spool stands on: disk, locks, configuration, token file.

The only writes are one lock file of its own under `tmp/`, removed again.
"""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from spool.config import SpoolConfig, default_config, find_config, read_config
from spool.ctl.findings import Finding, problem, remark
from spool.ctl.tokenfile import token_path
from spool.errors import SpoolError
from spool.files import free_bytes
from spool.locks import file_lock
from spool.paths import SpoolPaths
from spool.server.tokens import TokenFile

_FEW_INODES = 1000
_NEARLY_FULL = 0.95
# Run in another process, because a process does not exclude itself on every file system.
_TRY_LOCK = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def surroundings(paths: SpoolPaths) -> Iterator[Finding]:
    """Yield what is wrong around the spool."""
    config = default_config()
    try:
        config = _config(paths)
    except SpoolError as exc:
        yield problem("config_wrong", why=exc.message, do=exc.hint)
    if config.source is None and not os.path.lexists(paths.ini):
        yield remark("no_ini", path=paths.ini)
    yield from _disk(paths.root, config.server["min_free"])
    yield from _tokens(token_path(paths, config))
    if paths.tmp.is_dir():
        yield from _locking(paths.tmp)


def _config(paths: SpoolPaths) -> SpoolConfig:
    ini = find_config(None, paths.root)
    if ini is None and paths.ini.is_symlink():
        ini = paths.ini  # a link that leads nowhere: reading it says so
    return read_config(ini) if ini else default_config()


def _disk(root: Path, min_free: int) -> Iterator[Finding]:
    info, free = os.statvfs(root), free_bytes(root)
    if free < min_free:
        yield problem("disk_low", free=free, needed=min_free)
    elif info.f_blocks and info.f_bavail < (1 - _NEARLY_FULL) * info.f_blocks:
        yield remark("disk_nearly", part=f"{_NEARLY_FULL:.0%}", free=free)
    if info.f_files and info.f_favail < _FEW_INODES:
        yield problem("inodes", free=info.f_favail)
    if info.f_flag & os.ST_RDONLY:
        yield problem("read_only")


def _tokens(path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            yield problem("tokens_open", path=path, mode=f"{stat.S_IMODE(mode):04o}", do=f"chmod 600 {path}")
        TokenFile(path).all()
    except FileNotFoundError:
        return
    except PermissionError:
        yield remark("tokens_denied")
    except SpoolError as exc:
        yield problem("tokens_wrong", why=exc.message, do=exc.hint)


def _locking(tmp: Path) -> Iterator[Finding]:
    path = tmp / f"check.{secrets.token_hex(8)}.lock"
    release = f"filelock {importlib.metadata.version('filelock')}"
    try:
        with file_lock(path, timeout_s=5):
            if _another_gets(path):
                yield problem("locks_same")
        if not path.exists():
            yield problem("locks_unlinked", release=release)
    except (SpoolError, OSError, NotImplementedError) as exc:
        yield problem("locks_failed", why=exc)
    finally:
        path.unlink(missing_ok=True)


def _another_gets(path: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", _TRY_LOCK, str(path)], stderr=subprocess.DEVNULL, check=False, timeout=60)
    return done.returncode == 0
