"""A file that takes its time: the line cut, rsync or the push killed, while it is sent or fetched. It goes on where it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from components import proc
from components.sshd import Sshd
from components.waiting import wait_until
from spool.ssh import transfer
from ssh.conftest import Pushed, lines
from ssh.lanes import Lane, kill_push_and_all

SIZE = 6_000_000
SPEED = 3_000_000


def half_way(lane: Lane, way: str, job_id: str) -> bool:
    """About half of the file is on the far side of the line."""
    there, here = lane.push.there(job_id) / "in", lane.rig.job(job_id) / "incoming"
    found = there.glob(".big.*") if way == "send" else here.glob("*/files/out/.out.*")
    return any(path.stat().st_size > SIZE // 3 for path in found)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["send", "fetch"])
@pytest.mark.parametrize("how", ["cut", "rsync", "push", "all"])
def test_a_large_file_goes_on_where_it_was(tmp_path: Path, sshd: Sshd, way: str, how: str) -> None:
    lane = Lane(tmp_path, sshd, 0)
    try:
        goes_on(lane, way, how)
    finally:
        lane.rig.close()


def test_what_a_killed_rsync_had_received_is_its_partial_file(tmp_path: Path) -> None:
    for name in (".大.dat.AbC12z", "d/.b.x.000000", ".other.dat.AbC12z", ".real.dat.AbC12z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    transfer._keep_halves(tmp_path, ["大.dat", "d/b.x", "real.dat", ".real.dat.AbC12z"])
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        ".mint-partial/大.dat", "d/.mint-partial/b.x", ".other.dat.AbC12z", ".real.dat.AbC12z",
    }  # fmt: skip


def goes_on(lane: Lane, way: str, how: str) -> None:
    push: Pushed = lane.push
    data = os.urandom(SIZE) if way == "send" else b""
    make = "true" if way == "send" else f"head -c {SIZE} /dev/urandom >out.bin"
    counter = lane.folder / "counter"
    script = f"echo started >>{counter}; cat big.bin | sha256sum; {make}"
    outputs = ["*.no"] if way == "send" else ["out.bin"]
    (lane.folder / "slow").write_text(str(SPEED))
    process = lane.start()
    job_id = push.sh(script, inputs={"big.bin": data}, outputs=outputs)
    wait_until(lambda: half_way(lane, way, job_id), 60, f"half of the file, {way}", every_s=0.005)
    if how == "cut":
        assert push.sshd.kill_connections()
    elif how == "rsync":
        proc.kill([one.pid for one in proc.descendants(process.pid) if one.name == "rsync"])
    elif how == "push":
        process.kill()
    else:
        kill_push_and_all(process)
    if not process.running:
        process = lane.start()
    state = push.ended(job_id, deadline_s=90)
    assert lines(counter) == ["started"]
    if way == "send":
        assert (state["reason"], push.log(job_id).split()[0]) == ("no_outputs", hashlib.sha256(data).hexdigest()), state
    else:
        assert state["state"] == "completed", state
        assert push.out(job_id) == {"out.bin": (push.there(job_id) / "work" / "out.bin").read_bytes()}
    carried = lane.carried()[way == "fetch"]
    assert carried < SIZE * 1.6, f"{carried} bytes for a file of {SIZE}"
