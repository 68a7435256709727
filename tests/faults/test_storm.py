"""Server, agent and push are killed at random for minutes while jobs of both modes run: each job ends once, started once.

60 jobs and a storm of 90 s in CI; 500 jobs and twenty minutes with MINT_EXHAUSTIVE=1 (`tools/test --exhaustive`).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from components.figures import tell
from components.process import Process
from components.rig import Rig, Section
from components.sshd import Sshd
from components.waiting import wait_until
from spool.names import new_id
from spool.store import Store

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
JOBS, STORM_S = (500, 1200.0) if EXHAUSTIVE else (60, float(os.environ.get("MINT_STORM_S", "90")))
FINAL = ("completed", "failed", "canceled", "expired")
SEED = int(os.environ.get("MINT_STORM_SEED", "20261123"))
SCRIPT = 'echo "$0" >>{counter}; sleep 0.$(( $$ % 10 )); echo "$0" >out.dat; echo said'


class Storm:
    """The three programs over one spool, any of which may be killed and started again."""

    def __init__(self, root: Path, sshd: Sshd) -> None:
        self.rig = Rig(root)
        self.random = random.Random(SEED)
        self.counter = root / "counter"
        ssh: Section = {
            "mode": "ssh", "host": sshd.name, "ssh_config": sshd.ssh_config, "base": sshd.home / "base", "commands": "*",
            "slots": "4",
        }  # fmt: skip
        sites: dict[str, Section] = {"web": {"commands": "*"}, "far": ssh}
        self._sshd = sshd
        self._starts: dict[str, Callable[[], Process]] = {
            "server": lambda: self.rig.start_server(sites, deadline_s=60),
            "agent": lambda: self.rig.start_agent(
                "web", {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*"}}, poll_s="0.5", wait_s="2", slots="4"
            ),
            "push": lambda: self.rig.start_push(sites),  # the same sites: either program accepts drops
        }
        self.running = {name: self._starts[name]() for name in ("server", "agent", "push")}
        self.kills: Counter[str] = Counter()

    def drop(self, site: str) -> str:
        job_id = new_id()
        making = self.rig.root / "making" / job_id
        (making / "in").mkdir(parents=True)
        script = SCRIPT.format(counter=self.counter)
        value = {"site": site, "command": "sh", "args": ["-c", script, job_id], "outputs": ["out.dat"], "user": "mint"}
        if site == "web":
            value["args"] = [script.replace("$0", job_id)]
        (making / "job.json").write_text(json.dumps(value))
        making.rename(self.rig.spool / "drop" / job_id)
        return job_id

    def kill_one(self) -> None:
        name = self.random.choice(["server", "agent", "push", "line"])
        self.kills[name] += 1
        if name == "line":
            self._sshd.kill_connections()
            return
        self.running[name].kill()
        self.running[name] = self._starts[name]()

    def ended(self, jobs: list[str]) -> int:
        rejected = [path.read_text() for path in self.rig.spool.glob("rejected/*/reason.json")]
        assert rejected == []
        return sum(self.rig.state(job).get("state") in FINAL for job in jobs)


@pytest.fixture
def storm(tmp_path: Path, sshd: Sshd) -> Iterator[Storm]:
    made = Storm(tmp_path / "rig", sshd)
    yield made
    made.rig.close()


@pytest.mark.slow
@pytest.mark.timeout(int(STORM_S * 3 + 600))
def test_every_job_ends_once_and_is_started_once(storm: Storm) -> None:
    pause = threading.Event()
    jobs: list[str] = []
    until = time.monotonic() + STORM_S
    while time.monotonic() < until:
        while len(jobs) < JOBS * (1 - (until - time.monotonic()) / STORM_S) + 2 and len(jobs) < JOBS:
            jobs.append(storm.drop("web" if len(jobs) % 2 else "far"))
        storm.kill_one()
        pause.wait(storm.random.uniform(0.5, 3.0))
    jobs += [storm.drop("web" if number % 2 else "far") for number in range(len(jobs), JOBS)]
    wait_until(lambda: storm.ended(jobs) == JOBS, STORM_S * 2 + 300, "every job has ended", every_s=0.5)
    states = {job: storm.rig.state(job) for job in jobs}
    ends = Counter(state["state"] for state in states.values())
    told = f"storm: {JOBS} jobs in {STORM_S:.0f} s, kills: {dict(storm.kills)}, ended: {dict(ends)}"
    tell(told)
    starts = Counter(storm.counter.read_text().split())
    failed = [state for state in states.values() if state["state"] != "completed"]
    assert [(state["id"], state["state"], state.get("reason"), starts[state["id"]]) for state in failed] == []
    assert {job: count for job, count in starts.items() if count != 1} == {}, "started more than once in one attempt"
    assert set(starts) == set(jobs)
    store = Store.open(storm.rig.spool)
    for job in jobs:
        assert (storm.rig.job(job) / "out" / "out.dat").read_text() == f"{job}\n"
        history = store.history(store.state(job))  # with the line that a kill after the state has kept from being written
        finals = [entry for entry in history if entry.target in FINAL and entry.source != entry.target]
        assert len(finals) == 1, "a result is accepted once"
