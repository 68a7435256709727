"""The wall clock set forward a day and back an hour under running programs: no job is expired, lost or given up by it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.company import Company
from components.clocks import FakeClock
from components.figures import tell
from components.rig import Rig
from components.sshd import Sshd
from components.waiting import stays, wait_until
from server.client import Agent, Service, held
from spool.instants import from_epoch, to_epoch
from ssh.conftest import Pushed

pytestmark = pytest.mark.slow
FIGURES: Counter[str] = Counter()
DAY_S = 86_400


class Clocked(Service):
    """A server whose clock can be set, with an expiry round every half second.

    Its ini must not change while it runs: time.sleep, which waits for the file to settle, fails under libfaketime.
    """

    def __init__(self, root: Path, **options: str) -> None:
        root.mkdir()
        self.clock = FakeClock(root)
        super().__init__(root)
        self.process.close()
        self.rig.env.update(self.clock.env)
        self.options.update(unclaimed_s="2", claim_return_s="600", **options)
        self.process = self.rig.start_server(self.sites, **self.options)
        for name in self.clock.env:
            del self.rig.env[name]

    def jump(self, by: str) -> None:
        self.clock.jump(by)
        self.process.wait_for_output("event=clock_jumped", 30)


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Clocked]:
    made = Clocked(tmp_path / "rig")
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _figures() -> Iterator[None]:
    yield
    tell(f"resources, clock: {dict(FIGURES)}")


def in_s(seconds: float) -> str:
    return from_epoch(time.time() + seconds)


def test_a_day_ahead_and_back(clocked: Clocked) -> None:
    """Nothing is claimed that may be due, nothing is ended; set right, everything is as it was."""
    due = clocked.drop(expires_at=in_s(3600))
    started, silent = _two_runs(clocked)
    short = clocked.tokens.add("alice", ["agent"], [], expires_at=in_s(3600))[0]
    brief = Agent(clocked.port, short, "site-a", "agent-2")
    brief.sync(room=0)
    clocked.jump("+1d")
    brief("POST", "/v1/sync", brief.body(room=0)).problem(401)
    assert [job["want"] for job in clocked.agent.sync(held(started, "running"), held(silent), room=1)] == ["run", "fetch"]
    states = {due: "queued", started["id"]: "running", silent["id"]: "claimed"}
    stays(lambda: {job: clocked.rig.state(job)["state"] for job in states} == states, 3, "nothing ends")
    late = clocked.drop(wait=True, expires_at=in_s(7200))
    clocked.clock.jump("+0")
    wait_until(lambda: clocked.process.output().count("event=clock_jumped") == 2, 30, "the jump back is told")
    brief.sync(room=0)
    assert {job["id"] for job in clocked.agent.sync(held(started, "running"), held(silent), room=2)[2:]} == {due, late}
    assert clocked.agent.deliver(started, {"out/beam.dat": b"1"}).json["state"] == "completed"
    assert clocked.rig.spoolctl("check", check=False).returncode == 0
    FIGURES["jumps ridden out"] += 2


def _two_runs(clocked: Clocked) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run that is started and one that is claimed; what `due` is stays queued, for these are more urgent."""
    for _ in range(2):
        clocked.drop(priority=9, give_up_after_s=3600)
    started, silent = clocked.agent.sync(room=2)
    clocked.agent.sync(held(started, ready=True), held(silent), room=0)
    return started, silent


def test_a_clock_that_stands_is_believed(tmp_path: Path) -> None:
    """What is due is expired in the end: nothing waits for ever."""
    clocked = Clocked(tmp_path / "rig", clock_settle_s="2")
    try:
        due, other = clocked.drop(expires_at=in_s(3600)), clocked.drop()
        clocked.jump("+1d")
        state = clocked.rig.wait_state(due, "expired", deadline_s=60)
        assert "has passed" in state["message"]
        assert clocked.rig.state(other)["state"] == "queued"
        assert "event=clock_settled" in clocked.process.output()
    finally:
        clocked.close()


def test_an_hour_back(clocked: Clocked) -> None:
    """Jobs are taken in, claimed, run and delivered; instants go back, revisions do not."""
    before = clocked.drop()
    clocked.jump("-1h")
    after = clocked.drop()
    told = clocked.agent.sync(room=2)
    assert {job["id"] for job in told} == {before, after}
    clocked.agent.sync(*(held(job, ready=True) for job in told), room=0)
    for job in told:
        assert clocked.agent.deliver(job, {"out/beam.dat": b"1"}).json["state"] == "completed"
    lines = [json.loads(line) for line in (clocked.rig.job(before) / "history.jsonl").read_text().splitlines()]
    assert [line["revision"] for line in lines] == list(range(1, len(lines) + 1))
    back_s = to_epoch(lines[0]["at"]) - to_epoch(lines[1]["at"])
    assert 3000 < back_s < 3700, "as the clock said then"
    assert clocked.rig.spoolctl("check", check=False).returncode == 0
    FIGURES["jumps ridden out"] += 1


@pytest.mark.parametrize("by", ["+1d", "-1h"])
def test_the_agents_clock_jumps_while_a_command_runs(tmp_path: Path, by: str) -> None:
    company = Company(tmp_path / "rig")
    try:
        company.serve()
        clock, gate = FakeClock(company.rig.root), company.rig.root / "gate"
        company.start(env=clock.env)
        job = company.sh(f"until [ -e {gate} ]; do sleep 0.05; done; echo x >a.dat", outputs=("a.dat",), wall_time_s=3600)
        company.is_at(job, "running", deadline_s=60)
        clock.jump(by)
        stays(lambda: company.rig.state(job)["state"] == "running", 1.5, "it runs on")
        second = company.sh("true")
        assert company.completed(second, 60) == {}
        gate.touch()
        assert company.completed(job, 60) == {"a.dat": b"x\n"}
        FIGURES["jumps ridden out"] += 1
    finally:
        company.close()


def test_the_pushs_clock_jumps(tmp_path: Path, sshd: Sshd) -> None:
    (tmp_path / "rig").mkdir()
    push = Pushed(Rig(tmp_path / "rig"), sshd, sshd.home / "base", {"give_up_after_s": "3600", "slots": "1"})
    clock, gate = FakeClock(tmp_path / "rig"), sshd.home / "gate"
    push.rig.env.update(clock.env)
    try:
        process = push.start()
        job = push.sh(f"until [ -e {gate} ]; do sleep 0.05; done; echo x >a.dat", outputs=["a.dat"], wall_time_s=3600)
        push.rig.wait_state(job, "running", deadline_s=60)
        due = push.sh("true", expires_at=in_s(3600))
        push.rig.wait_state(due, "queued", deadline_s=60)
        clock.jump("+1d")
        process.wait_for_output("event=clock_jumped", 30)
        gate.touch()
        assert push.ended(job)["state"] == "completed"
        stays(lambda: push.rig.state(due)["state"] == "queued", 1.5, "neither sent nor expired")
        clock.jump("+0")
        assert push.ended(due)["state"] == "completed"
        FIGURES["jumps ridden out"] += 2
    finally:
        push.rig.close()
