"""An ssh site's disk full, out of inodes, over quota or read-only: its jobs wait for room, however often they were tried."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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
EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"


class Short(Pushed):
    """A site whose base lies on a small disk, and one beside it with room."""

    def __init__(self, root: Path, sshd: Sshd, shortage: str) -> None:
        self.disk = Disk(sshd.home / "base", shortage, mode=0o700)
        self.counter, self.gate = sshd.home / "counter", sshd.home / "gate"
        super().__init__(Rig(root), sshd, sshd.home / "base", {})

    def begin(self) -> Process:
        other = {**self.options, "base": self.sshd.home / "roomy"}
        process = self.rig.start_push({"site": self.options, "roomy": other})
        wait_until((self.rig.spool / "drop").exists, 60, "the spool is there")
        return process

    def waiting(self) -> str:
        script = f"echo x >>{self.counter}; until [ -e {self.gate} ]; do sleep 0.05; done; cat in.dat >結果.dat"
        return self.sh(script, outputs=["結果.dat"], inputs={"in.dat": b"7" * 1000})

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
    tell(f"resources, site: {dict(FIGURES)}")


@pytest.mark.timeout(300)
def test_what_finds_no_room_at_the_site_waits(short: Short) -> None:
    """Five troubles with a site end a job; a disk that takes no more is none of them."""
    short.disk.take()
    process = short.begin()
    job = short.waiting()
    tries = 7 if EXHAUSTIVE else 2
    wait_until(lambda: process.output().count("event=trouble") >= tries, 240, "it is tried again and again")
    for line in process.output().splitlines():
        assert "event=trouble" not in line or "free space or inodes there or here" in line, line
    assert short.rig.state(job)["state"] == "claimed"
    beside = short.sh("true", site="roomy")
    assert short.ended(beside)["state"] == "completed", "another site is not delayed"
    short.disk.give()
    short.gate.touch()
    assert short.ended(job, 120)["state"] == "completed"
    assert short.out(job) == {"結果.dat": b"7" * 1000}
    assert short.counter.read_text() == "x\n"
    FIGURES["sendings put off"] += 1


def test_the_end_of_a_command_is_recorded_when_there_is_room(short: Short) -> None:
    if short.disk.shortage == "read_only":  # the command's own log keeps it writable; what it does then is the test above
        return
    process = short.begin()
    job = short.waiting()
    wait_until(short.counter.exists, 60, "the command runs")
    short.rig.wait_state(job, "running", deadline_s=60)
    short.disk.take()
    short.gate.touch()
    stays(lambda: short.rig.state(job)["state"] == "running", 2, "no end is known")
    assert "event=ended" not in process.output()
    short.disk.give()
    ended = short.ended(job, 120)
    # Its output found no room either: that is its own fault and told as such.
    assert (ended["state"], ended.get("reason", "")) in [("completed", ""), ("failed", "exit_nonzero")], ended
    assert short.counter.read_text() == "x\n"
    FIGURES["ends recorded later"] += 1


def test_a_start_that_cannot_be_recorded_there_waits(tmp_path: Path, sshd: Sshd) -> None:
    """The inputs are there, the permission is given, and not a byte more goes onto the disk."""
    short = Short(tmp_path / "rig", sshd, "full")
    try:
        process = short.begin()
        sshd.authorized_keys.write_text(f'command="{_filling(short)}" {sshd.key.with_suffix(".pub").read_text()}')
        job = short.waiting()
        process.wait_for_output("start in ", 90)
        stays(lambda: short.rig.state(job)["state"] == "running" and not short.counter.exists(), 1, "it waits")
        (sshd.home / "room").touch()
        short.disk.give()
        short.gate.touch()
        assert short.ended(job, 120)["state"] == "completed"
        assert short.counter.read_text() == "x\n"
        FIGURES["starts put off"] += 1
    finally:
        short.close()


def _filling(short: Short) -> Path:
    """A program in front of every command at the site, which fills the disk before a `start`."""
    program = short.sshd.home / "filling"
    ballast = short.disk.folder / ".ballast"
    room = short.sshd.home / "room"
    program.write_text(
        "#!/bin/sh\n"
        f'case $SSH_ORIGINAL_COMMAND in *" start") [ -e {room} ] || cat /dev/zero >{ballast} ;; esac 2>/dev/null\n'
        'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    program.chmod(0o755)
    return program
