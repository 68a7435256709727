"""Every operation in the order that survives a power cut: synced before it is renamed, before the state, before the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.harness import Bench, Operator
from crash.operations import OPERATIONS
from crash.ordering import Order, calls, unsynced_at_publishing

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")

PUBLISHING = ("submit", "accept", "accept a copy", "register")


@pytest.mark.parametrize("name", OPERATIONS)
def test_synced_in_time(name: str, operator: Operator, folder: Path) -> None:
    bench = Bench(operator, folder, name)
    recorded = bench.run()
    assert Order(bench.root, bench.there).follow(recorded) == []
    assert unsynced_at_publishing(bench.root, recorded) == []
    published = [call for call in recorded if call.name == "rename" and Path(call.paths[-1]).parent == bench.root / "jobs"]
    assert bool(published) == (name in PUBLISHING)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['openat(AT_FDCWD</>, "/s/jobs/.a.0.tmp", O_WRONLY|O_CREAT, 0660) = 5</s/jobs/.a.0.tmp>',
          'write(5</s/jobs/.a.0.tmp>, "x", 1) = 1', 'rename("/s/jobs/.a.0.tmp", "/s/jobs/a") = 0', "fsync(5</s/jobs>) = 0"],
         "before: renamed to jobs/a; jobs/a was not"),
        (['write(5</s/a>, "x", 1) = 1'], "a was not synced before: acknowledged"),
        (['mkdir("/s/queue/x", 0770) = 0'], "queue/ was not synced"),
        (['mkdirat(5</s/queue>, "x", 0770) = 0', "fsync(5</s/queue>) = 0"], ""),
        (['write(5</s/a>, "x", 1) = 1', "fsync(5</s/a>) = -1 EIO (Input/output error)"], "a was not synced"),
        (['rename("/s/tmp/b", "/s/jobs/a") = 0'], "jobs/ was not synced"),
        (['write(5</s/journal/a>, "x", 1) = 1', 'mkdir("/s/tmp/x", 0770) = 0'], ""),
    ],
)  # fmt: skip
def test_a_missing_sync_is_seen(lines: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "recording").write_text("\n".join(lines) + "\n")
    wrong = Order(Path("/s")).follow(calls(tmp_path / "recording"))
    assert len(wrong) == (told.count(";") + 1 if told else 0), wrong
    assert told in "; ".join(wrong)
