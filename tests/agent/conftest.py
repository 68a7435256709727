"""A company with its agent, and lines that misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.company import Company
from agent.wire import Rule, Wire


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    """A running server; the agent is started by the test."""
    made = Company(tmp_path / "rig")
    made.serve()
    yield made
    made.close()


@pytest.fixture
def make_wire() -> Iterator[Callable[..., Wire]]:
    """`make_wire(port, rule)`: a line to that port."""
    made: list[Wire] = []

    def make(port: int, rule: Rule | None = None) -> Wire:
        made.append(Wire(port, rule))
        return made[-1]

    yield make
    for wire in made:
        wire.close()
