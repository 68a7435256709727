"""The heads of the sites' audit logs, as agents tell them with each sync and gates with their answers (docs/security.md).

`sites/SITE.audit.jsonl` gets a line whenever an agent's head has changed, at most one a minute, so that what is cut off at a
site, or written anew, is found by ``spool_agent.py audit verify --head @FILE``. A head that went back is told at once.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.errors import SpoolError
from spool.files import append_line
from spool.instants import utc_now
from spool.paths import SpoolPaths

EVERY_S = 60.0

HEAD = re.compile(r"(0|[1-9][0-9]{0,14}):[0-9a-f]{64}")

AgentKey = tuple[str, str, str]  # site, user, the agent's own name


class Heads:
    """Keeps what was told; a line that cannot be written is tried again with the next sync."""

    def __init__(self, paths: SpoolPaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._last: dict[AgentKey, tuple[str, float]] = {}
        self._told: dict[AgentKey, str] = {}
        self._read: set[str] = set()

    def note(self, key: AgentKey, head: str, *, last_word: bool = False) -> None:
        """Keep `head` (``NUMBER:SHA-256``) where it is another one than was written last; at once where it is a `last_word`."""
        with self._lock:
            self._take_up(key[0])
            last, at = self._last.get(key, ("", float("-inf")))
            told = self._told.get(key, last)
            back = went_back(told, head)
            self._told[key] = told if back else head
            if head == last or (not back and not last_word and time.monotonic() - at < EVERY_S):
                return
            if self._write(key, head, before=told if back else ""):
                self._last[key], self._told[key] = (head, time.monotonic()), head

    def is_behind(self, key: AgentKey, head: str) -> bool:
        """True where a head was told already that `head` cannot follow."""
        with self._lock:
            self._take_up(key[0])
            return went_back(self._told.get(key, self._last.get(key, ("", 0.0))[0]), head)

    def _take_up(self, site: str) -> None:
        """Read what an earlier start of the server has written, once."""
        if site in self._read:
            return
        try:
            for told in read_heads(self._paths.heads(site)):
                self._last[site, told["user"], told["agent"]] = (told["head"], float("-inf"))
            self._read.add(site)
        except OSError as exc:
            log.warning("contact_not_written", site=site, why=exc)

    def _write(self, key: AgentKey, head: str, before: str) -> bool:
        site, user, agent = key
        more = {"before": before} if before else {}
        if before:
            log.error("audit_went_back", site=site, user=user, agent=agent, head=head, before=before,
                      hint="the site's audit log was cut off, written anew or restored: ask the site")  # fmt: skip
        value = {"at": utc_now(), "user": user, "agent": agent, "head": head, **more}
        try:
            append_line(self._paths.heads(site), jsonio.dumps_line(value))
        except OSError as exc:  # the call itself goes on
            log.warning("contact_not_written", site=site, why=exc)
            return False
        return True


def went_back(last: str, head: str) -> bool:
    """True where `head` cannot follow `last`: a smaller number, or the same one with another hash."""
    if not last or head == last:
        return False
    return int(head.partition(":")[0]) <= int(last.partition(":")[0])


def read_heads(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of heads, oldest first; none where it is not there. What cannot be read is passed over."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(SpoolError):
                told = jsonio.loads(line, path.name)
                if all(isinstance(told.get(name), str) for name in ("at", "user", "agent", "head")):
                    yield told
