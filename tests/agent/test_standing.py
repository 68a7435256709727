"""The site's own switch, with the real agent: paused, drained, stopped, whether it runs, starts later, or comes by cron."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from agent.company import Company
from components.proc import working_in
from components.rig import REPO
from components.waiting import wait_until

pytestmark = pytest.mark.slow


def order(company: Company, *words: str, code: int = 0) -> str:
    """`spool_agent.py VERB`, run to its end."""
    command = [sys.executable, REPO / "spool_agent.py", words[0], "--config", company.folder / "agent.ini", *words[1:]]
    done = subprocess.run(command, env=company.rig.env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


def told(company: Company) -> str:
    """What MInt's operator sees of the site."""
    (row,) = json.loads(company.rig.spoolctl("site", "ls", "--json").stdout)["sites"]
    return str(row["standing"])


def events(company: Company) -> list[dict[str, Any]]:
    control = next((company.folder / "base").glob(".mint-spool-*"))
    return [json.loads(line) for line in (control / "audit.jsonl").read_text().splitlines()]


def test_pause_and_resume(company: Company) -> None:
    """No new job, what is in hand goes on; MInt is told that, and not why."""
    company.start(slots=3, wait_s=25)
    running = company.sh("while ! test -e go; do sleep 0.05; done; echo ok > a.dat", outputs=("a.dat",))
    company.rig.wait_state(running, "running", deadline_s=60)
    assert "1 in hand" in order(company, "pause", "--because", "秘密の理由")
    wait_until(lambda: told(company) == "paused", 60, "MInt is told")
    waiting = company.sh("true")
    (company.local(running) / "work" / "go").touch()
    company.rig.wait_state(running, "completed", deadline_s=60)
    company.rig.wait_state(waiting, "queued", deadline_s=60)
    assert "秘密" not in "".join(path.read_text() for path in (company.rig.spool / "sites").iterdir())
    # A restart and cron's passes heed it too.
    company.agent.stop() if company.agent else None
    assert company.once() == 0
    assert company.rig.state(waiting)["state"] == "queued"
    company.start()
    order(company, "resume")
    company.rig.wait_state(waiting, "completed", deadline_s=60)
    wait_until(lambda: told(company) == "", 60, "MInt is told")
    words = [(line["event"], line["because"]) for line in events(company) if line["event"] in ("paused", "resumed")]
    assert words == [("paused", "秘密の理由"), ("resumed", "")]


def test_drain_waits_for_what_is_in_hand(company: Company) -> None:
    company.start()
    running = company.sh("while ! test -e go; do sleep 0.05; done")
    company.rig.wait_state(running, "running", deadline_s=60)
    assert "1 jobs" in order(company, "drain", "--timeout", "0.3", code=75)
    waiting = company.sh("true")
    (company.local(running) / "work" / "go").touch()
    assert "drained" in order(company, "drain", "--timeout", "60")
    assert company.rig.state(running)["state"] == "completed"
    company.rig.wait_state(waiting, "queued", deadline_s=60)
    wait_until(lambda: told(company) == "draining", 60, "MInt is told")


@pytest.mark.parametrize("agent_runs", [True, False], ids=["agent runs", "agent does not run"])
def test_stop_ends_commands_and_nothing_leaves_before_resume(company: Company, agent_runs: bool) -> None:
    company.start(slots=2)
    running = company.sh("echo secret > a.dat; sleep 1000", outputs=("a.dat",))
    company.rig.wait_state(running, "running", deadline_s=60)
    wait_until((company.local(running) / "work" / "a.dat").exists, 60, "it has written its result")
    if not agent_runs and company.agent is not None:
        company.agent.stop()
    order(company, "stop")
    wait_until(lambda: not working_in(company.local(running)), 60, "the command is gone")
    waiting = company.sh("true")
    if agent_runs:
        wait_until(lambda: told(company) == "stopped", 60, "MInt is told")
    else:
        assert company.once() == 0
        company.start()
        wait_until(lambda: told(company) == "stopped", 60, "MInt is told")
    company.rig.wait_state(waiting, "queued", deadline_s=60)
    assert company.rig.state(running)["state"] == "running"
    incoming = company.rig.job(running) / "incoming"
    assert not list(incoming.rglob("a.dat"))
    order(company, "resume")
    assert company.rig.wait_state(running, "canceled", "failed", "completed", deadline_s=60)["state"] == "canceled"
    company.rig.wait_state(waiting, "completed", deadline_s=60)
    assert [line["event"] for line in events(company) if line["event"] in ("stopped", "resumed")] == ["stopped", "resumed"]


def test_an_order_that_cannot_be_read_stops_everything(company: Company) -> None:
    company.start()
    company.rig.wait_state(company.sh("true"), "completed", deadline_s=60)
    (control,) = (company.folder / "base").glob(".mint-spool-*")
    (control / "standing.json").write_text("{")
    wait_until(lambda: told(company) == "stopped", 60, "MInt is told")
    assert "standing_unreadable" in (company.folder / "log").read_text()
    job_id = company.sh("touch ran")
    company.rig.wait_state(job_id, "queued", deadline_s=60)
    order(company, "resume")
    company.rig.wait_state(job_id, "completed", deadline_s=60)


def test_a_result_that_is_under_way_stops_at_the_next_chunk_and_goes_on(company: Company) -> None:
    company.start(chunk="65536")
    job_id = company.sh("head -c 150000000 /dev/zero > a.dat", outputs=("a.dat",))

    def arrived() -> int:
        found = (company.rig.job(job_id) / "incoming").rglob("a.dat")
        return sum(path.stat().st_size for path in found if path.is_file())

    wait_until(lambda: arrived() > 0, 60, "the result is on its way")
    order(company, "stop")
    wait_until(lambda: told(company) == "stopped", 60, "MInt is told")
    there = arrived()
    assert told(company) == told(company) == "stopped"  # two commands: a second or more, hundreds of chunks
    assert arrived() == there < 150000000
    order(company, "resume")
    company.rig.wait_state(job_id, "completed", deadline_s=120)
    assert (company.rig.job(job_id) / "out" / "a.dat").stat().st_size == 150000000
