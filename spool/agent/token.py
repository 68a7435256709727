"""The agent's token, read again whenever its file changes: a token that is replaced counts without a restart."""

from __future__ import annotations

import threading
from pathlib import Path

from spool import log
from spool.agent.config import read_token
from spool.errors import ConfigError


class Token:
    """The token as it stands now. `path` is its file; none where it came from the command line or a login."""

    def __init__(self, text: str, path: Path | None = None) -> None:
        self._text = text
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()

    def __call__(self) -> str:
        """Return the token. A file that cannot be used for now (half written, say) is logged, and the former token kept."""
        with self._lock:
            seen = self._look()
            if self._path is not None and seen != self._seen:
                self._seen = seen
                try:
                    former, self._text = self._text, read_token(self._path)
                    if former != self._text:
                        log.info("token_read_again", file=self._path, last4=self._text[-4:])
                except ConfigError as exc:
                    log.warning("token_not_read", why=exc, hint=f"{exc.hint}; the former token is used until then")
            return self._text

    def _look(self) -> tuple[int, ...]:
        try:
            info = self._path.stat() if self._path is not None else None
        except OSError:
            return (0,)
        return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) if info is not None else ()
