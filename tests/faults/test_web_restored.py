"""The server goes back to last night's backup: every job ends right, and no command is started twice in one attempt."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.company import SITE
from agent.wire import Act, Request
from components import proc
from components.figures import tell
from components.waiting import wait_until
from faults.web import Web, call_of, job_of
from spool.names import new_id


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


def back_up(web: Web) -> Path:
    """A copy of the spool as it stands now."""
    target = web.rig.root / "last night"
    web.server.signal(signal.SIGSTOP)  # so that the copy is of one moment
    shutil.copytree(web.rig.spool, target, symlinks=True)
    web.server.signal(signal.SIGCONT)
    return target


def restore(web: Web, backup: Path) -> None:
    """As docs/operations.md has it: the folders put back, a new epoch, `check --repair`, start."""
    web.server.kill()
    web.rig.spool.rename(web.rig.root / "broken")
    shutil.copytree(backup, web.rig.spool, symlinks=True)
    path = web.rig.spool / "spool.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epoch": new_id()}))
    web.rig.spoolctl("check", "--repair", check=False)
    web.server = web.serve(deadline_s=60)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("agent", ["lives on", "is started again", "comes by cron"])
def test_every_job_ends_right(web: Web, agent: str) -> None:
    """Jobs in every pair of (state in the backup, state at the restore)."""
    fetching = Act(hold_answer=1000)
    held: set[str] = set()

    def rule(request: Request) -> Act | None:
        return fetching if call_of(request) == "input" and job_of(request) in held else None

    web.wire.rule = rule
    web.start(slots=1)
    before = web.at_once()  # completed in the backup
    web.right(before)
    again = web.counting("exit 3", outputs=("out.dat",))  # ended in the backup, requeued and running at the restore
    web.failed(again, "exit_nonzero")
    assert web.agent
    web.agent.stop()
    web.start(slots=4)
    runs_on = web.waiting()  # running in both
    ended = web.waiting()  # running in the backup, completed since
    stopped = web.waiting()  # running in the backup, canceled since
    for job in (runs_on, ended, stopped):
        web.pid(job)
    fetched = web.at_once()  # claimed in the backup, completed since
    held.add(fetched)
    wait_until(lambda: web.rig.state(fetched).get("state") == "claimed", 60, "it is being fetched")
    late_start, late_end = web.waiting(), web.waiting()  # queued in the backup; running, completed at the restore
    refused = web.drop("not allowed here")  # queued in the backup, refused by the site since
    for job in (late_start, late_end, refused):
        web.is_at(job, "queued")
    backup = back_up(web)
    held.clear()
    fetching.go.set()
    web.right(fetched)
    web.go(ended)
    web.right(ended)
    web.rig.spoolctl("cancel", stopped)
    web.ended(stopped)
    web.failed(refused, "refused_by_site")
    web.go(late_end)
    web.right(late_end)
    web.pid(late_start)
    unknown_end, unknown_run = web.at_once(), web.waiting()  # not in the backup; completed, running at the restore
    web.right(unknown_end)
    web.pid(unknown_run)
    web.rig.spoolctl("requeue", again)
    web.locally(again, "completed", "failed", deadline_s=60)
    web.failed(again, "exit_nonzero")
    runs = {job: web.rig.state(job)["run_id"] for job in (before, runs_on, ended, fetched, late_start, late_end)}
    for job in (ended, fetched, late_end, stopped, refused, unknown_end):
        web.locally(job, "completed", "failed", "canceled")

    if agent != "lives on":
        web.kill_agent()
    restore(web, backup)
    assert {job: web.rig.state(job)["state"] for job in (ended, fetched)} == {ended: "running", fetched: "claimed"}
    if agent == "is started again":
        web.start(slots=4)
    if agent == "comes by cron":
        assert web.start("--once", slots=4, once_wait_s="0.2").wait(120) == 0
    for job in (ended, fetched, late_end):
        web.right(job)
    assert web.ended(stopped)["state"] == "canceled"
    web.failed(refused, "refused_by_site")
    web.is_at(runs_on, "running")
    web.is_at(late_start, "running")
    web.go(runs_on)
    web.go(late_start)
    if agent == "comes by cron":
        pids = [web.pid(job) for job in (runs_on, late_start)]
        wait_until(lambda: not any(map(proc.alive, pids)), 60, "the commands have ended")
        assert web.start("--once", slots=4).wait(120) == 0
    for job in (runs_on, late_start, before):
        web.right(job)
    assert {job: web.rig.state(job)["run_id"] for job in runs} == runs, "the runs from before the restore"
    # What the backup does not know at all: kept at the site, told at both sides, and nothing of it forgotten.
    assert web.local_state(unknown_end) == "completed"
    assert proc.alive(web.pid(unknown_run))
    said = web.said()
    assert "event=restored" in said
    assert f"event=not_in_the_backup job={unknown_end}" in said
    for job in (unknown_end, unknown_run):
        assert f"event=unknown_job job={job}" in web.server.output()
    # What was requeued since the backup is as it was in the backup: an operator requeues it again.
    assert web.rig.state(again)["attempt"] == 1
    assert web.rig.state(again)["state"] == "failed"
    starts = {job: len(web.starts(job)) for job in (before, runs_on, ended, stopped, fetched, late_start, late_end)}
    assert set(starts.values()) == {1}, starts
    assert web.starts(refused) == []
    tell(f"restored ({agent}): 10 jobs in 9 pairs of states, starts {sum(starts.values())} for {len(starts)} jobs")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_attempt_twice_is_told_apart_by_run_id(web: Web) -> None:
    """The first agent is away when the server comes back; another one is given the job, as attempt 1 again."""
    web.start(slots=1)
    filler = web.waiting()
    web.pid(filler)
    twice = web.waiting()
    web.is_at(twice, "queued")
    backup = back_up(web)
    web.go(filler)
    web.pid(twice)
    first_run = web.rig.state(twice)["run_id"]
    assert web.agent
    web.agent.signal(signal.SIGSTOP)
    restore(web, backup)
    web.second()
    web.pid(twice, "second")
    second_run = web.rig.state(twice)["run_id"]
    assert (web.rig.state(twice)["attempt"], first_run != second_run) == (1, True)
    web.agent.signal(signal.SIGCONT)
    web.says("event=restored")
    web.go(twice)
    assert web.completed(twice) == {"out.dat": f"{web.rig.root}/agents/second/base/{twice}/work\n".encode()}
    assert web.result(twice)["run_id"] == second_run
    assert web.rig.state(twice)["run_id"] == second_run
    assert sorted(web.starts(twice)) == sorted(f"{web.rig.root}/agents/{name}/base/{twice}/work" for name in (SITE, "second"))
    assert f"event=unknown_run job={twice} run={first_run}" in web.server.output()
    wait_until(lambda: web.local_state(twice) == "canceled", 60, "the first run ends too: MInt has kept its record")
    assert (web.local(twice) / "out" / "out.dat").exists(), "what it made stays at the site"
