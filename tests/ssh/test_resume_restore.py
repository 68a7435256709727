"""A spool that comes from a backup, a requeue beside a run that is still there: the site's folder says what was started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components import proc
from components.process import Process
from components.waiting import wait_until
from ssh.conftest import Pushed, lines
from ssh.test_trouble import Counted


@pytest.fixture
def backup(push: Pushed, tmp_path: Path) -> Path:
    return tmp_path / "last night"


def queued(push: Pushed) -> Counted:
    """Taken in by the push, which cannot reach the site."""
    push.once()
    job = Counted(push)
    push.once("11111111-1111-4111-8111-111111111111")
    assert push.rig.state(job.id)["state"] == "queued"
    return job


def set_back(push: Pushed, process: Process, backup: Path) -> None:
    """The push dies, and the spool is as it was last night."""
    process.kill()
    proc.kill([one.pid for one in proc.descendants(process.pid)])
    shutil.rmtree(push.rig.spool)
    shutil.copytree(backup, push.rig.spool)
    record = push.rig.spool / "spool.json"
    value = json.loads(record.read_bytes())
    record.write_text(json.dumps({**value, "epoch": "22222222-2222-4222-8222-222222222222"}))
    push.rig.spoolctl("check", "--repair", check=False)


@pytest.mark.parametrize("then", ["runs", "has ended", "was delivered", "is lost"])
def test_a_run_that_the_backup_does_not_know(push: Pushed, backup: Path, then: str) -> None:
    """Started after the backup, which shows it as queued: it is found by its folder and never started again."""
    job = queued(push)
    shutil.copytree(push.rig.spool, backup)
    process = push.start()
    job.wait_started()
    run = push.rig.state(job.id)["run_id"]
    if then == "has ended":
        process.kill()
    if then in ("has ended", "was delivered"):
        job.go.touch()
        wait_until((push.there(job.id) / "run" / "exit").exists, 30, "the command has ended")
    if then == "was delivered":
        job.check()
        wait_until((push.there(job.id) / "delivered").exists, 30, "marked")
    if then == "is lost":
        proc.kill([int((push.there(job.id) / "run" / name).read_text().split()[0]) for name in ("supervisor", "pid")])
    set_back(push, process, backup)
    assert push.rig.state(job.id)["state"] == "queued"
    push.start()
    job.go.touch()
    if then == "is lost":
        assert push.ended(job.id)["reason"] == "lost"
        assert lines(job.counter) == ["started"]
    else:
        job.check()
    assert (push.rig.state(job.id)["run_id"], push.rig.state(job.id)["attempt"]) == (run, 1)
    assert "event=adopted" in (push.rig.root / "push.log").read_text()


def test_a_backup_that_shows_the_claim_only(push: Pushed, backup: Path) -> None:
    """The same run went on after the backup: what is sent once more changes nothing, and the latch is taken."""
    job = queued(push)
    push.sshd.stop()
    assert push.once(job.id) == 75
    assert push.rig.state(job.id)["state"] == "claimed"
    shutil.copytree(push.rig.spool, backup)
    push.sshd.start()
    process = push.start()
    job.wait_started()
    set_back(push, process, backup)
    push.start()
    job.go.touch()
    job.check()


def test_a_claim_that_was_replaced_since_the_backup(push: Pushed, backup: Path) -> None:
    """The backup shows attempt 1 under way; the site has attempt 2. Neither is started again, and attempt 2 is left alone."""
    job = queued(push)
    push.sshd.stop()
    assert push.once(job.id) == 75
    shutil.copytree(push.rig.spool, backup)
    push.sshd.start()
    process = push.start()
    job.wait_started()
    push.store().requeue(job.id, by="operator", force=True)
    wait_until(lambda: lines(job.counter) == ["started"] * 2, 60, "attempt 2 runs")
    pid = int((push.there(job.id) / "run" / "pid").read_text().split()[0])
    set_back(push, process, backup)
    push.start()
    state = push.ended(job.id)
    assert (state["reason"], "was replaced since" in state["message"]) == ("lost", True), state
    assert lines(job.counter) == ["started"] * 2
    assert proc.alive(pid)


def test_a_requeue_after_the_restore_takes_the_run_of_its_attempt(push: Pushed, backup: Path) -> None:
    """Attempt 1 had failed before the backup, attempt 2 was started after it: requeued once more, attempt 2 is that run."""
    push.once()
    counter, go = push.sshd.home / "counter", push.sshd.home / "go"
    script = f"echo started >>{counter}; [ -e {go} ] || exit 3; while [ -e {go} ]; do sleep 0.05; done; echo 日本 >a.dat"
    job_id = push.sh(script, outputs=["a.dat"])
    assert push.once(job_id) == 1
    shutil.copytree(push.rig.spool, backup)
    go.touch()
    process = push.start()
    push.store().requeue(job_id, by="operator")
    wait_until(lambda: lines(counter) == ["started"] * 2, 60, "attempt 2 runs")
    push.rig.wait_state(job_id, "running")
    run = push.rig.state(job_id)["run_id"]
    set_back(push, process, backup)
    assert push.rig.state(job_id)["state"] == "failed"
    push.store().requeue(job_id, by="operator")
    push.start()
    wait_until(lambda: push.rig.state(job_id).get("run_id") == run, 60, "it is taken up")
    go.unlink()
    state = push.ended(job_id)
    assert (state["state"], state["attempt"], push.out(job_id)) == ("completed", 2, {"a.dat": "日本\n".encode()})
    assert lines(counter) == ["started"] * 2


def test_a_job_that_the_backup_does_not_know(push: Pushed, backup: Path) -> None:
    """Its run goes on, its folder stays; handed in again under its id, it is that run."""
    push.options["keep_days"] = "0"
    push.once()
    shutil.copytree(push.rig.spool, backup)
    process = push.start()
    job = Counted(push)
    job.wait_started()
    made = json.loads((push.rig.job(job.id) / "job.json").read_bytes())
    set_back(push, process, backup)
    assert push.rig.state(job.id) == {}
    push.start()
    job.go.touch()
    other = push.sh("exit 0")  # the site is in use, and cleaned
    assert push.ended(other)["state"] == "completed"
    wait_until((push.there(job.id) / "run" / "exit").exists, 30, "the command has ended")
    folder = push.rig.spool / "tmp" / "made.again"
    (folder / "in").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(made))
    folder.rename(push.rig.spool / "drop" / job.id)
    job.check()


@pytest.mark.parametrize("how", ["given up", "unreachable"])
def test_a_requeue_while_the_old_run_still_runs(push: Pushed, how: str) -> None:
    """The old run is stopped before the new one starts, and what it has left is kept aside, there and here."""
    if how == "unreachable":
        push.options["give_up_after_s"] = "1"
    process = push.start()
    job = Counted(push)
    job.wait_started()
    old = push.rig.state(job.id)["run_id"]
    pid = int((push.there(job.id) / "run" / "pid").read_text().split()[0])
    if how == "unreachable":
        push.sshd.stop()
        assert push.ended(job.id)["reason"] == "unreachable"
        process.kill()
        push.sshd.start()
        push.options["give_up_after_s"] = "600"
        push.start()
    assert proc.alive(pid)
    push.store().requeue(job.id, by="operator", force=True)
    wait_until(lambda: lines(job.counter) == ["started"] * 2, 60, "attempt 2 runs")
    assert not proc.alive(pid), "two runs of one job at a time"
    job.go.touch()
    state = push.ended(job.id)
    assert (state["state"], state["attempt"]) == ("completed", 2), state
    assert push.out(job.id) == {"a.dat": b"done\n"}
    assert (push.there(job.id) / "attempts" / old / "log" / "stdout.txt").read_text() == "begin\n"
    assert (push.rig.job(job.id) / "attempts" / "1").is_dir()


def test_results_that_were_late_are_kept_aside(push: Pushed) -> None:
    """The run that was given up ends while MInt does not look; the next attempt moves its results aside, and mixes nothing."""
    process = push.start()
    job = Counted(push)
    job.wait_started()
    old = push.rig.state(job.id)["run_id"]
    process.kill()
    push.store().requeue(job.id, by="operator", force=True)
    job.go.touch()
    wait_until((push.there(job.id) / "run" / "exit").exists, 30, "the old run has ended")
    push.start()
    state = push.ended(job.id)
    assert (state["state"], state["attempt"], state["run_id"] != old) == ("completed", 2, True)
    assert lines(job.counter) == ["started"] * 2
    assert (push.there(job.id) / "attempts" / old / "work" / "a.dat").read_text() == "done\n"
