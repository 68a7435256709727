"""A line that is silent for longer than every lease, and is there again: what was promised for that holds."""

from __future__ import annotations

import json
from functools import partial

import pytest

from components.figures import tell
from components.netns import together
from components.netrig import NetRig
from components.waiting import wait_until
from faults.conftest import MakeNetRig

INPUT = bytes(range(256)) * 12000
CLAIM_RETURN_S, GIVE_UP_S = 3, 3


def running(rig: NetRig, site: str) -> str:
    """A job whose command runs until `go` is there, then writes its output."""
    job = rig.drop(site, f'while [ ! -e "{rig.root}/go" ]; do sleep 0.05; done; echo 終わり >end.out')
    wait_until(lambda: rig.starts(job), 60, "the command runs")
    return job


def attempts(rig: NetRig, job: str) -> int:
    return int(rig.state(job).get("attempt", 0))


def cut_while_fetching(rig: NetRig) -> None:
    """The claim goes back to the queue meanwhile; the next run does it, and only that one starts the command."""
    line = rig.line("site1")
    line.shape(8000)
    job = rig.drop("site1", "cp 入力.bin copy.out", {"入力.bin": INPUT})
    part = rig.agent_folder("site1") / "base" / job / "in.part"
    wait_until(lambda: any(file.stat().st_size for file in part.glob("*")), 60, "the input is on its way")
    first = rig.state(job)["run_id"]
    line.cut()
    rig.wait_state(job, "queued", deadline_s=60)
    line.heal()
    rig.ended_well(job, {"copy.out": INPUT})
    assert rig.state(job)["run_id"] != first


def cut_while_running(rig: NetRig, given_up: str) -> None:
    """Without a limit the run stays the job's; the command, which has ended in the silence, is not started again."""
    line = rig.line("site2")
    job = running(rig, "site2")
    line.cut()
    wait_until(lambda: "event=sync_failed" in rig.agent_log("site2"), 60, "the agent notices")
    (rig.root / "go").touch()
    wait_until(lambda: "step=return" in rig.agent_log("site2"), 60, "the command has ended, its result cannot leave")
    # The other lane's job was failed and the first one's claim given back by now: both leases are over.
    rig.wait_state(given_up, "failed", deadline_s=60)
    assert rig.state(job)["state"] == "running"
    line.heal()
    rig.ended_well(job, {"end.out": "終わり\n".encode()})
    assert attempts(rig, job) == 1


def cut_longer_than_the_limit(rig: NetRig, job: str) -> None:
    """With `give_up_after_s` the job fails; what comes afterwards is kept aside, and a requeue brings a new attempt."""
    line = rig.line("site3")
    line.cut()
    assert rig.wait_state(job, "failed", deadline_s=60)["reason"] == "unreachable"
    (rig.root / "go").touch()
    wait_until(lambda: "step=return" in rig.agent_log("site3"), 60, "the command has ended, its result cannot leave")
    line.heal()
    late = rig.job(job) / "late"
    wait_until(lambda: list(late.glob("*")), 120, "the late result is kept aside")
    assert rig.state(job)["reason"] == "unreachable"
    assert not (rig.job(job) / "out").exists()
    rig.spoolctl("requeue", job)
    assert rig.ended(job)["state"] == "completed"
    assert attempts(rig, job) == rig.starts(job) == 2, "one start for each attempt"
    assert rig.out(job, "end.out") == "終わり\n".encode()

    def completions() -> int:
        history = map(json.loads, (rig.job(job) / "history.jsonl").read_text().splitlines())
        return sum(line["to"] == "completed" and line["from"] != "completed" for line in history)

    wait_until(completions, 60, "the history says so too: its line is written after the state")
    assert completions() == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_longer_than_every_lease(make_net_rig: MakeNetRig) -> None:
    rig = make_net_rig(3)
    sites = {f"site{number}": {"commands": "*"} for number in (1, 2, 3)}
    sites["site3"]["give_up_after_s"] = str(GIVE_UP_S)
    rig.start_server(sites, claim_return_s=CLAIM_RETURN_S)
    for site in sites:
        rig.start_agent(site, heartbeat_s="1", wait_s=1)
    given_up = running(rig, "site3")
    together({
        "fetching": partial(cut_while_fetching, rig),
        "running": partial(cut_while_running, rig, given_up),
        "given up": partial(cut_longer_than_the_limit, rig, given_up),
    })  # fmt: skip
    tell("network, leases: 3 cuts longer than claim_return_s and give_up_after_s, 3 jobs completed, one start an attempt")
