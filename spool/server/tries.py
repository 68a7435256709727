"""Counting bad tries (docs/operations.md, "Guessing"): never consulted for a token that counts, and never a wait for anybody.

Two counters, each for a minute: one address with one key (the beginning of a token, a user's name), and one address as a whole,
so that tokens that are new each time run into a limit too. Only who is wrong is answered 429; memory is bounded.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from typing import Callable

from spool.errors import TooManyTries

TRIES = 10
TRIES_OF_ADDRESS = 100
WINDOW_S = 60.0
MOST_TRACKED = 10_000


class _Windows:
    """(start, count) of a minute, for at most `MOST_TRACKED` keys: the one that was touched longest ago is forgotten."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()

    def count(self, key: tuple[str, ...], now: float, change: int) -> tuple[float, int]:
        """Change the count of `key` and return (when its minute began, the count)."""
        start, count = self._found.pop(key, (now, 0))
        if now - start >= WINDOW_S:
            start, count = now, 0
        count = max(0, count + change)
        if count:  # what only asks leaves no trace, so it cannot push out what counts
            self._found[key] = start, count
        if len(self._found) > MOST_TRACKED:
            self._found.popitem(last=False)
        return start, count


class Tries:
    """Bad tries of one kind; `tell` writes their line into the log, which a log watcher reads."""

    def __init__(self, tell: Callable[..., None], *, tries: int = TRIES, of_address: int = TRIES_OF_ADDRESS) -> None:
        self._tell = tell
        self._tries = tries
        self._of_address = of_address
        self._lock = threading.Lock()
        self._keys, self._addresses = _Windows(), _Windows()

    def note(self, address: str, key: str, *, what: str, **shown: str) -> None:
        """Count a bad try; raise `TooManyTries` after ten within a minute, or a hundred of the whole address.

        Each is one log line, up to the limit: whoever goes on beyond it does not fill the disk.
        """
        block, now = block_of(address), time.monotonic()
        with self._lock:
            of_key, of_address = self._keys.count((block, key), now, 1), self._addresses.count((block,), now, 1)
        if of_key[1] <= self._tries + 1 and of_address[1] <= self._of_address + 1:
            self._tell(address=address, tries=of_key[1], **shown)
        over = [start for start, count, limit in ((*of_key, self._tries), (*of_address, self._of_address)) if count > limit]
        if over:
            self._refuse(max(over), now, what)

    def take(self, address: str, key: str, *, what: str) -> None:
        """Count a try before it is judged; raise `TooManyTries` where there were too many with this key."""
        block, now = block_of(address), time.monotonic()
        with self._lock:
            start, count = self._keys.count((block, key), now, 0)
            if count < self._tries:
                self._keys.count((block, key), now, 1)
                return
        self._refuse(start, now, what)

    def took_well(self, address: str, key: str) -> None:
        """Take back a try that was judged good, or not judged at all."""
        with self._lock:
            self._keys.count((block_of(address), key), time.monotonic(), -1)

    def crowded(self, address: str) -> bool:
        """True where the address had as many bad tries as one key may have, with whatever keys."""
        with self._lock:
            return self._addresses.count((block_of(address),), time.monotonic(), 0)[1] >= self._tries

    @staticmethod
    def _refuse(start: float, now: float, what: str) -> None:
        wait_s = max(1, int(WINDOW_S - (now - start)) + 1)
        raise TooManyTries(f"too many bad {what} from here", retry_after_s=wait_s, hint="correct it, then wait")


def block_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, and of IPv6 the 64 bits that one customer gets."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
