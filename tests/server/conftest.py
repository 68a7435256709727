"""One server process per test, and clients with every kind of token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.client import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A running server over an empty spool with the sites site-a and site-b."""
    made = Service(tmp_path / "rig")
    yield made
    made.close()
