"""What may happen to the site while a job is there: it reboots, its disk is away, is another one, was set back."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from components import proc
from components.sshd import Sshd
from components.waiting import stays, wait_until
from spool.heads import Heads
from spool.ssh.connection import Connections
from spool.ssh.patience import Patience
from spool.ssh.site import CannotTell
from spool.ssh.trip import Trip
from ssh.conftest import MakePush, Pushed, lines
from ssh.lanes import kill_push_and_all
from ssh.test_parts import site_of
from ssh.test_trouble import Counted

OTHER_BOOT = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def running(push: Pushed) -> Counted:
    """A job whose command runs, and whose state says so; `push.start()` is to be called again by whoever stopped it."""
    push.once()
    push.start()
    return started(push)


def started(push: Pushed) -> Counted:
    job = Counted(push)
    job.wait_started()
    wait_until(lambda: '"was_started": true' in remembered(push, job.id), 30, "the push knows that it was started")
    return job


def remembered(push: Pushed, job_id: str) -> str:
    found = list(push.rig.job(job_id).glob("incoming/*/site.json"))
    return found[0].read_text() if found else ""


def log_of(push: Pushed) -> str:
    return (push.rig.root / "push.log").read_text()


def failed(push: Pushed, job: Counted, reason: str, *words: str) -> None:
    """It ended with that reason, clearly, and was started once."""
    state = push.ended(job.id)
    assert (state["state"], state["reason"]) == ("failed", reason), state
    assert all(word in state["message"] for word in words), state["message"]
    assert lines(job.counter) == ["started"]


def set_boot_back(folder: Path) -> None:
    """As after a reboot: no process of the job, and every triple that was noted is of another boot."""
    run = folder / "run"
    proc.kill([int((run / name).read_text().split()[0]) for name in ("supervisor", "pid")])
    for path in (run / "pid", run / "supervisor", run / "started" / "launched"):
        pid, start, _ = path.read_text().split()
        path.write_text(f"{pid} {start} {OTHER_BOOT}\n")


@pytest.mark.parametrize("meanwhile", ["push at work", "push down"])
def test_the_site_reboots(push: Pushed, meanwhile: str) -> None:
    process = push.start()
    job = started(push)
    if meanwhile == "push down":
        process.kill()
    push.sshd.stop()
    set_boot_back(push.there(job.id))
    push.sshd.start()
    if meanwhile == "push down":
        push.start()
    failed(push, job, "lost", "was restarted while the command ran")


def test_a_disk_that_is_away_for_a_while(push: Pushed, running: Counted) -> None:
    """Not mounted: the job waits, new ones too, and the command that went on is found when the disk is back."""
    away = push.base.with_name("away")
    push.base.rename(away)
    push.base.mkdir()  # the bare mount point
    wait_until(lambda: "cannot be seen" in log_of(push), 60, "it is told that the folder cannot be seen")
    assert "is its file system mounted?" in log_of(push)
    other = push.sh("echo new >new.dat", outputs=["new.dat"])
    wait_until(lambda: "nothing new goes to" in log_of(push), 60, "nothing new is sent there")
    assert list(push.base.iterdir()) == [], "something was made on the bare mount point"
    assert push.rig.state(running.id)["state"] == "running"
    push.base.rmdir()
    away.rename(push.base)
    running.go.touch()
    running.check()
    assert push.ended(other)["state"] == "completed"


def test_another_disk_is_not_taken_for_an_empty_one(push: Pushed, running: Counted) -> None:
    """Something lies there, but not this run's disk: another push has even made a base of it."""
    away = push.base.with_name("away")
    push.base.rename(away)
    (push.base / ".mint-spool").mkdir(parents=True)
    (push.base / ".mint-spool" / "disk").write_text("99999999-9999-4999-8999-999999999999\n")
    wait_until(lambda: "on another disk" in log_of(push), 60, "it is told that this is another disk")
    stays(lambda: push.rig.state(running.id)["state"] == "running", 1, "the job waits")
    push.base.rename(push.base.with_name("other"))
    away.rename(push.base)
    running.go.touch()
    running.check()


def test_a_disk_that_stays_away_ends_the_job(make_push: MakePush, sshd: Sshd) -> None:
    push = make_push(sshd, give_up_after_s="2")
    push.start()
    job = started(push)
    push.base.rename(push.base.with_name("gone"))
    failed(push, job, "lost", "cannot be seen", str(push.base))
    job.go.touch()


def test_the_folder_was_removed_on_its_own_disk(push: Pushed, running: Counted) -> None:
    push.there(running.id).rename(push.base / "moved")
    failed(push, running, "lost", "is gone at the site")


@pytest.mark.parametrize("what", ["run", "run/started"])
def test_a_folder_that_was_set_back(push: Pushed, what: str) -> None:
    """A cleaner or a restored disk has taken the latch: the runner would start the command, and is not asked to."""
    process = push.start()
    job = started(push)
    process.kill()
    shutil.rmtree(push.there(job.id) / what)
    push.start()
    failed(push, job, "lost", "was started there once")


def test_results_that_went_away_before_they_were_fetched(push: Pushed) -> None:
    process = push.start()
    job = started(push)
    process.kill()
    job.go.touch()
    wait_until((push.there(job.id) / "run" / "exit").exists, 30, "the command has ended")
    shutil.rmtree(push.there(job.id))
    push.start()
    failed(push, job, "lost", "is gone at the site")


@pytest.mark.parametrize("says", ["echo cannot fork >&2; exit 254", "echo Welcome"])
def test_an_answer_that_says_nothing_of_the_run(push: Pushed, says: str) -> None:
    """A site out of processes, or a login that has begun to talk, is asked more than the usual five times."""
    process = push.start()
    job = started(push)
    process.kill()
    key, store = push.sshd.authorized_keys.read_text(), push.store()
    push.sshd.authorize(f'command="{says}"')
    site, connections = site_of(push), Connections()
    patience = Patience(store, job.id)
    for verb in ("status", "cancel") * 4:
        trip = Trip.of(store, site, connections.to(site), store.state(job.id), threading.Event(), Heads(store.paths))
        with pytest.raises(CannotTell) as caught:
            getattr(trip.there, verb)()
        assert not patience.settles(caught.value)
    connections.close()
    assert push.rig.state(job.id)["state"] == "running"
    push.sshd.authorized_keys.write_text(key)
    push.start()
    job.go.touch()
    job.check()


def test_what_a_killed_rsync_has_left_in_the_inputs(push: Pushed) -> None:
    """A receiver that was killed leaves its temporary file, another its partial one: neither counts as an input."""
    push.once()
    push.sshd.stop()
    job_id = push.sh("ls -A | sort; cat a", inputs={"a": b"x"})
    assert push.once() == 75
    left = push.there(job_id) / "in"
    (left / ".mint-partial").mkdir(parents=True)
    (left / ".mint-partial" / "b").write_bytes(b"half")
    (left / ".a.Xy12Zz").write_bytes(b"half")
    (left.parent / "run_id").write_text(push.rig.state(job_id)["run_id"] + "\n")
    push.sshd.start()
    assert push.once() == 0
    assert push.rig.state(job_id)["state"] == "completed"
    assert push.log(job_id) == "a\nx"


def test_the_mint_side_reboots(push: Pushed) -> None:
    """Everything dies at once. Stale sockets, locks and scratch are left, and the pid in a name is another program's now."""
    first = push.start()
    job = started(push)
    kill_push_and_all(first)
    # Named as the push's own folder was, of which another push may have made away with what is left.
    stranger = Path(tempfile.mkdtemp(prefix=f"mint-push-{os.getpid()}-", dir="/tmp"))
    (stranger / "left").touch()
    scratch = push.rig.spool / "tmp" / "accept.11111111-1111-4111-8111-111111111111"
    scratch.mkdir()
    assert (push.rig.spool / "locks" / "ssh-push").exists()
    try:
        push.start()
        job.go.touch()
        job.check()
        other = push.sh("echo x >a.dat", outputs=["a.dat"])
        assert push.ended(other)["state"] == "completed"
        assert (stranger / "left").exists(), "a living program's"
    finally:
        shutil.rmtree(stranger, ignore_errors=True)


def test_a_service_and_cron_at_once(push: Pushed) -> None:
    """The pass of cron says that another is at work and touches nothing; the one after the service's death carries on."""
    service = push.start()
    job = started(push)
    before = push.rig.state(job.id)
    for _ in range(3):
        assert push.once() == 75
    assert push.rig.state(job.id) == before
    service.kill()
    pass_of_cron = push.start("--once")
    # All write one log, in which the service has said so before.
    wait_until(lambda: pass_of_cron.output().count("event=connected") == 2, 30, "the pass of cron is at work")
    assert push.once() == 75
    job.go.touch()
    assert pass_of_cron.wait(60) == 0
    job.check()
