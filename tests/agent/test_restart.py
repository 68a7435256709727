"""Stopped, interrupted, killed, in every phase and on both sides: each command runs exactly once and its bytes arrive."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Callable

import pytest

from agent.company import FINAL, SITE, Company, files_below, gone, noise, pid_of
from agent.wire import Act, Request, Wire, once
from components import proc
from components.process import Process
from components.waiting import stays, wait_until

Make = Callable[..., Wire]
MIB = 1 << 20
DATA = noise(3 * MIB)
# Says who it is, counts its starts beside the job folders, and ends when told to.
UNTIL_GO = "echo $$ > pid; echo x >> ../../count; while [ ! -e go ]; do sleep 0.05; done; cat in.bin in.bin > out.bin"
AT_ONCE = "echo x >> ../../count; cat in.bin in.bin > out.bin"


def starts(company: Company) -> int:
    path = company.folder / "base" / "count"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until_go(company: Company) -> tuple[str, int]:
    """A job whose command runs; its id and the command's pid."""
    job = company.sh(UNTIL_GO, inputs={"in.bin": DATA}, outputs=("out.bin",))
    pid = pid_of(company.local(job) / "work" / "pid")
    return job, pid


def go(company: Company, job: str) -> None:
    (company.local(job) / "work" / "go").touch()


def check(company: Company, job: str, deadline_s: float = 45) -> None:
    """Completed, with the right bytes, after exactly one start."""
    assert company.completed(job, deadline_s) == {"out.bin": DATA * 2}
    assert starts(company) == 1


def agent_of(company: Company) -> Process:
    assert company.agent
    return company.agent


# ---- asked to end


@pytest.mark.slow
def test_interrupted_with_a_job_finishes_it(company: Company) -> None:
    company.start(slots=3)
    job, _ = until_go(company)
    company.interrupt()
    agent_of(company).wait_for_output("停止要求受付", 5)
    other = company.sh("true")
    stays(lambda: agent_of(company).running, 1.5, "the agent stays for its job")
    assert company.rig.state(other)["state"] == "queued", "nothing new is taken"
    go(company, job)
    check(company, job)
    assert agent_of(company).wait(10) == 0
    assert company.rig.state(other)["state"] == "queued"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl+c twice", "term"])
def test_left_running_and_picked_up(company: Company, how: str) -> None:
    company.start()
    job, pid = until_go(company)
    first = agent_of(company)
    if how == "term":
        first.signal(signal.SIGTERM)
    else:
        company.interrupt()
        stays(lambda: first.running, 0.5, "once: the agent stays")
        company.interrupt()
    assert first.wait(8) == 0
    assert proc.alive(pid)
    process = proc.stat(pid)
    assert process
    assert process.parent != first.pid
    assert process.group != first.pid, "a signal to the agent's group would reach the command"
    assert company.rig.state(job)["state"] == "running"
    company.start()
    stays(lambda: proc.alive(pid), 1, "the next start leaves it alone")
    go(company, job)
    check(company, job)


@pytest.mark.slow
def test_done_while_nobody_watched(company: Company) -> None:
    company.start()
    job, pid = until_go(company)
    assert agent_of(company).stop() == 0
    go(company, job)
    gone(pid)
    company.start()
    check(company, job)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["down", "frozen"])
def test_ends_soon_although_the_server_does_not_answer(company: Company, state: str) -> None:
    """A frozen server takes connections and says nothing: nobody waits a minute for a goodbye."""
    company.start()
    job = company.sh("true")
    company.completed(job)
    company.locally(job, "completed")
    server = company.rig._processes[0]
    server.signal(signal.SIGSTOP if state == "frozen" else signal.SIGKILL)
    try:
        company.interrupt()
        assert agent_of(company).wait(15) == 0
    finally:
        server.signal(signal.SIGCONT)


# ---- the agent is killed


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True], ids=["one file", "tar"])
def test_agent_killed_while_fetching(company: Company, make_wire: Make, many: bool) -> None:
    part = "in.tar" if many else "/files/in/"
    hold = Act(hold_answer=2_000_000 if not many else 30_000)
    wire = make_wire(company.rig.port, once(lambda request: part in request.path, hold))
    company.start(url=wire.url)
    small = {f"s{number}": noise(9000, str(number)) for number in range(20)} if many else {}
    job = company.sh(AT_ONCE, inputs={"in.bin": DATA, **small}, outputs=("out.bin",))
    wait_until(lambda: any(part in request.path for request in list(wire.seen)), 20, "the download has begun")
    company.kill_agent()
    assert company.rig.state(job)["state"] == "claimed"
    assert starts(company) == 0
    hold.go.set()
    company.start(url=wire.url)
    check(company, job)


@pytest.mark.slow
def test_agent_killed_while_running(company: Company) -> None:
    company.start()
    job, pid = until_go(company)
    company.kill_agent()
    stays(lambda: proc.alive(pid), 1, "the command goes on")
    company.start()
    go(company, job)
    check(company, job)


@pytest.mark.slow
def test_agent_killed_while_returning(company: Company, make_wire: Make) -> None:
    hold = Act(hold_body=700_000)
    wire = make_wire(company.rig.port, once(lambda request: request.method == "PATCH" and "/out/" in request.path, Act(), hold))
    company.start(url=wire.url, chunk="1M")
    job = company.sh(AT_ONCE, inputs={"in.bin": DATA}, outputs=("out.bin",))
    wait_until(lambda: len(wire.of("PATCH", "/out/")) >= 2, 20, "the second chunk is on its way")
    company.kill_agent()
    before = len(wire.seen)
    hold.go.set()
    company.start(url=wire.url, chunk="1M")
    check(company, job)
    offsets = [
        int(request.headers["upload-offset"])
        for request in wire.seen[before:]
        if request.method == "PATCH" and "/out/" in request.path
    ]
    assert offsets[0] >= MIB, "what the server had was sent again"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_agent_killed_again_and_again(company: Company) -> None:
    """At moments that nobody chose: twelve jobs, an agent that lives for at most a second or so."""
    seed = random.randrange(10**9)
    print("seed", seed)
    chance = random.Random(seed)
    script = "echo x >> ../../count.$MINT_SPOOL_JOB; cat a.bin > b.bin; sleep 0.$(( $$ % 10 ))"
    jobs = [company.sh(script, inputs={"a.bin": noise(50_000 * number, "k")}, outputs=("b.bin",)) for number in range(12)]
    for _ in range(14):
        company.start(slots=3)
        stays(lambda: True, chance.uniform(0.2, 1.6), "the agent lives")
        company.kill_agent()
    company.start(slots=3)
    for number, job in enumerate(jobs):
        assert company.completed(job, 60) == {"b.bin": noise(50_000 * number, "k")}
        assert (company.folder / "base" / f"count.{job}").read_text() == "x\n"
        assert company.rig.state(job)["attempt"] == 1


@pytest.mark.slow
def test_nothing_starts_without_the_servers_word(company: Company, make_wire: Make) -> None:
    """Inputs are here, the server is away: a command that starts now might be given to another agent as well."""
    away = Act(status=503)
    wire = make_wire(company.rig.port)
    wire.rule = lambda request: away if request.path == "/v1/sync" and wire.of("GET", "/files/in/") else None
    company.start(url=wire.url)
    job = company.sh(AT_ONCE, inputs={"in.bin": DATA}, outputs=("out.bin",))
    wait_until((company.local(job) / "work" / "in.bin").exists, 20, "the inputs are here")
    stays(lambda: starts(company) == 0, 2, "nothing runs")
    assert company.rig.state(job)["state"] == "claimed"
    wire.rule = lambda request: None
    check(company, job)


# ---- the server is killed


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["fetching", "running", "returning", "finishing"])
def test_server_killed(company: Company, make_wire: Make, phase: str) -> None:
    acts: dict[str, tuple[Callable[[Request], bool], Act]] = {
        "fetching": (lambda request: "/files/in/" in request.path, Act(hold_answer=1_000_000)),
        "running": (lambda request: False, Act()),
        "returning": (lambda request: request.method == "PATCH" and "/out/" in request.path, Act(hold_body=600_000)),
        "finishing": (lambda request: request.path.endswith("/finish"), Act(lose=True)),
    }
    matches, act = acts[phase]
    wire = make_wire(company.rig.port, once(matches, act))
    company.start(url=wire.url, chunk="1M")
    job = company.sh(UNTIL_GO, inputs={"in.bin": DATA}, outputs=("out.bin",))
    if phase != "fetching":
        pid_of(company.local(job) / "work" / "pid")
    if phase in ("returning", "finishing"):
        go(company, job)
    if phase != "running":
        wait_until(lambda: any(map(matches, list(wire.seen))), 20, f"{phase} has begun")
    server = company.rig._processes[0]
    server.kill()
    act.go.set()
    if phase == "running":
        go(company, job)
        company.locally(job, "returning")
    stays(lambda: agent_of(company).running, 1, "the agent stays")
    company.serve()
    if phase == "fetching":
        pid_of(company.local(job) / "work" / "pid", 30)
        go(company, job)
    check(company, job)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_server_killed_again_and_again(company: Company) -> None:
    seed = random.randrange(10**9)
    print("seed", seed)
    chance = random.Random(seed)
    script = "echo x >> ../../count.$MINT_SPOOL_JOB; cat a.bin > b.bin"
    jobs = [company.sh(script, inputs={"a.bin": noise(50_000 * number, "k")}, outputs=("b.bin",)) for number in range(8)]
    company.start(slots=3)
    server = company.rig._processes[0]
    for _ in range(6):
        stays(lambda: True, chance.uniform(0.1, 0.8), "the server lives")
        server.kill()
        server = company.serve()
    for number, job in enumerate(jobs):
        assert company.completed(job, 60) == {"b.bin": noise(50_000 * number, "k")}
        assert (company.folder / "base" / f"count.{job}").read_text() == "x\n"


# ---- as cron runs it


def test_one_pass_for_a_short_job(company: Company) -> None:
    assert company.once() == 0
    job = company.sh(AT_ONCE, inputs={"in.bin": DATA}, outputs=("out.bin",))
    company.is_at(job, "queued")
    assert company.once() == 0
    assert company.rig.state(job)["state"] == "completed"
    check(company, job)


@pytest.mark.slow
def test_several_passes_for_a_long_job(company: Company) -> None:
    assert company.once() == 0
    job = company.sh(UNTIL_GO, inputs={"in.bin": DATA}, outputs=("out.bin",))
    company.is_at(job, "queued")
    pids = set()
    for _ in range(3):
        assert company.once(once_wait_s="0.5") == 0
        assert company.rig.state(job)["state"] == "running"
        pids.add(pid_of(company.local(job) / "work" / "pid"))
        assert all(map(proc.alive, pids))
    assert len(pids) == 1
    go(company, job)
    gone(pids.pop())
    assert company.once() == 0
    assert company.rig.state(job)["state"] == "completed"
    check(company, job)


@pytest.mark.slow
def test_a_pass_takes_no_more_than_its_slots_and_fills_them(company: Company) -> None:
    assert company.once(slots=2) == 0
    jobs = [company.sh("echo x > a", outputs=("a",)) for _ in range(3)]
    for job in jobs:
        company.is_at(job, "queued")
    assert company.once(slots=2) == 0
    assert sorted(company.rig.state(job)["state"] for job in jobs) == ["completed", "completed", "queued"]
    assert company.once(slots=2) == 0
    assert all(company.rig.state(job)["state"] == "completed" for job in jobs)


@pytest.mark.slow
def test_passes_that_overlap(company: Company) -> None:
    assert company.once() == 0
    job = company.sh(UNTIL_GO, inputs={"in.bin": DATA}, outputs=("out.bin",))
    company.is_at(job, "queued")
    first = company.start("--once", once_wait_s=20)
    pid_of(company.local(job) / "work" / "pid")
    assert company.once() == 75
    go(company, job)
    assert first.wait(20) == 0
    check(company, job)


@pytest.mark.slow
def test_a_pass_without_server_or_right_says_so(company: Company) -> None:
    assert company.once() == 0
    assert company.once(url="http://127.0.0.1:1") == 75
    wrong = company.rig.start_agent(SITE, company.commands, "--once", token="f" * 64)
    assert wrong.wait(20) == 77


@pytest.mark.slow
def test_a_pass_during_the_server_s_absence_keeps_the_job(company: Company) -> None:
    """The command has ended, the server is away: the pass gives up for now, the next one delivers."""
    assert company.once() == 0
    job = company.sh(UNTIL_GO, inputs={"in.bin": DATA}, outputs=("out.bin",))
    company.is_at(job, "queued")
    assert company.once(once_wait_s="0.2") == 0
    pid = pid_of(company.local(job) / "work" / "pid")
    company.rig._processes[0].kill()
    go(company, job)
    gone(pid)
    assert company.once() == 75
    company.serve()
    assert company.once() == 0
    check(company, job)


def test_files_of_a_job_belong_to_the_agent_alone(company: Company) -> None:
    company.start()
    job = company.sh("echo x > a.dat", outputs=("a.dat",), inputs={"in.bin": b"x"})
    company.completed(job)
    local: Path = company.local(job)
    assert files_below(local)
    open_to_others = [str(path) for path in (local, *local.rglob("*")) if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    # What the command itself makes has the modes it wants; it runs with the agent's umask.
    assert open_to_others == []
    assert company.rig.state(job)["state"] in FINAL
