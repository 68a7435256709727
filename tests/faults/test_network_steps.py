"""Each step of /v1 meets a line that drops or resets: its request is lost, or its answer. The job ends well, started once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Callable

import pytest

from components.figures import tell
from components.netns import DROP, RESET, Line, together
from components.netrig import NetRig
from components.waiting import wait_until
from faults.conftest import MakeNetRig

ID = "?" * 36
SYNC = "POST /v1/sync"
TROUBLES = ("event=tried_again", "event=sync_failed", "event=not_taken_up")
KINDS = [(trap, how) for how in (DROP, RESET) for trap in (Line.trap_request, Line.trap_answer)]
INPUT = bytes(range(256)) * 512
FEW, MANY = {"入力.bin": INPUT}, {f"入力{number}.bin": INPUT[number:] for number in range(6)}
SAY = 'echo said; for file in *.bin; do cp "$file" "$file.out"; done'


@dataclass(frozen=True)
class Step:
    """One request of a job's life: how it begins, the inputs that bring it about, and when the trap is set."""

    name: str
    start: str
    inputs: dict[str, bytes] = field(repr=False)
    when: str = "before"  # before the job is there; while its input comes; while it runs; claim: while a sync waits


STEPS = (
    Step("claim", SYNC, FEW, "claim"),
    Step("record", f"GET /v1/jobs/{ID} HTTP", FEW),
    Step("job.json", f"GET /v1/jobs/{ID}/files/job.json", FEW),
    Step("input", f"GET /v1/jobs/{ID}/files/in/", FEW),
    Step("in.tar", f"GET /v1/jobs/{ID}/in.tar", MANY),
    Step("permission", SYNC, {"入力.bin": INPUT * 6}, "input"),
    Step("heartbeat", SYNC, FEW, "running"),
    Step("offset", f"HEAD /v1/jobs/{ID}/files/out/", FEW),
    Step("chunk", f"PATCH /v1/jobs/{ID}/files/out/", FEW),
    Step("out.tar", f"POST /v1/jobs/{ID}/files/out.tar", MANY),
    Step("finish", f"POST /v1/jobs/{ID}/finish", FEW),
)


def troubles(rig: NetRig, site: str) -> int:
    said = rig.agent_log(site)
    return sum(said.count(word) for word in TROUBLES)


def meet(rig: NetRig, site: str, step: Step, trap: Callable[[Line, str, str], None], how: str) -> str:
    """One job, one fault in that step of it; returns the job's id when it has ended well."""
    line = rig.line(site)
    go = rig.root / f"go-{site}-{trap.__name__}-{how[:4]}"
    before = troubles(rig, site)
    set_trap = partial(trap, line, step.start, how)
    if step.when in ("before", "claim"):
        set_trap()
    if step.when == "claim":  # the sync that is held already would still be answered
        wait_until(lambda: line.armed or line.sprung, 60, f"{step.name}: a sync is there")
    script = f'{SAY}; while [ ! -e "{go}" ]; do sleep 0.05; done' if step.when == "running" else SAY
    job = rig.drop(site, script, step.inputs)
    if step.when == "input":
        part = rig.agent_folder(site) / "base" / job / "in.part"
        wait_until(lambda: any(file.stat().st_size for file in part.glob("*")), 60, "the input is on its way")
        set_trap()  # the waiting sync is out: the next one says that all is ready
    elif step.when == "running":
        wait_until(lambda: rig.starts(job), 60, "the command runs")
        set_trap()
    try:
        line.wait_sprung()
        wait_until(lambda: troubles(rig, site) > before, 60, f"{step.name}: the agent notices")
        starts = rig.starts(job)
        assert starts <= (step.name not in ("claim", "record", "job.json", "input", "in.tar", "permission"))
    except AssertionError as error:
        raise AssertionError(f"{step.name} {trap.__name__} {how[:4]}: {error}") from error
    line.heal()
    go.touch()
    rig.ended_well(job, {f"{name}.out": data for name, data in step.inputs.items()})
    return job


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_step_is_lost_once(make_net_rig: MakeNetRig) -> None:
    rig = make_net_rig(len(STEPS))
    sites = {f"site{number}": step for number, step in enumerate(STEPS, 1)}
    rig.start_server({site: {"commands": "*"} for site in sites})
    for site, step in sites.items():
        rig.start_agent(site, wait_s={"claim": 5, "running": 0}.get(step.when, 25), chunk="64K",
                        heartbeat_s="1" if step.when == "running" else "60")  # fmt: skip
        if step.when == "input":
            rig.line(site).shape(4000)

    def go_through(site: str, step: Step) -> None:
        for trap, how in KINDS:
            meet(rig, site, step, trap, how)

    together({f"{site}, {step.name}": partial(go_through, site, step) for site, step in sites.items()})
    tell(f"network, /v1: {len(STEPS)} steps, {len(STEPS) * len(KINDS)} faults, as many jobs completed, each started once")
