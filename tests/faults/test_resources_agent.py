"""The agent's base full, out of inodes, over quota, read-only, no descriptors: what it has waits, the loop goes on."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.company import Company
from agent.wire import Act, Rule, Wire, once
from components.disks import SHORTAGES, Disk, immutable
from components.figures import tell
from components.process import Process
from components.waiting import stays, wait_until

pytestmark = pytest.mark.slow
FIGURES: Counter[str] = Counter()


class Short(Company):
    """A company whose agent's base is a small disk; `gate` is a file elsewhere that its commands wait for."""

    def __init__(self, root: Path, shortage: str) -> None:
        super().__init__(root)
        self.shortage = shortage
        self.disk = Disk(self.folder / "base", shortage, mode=0o700)
        self.gate = root / "gate"
        self.starts = root / "starts"
        if shortage == "read_only":  # an open file keeps a disk writable, and the agent's lock is one: that lies elsewhere
            control = self.folder / "base" / f".mint-spool-{os.geteuid()}"
            Disk(control, "full", size_mb=4, mode=0o700)
        self.serve()
        self.begin()

    def begin(self, **more: Any) -> Process:
        return self.start(min_free="64K", slots=2, **more)

    def waiting(self, name: str = "one", *, more: str = ":") -> str:
        """A job that notes its start outside, does `more` and waits for the gate, its result written."""
        script = f"echo {name} >結果.dat; echo {name} >>{self.starts}; {more}; until [ -e {self.gate} ]; do sleep 0.05; done"
        return self.sh(script, outputs=("結果.dat",))

    def said(self, *words: str, any_of: tuple[str, ...] = ("",)) -> None:
        """Until one line of the agent's log holds all of these, and one of those."""
        agent = self.agent
        assert agent

        def fits(line: str) -> bool:
            return all(word in line for word in words) and any(word in line for word in any_of)

        wait_until(lambda: any(map(fits, agent.output().splitlines())), 60, f"it says {words}, {any_of}")

    def close(self) -> None:
        super().close()
        self.disk.close()


@pytest.fixture
def make_wire() -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def make(port: int, rule: Rule) -> Wire:
        made.append(Wire(port, rule))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.fixture(params=SHORTAGES)
def short(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Short]:
    made = Short(tmp_path / "rig", request.param)
    yield made
    made.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Short]:
    made = Short(tmp_path / "rig", "full")
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _figures() -> Iterator[None]:
    yield
    tell(f"resources, agent: {dict(FIGURES)}")


def test_nothing_new_is_taken_and_nothing_is_refused(short: Short) -> None:
    """Every job that waits would fail one after the other, if the agent claimed what it cannot take."""
    first = short.waiting()
    wait_until(short.starts.exists, 60, "the first command runs")
    short.is_at(first, "running", deadline_s=60)
    if short.shortage == "read_only":  # the command's own log keeps the disk writable
        short.gate.touch()
        short.completed(first, 60)
    short.disk.take()
    second, third = short.sh("true"), short.sh("true")
    short.said("event=no_space", "hint=")
    # A sync that was waiting at MInt with room may still have brought one.
    states = ("queued", "claimed")
    stays(lambda: all(short.rig.state(job).get("state", "queued") in states for job in (second, third)), 4, "they wait")
    short.disk.give()
    short.gate.touch()
    assert [short.completed(job, 90) for job in (first, second, third)] == [{"結果.dat": b"one\n"}, {}, {}]
    assert short.starts.read_text().split() == ["one"]
    FIGURES["shortages ridden out"] += 1


def test_permission_comes_while_nothing_can_be_written(short: Short, make_wire: Callable[..., Wire]) -> None:
    """Between the permission and the start: it waits, and then starts once."""
    assert short.agent
    short.agent.close()
    short.gate.touch()
    hold = Act(hold_answer=0)
    wire = make_wire(short.rig.port, once(lambda request: request.path.endswith("/files/job.json"), hold))
    short.begin(url=wire.url)
    job = short.waiting()
    wait_until(lambda: wire.of("GET", "/files/job.json"), 60, "the agent fetches")
    with immutable(short.rig.job(job)) as permit:  # MInt cannot write that it may start
        hold.go.set()
        wait_until(lambda: '"ready": true' in _text(short.local(job) / "state.json"), 60, "only the permission is missing")
        short.disk.take()
        permit()
    # which of the two, an inode decides that another file has given back just then
    short.said("hint=", any_of=("event=tried_again", "event=runner_failed"))
    assert short.rig.state(job)["state"] == "running"
    short.disk.give()
    assert short.completed(job, 90) == {"結果.dat": b"one\n"}
    assert short.starts.read_text().split() == ["one"]
    FIGURES["starts put off"] += 1


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_command_that_fills_the_disk(full: Short) -> None:
    """Its end, and that of the job beside it, are recorded and measured when there is room again."""
    beside = full.waiting("beside")
    wait_until(full.starts.exists, 60, "the first command runs")
    filling = full.waiting("filling", more="cat /dev/zero >big 2>&-; [ -s big ]")
    wait_until(lambda: os.statvfs(full.disk.folder).f_bavail == 0, 60, "the command has filled the disk")
    full.gate.touch()
    stays(lambda: {full.rig.state(job)["state"] for job in (beside, filling)} <= {"running"}, 3, "both wait")
    (full.local(filling) / "work" / "big").unlink()
    assert full.completed(beside, 90) == {"結果.dat": b"beside\n"}
    ended = full.ended(filling, 90)
    assert ended["state"] in ("completed", "failed"), ended
    assert ended.get("reason", "") in ("", "exit_nonzero", "no_outputs"), "the command's own fault, not the carrier's"
    assert sorted(full.starts.read_text().split()) == ["beside", "filling"]
    FIGURES["disks filled by a command"] += 1


def test_results_that_find_no_room_to_be_measured(full: Short) -> None:
    """What leaves is copied first: 15 of 24 MB cannot be."""
    job = full.sh("head -c 15000000 /dev/urandom >big.dat", outputs=("big.dat",))
    other = full.sh("true")
    full.said("step=measure", "No space left", "hint=")
    full.is_at(job, "running")
    full.disk.grow(64)
    assert len(full.completed(job, 90)["big.dat"]) == 15_000_000
    assert full.completed(other, 90) == {}
    FIGURES["results measured later"] += 1


def test_a_cancel_reaches_a_command_whose_disk_is_full(full: Short) -> None:
    job = full.waiting()
    full.is_at(job, "running", deadline_s=60)
    wait_until(full.starts.exists, 60, "the command runs")
    full.disk.take()
    full.rig.spoolctl("cancel", job)
    full.said("event=runner_failed", "hint=")
    assert full.rig.state(job)["state"] == "running", "not confirmed, so not over"
    full.disk.give()
    assert full.ended(job, 90)["state"] == "canceled"


def test_too_many_open_files(full: Short) -> None:
    job = full.waiting()
    full.is_at(job, "running", deadline_s=60)
    agent = full.agent
    assert agent
    before = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (5, before[1]))
    full.gate.touch()
    full.said("Too many open files")
    assert full.rig.state(job)["state"] == "running"
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)
    assert full.completed(job, 90) == {"結果.dat": b"one\n"}
    assert agent.running
    FIGURES["out of descriptors"] += 1
