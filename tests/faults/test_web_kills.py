"""Server and agent are killed when the server has acted and the agent has not heard of it, at each step of a job.

The two moments that matter most are in the list: between the permission to start and the start, and between the start and its
report. What is killed inside a single call is in tests/crash, at each of its system calls.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.company import SITE
from agent.wire import Act, Request
from components import proc
from components.figures import tell
from components.process import Process
from components.waiting import stays, wait_until
from faults.web import Web, call_of

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
SEED = 20261123

# What the agent asks, and what the answer holds that it never hears.
POINTS: dict[str, tuple[str, bytes]] = {
    "claimed": ("sync", b'"want": "fetch"'),
    "its record told": ("state", b""),
    "its job.json told": ("job.json", b""),
    "its input sent": ("input", b""),
    "its start permitted": ("sync", b'"want": "start"'),
    "its end noted": ("sync", b'"want": "return"'),
    "its upload begun": ("head", b""),
    "its upload taken": ("patch", b""),
    "its result accepted": ("finish", b""),
}
MOST = ("claimed", "its start permitted", "its upload taken", "its result accepted")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


def held(call: str, only: bytes) -> tuple[Callable[[Request], Act | None], Act]:
    """A rule that holds the first answer of that kind back until it may go, and its act."""
    act = Act(lose=True, only=only)

    def rule(request: Request) -> Act | None:
        return act if call_of(request) == call and not act.met.is_set() else None

    return rule, act


def through(web: Web, act: Act) -> str:
    """The first job that meets the act: one may be returned before a sync has heard of its end."""
    for _ in range(20):
        job = web.at_once()
        wait_until(lambda job=job: act.met.is_set() or web.local_state(job) == "completed", 60, "the server has answered")
        if act.met.is_set():
            break
    met(act)
    return job


def met(act: Act) -> None:
    wait_until(act.met.is_set, 60, "the server has answered")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["agent", "server", "both"])
def test_killed_when_the_answer_is_lost(web: Web, victim: str) -> None:
    """The answer to the call is lost, and at that moment the one, the other or both are killed."""
    web.start(slots=1)
    points = list(POINTS) if EXHAUSTIVE or victim != "both" else list(MOST)
    for point in points:
        rule, act = held(*POINTS[point])
        web.wire.rule = rule
        job = through(web, act)
        if victim in ("agent", "both"):
            web.kill_agent()
        if victim in ("server", "both"):
            web.restart_server()
        if victim in ("agent", "both"):
            web.start(slots=1)
        web.right(job)
        web.locally(job, "completed", deadline_s=60)
    tell(f"killed {victim}: {len(points)} lost answers, each job completed in its first attempt after one start")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["agent", "server", "both"])
def test_killed_between_the_start_and_its_report(web: Web, victim: str) -> None:
    """The command has begun; no word of it has gone out, and none does before it has ended."""
    web.start(slots=1)
    job = web.waiting()
    pid = web.pid(job)
    web.wire.rule = lambda request: Act(status=502)
    if victim in ("agent", "both"):
        web.kill_agent()
    if victim in ("server", "both"):
        web.restart_server()
    assert proc.alive(pid), "the command runs on"
    if victim in ("agent", "both"):
        web.start(slots=1)
        web.says("event=taken_up_again")
    web.go(job)
    web.locally(job, "returning")
    assert web.rig.state(job)["state"] == "running"
    web.wire.rule = lambda request: None
    web.right(job)


# ---- as cron runs it


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cron_whose_passes_are_killed(web: Web) -> None:
    """Passes that live for a random while, the server killed now and then; the commands outlive them all."""
    chance = random.Random(SEED)
    jobs = [web.at_once() for _ in range(3)] + [web.waiting() for _ in range(2)]
    passes = kills = 0

    def ended() -> bool:
        return all(web.rig.state(job).get("state") == "completed" for job in jobs)

    while not ended():
        assert passes < 60, {job: web.rig.state(job).get("state") for job in jobs}
        one, passes = web.start("--once", slots=2, once_wait_s="0.2"), passes + 1
        if passes < 9:
            stays(lambda: True, chance.uniform(0.4, 1.6), "the pass lives")
            kills += one.running
            one.kill()
        else:
            assert one.wait(60) in (0, 75)
        if passes in (3, 6):
            web.restart_server()
        if passes == 8:
            for job in jobs:
                web.go(job)
    for job in jobs:
        web.right(job)
    tell(f"cron: {passes} passes, {kills} of them killed, 2 server kills, {len(jobs)} jobs")


@pytest.mark.slow
def test_a_service_and_cron_on_one_base(web: Web) -> None:
    """The second says so and does no harm: not even the first one's name and count of starts are touched."""
    service = web.start(slots=1)
    job = web.waiting()
    pid = web.pid(job)
    (record,) = (web.folder / "base").glob(".mint-spool-*/agent.json")
    before = record.read_bytes(), record.stat().st_ino
    for _ in range(3):
        second: Process = web.start("--once")
        assert second.wait(60) == 75, "docs/agent.md: another agent works in this base"
    assert second.output().count("another agent works in") == 3
    assert "stop it first" in second.output()
    assert (record.read_bytes(), record.stat().st_ino) == before
    assert proc.alive(pid)
    assert service.running
    web.go(job)
    web.right(job)
    service.stop()
    assert web.start("--once").wait(60) == 0, "the base is free again"
    assert (web.rig.agent_folder(SITE) / "base" / job).is_dir()
