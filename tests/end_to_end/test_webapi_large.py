"""Three gigabytes there and back: constant memory, holes stay holes, the bytes are right."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from components import proc
from components.rig import Rig
from components.waiting import wait_until
from spool.names import new_id

SIZE = 3 * 10**9 + 12345
MARK = hashlib.shake_256(b"mark").digest(300_001)
MARKS = (0, 262_144 - 7, 1_234_567_891, SIZE - len(MARK))
MOST_MB = 80
DEADLINE_S = 400


def make(path: Path) -> None:
    """Mostly a hole, with bytes at the start, across a block's edge, in the middle and at the end."""
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset in MARKS:
            file.seek(offset)
            file.write(MARK)


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def on_disk_mb(*folders: Path) -> float:
    """What the files below really take."""
    paths = (Path(path) / name for folder in folders for path, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_blocks for path in paths) * 512 / 2**20


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_S + 120)
def test_three_gigabytes_there_and_back(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    server = rig.start_server({"nims-dev": {"commands": "*"}})
    commands = {"cp": {"argv": "/bin/cp {args}", "args": r"[a-z]+\.bin"}}
    agent = rig.start_agent("nims-dev", commands, release={"allow": "out.bin"})
    job_id, began = new_id(), time.monotonic()
    making = rig.root / "making"
    (making / "in").mkdir(parents=True)
    make(making / "in" / "big.bin")
    wanted = digest(making / "in" / "big.bin")
    asked: dict[str, object] = {"site": "nims-dev", "user": "mint", "command": "cp", "args": ["big.bin", "out.bin"]}
    asked.update(inputs=["big.bin"], outputs=["out.bin"])
    (making / "job.json").write_text(json.dumps(asked))
    making.rename(rig.spool / "drop" / job_id)
    times: dict[str, float] = {}

    def ended() -> bool:
        state = rig.state(job_id).get("state", "")
        times.setdefault(state, time.monotonic() - began)
        return state in ("completed", "failed", "canceled")

    wait_until(ended, DEADLINE_S, f"the job ends; so far {times}", every_s=0.2)
    memory = {name: proc.peak_rss_mb(process.pid) for name, process in (("server", server), ("agent", agent))}
    local = rig.agent_folder("nims-dev") / "base" / job_id
    disk = {"mint": on_disk_mb(rig.job(job_id)), "company": on_disk_mb(local)}
    with capsys.disabled():
        shown = ", ".join(f"{state} {at:.1f} s" for state, at in times.items() if state)
        print(f"\n3 GB there and back: {shown}; peak MiB {memory}; on disk MiB {disk}")
    state = rig.state(job_id)
    assert state["state"] == "completed", state
    assert (rig.job(job_id) / "out" / "out.bin").stat().st_size == SIZE
    assert digest(rig.job(job_id) / "out" / "out.bin") == wanted
    assert all(used < MOST_MB for used in memory.values()), memory
    assert all(used < 64 for used in disk.values()), disk
