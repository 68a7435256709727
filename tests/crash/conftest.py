"""One operator a test process, folders in memory where there is room, and the number of points at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crash.harness import EXHAUSTIVE, Operator
from spool.creation import SPOOL_UMASK

SHM = Path("/dev/shm")
ROOM_BYTES = 32 << 20


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    made = Operator(tmp_path_factory.mktemp("operator") / "log")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """That of the programs."""
    before = os.umask(SPOOL_UMASK)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; in memory, because a killed process loses nothing that it has written, synced or not."""
    if not SHM.is_dir() or not os.access(SHM, os.W_OK) or shutil.disk_usage(SHM).free < ROOM_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="mint-crash-", dir=SHM) as name:
        yield Path(name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many points were made, here and in the workers: in all, and with `MINT_EXHAUSTIVE` of each operation."""
    each: dict[str, int] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name.startswith("points, "):
                each[name] = each.get(name, 0) + int(value)
    total: dict[str, int] = {}
    for name, value in each.items():
        kind = name.rpartition(", ")[2] if name.endswith((", killed", ", failed")) else "in whole programs"
        total[f"crash points, {kind}"] = total.get(f"crash points, {kind}", 0) + value
    for name, value in sorted({**total, **(each if EXHAUSTIVE else {})}.items()):
        terminalreporter.write_line(f"{name}: {value}")
