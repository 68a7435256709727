"""Cancel in WebAPI mode: it reaches the whole process group, is `canceled` only when confirmed, and survives every fault."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.wire import Act, Request
from components import proc
from components.waiting import stays, wait_until
from faults.pages import page
from faults.test_web_restored import back_up, restore
from faults.web import Web, call_of

# Two generations, deaf to TERM, HUP and INT; each writes down its pid.
FAMILY = (
    "trap '' TERM HUP INT; echo $$ >pids; "
    "sh -c \"trap '' TERM HUP INT; echo \\$\\$ >>pids; (trap '' TERM; sh -c 'echo \\$\\$ >>pids; exec sleep 600'); sleep 600\" & "
    "echo partly >out.dat; sleep 600"
)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


def family(web: Web, job: str) -> list[int]:
    """The pids of a job of `FAMILY`, when all three are there."""
    path = web.local(job) / "work" / "pids"
    wait_until(lambda: path.exists() and len(path.read_text().split()) == 3, 60, "the family is complete")
    pids = [int(word) for word in path.read_text().split()]
    assert all(map(proc.alive, pids))
    return pids


def running(web: Web) -> tuple[str, list[int]]:
    job = web.counting(FAMILY, outputs=("out.dat",))
    pids = family(web, job)
    web.is_at(job, "running")
    return job, pids


def cancel(web: Web, job: str) -> None:
    web.rig.spoolctl("cancel", job)


def canceled(web: Web, job: str, pids: list[int], *, starts: int = 1) -> None:
    """Canceled with nobody of the family left at that moment; ended once."""
    wait_until(lambda: web.rig.state(job)["state"] == "canceled" or not any(map(proc.alive, pids)), 90, "it is stopped")
    assert not any(map(proc.alive, pids)), "canceled before it was confirmed"
    web.is_at(job, "canceled", deadline_s=90)
    wait_until(lambda: web.ends(job), 30, "the history follows the state")
    assert len(web.ends(job)) == 1
    assert len(web.starts(job)) == starts
    web.locally(job, "canceled", deadline_s=60)


def asked(web: Web, job: str, pids: list[int]) -> None:
    """The cancel is an intent as long as nobody confirms it."""
    state = web.rig.state(job)
    assert (state["state"], bool(state["cancel_requested_at"])) == ("running", True)
    stays(lambda: web.rig.state(job)["state"] == "running" and all(map(proc.alive, pids)), 1, "nothing is claimed unconfirmed")


# ---- at each step


@pytest.mark.slow
def test_before_the_start(web: Web) -> None:
    """Waiting; being fetched; ready, with the permission to start on its way: the command never runs."""
    queued = web.at_once()
    web.is_at(queued, "queued")
    cancel(web, queued)
    assert web.rig.state(queued)["state"] == "canceled"

    fetch = Act(hold_answer=1000)
    web.wire.rule = lambda request: fetch if call_of(request) == "input" else None
    web.start(slots=1)
    job = web.at_once()
    wait_until(lambda: any(call_of(request) == "input" for request in list(web.wire.seen)), 60, "it is being fetched")
    cancel(web, job)
    assert web.rig.state(job)["state"] == "canceled"
    fetch.go.set()
    canceled(web, job, [], starts=0)

    start = Act(lose=True, only=b'"want": "start"')
    web.wire.rule = lambda request: start if call_of(request) == "sync" else None
    job = web.at_once()
    wait_until(start.met.is_set, 60, "the start is permitted, and nobody hears it")
    cancel(web, job)
    asked = next(line for line in web.history(job) if line["why"] == "cancel requested")
    assert asked["to"] == "running", "it may have been started: only the site knows"
    web.wire.rule = lambda request: None
    canceled(web, job, [], starts=0)
    web.right(web.at_once())


@pytest.mark.slow
def test_while_it_returns(web: Web) -> None:
    """Too late: the command has ended; it ends as what it is, and no process is looked for."""
    hold = Act(hold_body=1000)
    web.wire.rule = lambda request: hold if call_of(request) == "patch" else None
    web.start(slots=1)
    job = web.at_once()
    wait_until(lambda: any(call_of(request) == "patch" for request in list(web.wire.seen)), 60, "it is being returned")
    cancel(web, job)
    hold.go.set()
    web.wire.rule = lambda request: None
    web.right(job)
    assert web.rig.spoolctl("cancel", job, check=False).returncode != 0


# ---- through faults


def _server_killed(web: Web, job: str, pids: list[int]) -> None:
    web.wire.rule = lambda request: Act(status=503)
    cancel(web, job)
    web.restart_server()
    asked(web, job, pids)


def _agent_killed(web: Web, job: str, pids: list[int]) -> None:
    web.kill_agent()
    cancel(web, job)
    asked(web, job, pids)
    web.start()


def _agent_killed_while_it_cancels(web: Web, job: str, pids: list[int]) -> None:
    cancel(web, job)
    web.says("event=cancel ")
    web.kill_agent()
    web.start()


def _line_cut(web: Web, job: str, pids: list[int]) -> None:
    web.wire.rule = lambda request: Act(cut_body=0, lose=True)
    cancel(web, job)
    asked(web, job, pids)


def _proxy(web: Web, job: str, pids: list[int]) -> None:
    web.wire.rule = lambda request: page(len(web.wire.seen))
    cancel(web, job)
    asked(web, job, pids)


def _word_lost(web: Web, job: str, pids: list[int]) -> None:
    """The server says `cancel` again and again, and nobody hears it."""
    before = len(web.wire.seen)
    cancel(web, job)
    wait_until(lambda: len(web.wire.seen) > before + 1, 60, "the word is lost")
    asked(web, job, pids)


def _report_lost(web: Web, job: str, pids: list[int]) -> None:
    """The agent's word that it is stopped is lost on the way there, then on the way back."""
    acts = [Act(status=502), Act(status=200, page=b"{}", after=True)]

    def rule(request: Request) -> Act | None:
        return acts.pop(0) if call_of(request) == "finish" and acts else None

    web.wire.rule = rule
    cancel(web, job)
    wait_until(lambda: not acts, 90, "two reports are lost")


def _frozen(web: Web, job: str, pids: list[int]) -> None:
    assert web.agent
    web.agent.signal(signal.SIGSTOP)
    cancel(web, job)
    asked(web, job, pids)
    web.agent.signal(signal.SIGCONT)


def _cron(web: Web, job: str, pids: list[int]) -> None:
    web.kill_agent()
    cancel(web, job)
    asked(web, job, pids)
    web.wire.rule = lambda request: None
    assert web.start("--once").wait(60) == 0


def _restored(web: Web, job: str, pids: list[int]) -> None:
    """The backup has the intent; the site has not heard of it before the restore."""
    web.wire.rule = lambda request: Act(status=502)
    cancel(web, job)
    restore(web, back_up(web))
    asked(web, job, pids)


def _restored_after(web: Web, job: str, pids: list[int]) -> None:
    """Canceled and confirmed since the backup: it is canceled again, without another start."""
    backup = back_up(web)
    cancel(web, job)
    canceled(web, job, pids)
    restore(web, backup)
    assert web.rig.state(job)["state"] == "running"


FAULTS: list[Callable[[Web, str, list[int]], None]] = [
    _server_killed, _agent_killed, _agent_killed_while_it_cancels, _line_cut, _proxy, _word_lost, _report_lost, _frozen, _cron,
    _restored, _restored_after,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_").replace("_", " "))
def test_a_running_family_through(web: Web, fault: Callable[[Web, str, list[int]], None]) -> None:
    """Commands and their grandchildren ignore TERM; the cancel gets through, whatever the fault."""
    deaf = Act(lose=True, only=b'"want": "cancel"')  # also for the sync that waits at the server when the fault comes
    heard = fault in (_report_lost, _restored_after, _agent_killed_while_it_cancels)
    web.wire.rule = lambda request: deaf if call_of(request) == "sync" and not heard else None
    web.start(slots=2)
    job, pids = running(web)
    fault(web, job, pids)
    web.wire.rule = lambda request: None
    canceled(web, job, pids)
    if web.agent and web.agent.running:
        web.right(web.at_once())


@pytest.mark.slow
def test_given_up_then_canceled_at_the_site(web: Web) -> None:
    """An operator gives a frozen site's run up and cancels the new attempt: the old command is stopped when the agent wakes."""
    agent = web.start(slots=1)
    job, pids = running(web)
    agent.signal(signal.SIGSTOP)
    web.rig.spoolctl("requeue", "--force", job)
    cancel(web, job)
    assert web.rig.state(job)["state"] == "canceled"
    agent.signal(signal.SIGCONT)
    wait_until(lambda: not any(map(proc.alive, pids)), 60, "the family is stopped")
    wait_until(lambda: len(list(web.late(job))) == 1, 60, "what it brings is kept aside")
    assert web.rig.state(job)["state"] == "canceled"
    web.locally(job, "canceled", deadline_s=60)
