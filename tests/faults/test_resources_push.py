"""MInt's disk full, out of inodes, over quota or read-only under ssh_push.py: no job fails by it, and each goes on by itself."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.disks import SHORTAGES, Disk
from components.figures import tell
from components.process import Process
from components.rig import Rig
from components.sshd import Sshd
from components.waiting import stays, wait_until
from ssh.conftest import Pushed

pytestmark = pytest.mark.slow
FIGURES: Counter[str] = Counter()
FINAL = ("completed", "failed", "canceled", "expired")


class Short(Pushed):
    """A push whose spool lies on a small disk."""

    def __init__(self, root: Path, sshd: Sshd, shortage: str) -> None:
        root.mkdir()
        self.disk = Disk(root / "spool", shortage)
        if shortage == "read_only":  # an open file keeps a disk writable, and the push's lock is one: that lies elsewhere
            Disk(root / "spool" / "locks", "full", size_mb=4)
        self.counter, self.gate = sshd.home / "counter", sshd.home / "gate"
        super().__init__(Rig(root), sshd, sshd.home / "base", {})

    def begin(self) -> Process:
        process = self.rig.start_push({"site": self.options}, server={"min_free": "64K"})
        wait_until((self.rig.spool / "drop").exists, 60, "the spool is there")
        return process

    def waiting(self, **more: Any) -> str:
        """A job that counts its start, waits for the gate and leaves a result."""
        script = f"echo x >>{self.counter}; until [ -e {self.gate} ]; do sleep 0.05; done; cat in.dat >結果.dat; echo said"
        return self.sh(script, outputs=["結果.dat"], inputs={"in.dat": b"7" * 1000}, **more)

    def close(self) -> None:
        self.rig.close()
        self.disk.close()


@pytest.fixture(params=SHORTAGES)
def short(request: pytest.FixtureRequest, tmp_path: Path, sshd: Sshd) -> Iterator[Short]:
    made = Short(tmp_path / "rig", sshd, request.param)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _figures() -> Iterator[None]:
    yield
    tell(f"resources, push: {dict(FIGURES)}")


def test_results_come_when_there_is_room(short: Short) -> None:
    """A fetch that found no room here is none: three that did not verify would end the job."""
    process = short.begin()
    job = short.waiting()
    wait_until(short.counter.exists, 60, "the command runs")
    short.rig.wait_state(job, "running", deadline_s=60)
    waiting = _made(short)
    short.disk.take()
    short.gate.touch()
    process.wait_for_output("event=trouble", 60)
    wait_until(lambda: process.output().count("event=trouble") >= 2, 60, "it is tried again")
    assert short.rig.state(job)["state"] in ("running", "returning")
    trouble = next(line for line in process.output().splitlines() if "event=trouble" in line)
    assert "hint=" in trouble
    dropped = str(uuid.uuid4())
    try:
        waiting.rename(short.rig.spool / "drop" / dropped)
    except OSError:  # read-only
        dropped = ""
    short.disk.give()
    assert short.ended(job, 120)["state"] == "completed"
    assert short.out(job) == {"結果.dat": b"7" * 1000}
    assert short.counter.read_text() == "x\n"
    if dropped:
        assert short.ended(dropped, 90)["state"] == "completed"
    assert short.rig.spoolctl("check", check=False).returncode == 0
    FIGURES["fetches put off"] += 1


def test_a_fetch_that_runs_out_of_inodes_half_way(tmp_path: Path, sshd: Sshd) -> None:
    """rsync ends with 23 then, as where a file has vanished at the site."""
    short = Short(tmp_path / "rig", sshd, "inodes")
    try:
        process = short.begin()
        script = f"for i in $(seq 40); do echo $i >$i.dat; done; until [ -e {short.gate} ]; do sleep 0.05; done"
        job = short.sh(script, outputs=["*.dat"])
        short.rig.wait_state(job, "running", deadline_s=60)
        stdout = short.rig.job(job) / "incoming"
        wait_until(lambda: list(stdout.glob("*/files/log/stdout.txt")), 60, "the log is followed")
        short.disk.take(leave=20)
        short.gate.touch()
        wait_until(lambda: _troubles(process) >= 1, 60, "the fetch finds no room")
        assert "mkstemp" in process.output(), "it was rsync that found none"
        short.disk.give()
        assert short.ended(job, 120)["state"] == "completed"
        assert len(short.out(job)) == 40
    finally:
        short.close()


def _made(short: Short) -> Path:
    folder = short.rig.spool / "tmp" / "made.later"
    (folder / "in").mkdir(parents=True)
    job = {"site": "site", "command": "true", "args": [], "inputs": [], "user": "mint"}
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def test_nothing_is_sent_and_nothing_fails(short: Short) -> None:
    """Before the start: what waits is neither claimed nor ended."""
    process = short.begin()
    short.sshd.stop()
    sent = short.waiting()
    short.gate.touch()
    short.rig.wait_state(sent, "claimed", deadline_s=60)
    process.wait_for_output("event=trouble", 60)
    waiting = _made(short)
    short.disk.take()
    short.sshd.start()
    dropped = str(uuid.uuid4())
    try:
        waiting.rename(short.rig.spool / "drop" / dropped)
        process.wait_for_output("event=drop", 60)
    except OSError:
        dropped = ""
    # It gets as far as the site, and not to the start: `running` cannot be written here.
    wait_until(lambda: _troubles(process) >= 2, 60, "it is tried and put off")
    stays(lambda: short.rig.state(sent)["state"] == "claimed" and not short.counter.exists(), 1, "it waits")
    short.disk.give()
    for job in filter(None, (sent, dropped)):
        assert short.ended(job, 120)["state"] == "completed"
    assert short.counter.read_text() == "x\n"
    FIGURES["sendings put off"] += 1


def _troubles(process: Process) -> int:
    words = ("No space left", "quota exceeded", "Read-only")
    return sum("event=trouble" in line and any(word in line for word in words) for line in process.output().splitlines())


def test_logs_that_cannot_be_followed_stop_nothing(tmp_path: Path, sshd: Sshd) -> None:
    """A command that talks while MInt's disk is full is watched on, and its cancel reaches it."""
    short = Short(tmp_path / "rig", sshd, "full")
    try:
        process = short.begin()
        talk = f"while ! [ -e {short.gate} ]; do head -c 40000 /dev/zero | tr '\\0' x; sleep 0.1; done; echo end >out.dat"
        job = short.sh(talk, outputs=["out.dat"])
        log = short.rig.spool / "jobs" / job / "incoming"
        wait_until(lambda: any(path.stat().st_size for path in log.glob("*/files/log/stdout.txt")), 60, "the log is followed")
        short.disk.take(leave=0)
        process.wait_for_output("event=logs_not_fetched", 60)
        assert process.output().count("event=logs_not_fetched") == 1
        assert "event=trouble" not in process.output()
        short.gate.touch()
        process.wait_for_output("event=trouble", 60)
        short.disk.give()
        assert short.ended(job, 120)["state"] == "completed"
        assert short.out(job) == {"out.dat": b"end\n"}
    finally:
        short.close()
