"""A whole pass of agent, push and server, hit at any call that changes spool or base: each command runs once, its bytes come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.company import Company
from components.process import Process
from components.sshd import Sshd
from components.strace import points
from components.waiting import wait_until
from crash.harness import EXHAUSTIVE
from crash.passes import TracedRig, chosen
from ssh.conftest import Pushed

SCRIPT = "echo started >> {counter}; cat beam.inp beam.inp > beam.dat; echo done"
DECK = b"1, 2, 3\n"
PASSES = 6  # after a fault one is enough; the machine may be slow
TIMEOUT_S = 8 * 3600 if EXHAUSTIVE else 1200
Record = Callable[[str, object], None]


def once_and_whole(rig: TracedRig, job_id: str, counter: Path) -> None:
    """Completed, byte for byte; started once; every change told once."""
    folder = rig.job(job_id)
    state = rig.state(job_id)
    assert state["state"] == "completed", json.dumps(state, ensure_ascii=False)
    assert (folder / "out" / "beam.dat").read_bytes() == DECK * 2
    assert counter.read_text().splitlines() == ["started"], "the command was not started exactly once"
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_bytes().splitlines()]
    assert [line["revision"] for line in lines] in (list(range(1, state["revision"] + 1)), list(range(1, state["revision"])))
    assert Counter(line["to"] for line in lines)["running"] == 1


def hit_each(rig: TracedRig, once: Callable[[], None], *roots: Path) -> int:
    """`once()` brings one job to its end and judges it: undisturbed to find the points, then hit at each; how many were hit."""
    rig.expressions = ()
    once()
    faults = chosen(list(points(rig.trace, *roots, but=("/locks/", "/trace"))))
    assert faults
    hit = 0
    for point, fault in faults:
        rig.expressions = (point.inject(fault),)
        try:
            once()
        except AssertionError as error:
            raise AssertionError(f"{point.inject(fault)} at {point.text}:\n{error}") from error
        hit += rig.injected()
    assert hit >= 0.8 * len(faults), f"{hit} of {len(faults)}: the points are not where they were"
    return hit


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Callable[[str], Company]]:
    made: list[Company] = []

    def make(traced: str) -> Company:
        company = Company(tmp_path / "rig")
        company.rig = TracedRig(tmp_path / "rig", traced)
        made.append(company)
        return company

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_pass_of_the_agent(company: Callable[[str], Company], tmp_path: Path, record_property: Record) -> None:
    made = company("spool_agent.py")
    rig: Any = made.rig
    made.serve()

    def once() -> None:
        counter = tmp_path / f"counter.{len(list(tmp_path.glob('counter.*')))}"
        job_id = made.sh(SCRIPT.format(counter=counter), inputs={"beam.inp": DECK}, outputs=("beam.dat",))
        made.is_at(job_id, "queued")
        made.once(deadline_s=60)
        for _ in range(PASSES):
            if rig.state(job_id)["state"] == "completed":
                break
            rig.expressions = None
            made.once(deadline_s=60)
        once_and_whole(rig, job_id, counter)

    record_property("points, a pass of the agent", hit_each(rig, once, made.folder / "base"))


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_pass_of_the_push(tmp_path: Path, sshd: Sshd, record_property: Record) -> None:
    rig = TracedRig(tmp_path / "rig", "ssh_push.py")
    push = Pushed(rig, sshd, sshd.home / "base", {})
    push.once()

    def once() -> None:
        counter = tmp_path / f"counter.{len(list(tmp_path.glob('counter.*')))}"
        script = SCRIPT.format(counter=counter)
        job_id = push.drop("/bin/sh", "-c", script, inputs={"beam.inp": DECK}, outputs=["beam.dat"])
        push.once(job_id)
        for _ in range(PASSES):
            if rig.state(job_id).get("state") == "completed":
                break
            rig.expressions = None
            push.once(job_id)
        once_and_whole(rig, job_id, counter)

    try:
        record_property("points, a pass of the push", hit_each(rig, once, rig.spool))
    finally:
        rig.close()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_pass_of_the_server(company: Callable[[str], Company], tmp_path: Path, record_property: Record) -> None:
    """The agent goes on all the while; the server is started again as often as it is killed."""
    made = company("spool_server.py")
    rig: Any = made.rig
    made.serve().close()
    made.start()

    def serve() -> Process:
        try:
            return made.serve()
        except AssertionError:  # killed before it answered
            rig.expressions = None
            return made.serve()

    def once() -> None:
        counter = tmp_path / f"counter.{len(list(tmp_path.glob('counter.*')))}"
        job_id = made.sh(SCRIPT.format(counter=counter), inputs={"beam.inp": DECK}, outputs=("beam.dat",))
        serving = serve()

        def over() -> bool:
            nonlocal serving
            failed = bool(rig.expressions) and rig.injected()  # every thread's call of that number fails, of a hundred threads
            if failed or not serving.running:
                serving.close()
                rig.expressions = None
                serving = serve()
            return bool(rig.state(job_id).get("state") == "completed" and made.local_state(job_id) == "completed")

        wait_until(over, 60, f"job {job_id} is completed")
        serving.close()
        once_and_whole(rig, job_id, counter)

    record_property("points, a pass of the server", hit_each(rig, once, rig.spool))
