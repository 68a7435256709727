"""A frozen agent wakes after its job was given to another: what it brings is refused, kept aside, and nothing is mixed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.company import SITE
from agent.wire import Act
from components import proc
from components.waiting import stays, wait_until
from faults.web import Web, call_of


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


def work(web: Web, agent: str, job: str) -> str:
    return f"{web.rig.root}/agents/{agent}/base/{job}/work"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", ["fetching", "running", "unreachable", "returning"])
def test_frozen_beyond_its_lease(web: Web, phase: str) -> None:
    """Fetching: the lease ends by itself. Running: an operator's requeue, or `give_up_after_s` first. Returning: a requeue."""
    web.server.stop()
    web.server = web.serve(claim_return_s=2)
    act = Act(hold_answer=1000) if phase == "fetching" else Act(hold_body=1000)
    call = {"fetching": "input", "returning": "patch"}.get(phase)
    web.wire.rule = lambda request: act if call_of(request) == call else None
    agent = web.start(slots=1)
    script = f"{{ while [ {phase} != returning ] && ! [ -e {web.gate}/$MINT_SPOOL_JOB ]; do sleep 0.05; done; }}; "
    script += "cat in.bin >out.bin; echo $PWD >>out.bin"
    more = {"give_up_after_s": 2} if phase == "unreachable" else {}
    job = web.counting(script, inputs={"in.bin": b"x" * 5000}, outputs=("out.bin",), **more)
    if phase in ("running", "unreachable"):
        wait_until(lambda: web.starts(job), 60, "the command runs")
    else:
        wait_until(lambda: any(call_of(request) == call for request in list(web.wire.seen)), 60, f"{phase} has begun")
    old_run = web.rig.state(job)["run_id"]
    agent.signal(signal.SIGSTOP)
    if phase == "fetching":
        web.is_at(job, "queued", deadline_s=60)
    elif phase == "unreachable":
        web.failed(job, "unreachable", 60)
        web.rig.spoolctl("requeue", job)
    else:
        assert "--force" in web.rig.spoolctl("requeue", job, check=False).stderr
        web.rig.spoolctl("requeue", "--force", job)
    other = web.second()
    web.go(job)
    expected = {"out.bin": b"x" * 5000 + f"{work(web, 'second', job)}\n".encode()}
    assert web.completed(job, 90) == expected
    other.stop()
    act.go.set()
    agent.signal(signal.SIGCONT)
    web.locally(job, "canceled", deadline_s=60)
    web.says("event=run_given_up")
    line = next(line for line in web.said().splitlines() if "event=run_given_up" in line)
    assert f"run={old_run}" in line
    assert "level=WARNING" in line
    assert "stays in" in line
    ran = phase != "fetching"
    if ran:
        wait_until(lambda: list(web.late(job)) == [old_run], 60, "its late result is kept aside")
        assert f"event=late_result job={job} run={old_run}" in web.server.output()
    else:
        assert list(web.late(job)) == []
    assert web.out(job) == expected, "nothing is mixed"
    assert web.rig.state(job)["state"] == "completed"
    assert web.rig.state(job)["attempt"] == (2 if ran else 1)
    assert web.starts(job) == ([work(web, SITE, job)] if ran else []) + [work(web, "second", job)]
    # Its slot is free, and it asks no more for what was given up.
    assert web.completed(web.counting("echo 後 >next", outputs=("next",)), 60) == {"next": "後\n".encode()}
    asked = len([request for request in list(web.wire.seen) if job in request.path])
    stays(lambda: len([request for request in list(web.wire.seen) if job in request.path]) == asked, 2, "it asks no more")


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("copy_is", ["older", "newer"])
def test_two_agents_with_one_identity(web: Web, copy_is: str) -> None:
    """A copied agent.json: the one started more often works, the other is refused, told so at both sides; no second start."""
    web.start(slots=1, url=web.rig.url)
    job = web.waiting()
    pid = web.pid(job)
    web.is_at(job, "running")
    (record,) = (web.folder / "base").glob(".mint-spool-*/agent.json")
    copy = web.rig.root / "agents" / "second" / "base"
    copy.mkdir(parents=True, mode=0o700)
    shutil.copytree(record.parent, copy / record.parent.name)
    value = json.loads(record.read_text())
    number = value["generation"] + (-1 if copy_is == "older" else 5)
    (copy / record.parent.name / "agent.json").write_text(json.dumps({**value, "generation": number}))
    second = web.second(slots=1)
    refused = "second" if copy_is == "older" else SITE
    web.says("code=twin", refused)
    line = next(line for line in web.said(refused).splitlines() if "code=twin" in line)
    assert "another process works as agent" in line
    assert "stop one of them" in line
    web.server.wait_for_output("event=twin", 30)
    told = [line for line in web.server.output().splitlines() if "event=twin" in line]
    assert len(told) == 1, "said once, not at every try"
    assert "level=WARNING" in told[0]
    assert proc.alive(pid), "the command runs on, whatever happens to its agent"
    assert web.starts(job) == [work(web, SITE, job)]
    if copy_is == "older":
        second.stop()
        web.go(job)
        web.right(job)
        return
    # The newer one does not have the job: MInt takes it for lost. Its result is refused and kept aside, not mixed in.
    web.failed(job, "lost", 60)
    run_id = web.rig.state(job)["run_id"]
    web.go(job)
    wait_until(lambda: list(web.late(job)) == [run_id], 60, "the late result is kept aside")
    web.says("event=run_given_up")
    assert web.out(job) == {}


@pytest.mark.slow
def test_requests_of_a_fenced_run_are_refused(web: Web) -> None:
    """The old agent is awake, but hears no sync: all that it sends meets 409, and the new attempt's files stay as they are."""
    deaf = Act(lose=True, only=b'"state": "stale"')
    web.wire.rule = lambda request: deaf if call_of(request) == "sync" else None
    web.start(slots=1)
    job = web.waiting()
    pid = web.pid(job)
    old_run = web.rig.state(job)["run_id"]
    web.rig.spoolctl("requeue", "--force", job)
    second = web.second()
    web.pid(job, "second")
    assert proc.alive(pid), "nobody could tell it: two runs of two attempts"
    web.go(job)
    assert web.completed(job) == {"out.dat": f"{work(web, 'second', job)}\n".encode()}
    wait_until(lambda: list(web.late(job)) == [old_run], 60, "refused and kept aside")
    web.says("event=run_given_up")
    web.locally(job, "canceled", deadline_s=60)
    web.wire.rule = lambda request: None
    second.stop()
    assert web.out(job) == {"out.dat": f"{work(web, 'second', job)}\n".encode()}
    assert web.starts(job) == [work(web, SITE, job), work(web, "second", job)]
    assert web.completed(web.counting("echo x >next", outputs=("next",)), 60) == {"next": b"x\n"}
