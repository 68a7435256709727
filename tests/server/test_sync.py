"""The one call of an agent's loop: what is told of each job, when a wait ends, and what a kill of the server changes."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.waiting import wait_until
from server.client import Agent, Service, held
from server.spools import DECK
from spool.names import new_id


class Waiting:
    """A sync in a thread."""

    def __init__(self, agent: Agent, *jobs: dict[str, Any], wait_s: int = 20, room: int = 1, body: bytes | None = None) -> None:
        self.told: list[dict[str, Any]] = []
        self.seconds = -1.0
        body = body if body is not None else agent.body(*jobs, wait_s=wait_s, room=room)
        self._thread = threading.Thread(target=self._run, args=(agent, body), daemon=True)
        self._thread.start()

    def _run(self, agent: Agent, body: bytes) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException):  # the server was stopped
            self.told = agent.ok("POST", "/v1/sync", body).json["jobs"]
            self.seconds = time.monotonic() - began

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def within(self, seconds: float) -> list[dict[str, Any]]:
        """What was told, when the sync ends in time."""
        wait_until(lambda: self.over, seconds, "the waiting sync is answered")
        assert self.seconds >= 0, "the sync failed"
        return self.told


def waits(service: Service, count: int = 1) -> None:
    """Until the server has that many open syncs: it tells of each contact in sites/, not of waits, so ask the kernel."""
    port = f":{service.port:04X}"

    def established() -> bool:
        with open("/proc/net/tcp", encoding="ascii") as table:
            return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in table.readlines()[1:]) >= count

    wait_until(established, 5, f"{count} syncs wait")


def test_a_whole_life(service: Service) -> None:
    name = service.drop()
    agent = service.agent
    told = agent.claim()
    assert (told["id"], told["attempt"]) == (name, 1)
    assert agent.ok("GET", f"/v1/jobs/{name}/files/in/beam.inp").body == DECK
    assert [job["want"] for job in agent.sync(held(told), room=0)] == ["fetch"]
    assert [job["want"] for job in agent.sync(held(told, ready=True), room=0)] == ["start"]
    assert service.rig.state(name)["state"] == "running"
    assert [job["want"] for job in agent.sync(held(told, ready=True), room=0)] == ["start"], "the answer was lost: told again"
    assert [job["want"] for job in agent.sync(held(told, "running"), room=0)] == ["run"]
    assert [job["want"] for job in agent.sync(held(told, "returning", exit_code=0), room=0)] == ["return"]
    state = service.rig.state(name)
    assert (state["state"], state["exit_code"]) == ("returning", 0)
    assert agent.deliver(told, {"out/beam.dat": b"1"}).json["state"] == "completed"
    assert [job["want"] for job in agent.sync(held(told, "returning"), room=0)] == ["forget"]
    assert agent.sync(room=1) == []
    assert not service.store.queue.active("site-a", "agent-1")


def test_a_lost_answer_is_told_again(service: Service) -> None:
    name = service.drop()
    first = service.agent.claim()
    again = service.agent.sync(room=0)
    assert [(job["id"], job["run_id"], job["want"]) for job in again] == [(name, first["run_id"], "fetch")]
    other = service.agent_of("alice", name="agent-2")
    assert other.sync(room=5) == []


def test_room(service: Service) -> None:
    names = {service.drop() for _ in range(5)}
    assert service.agent.sync(room=0) == []
    first = service.agent.sync(room=2)
    assert len(first) == 2
    second = service.agent.sync(*[held(job) for job in first], room=2)
    assert len(second) == 4
    rest = service.agent.sync(*[held(job) for job in second], room=100)
    assert {job["id"] for job in rest} == names


def test_only_the_jobs_of_the_agents_user_and_site(service: Service) -> None:
    service.drop(user="bob")
    service.drop(site="site-b")
    assert service.agent.sync(room=9) == []
    assert len(service.agent_of("bob", name="b").sync(room=9)) == 1


@pytest.mark.parametrize("state", ["running", "returning"])
def test_a_started_job_that_its_agent_no_longer_lists_is_lost(service: Service, state: str) -> None:
    service.drop()
    told = service.agent.start()
    service.agent.sync(held(told, state), room=0)
    assert service.agent.sync(room=1) == []
    found = service.rig.state(told["id"])
    assert (found["state"], found["reason"]) == ("failed", "lost")
    assert [job["want"] for job in service.agent.sync(held(told, "returning"), room=0)] == ["forget"]


def test_a_stale_run_is_told_to_stop(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    service.store.fail(told["id"], told["run_id"], by="t", reason="unreachable", message="")
    service.operator.ok("POST", f"/v1/jobs/{told['id']}/requeue")
    wants = [service.agent.sync(held(told, state), room=0)[0]["want"] for state in ("running", "returning", "claimed")]
    assert wants == ["cancel", "forget", "forget"]
    assert service.rig.state(told["id"])["state"] == "queued"


def test_a_job_that_the_server_does_not_know_is_kept(service: Service) -> None:
    unknown = {"id": new_id(), "run_id": new_id(), "attempt": 1}
    for state in ("claimed", "running", "returning"):
        (told,) = service.agent.sync(held(unknown, state), room=0)
        assert (told["want"], told["state"]) == ("keep", "unknown")
    foreign = service.drop(user="bob")
    (told,) = service.agent.sync(held({**unknown, "id": foreign}, "running"), room=0)
    assert told["want"] == "keep"


def test_cancel_of_a_running_job(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    waiting = Waiting(service.agent, held(told, "running"), room=0)
    waits(service)
    assert service.alice.ok("POST", f"/v1/jobs/{told['id']}/cancel").json["state"] == "running"
    assert [job["want"] for job in waiting.within(1)] == ["cancel"]
    assert service.agent.finish(told, {}, reason="canceled", exit_code=143).json["state"] == "canceled"


def test_a_command_is_not_started_after_its_cancel_was_asked_for(service: Service) -> None:
    """The permission was given, its answer lost, then someone canceled: the agent that still has it claimed must not start."""
    service.drop()
    told = service.agent.start()
    service.alice.ok("POST", f"/v1/jobs/{told['id']}/cancel")
    assert [job["want"] for job in service.agent.sync(held(told, ready=True), room=0)] == ["cancel"]


def test_a_disabled_site_gets_nothing_new_and_brings_home_what_it_has(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    service.drop()
    service.configure({**service.sites, "site-a": {"commands": "*", "enabled": "no"}})
    assert [job["want"] for job in service.agent.sync(held(told, "running"), room=5)] == ["run"]
    assert service.agent.deliver(told, {"out/a": b"1"}).json["state"] == "completed"
    assert service.agent.sync(room=5) == []
    service.agent_of("alice", site="elsewhere")("POST", "/v1/sync", service.agent_of("alice", site="elsewhere").body()).problem(
        404
    )


# ---- waiting


def test_a_wait_ends_within_a_second_when_another_process_drops_a_job(service: Service) -> None:
    waiting = Waiting(service.agent)
    waits(service)
    dropped = time.monotonic()
    name = service.drop(wait=False)
    assert [job["id"] for job in waiting.within(5)] == [name]
    assert time.monotonic() - dropped < 1.0


def test_a_wait_ends_when_another_process_enqueues(service: Service) -> None:
    """Not through this server at all: a second server, the push or spoolctl on the same spool."""
    name = service.drop()
    told = service.agent.claim()
    waiting = Waiting(service.agent_of("alice", name="agent-2"))
    waits(service)
    service.store.give_back(name, told["run_id"], by="t", why="silent")
    assert [job["id"] for job in waiting.within(0.7)] == [name], "sooner than the recheck of every second: by the watch"


def test_a_wait_with_nothing_ends_by_itself(service: Service) -> None:
    began = time.monotonic()
    assert service.agent.sync(wait_s=1) == []
    assert 0.9 < time.monotonic() - began < 3


def test_a_newer_sync_ends_an_older_wait(service: Service) -> None:
    older = Waiting(service.agent)
    waits(service)
    newer = Waiting(service.agent)
    assert older.within(2) == []
    name = service.drop(wait=False)
    assert [job["id"] for job in newer.within(3)] == [name]


def test_the_agents_of_two_users_may_have_one_name(service: Service) -> None:
    """An agent's name is easily the host's; the order of one user's syncs must not judge another's."""
    alice, bob = service.agent, service.agent_of("bob", name=service.agent.name)
    alice.generation = 2_000_000
    assert alice.sync(room=0) == []
    name = service.drop(user="bob")
    assert [job["id"] for job in bob.sync(room=1)] == [name]
    waiting = Waiting(alice, wait_s=3)
    waits(service)
    bob.sync(room=0, wait_s=1)
    assert not waiting.over, "bob's sync ended alice's wait"


def test_more_waiters_than_threads_are_answered_at_once(service: Service) -> None:
    service.restart(max_waiters=2)
    agents = [service.agent_of("alice", name=f"agent-{number}") for number in range(4)]
    pending = [Waiting(agent, wait_s=3) for agent in agents[:2]]
    waits(service, 2)
    wait_until(lambda: Waiting(agents[2], wait_s=3).within(5) == [], 5, "answered")
    assert service.rig.health() == 200
    for one in pending:
        one.within(8)


# ---- order


def test_an_overtaken_sync_never_marks_a_job_lost(service: Service) -> None:
    agent = service.agent
    late = agent.body(room=5)  # sent first, on its way for long
    service.drop()
    told = agent.start()
    assert agent.ok("POST", "/v1/sync", late).json["jobs"] == []
    assert service.rig.state(told["id"])["state"] == "running"
    name = service.drop()
    assert agent.ok("POST", "/v1/sync", late).json["jobs"] == [], "an overtaken sync claims nothing either"
    assert service.rig.state(name)["state"] == "queued"


def test_a_sync_that_is_overtaken_inside_the_server_never_marks_a_job_lost(service: Service) -> None:
    """It arrived in order, then waited for another job's lock while two newer syncs claimed and started a job."""
    agent = service.agent
    service.drop()
    first = agent.start()
    with open(service.store.paths.lock(first["id"]), "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stuck = Waiting(agent, body=agent.body(held(first, "returning", exit_code=0), room=0))
        waits(service)
        wait_until(lambda: service.process.running, 1, "the server runs")
        second = service.drop()
        while second[-2:] == first["id"][-2:]:
            second = service.drop()
        jobs = agent.sync(held(first, "running"), room=5)
        told = next(job for job in jobs if job["id"] == second)
        agent.sync(held(first, "running"), held(told, ready=True), room=0)
        assert service.rig.state(second)["state"] == "running"
        assert not stuck.over
        fcntl.flock(lock, fcntl.LOCK_UN)
    stuck.within(5)
    assert service.rig.state(second)["state"] == "running", "a job that the agent has and runs was declared lost"


def test_two_servers_do_not_judge_by_their_own_memory_alone(service: Service) -> None:
    """Several servers on one spool: the second has not seen the newer syncs that the first answered."""
    agent = service.agent
    late = agent.body(room=0)
    service.drop()
    told = agent.start()
    service.restart()  # a server that remembers no sync, as a second one would
    agent.ok("POST", "/v1/sync", late)
    assert service.rig.state(told["id"])["state"] == "running"


# ---- killed and restarted


@pytest.mark.slow
def test_the_server_may_be_killed_at_every_step(service: Service) -> None:
    agent, data = service.agent, {"out/beam.dat": b"1" * 100_000, "log/stdout.txt": b"ok\n"}
    name = service.drop()
    service.restart()
    told = agent.claim()
    service.restart()
    assert [job["want"] for job in agent.sync(held(told, ready=True), room=0)] == ["start"]
    service.restart()
    assert [job["want"] for job in agent.sync(held(told, "running"), room=0)] == ["run"]
    path = f"/v1/jobs/{name}/files/out/beam.dat?run_id={told['run_id']}"
    agent.patch(path, 0, data["out/beam.dat"][:60_000])
    service.restart()
    here = int(agent("HEAD", path).headers["Upload-Offset"])
    assert here == 60_000
    agent.patch(path, here, data["out/beam.dat"][here:])
    agent.patch(f"/v1/jobs/{name}/files/log/stdout.txt?run_id={told['run_id']}", 0, data["log/stdout.txt"])
    service.restart()
    done = agent.finish(told, data)
    assert done.json["state"] == "completed"
    service.restart(kill=False)
    assert agent.finish(told, data).json == done.json
    assert agent.sync(held(told, "returning"), room=0)[0]["want"] == "forget"
    assert service.alice.ok("GET", f"/v1/jobs/{name}/files/out/beam.dat").body == data["out/beam.dat"]


def test_sigterm_ends_waits_and_the_server(service: Service) -> None:
    waiting = Waiting(service.agent, wait_s=20)
    waits(service)
    began = time.monotonic()
    assert service.process.stop() == 0
    assert time.monotonic() - began < 3, "a waiting sync holds up the stop, and some agent always waits"
    wait_until(lambda: waiting.over, 5, "the waiting sync is over")


def test_a_server_stops_although_there_is_a_fifo_in_drop(service: Service) -> None:
    os.mkfifo(service.store.paths.drop / "fifo")
    name = service.drop(wait=False)
    service.rig.wait_state(name, "queued", deadline_s=5)
    assert service.process.stop(deadline_s=5) == 0


def forget(service: Service, name: str, backup: Path) -> None:
    """The job as it was when `backup` was taken, as after a restore."""
    service.process.kill()
    shutil.rmtree(service.rig.spool)
    shutil.copytree(backup, service.rig.spool, symlinks=True)
    service.restart()
    assert service.rig.state(name)["state"] == "queued"


def test_a_run_from_before_a_restore_never_becomes_another_agents(service: Service, tmp_path: Path) -> None:
    """The same attempt number twice, told apart by run_id: what was claimed anew counts, the other is kept aside."""
    name = service.drop()
    first, second = service.agent_of("alice"), service.agent_of("alice", name="agent-2")
    service.agent_of("alice", name="agent-3")
    shutil.copytree(service.rig.spool, tmp_path / "backup", symlinks=True)
    old = first.start()
    forget(service, name, tmp_path / "backup")
    new = second.start()
    assert new["run_id"] != old["run_id"]
    (told,) = first.sync(held(old, "running"), room=0)
    assert (told["want"], told["state"]) == ("keep", "unknown")
    answer = first.patch(f"/v1/jobs/{name}/files/out/x?run_id={old['run_id']}", 0, b"old")
    assert answer.problem(409, "unknown_run")
    assert first("HEAD", f"/v1/jobs/{name}/files/out/x?run_id={old['run_id']}").headers["Problem-Code"] == "unknown_run"
    first.finish(old, {"out/x": b"old"}).problem(409, "unknown_run")
    (told,) = first.sync(held(old, "returning"), room=0)
    assert told["want"] == "forget", "its record is kept at MInt now"
    assert (service.rig.job(name) / "late" / f"{old['run_id']}.json").exists()
    second.sync(held(new, "returning"))
    assert second.deliver(new, {"out/x": b"new"}).status == 200
    assert (service.rig.job(name) / "out" / "x").read_bytes() == b"new"


def test_a_run_from_before_a_restore_is_taken_up_where_the_job_waits(service: Service, tmp_path: Path) -> None:
    name = service.drop()
    agent = service.agent_of("alice")
    shutil.copytree(service.rig.spool, tmp_path / "backup", symlinks=True)
    job = agent.start()
    forget(service, name, tmp_path / "backup")
    (told,) = agent.sync(held(job, "returning", attempt=1))
    assert (told["want"], told["state"]) == ("return", "returning")
    assert agent.deliver(job, {"out/x": b"1"}).status == 200
    assert service.rig.state(name)["state"] == "completed"


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_run_of_another_attempt_is_not_taken_up(service: Service, tmp_path: Path, attempt: int) -> None:
    name = service.drop()
    agent = service.agent_of("alice")
    (told,) = agent.sync({"id": name, "run_id": new_id(), "state": "running", "attempt": attempt}, room=0)
    assert told["want"] == "keep"
    assert service.rig.state(name)["state"] == "queued"


def test_a_second_process_of_one_identity_is_told(service: Service) -> None:
    name = service.drop()
    agent = service.agent_of("alice")
    (job,) = agent.sync(instance="first")
    twin = service.agent_of("alice")
    answer = twin("POST", "/v1/sync", twin.body(instance="second"))
    assert "identity" in answer.problem(409, "twin")["message"]
    assert service.rig.state(name)["run_id"] == job["run_id"]
    twin.generation = 2
    assert twin.sync(instance="second")[0]["id"] == name, "a restart: one more start of the same base"
    agent("POST", "/v1/sync", agent.body(instance="first")).problem(409, "twin")
