"""Every operation, killed before each change that it makes and with each of them failing: nothing is lost, a repeat finishes."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from components.strace import ERRORS, KILL, Point
from crash.harness import EXHAUSTIVE, Bench, Operator
from crash.operations import OPERATIONS

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")

MANY = 150  # of an operation with more points, such as the making of 256 locks, CI takes this many, evenly spread


TIMEOUT_S = 7200 if EXHAUSTIVE else 600


def sample(found: list[Point]) -> list[Point]:
    """All of them, or without `MINT_EXHAUSTIVE` at most so many, always the same."""
    step = 1 if EXHAUSTIVE else max(1, -(-len(found) // MANY))
    return found[::step]


def hit_all(bench: Bench, chosen: list[tuple[Point, str]]) -> None:
    """Make all of them, and tell of all that went wrong at once."""
    wrong = []
    for point, fault in chosen:
        try:
            bench.hit(point, fault)
        except Exception as exc:  # noqa: BLE001 - each is told below
            wrong.append(f"{point.inject(fault)} at {point.text}\n    {type(exc).__name__}: {exc}")
    assert not wrong, f"{len(wrong)} of {len(chosen)} points:\n" + "\n".join(wrong[:20])


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_anywhere(
    name: str, operator: Operator, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    bench = Bench(operator, folder, name)
    found = sample(bench.record())
    hit_all(bench, [(point, KILL) for point in found])
    record_property(f"points, {name}, killed", len(found))


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_disk_fails_anywhere(
    name: str, operator: Operator, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each call fails once; in CI with one of the errors, which take turns."""
    bench = Bench(operator, folder, name)
    found = sample(bench.record())
    each = [(point, f"error={word}") for point in found for word in ERRORS]
    chosen = each if EXHAUSTIVE else [(point, f"error={ERRORS[number % 4]}") for number, point in enumerate(found)]
    hit_all(bench, chosen)
    record_property(f"points, {name}, failed", len(chosen))
