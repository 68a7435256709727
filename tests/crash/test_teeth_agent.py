"""The agent's order of doing things, seen from its runner and its server: what is on the disk when each is called."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.rig import write_ini
from components.waiting import wait_until
from server.spools import SITE, USER, job_json
from spool.agent import watching
from spool.agent.audit import Audit, Head
from spool.agent.carrier import Carrier
from spool.agent.config import AgentConfig, read_config
from spool.agent.folder import Base, LocalJob
from spool.agent.loop import Agent
from spool.errors import Unreachable
from spool.names import new_id
from spool.records import JobState, Result
from spool.runner import RunStatus
from spool.states import State

ENDED = RunStatus("exited", exit_code=0, started_at=1, finished_at=2)


class Watched:
    """Runner and server in one; `seen` has each call, the state on the disk at that time, and whether result.json was there."""

    in_one_piece = False

    def __init__(self, local: LocalJob) -> None:
        self.local = local
        self.seen: list[tuple[str, str, bool]] = []
        self.status_now = RunStatus("new")
        self.starts_as = ENDED
        self.unreachable = 0
        self.results: list[Result] = []

    def note(self, what: str) -> None:
        state = json.loads(self.local.paths.state.read_bytes())["state"]
        self.seen.append((what, state, self.local.paths.result.exists()))

    def called(self) -> list[str]:
        return [what for what, _, _ in self.seen]

    # the runner

    def prepare(self, folder: Path) -> RunStatus:
        self.local.paths.work.mkdir()
        return self.status_now

    def status(self, folder: Path) -> RunStatus:
        return self.status_now

    def start(self, folder: Path, env: Any = None) -> RunStatus:
        self.note("start")
        self.status_now = self.starts_as
        return self.starts_as

    def cancel(self, folder: Path) -> RunStatus:
        self.note("cancel")
        return RunStatus("canceled")

    # the server

    def inputs(self, state: JobState) -> tuple[Any, ...]:
        return ()

    def job_bytes(self, job_id: str) -> bytes:
        return job_json(command="sh", inputs=None, outputs=None)

    def finish(self, result: Result) -> dict[str, Any]:
        self.note("finish")
        if self.unreachable:
            self.unreachable -= 1
            raise Unreachable("nobody there", hint="")
        self.results.append(result)
        return {"state": "completed"}


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    (tmp_path / "token").write_text("the-secret-token")
    sections: Any = {"agent": {"site": SITE, "poll_s": 1}, "command sh": {"argv": "/bin/true"}}
    return read_config(write_ini(tmp_path / "agent.ini", sections))


def taken_up(tmp_path: Path, run_id: str = "") -> LocalJob:
    local = LocalJob(tmp_path / new_id())
    local.begin(JobState(local.paths.folder.name, State.CLAIMED, SITE, USER, 2, run_id=run_id or new_id(), command="sh"))
    return local


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(taken_up(tmp_path))


@pytest.fixture
def carrier(watched: Watched, config: AgentConfig) -> Iterator[Carrier]:
    anyone: Any = watched
    base = Base(watched.local.paths.folder.parent)
    base.open()
    made = Carrier(watched.local, anyone, config, anyone, lambda: None, base)
    yield made
    made.leave()
    made.join(10)


def carry(carrier: Carrier, want: str) -> None:
    carrier.tell(want)
    carrier.start()
    wait_until(lambda: carrier.idle, 60, "the job is carried to its end")


def test_running_is_on_the_disk_before_the_runner_is_told_to_start(carrier: Carrier, watched: Watched) -> None:
    """Else a restart would take the job for one that was never started."""
    carry(carrier, "start")
    assert watched.seen[0] == ("start", "running", False)


def test_the_result_is_on_the_disk_before_the_job_returns(
    carrier: Carrier, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash in between leaves a job that returns nothing, for ever."""
    real, there = watched.local.advance, []

    def advance(target: State, why: str, **changes: Any) -> None:
        there.append((target, watched.local.paths.result.exists()))
        real(target, why, **changes)

    monkeypatch.setattr(watched.local, "advance", advance)
    carry(carrier, "start")
    assert there == [(State.RUNNING, False), (State.RETURNING, True)]


def test_the_job_ends_here_only_with_the_servers_word(carrier: Carrier, watched: Watched) -> None:
    watched.unreachable = 1
    carry(carrier, "start")
    assert watched.seen[1:] == [("finish", "returning", True)] * 2
    assert watched.local.state.state == State.COMPLETED


def test_canceled_before_the_start_is_never_started(carrier: Carrier, watched: Watched) -> None:
    """The runner's latch is taken, so that nobody can start it later either; then the server is told."""
    carry(carrier, "cancel")
    assert watched.called() == ["cancel", "finish"]
    assert [result.reason for result in watched.results] == ["canceled"]


@pytest.mark.parametrize("want", ["cancel", "forget"])
def test_a_command_is_stopped_when_the_server_says_so(carrier: Carrier, watched: Watched, want: str) -> None:
    """A cancel, or a run that was given up and may have begun again elsewhere."""
    carrier.tell("start")
    watched.starts_as = RunStatus("running", pid=2, started_at=1)
    carrier.start()
    wait_until(lambda: "start" in watched.called(), 60, "the command runs")
    carrier.tell(want)
    wait_until(lambda: carrier.idle, 60, "the job is carried to its end")
    assert watched.called()[:2] == ["start", "cancel"]


# ---- what is told of which run


RUNS: dict[str, str] = {}


def known(job_id: str) -> JobState:
    return JobState(job_id, State.CLAIMED, SITE, USER, 2, run_id=RUNS[job_id])


@pytest.fixture
def agent(tmp_path: Path, config: AgentConfig) -> Iterator[tuple[Agent, list[LocalJob]]]:
    """An agent whose carriers are only noted; its server knows every job as claimed."""
    base = Base(tmp_path)
    anyone: Any = SimpleNamespace(state=known, send_only_if=bool)
    made = Agent(config, anyone, base, ("agent-1", 1), anyone)
    carried: list[LocalJob] = []

    def noted(local: LocalJob) -> Any:
        carried.append(local)
        return SimpleNamespace(local=local, idle=False, kept=False, tell=bool)

    made._carry = noted  # type: ignore[method-assign]
    yield made, carried
    made.close()


def told(local: LocalJob, run_id: str, want: str) -> dict[str, str]:
    RUNS[local.state.id] = run_id
    return {"id": local.state.id, "run_id": run_id, "want": want}


def test_a_new_run_waits_for_the_end_of_the_former(agent: tuple[Agent, list[LocalJob]], tmp_path: Path) -> None:
    """The former command may still write to the folder."""
    made, carried = agent
    local = taken_up(tmp_path)
    words: list[str] = []
    former: Any = SimpleNamespace(local=local, idle=False, kept=False, tell=words.append)
    made._carriers[local.state.id] = former
    before = local.paths.state.read_bytes()
    assert not made._tell(told(local, new_id(), "fetch"))
    assert (carried, words, local.paths.state.read_bytes()) == ([], ["forget"], before)


def test_what_is_told_of_another_run_does_not_count(agent: tuple[Agent, list[LocalJob]], tmp_path: Path) -> None:
    made, _ = agent
    local = taken_up(tmp_path)
    words: list[str] = []
    former: Any = SimpleNamespace(local=local, idle=False, kept=False, tell=words.append)
    made._carriers[local.state.id] = former
    made._tell(told(local, new_id(), "start"))
    made._tell(told(local, local.state.run_id, "fetch"))
    assert words == ["fetch"]


def test_a_run_that_has_ended_here_is_not_taken_up_again(agent: tuple[Agent, list[LocalJob]], tmp_path: Path) -> None:
    made, carried = agent
    local = taken_up(tmp_path)
    local.close(State.COMPLETED, "delivered")
    assert not made._tell(told(local, local.state.run_id, "fetch"))
    assert carried == []
    assert made._tell(told(local, new_id(), "fetch"))
    assert len(carried) == 1, "another run is"


# ---- its folders


def test_every_start_is_counted(tmp_path: Path) -> None:
    """The server orders the syncs of an agent by it, and knows a copy by it."""
    base = Base(tmp_path / "base")
    base.open()
    found = [base.identity() for _ in range(3)]
    assert [generation for _, generation in found] == [1, 2, 3]
    assert len({name for name, _ in found}) == 1


def test_a_new_run_begins_with_nothing_of_the_former(tmp_path: Path) -> None:
    local = taken_up(tmp_path)
    former = local.state
    left = ("in/場.inp", "work/old.dat", "out/old.dat", "log/stdout.txt", "run/exit", "result.json", "job.json")
    for name in left:
        (local.paths.folder / name).parent.mkdir(exist_ok=True)
        (local.paths.folder / name).write_bytes(b"of the former run")
    local.begin(replace(former, run_id=new_id(), attempt=2))
    assert [name for name in left if (local.paths.folder / name).exists()] == []
    kept = [name for name in left if (local.paths.attempt(1) / name).exists()]
    assert kept == [name for name in left if name != "job.json"]
    with contextlib.suppress(FileNotFoundError):
        assert local.result() is None


@pytest.mark.parametrize(
    ("event", "act", "done"), [("receipt", "start", []), ("start", "start", []), ("measured", "finish", ["start"])]
)
def test_the_act_waits_for_its_event(
    carrier: Carrier, watched: Watched, monkeypatch: pytest.MonkeyPatch, event: str, act: str, done: list[str]
) -> None:
    """Where the audit log takes nothing, nothing goes on that it must tell of; it is tried again."""
    real = Audit.append_all
    before: list[list[str]] = []

    def append_all(self: Audit, events: list[tuple[str, dict[str, Any]]]) -> Head:
        if any(word == event for word, _ in events) and not before:
            before.append(watched.called())
            raise OSError(28, "no space")
        return real(self, events)

    monkeypatch.setattr(Audit, "append_all", append_all)
    carry(carrier, "start")
    assert before == [done], f"{act} came before {event} was told"
    assert watched.called() == ["start", "finish"]


def test_a_refusal_waits_for_its_event(carrier: Carrier, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "job_bytes", lambda self, job_id: job_json(command="other", inputs=None, outputs=None))
    carry(carrier, "start")
    (control,) = watched.local.paths.folder.parent.glob(".mint-spool-*")
    told = [json.loads(line)["event"] for line in (control / "audit.jsonl").read_bytes().splitlines()]
    assert (told, watched.called()) == (["receipt", "refused"], ["finish"])


def test_what_went_wrong_at_the_site_is_not_told(carrier: Carrier, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of an exception names paths of the site, or what a command has written."""
    monkeypatch.setattr(watching, "RUNNER_PAUSE_S", 0.0)

    def status(self: Watched, folder: Path) -> RunStatus:
        if "start" in self.called():
            raise subprocess.CalledProcessError(1, "sh", stderr=f"runner: {folder}/run: 顧客A")
        return self.status_now

    watched.starts_as = RunStatus("running", pid=1)
    monkeypatch.setattr(Watched, "status", status)
    carry(carrier, "start")
    (result,) = watched.results
    assert (result.reason, result.message) == (
        "lost", "what the command left cannot be used, and it was stopped where it still ran"
    )  # fmt: skip
