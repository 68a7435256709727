"""A whole pass of the push, struck at each of its steps and cut after any number of bytes: the job completes, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from components.figures import tell
from components.sshd import Sshd
from ssh.conftest import lines
from ssh.lanes import EXHAUSTIVE, Lane, lanes

Sweep = Callable[[Any, Callable[[Lane, Any], bool]], int]
Record = Callable[[str, object], None]

STEPS = (
    "install", "enter", "send", "sums in", "prepare", "status", "start", "sums work", "sums log", "fetch", "delivered", "clean",
)  # fmt: skip
WAYS = ("after\tcut", "before\tkill", "after\treboot", "before\tcut", "after\tkill", "before\treboot")
BYTES = 600 if EXHAUSTIVE else 40


@pytest.fixture
def sweep(tmp_path: Path, sshd: Sshd) -> Iterator[Sweep]:
    with lanes(tmp_path, sshd) as run:
        yield run


def undisturbed(lane: Lane) -> None:
    lane.check(lane.carry())


def no_runner(lane: Lane) -> None:
    """It is sent in the next pass, and the step that misses it is made twice."""
    for file in (lane.push.base / ".mint-spool").glob("runner-*"):
        file.unlink()


def all_points() -> list[tuple[str, int, str]]:
    places = [(kind, 0) for kind in STEPS] + [("enter", 1), ("status", 1), ("fetch", 1)]
    if EXHAUSTIVE:
        return [(kind, which, way) for kind, which in places for way in WAYS]
    spread = [(kind, which, WAYS[number % len(WAYS)]) for number, (kind, which) in enumerate(places)]
    return sorted({*spread, *(("start", 0, way) for way in WAYS)})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_struck_at_each_step(sweep: Sweep, record_property: Record) -> None:
    """Cut before or after a step (its answer is lost then), the push killed alone or with all that belongs to it."""

    def hit(lane: Lane, point: tuple[str, int, str]) -> bool:
        kind, which, way = point
        if kind == "install" or which == 1:
            no_runner(lane)
        (lane.folder / "plan").write_text(f"{kind}\t{which}\t{way}")
        lane.check(lane.carry())
        return (lane.folder / "plan.done").exists()

    def seen(lane: Lane, _: int) -> bool:
        no_runner(lane)
        undisturbed(lane)
        assert set(lines(lane.folder / "steps")) == set(STEPS), "the steps of a pass are not what they were"
        return True

    assert sweep([0], seen) == 1
    points = all_points()
    met = sweep(points, hit)
    tell(f"ssh: {met} of {len(points)} strikes at {len(STEPS)} steps met, each job completed, each command started once")
    record_property("strikes, a pass of the push", met)
    assert met >= 0.9 * len(points), f"{met} of {len(points)}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cut_after_any_number_of_bytes(sweep: Sweep, record_property: Record) -> None:
    """The line is cut after N bytes from MInt to the site, or from there: N over a whole pass."""
    most: dict[str, int] = {}

    def measure(lane: Lane, _: int) -> bool:
        undisturbed(lane)
        most.update(zip(("up", "down"), lane.carried()))
        return True

    def hit(lane: Lane, point: tuple[str, int]) -> bool:
        (lane.folder / "cut").write_text(f"{point[0]} {point[1]}")
        lane.check(lane.carry())
        return (lane.folder / "cut.done").exists()

    sweep([0], measure)
    points = [(way, most[way] * number // (BYTES // 2)) for way in ("up", "down") for number in range(1, BYTES // 2)]
    met = sweep(points, hit)
    tell(f"ssh: {met} of {len(points)} cuts over {most['up']} bytes there, {most['down']} back met, each job completed once")
    record_property("cuts, a pass of the push", met)
    assert met >= 0.8 * len(points), f"{met} of {len(points)}"
