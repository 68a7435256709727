"""How far the wall clock can be believed: a clock that jumps forward and is set back must not have expired anything.

A computer's clock is wrong for a while after a boot (a local-time RTC, before NTP) or after a slip of a hand. So a jump forward
counts only once it has stood for `settle_s` by the monotonic clock; until then time goes on along the old line. A jump back is
believed at once: it expires nothing. A process that starts within the first `settle_s` of the computer's uptime believes nothing
before those are over. What is no deadline (records, the order of the queue, tokens) follows the wall clock as it is.
"""

from __future__ import annotations

import threading
import time
from typing import Callable

from spool import log

SETTLE_S = 300.0
STEP_S = 30.0  # what NTP, a slow round or a busy machine may make of it without being called a jump


class Clock:
    """The wall clock beside the monotonic one. Threads may share one; look at it (`certain`) in every round."""

    def __init__(self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.settle_s = SETTLE_S
        self._wall = wall
        self._steady = steady
        self._lock = threading.Lock()
        # How far the wall clock is ahead of the monotonic one: as it is believed, and as it has been seen since `_seen_at`.
        # Linux counts the monotonic clock from the boot.
        self._seen, self._seen_at = wall() - steady(), 0.0 if steady() >= SETTLE_S else steady()
        self._believed = self._seen if steady() >= SETTLE_S else float("-inf")

    def now(self) -> float:
        """Return the seconds since 1970 as the wall clock has them."""
        return self._wall()

    def certain(self) -> float:
        """Return an instant (seconds since 1970) that has passed for certain; never later than the wall clock's."""
        with self._lock:
            wall, steady = self._wall(), self._steady()
            ahead = wall - steady
            if abs(ahead - self._seen) > STEP_S:
                self._tell(ahead)
                self._seen_at = steady
            self._seen = ahead
            if ahead <= self._believed + STEP_S:
                self._believed = ahead
            elif steady - self._seen_at >= self.settle_s:
                log.info("clock_settled", by_s=f"{ahead - self._believed:.0f}")
                self._believed = ahead
            return self._believed + steady

    def _tell(self, ahead: float) -> None:
        by_s = ahead - self._seen
        log.warning(
            "clock_jumped", by_s=f"{by_s:.0f}", hint="correct the clock of this computer (NTP)",
            why=f"no deadline counts by it before it has stood for {self.settle_s:g} s" if by_s > 0 else "",
        )  # fmt: skip
