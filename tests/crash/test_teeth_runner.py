"""What the runner's header promises to be durable is: sync(1) is called on it before its rename, and on the folder after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.waiting import wait_until
from crash.stubs import Stubs
from spool.runner import LocalRunner, install, write_run

Call = list[str]


class Ran:
    """One job folder, prepared, started and ended, or canceled; `calls` are those of mv(1) and sync(1)."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path / "ジョブ"
        (self.folder / "in").mkdir(parents=True)
        (self.folder / "in" / "beam.inp").write_text("1")
        write_run(self.folder, ["/bin/sh", "-c", "cat beam.inp >beam.dat"], {})
        self.runner = LocalRunner(install(tmp_path / "base"))
        self.stubs = Stubs(tmp_path / "bin", "mv", "sync")
        monkeypatch.setenv("PATH", self.stubs.path)

    def end(self) -> None:
        self.runner.start(self.folder)
        wait_until((self.folder / "run" / "exit").exists, 60, "the command has ended")
        # The supervisor syncs the folder after the rename that made the file.
        wait_until(lambda: "ended: exit 0" in (self.folder / "log" / "runner.log").read_text(), 60, "the end is recorded")

    def around(self, name: str) -> tuple[list[Call], Call, list[Call]]:
        """The calls before the one mv(1) that made `name`, that one, and those after it."""
        calls = self.stubs.calls()
        (number,) = [number for number, words in enumerate(calls) if words[0] == "mv" and words[-1].endswith(f"/{name}")]
        return calls[:number], calls[number], calls[number + 1 :]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return Ran(tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_copy_of_the_inputs(ran: Ran) -> None:
    ran.runner.prepare(ran.folder)
    before, moved, after = ran.around("work")
    assert any(words[0] == "sync" and words[-1] == moved[-2] for words in before)
    assert ["sync", str(ran.folder)] in after


@pytest.mark.slow
def test_the_latch_and_the_end(ran: Ran) -> None:
    ran.runner.prepare(ran.folder)
    ran.end()
    run = ran.folder / "run"
    before, moved, after = ran.around("started/by")
    written = next(words[-2] for words in before if words[0] == "mv" and words[-1] == moved[-2])
    assert ["sync", written] in before, "who took it"
    assert ["sync", str(run / "started")] in after
    assert ["sync", str(run)] in after
    before, moved, after = ran.around("run/exit")
    assert ["sync", moved[-2]] in before
    assert ["sync", str(run)] in after


@pytest.mark.slow
def test_the_wish_to_cancel_and_the_withdrawal(ran: Ran) -> None:
    ran.runner.prepare(ran.folder)
    run = ran.folder / "run"
    (run / "started").mkdir()
    (run / "started" / "by").write_text("2 1 another-boot\n")
    assert ran.runner.cancel(ran.folder).word == "canceled"
    before, moved, after = ran.around("run/cancel")
    assert ["sync", moved[-2]] in before
    assert ["sync", str(run)] in after
    *_, after = ran.around("started/withdrawn")
    assert ["sync", str(run / "started")] in after


@pytest.mark.slow
def test_what_was_found_dead(ran: Ran) -> None:
    """Called lost: that it cannot start any more is durable, or decided again in the same way."""
    ran.runner.prepare(ran.folder)
    run = ran.folder / "run"
    (run / "started").mkdir()
    (run / "started" / "by").write_text("2 1 another-boot\n")
    assert ran.runner.status(ran.folder).word == "lost"
    assert (run / "started" / "abandoned").exists()
    assert ran.runner.start(ran.folder).word == "lost"
