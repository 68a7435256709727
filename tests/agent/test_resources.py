"""A full disk at the site: the job in hand waits for space, nothing is lost, and it goes on by itself."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.company import Company
from components.waiting import wait_until


@pytest.fixture
def small_disk(company: Company) -> Iterator[Path]:
    """The agent's base as a file system of its own, of 3 MB."""
    base = company.folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", base], check=True)
    yield base
    assert company.agent
    company.agent.close()
    subprocess.run(["umount", "--lazy", base], check=True)


@pytest.mark.slow
def test_a_full_disk_at_the_site_is_waited_for(company: Company, small_disk: Path) -> None:
    data = os.urandom(8_000_000)
    company.start(min_free="1M")
    job = company.sh("cp big.bin out.bin", inputs={"big.bin": data}, outputs=("out.bin",))
    assert company.agent
    agent = company.agent
    wait_until(lambda: "No space left" in agent.output(), 30, "the agent says that its disk is full")
    assert company.rig.state(job)["state"] == "claimed", "a full disk has ended the job"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert company.completed(job, 60) == {"out.bin": data}


@pytest.mark.slow
def test_with_too_little_room_no_job_is_taken(company: Company, small_disk: Path) -> None:
    company.start(min_free="16M", poll_s="0.2")
    job = company.sh("true")
    assert company.agent
    agent = company.agent
    wait_until(lambda: "event=no_space" in agent.output(), 30, "the agent says that there is too little room")
    assert company.rig.state(job)["state"] == "queued"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert company.completed(job, 60) == {}


@pytest.mark.slow
def test_many_small_outputs_need_few_descriptors(company: Company) -> None:
    resource.prlimit(company.rig.pid_of("spool_server.py"), resource.RLIMIT_NOFILE, (256, 256))
    company.start()
    job = company.sh("i=0; while [ $i -lt 1500 ]; do : > $i.dat; i=$((i+1)); done", outputs=("*.dat",))
    assert len(company.completed(job, 100)) == 1500


def test_ctrl_c_where_the_terminal_cannot_show_japanese(company: Company) -> None:
    company.start(env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert company.agent
    wait_until(lambda: company.agent is not None and "event=started_agent" in company.agent.output(), 20, "the agent runs")
    company.interrupt()
    assert company.agent.wait(20) == 0, company.agent.output()
    assert "Ctrl + C" in company.agent.output()
