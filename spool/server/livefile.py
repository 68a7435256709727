"""A small file of secrets, read again when it changes: `tokens.json`, `users.json` (docs/operations.md, "Tokens and users").

Guarantees: what the file says counts at the next request. A file that has become unreadable, torn or somebody else's leaves the
last good contents in force, logged once and told by /health: nobody is locked out by a slip, and nobody new gets in. A file that
is gone holds nothing. Without any good contents every reader gets `ConfigError`.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Callable, Generic, TypeVar

from spool import jsonio, log
from spool.errors import ConfigError, SpoolError
from spool.fields import Fields
from spool.files import read_record

T = TypeVar("T")
RACY_NS = 100_000_000  # a change within this of the last look may have left size and times as they were


class LiveFile(Generic[T]):
    """The file `path`, whose records `parse` reads out of its JSON object. Threads may share one."""

    def __init__(self, path: Path, parse: Callable[[Fields], tuple[T, ...]]) -> None:
        self.path = path
        self.problem = ""
        self._parse = parse
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._good: tuple[T, ...] | None = None

    def get(self) -> tuple[T, ...]:
        """Return what counts now; none where there is no file."""
        with self._lock:
            try:
                info = os.stat(self.path)
            except FileNotFoundError:
                return self._gone()
            except OSError as exc:
                return self._last_good(None, ConfigError(f"{self.path}: {exc.strerror}", hint="correct the modes of its folders"))
            seen = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            if seen == self._seen:
                return self._last_good(seen, None)
            racy = 0 <= time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) < RACY_NS
            settled = None if racy else seen
            try:
                good = self.read()
            except ConfigError as exc:  # looked at again each time: what stood in the way may pass without the file changing
                return self._last_good(None, exc)
            if self.problem:
                log.info("secrets_read_again", file=self.path)
            self._good, self._seen, self.problem = good, settled, ""
            return good

    def _gone(self) -> tuple[T, ...]:
        if self._good:
            self.problem = f"{self.path.name} is gone: nobody counts"
            log.error("secrets_unusable", file=self.path, why="it is gone: nobody counts", hint="put it back")
        self._good, self._seen = (), None
        return ()

    def _last_good(self, seen: tuple[int, ...] | None, why: ConfigError | None) -> tuple[T, ...]:
        if why is not None:
            if self.problem != why.message:
                hint = f"{why.hint}; the last good contents count until then"
                log.error("secrets_unusable", file=self.path, why=why, hint=hint)
            self._seen, self.problem = seen, why.message
        if self._good is None:
            raise ConfigError(f"{self.path.name} cannot be used", hint="an operator finds why in the server's log")
        return self._good

    def read(self) -> tuple[T, ...]:
        """Return what stands in the file, for whoever is about to change it; `ConfigError` where it cannot be used."""
        try:
            _check_owner(self.path)
            fields = Fields(jsonio.loads(read_record(self.path, jsonio.MAX_BYTES), self.path.name), self.path.name)
            fields.format()
            return self._parse(fields)
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise ConfigError(f"{self.path} cannot be read: {exc.strerror}", hint="run this as the owner of the spool") from exc
        except SpoolError as exc:
            raise ConfigError(f"{self.path} cannot be used: {exc.message}", hint=exc.hint or "restore it") from exc


def _check_owner(path: Path) -> None:
    """Raise unless only this program's account, root or the owner of the folder can have written the file.

    The members of the spool's group may rename what lies in its folder, so a file of theirs must not make them operators.
    """
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        info = os.stat(path)
    trusted = {os.geteuid(), 0, os.stat(path.parent).st_uid}
    if info.st_uid not in trusted or info.st_mode & 0o022:
        raise ConfigError(
            f"uid {info.st_uid}, mode {stat.S_IMODE(info.st_mode):o}: others could have written it",
            hint=f"see who made it; then chown it to the owner of the spool and chmod 600 {path.name}",
        )
