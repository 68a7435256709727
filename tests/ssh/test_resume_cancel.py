"""A cancel, whatever is killed or cut around it: it reaches the whole session, and the job is canceled when that is gone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import proc
from components.figures import tell
from components.waiting import stays, wait_until
from spool.errors import Conflict
from ssh.conftest import Pushed, lines
from ssh.lanes import PASSES, Lane, lanes

# Neither the command nor its children end by TERM; each notes its pid.
STUBBORN = """trap '' TERM; echo $$ >>{pids}; echo started >>{counter}
(echo $BASHPID >>{pids}; sh -c 'trap "" TERM; echo $$ >>{pids}; while :; do sleep 0.2; done') &
while :; do sleep 0.2; done"""
GENTLE = "trap 'echo stopped; exit 0' TERM; echo $$ >>{pids}; echo started >>{counter}; while :; do sleep 0.05; done"


def ends_told(push: Pushed, job_id: str) -> list[str]:
    """The final states in the history, which gets its line after the state."""

    def ends() -> list[str]:
        told = [json.loads(line)["to"] for line in lines(push.rig.job(job_id) / "history.jsonl")]
        return [word for word in told if word in ("completed", "failed", "canceled", "expired")]

    return wait_until(ends, 10, "the history tells an end")


class Canceled:
    """A job, and the processes of its command."""

    def __init__(self, push: Pushed, folder: Path, script: str) -> None:
        self.push, self.number = push, len(list(folder.glob("counter.*")))
        self.pids, self.counter = folder / f"pids.{self.number}", folder / f"counter.{self.number}"
        self.counter.touch()
        self.wanted = script.count("{pids}")
        self.id = push.drop("bash", "-c", script.format(pids=self.pids, counter=self.counter), outputs=["**"])

    def wait_running(self) -> None:
        wait_until(lambda: len(lines(self.pids)) == self.wanted, 60, "all processes of the command run")
        self.push.rig.wait_state(self.id, "running")

    def ask(self) -> None:
        self.push.store().cancel(self.id, by="operator")

    def check(self, starts: int = 1) -> None:
        """Canceled, and at that moment nothing of it lives."""
        state = self.push.ended(self.id, deadline_s=90)
        left = [int(pid) for pid in lines(self.pids) if proc.alive(int(pid))]
        proc.kill(left)
        assert not left, "the job is canceled, and some of its processes live"
        assert (state["state"], state["cancel_requested_by"]) == ("canceled", "operator"), state
        assert lines(self.counter) == ["started"] * starts
        assert ends_told(self.push, self.id) == ["canceled"]


@pytest.mark.slow
def test_all_of_the_session_is_gone_when_it_is_canceled(push: Pushed) -> None:
    """Grandchildren that ignore TERM, and the push killed right after it has passed the cancel on."""
    process = push.start()
    job = Canceled(push, push.sshd.home, STUBBORN)
    job.wait_running()
    job.ask()
    wait_until((push.there(job.id) / "run" / "cancel").exists, 60, "the cancel has come there")
    process.kill()
    proc.kill([one.pid for one in proc.descendants(process.pid)])
    assert push.sshd.kill_connections() >= 0
    assert push.rig.state(job.id)["state"] == "running", "not confirmed yet"
    push.start()
    job.check()


@pytest.mark.slow
def test_a_cancel_that_died_between_term_and_kill(push: Pushed) -> None:
    """The command is gone by TERM and its end recorded; a child that ignores it is left. That is no confirmation."""
    child = "(trap '' TERM; echo $BASHPID >>{pids}; while :; do sleep 0.2; done)"
    script = f"echo $$ >>{{pids}}; echo started >>{{counter}}; {child} & wait"
    process = push.start()
    job = Canceled(push, push.sshd.home, script)
    job.wait_running()
    job.ask()
    wait_until((push.there(job.id) / "run" / "exit").exists, 60, "the command itself has ended by TERM")
    process.kill()
    folder = str(push.there(job.id))
    for one in proc.all_processes():
        words = (Path(f"/proc/{one.pid}/cmdline").read_bytes() if proc.alive(one.pid) else b"").decode(errors="replace")
        if folder in words and "runner-" in words and "cancel" in words:
            proc.kill([one.pid])
    assert proc.alive(int(lines(job.pids)[1])), "the child was to be left"
    push.start()
    job.check()


def test_a_site_that_is_silent_confirms_nothing(push: Pushed) -> None:
    """The state says that a cancel is asked for, and by whom; it survives the push, and the command stops when it can be told."""
    process = push.start()
    job = Canceled(push, push.sshd.home, GENTLE)
    job.wait_running()
    push.sshd.stop()
    job.ask()
    process.wait_for_output("event=trouble", 60)
    process.kill()
    push.start()
    stays(lambda: push.rig.state(job.id)["state"] == "running", 1, "nothing is confirmed")
    state = push.rig.state(job.id)
    assert (bool(state["cancel_requested_at"]), state["cancel_requested_by"]) == (True, "operator")
    assert "cancel" in push.rig.spoolctl("show", job.id).stdout
    assert all(proc.alive(int(pid)) for pid in lines(job.pids))
    push.sshd.start()
    job.check()


def test_before_it_was_started_it_is_canceled_at_once(push: Pushed) -> None:
    """Queued, or on its way to a site that is silent: provably not started, and never will be."""
    push.once()
    push.sshd.stop()
    first, second = (Canceled(push, push.sshd.home, GENTLE) for _ in range(2))
    push.options["slots"] = "1"
    push.start()

    def both() -> bool:
        return sorted(push.rig.state(job.id).get("state", "") for job in (first, second)) == ["claimed", "queued"]

    wait_until(both, 60, "one is claimed, one waits")
    for job in (first, second):
        job.ask()
        assert push.rig.state(job.id)["state"] == "canceled"
    push.sshd.start()
    assert push.ended(push.sh("exit 0"))["state"] == "completed"
    for job in (first, second):
        job.check(starts=0)


def test_a_cancel_between_permission_and_start(push: Pushed) -> None:
    """`running` is written, the start was never asked for: the cancel withdraws it, and the command never starts."""
    process = push.start()
    no_status = "case $SSH_ORIGINAL_COMMAND in *\' status\') exit 254 ;; esac"
    push.sshd.authorize(f'command="{no_status}; sh -c \\"$SSH_ORIGINAL_COMMAND\\""')
    job = Canceled(push, push.sshd.home, GENTLE)
    push.rig.wait_state(job.id, "running")
    job.ask()
    push.sshd.authorize()
    push.sshd.kill_connections()
    job.check(starts=0)
    assert process.running


def test_a_cancel_as_the_job_ends_decides_once(push: Pushed) -> None:
    """Asked for at the very end, again and again: completed or canceled, told once, and what it says is so."""
    push.options["slots"] = "12"
    push.start()
    ends = []
    for number in range(12):
        go = push.sshd.home / f"go.{number}"
        job_id = push.sh(f"while ! [ -e {go} ]; do sleep 0.02; done; echo x >a.dat", outputs=["a.dat"])
        ends.append((job_id, go))
    for job_id, _ in ends:
        wait_until((push.there(job_id) / "run" / "pid").exists, 60, "it runs")
        push.rig.wait_state(job_id, "running")
    store, seen = push.store(), set()
    for number, (job_id, go) in enumerate(ends):
        go.touch()
        if number % 3 == 1:
            wait_until((push.there(job_id) / "run" / "exit").exists, 60, "the command has ended", every_s=0.001)
        if number % 3 == 2:
            push.rig.wait_state(job_id, "returning", "completed")
        if push.rig.state(job_id)["state"] != "completed":
            with contextlib.suppress(Conflict):  # it has ended in between
                store.cancel(job_id, by="operator")
    for job_id, _ in ends:
        state = push.ended(job_id)
        assert state["state"] in ("completed", "canceled"), state
        assert (push.result(job_id)["reason"] == "canceled") == (state["state"] == "canceled")
        assert push.out(job_id) == ({"a.dat": b"x\n"} if state["state"] == "completed" else {})
        assert ends_told(push, job_id) == [state["state"]]
        seen.add(state["state"])
    assert "completed" in seen


# ---- struck at each step that a cancel makes

STRIKES = [(kind, way) for kind in ("status", "cancel") for way in ("before\tcut", "after\tcut", "before\tkill", "after\treboot")]
STRIKES += [("sums log", "after\tkill"), ("fetch", "before\treboot"), ("delivered", "before\tcut")]


@pytest.fixture
def sweep(tmp_path: Path, push: Pushed) -> Iterator[object]:
    with lanes(tmp_path, push.sshd) as run:
        yield run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_struck_while_it_is_canceled(sweep: object, record_property: object) -> None:
    def hit(lane: Lane, point: tuple[str, str]) -> bool:
        job = Canceled(lane.push, lane.folder, GENTLE)
        process = lane.start("--once", job.id)
        job.wait_running()
        process.kill()
        job.ask()
        (lane.folder / "pid").unlink()
        (lane.folder / "steps").unlink()
        (lane.folder / "plan").write_text(f"{point[0]}\t0\t{point[1]}")
        for _ in range(PASSES):
            lane.start("--once", job.id).wait(90)
            if lane.rig.state(job.id)["state"] == "canceled":
                break
        job.check()
        return (lane.folder / "plan.done").exists()

    met = sweep(STRIKES, hit)  # type: ignore[operator]
    tell(f"ssh: {met} of {len(STRIKES)} strikes while a command is canceled met, each canceled once and confirmed")
    record_property("strikes, a cancel", met)  # type: ignore[operator]
    assert met == len(STRIKES)
