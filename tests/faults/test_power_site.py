"""The power of the company's machine is cut, MInt's is not: no command is started twice, no result is made of what was lost."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.company import Company
from components import proc
from components.figures import tell
from components.images import image_of
from components.privilege import need_root
from components.waiting import wait_until
from faults.load import noise
from spool.runner import LocalRunner, install, write_run

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
SEED = int(os.environ.get("MINT_POWER_SEED", "20261123"))
CUTS = 40 if EXHAUSTIVE else 4
KINDS = ["ext4", "xfs"]
AT_ONCE = 6
# The results are written by an ordinary program, which syncs nothing; the counter lies on another disk.
SCRIPT = 'set -e; echo {job} >>"{counter}"; cat 入力.dat 入力.dat >結果.dat; echo said; sleep 0.$(( $$ % 4 ))'
MAY_BE_LOST = {"lost"}


def working_for(folder: Path) -> list[int]:
    """Every process that works below `folder` or has a path there among its arguments: runners, supervisors, commands."""
    found, inside = set(proc.working_in(folder)), os.fsencode(folder) + b"/"
    for process in proc.all_processes():
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if inside in words and process.pid != os.getpid():
            found.add(process.pid)
    return sorted(found)


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    need_root()
    made = Company(tmp_path / "rig")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_the_agents_machine(kind: str, company: Company, tmp_path: Path) -> None:
    chance, counter, pause = random.Random(SEED), tmp_path / "counter", threading.Event()
    data = noise(300_000, "deck")
    company.options = {"poll_s": "0.3", "wait_s": 2, "slots": AT_ONCE}
    company.serve()
    with image_of(kind, company.folder / "base") as image:
        base, jobs = image.mount_point, []

        def theirs() -> list[int]:
            assert company.agent
            family = [one.pid for one in proc.descendants(company.agent.pid)]
            return sorted({company.agent.pid, *family, *working_for(base)})

        def hand_in() -> None:
            number = len(list(tmp_path.glob("job.*")))
            (tmp_path / f"job.{number}").touch()
            script = SCRIPT.format(job=number, counter=counter)
            jobs.append(company.sh(script, inputs={"入力.dat": data}, outputs=("結果.dat",)))

        for _ in range(CUTS):
            while len(jobs) - ended(company, jobs) < AT_ONCE + 2:
                hand_in()
            company.start()
            wait_until(partial(more_lines, counter, lines(counter)), 60, "a command has started")
            pause.wait(chance.uniform(0, 1))
            image.cut(theirs)
        company.start()
        wait_until(lambda: ended(company, jobs) == len(jobs), 90, "every job has ended")
        company.kill_agent()
    starts, ends = Counter(counter.read_text().split()), Counter[str]()
    for number, job_id in enumerate(jobs):
        state = company.rig.state(job_id)
        ends[state.get("reason", "") or state["state"]] += 1
        assert state["attempt"] == 1
        if state["state"] == "completed":
            whole = company.out(job_id) == {"結果.dat": data * 2}
            said = (company.rig.job(job_id) / "log" / "stderr.txt").read_text()
            why = f"a result was made of what the power cut left: {job_id}, started {starts[str(number)]} times, {said!r}"
            assert whole, why
            assert starts[str(number)] == 1
    tell(f"power, cuts of an agent's {kind}, seed {SEED}: {CUTS} cuts, {len(jobs)} jobs, {dict(ends)}")
    assert max(starts.values()) == 1, f"started again: {starts}"
    assert set(ends) <= {"completed", "lost"}, ends
    assert ends["completed"]


def ended(company: Company, jobs: list[str]) -> int:
    return sum(company.rig.state(job).get("state") in ("completed", "failed", "canceled", "expired") for job in jobs)


def more_lines(path: Path, before: int) -> bool:
    return lines(path) > before


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_end_speaks_of_whole_results(kind: str, tmp_path: Path) -> None:
    """From `run/exit` on the results are fetched; what the command wrote without syncing it must be durable by then."""
    need_root()
    with image_of(kind, tmp_path / "disk") as image:
        job, runner = image.mount_point / "仕事", LocalRunner(install(tmp_path))
        (job / "in").mkdir(parents=True)
        (job / "in" / "入力.dat").write_bytes(noise(300_000, "deck"))
        script = "mkdir d; cat 入力.dat 入力.dat >d/結果.dat; echo said"
        write_run(job, ["/bin/sh", "-c", script], {})
        runner.prepare(job)
        runner.start(job)
        wait_until((job / "run" / "exit").exists, 60, "the end is recorded", every_s=0.001)
        wait_until(lambda: not working_for(image.mount_point), 60, "the record is durable and its writer gone", every_s=0.001)
        image.cut(lambda: working_for(image.mount_point))
        assert runner.status(job).word == "exited"
        assert (job / "work" / "d" / "結果.dat").read_bytes() == noise(300_000, "deck") * 2
        assert (job / "log" / "stdout.txt").read_bytes() == b"said\n"
