"""How far the wall clock is believed."""

from __future__ import annotations

import pytest

from spool.clock import SETTLE_S, Clock

START = 1_800_000_000.0
DAY = 86_400.0


class Hands:
    """Both clocks, moved by hand."""

    def __init__(self, uptime_s: float = 100_000.0) -> None:
        self.wall, self.steady = START, uptime_s
        self.clock = Clock(wall=lambda: self.wall, steady=lambda: self.steady)

    def after(self, seconds: float, jump: float = 0.0) -> float:
        """What is certain (after START) when so much has passed and the wall clock has jumped."""
        self.steady += seconds
        self.wall += seconds + jump
        return round(self.clock.certain() - START, 3)


def test_a_steady_clock_is_believed() -> None:
    hands = Hands()
    assert [hands.after(0), hands.after(10), hands.after(DAY), hands.after(5, jump=20)] == [0, 10, DAY + 10, DAY + 35]


def test_a_jump_forward_counts_when_it_has_stood() -> None:
    hands = Hands()
    assert hands.after(10, jump=DAY) == 10
    assert hands.after(SETTLE_S - 1) == SETTLE_S + 9
    assert hands.after(2) == SETTLE_S + 11 + DAY


def test_a_jump_that_is_set_right_was_nothing() -> None:
    hands = Hands()
    assert hands.after(10, jump=DAY) == 10
    assert hands.after(100, jump=-DAY) == 110
    assert hands.after(2 * SETTLE_S) == 110 + 2 * SETTLE_S


def test_each_jump_must_stand_by_itself() -> None:
    hands = Hands()
    assert hands.after(10, jump=DAY) == 10
    assert hands.after(SETTLE_S - 10, jump=DAY) == SETTLE_S
    assert hands.after(20) == SETTLE_S + 20
    assert hands.after(SETTLE_S) == 2 * SETTLE_S + 20 + 2 * DAY


def test_a_jump_back_counts_at_once() -> None:
    hands = Hands()
    assert [hands.after(10, jump=-3600), hands.after(10)] == [-3590, -3580]


def test_after_a_boot_nothing_is_certain_for_a_while() -> None:
    hands = Hands(uptime_s=20.0)
    assert hands.after(10) == float("-inf")
    assert hands.after(60, jump=-9 * 3600) == float("-inf"), "the real-time clock kept local time, NTP has set it right"
    assert hands.after(SETTLE_S) == 70 + SETTLE_S - 9 * 3600


def test_a_jump_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    hands = Hands()
    for jump in (0.0, DAY, 0.0, 0.0):
        hands.after(1, jump=jump)
    assert [record.getMessage().split()[:2] for record in caplog.records] == [["event=clock_jumped", "by_s=86400"]]
