"""A 3 GB sparse file through SSH mode and back: the bytes right, holes kept, the push in constant memory."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from components.proc import peak_rss_mb
from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until

SIZE_BYTES = 3 * 1024**3
MARKS = {0: b"begin", SIZE_BYTES // 2: b"middle", SIZE_BYTES - 3: b"end"}


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        for offset, data in MARKS.items():
            file.seek(offset)
            file.write(data)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_gigabytes_there_and_back(rig: Rig, sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = tmp_path / "big.bin"
    make_sparse(big)
    site = {
        "mode": "ssh", "commands": "cp", "host": "site", "base": tmp_path / "base", "ssh_config": sshd.ssh_config,
    }  # fmt: skip
    push = rig.start_push({"far": site})
    wait_until((rig.spool / "spool.json").exists, 20, "the push has made the spool")
    job_id = rig.submit("far", "cp", "--arg=big.bin", "--arg=copy.bin", "--in", big, "--out", "copy.bin")
    state = rig.wait_state(job_id, "completed", "failed", deadline_s=800)
    assert state["state"] == "completed", state
    copy = rig.job(job_id) / "out" / "copy.bin"
    entry = next(item for item in json.loads((rig.job(job_id) / "result.json").read_bytes())["files"] if "copy" in item["path"])
    assert copy.stat().st_size == SIZE_BYTES
    assert sha256(copy) == entry["sha256"] == state["inputs"][0]["sha256"]
    assert os.stat(copy).st_blocks * 512 < 64 * 1024**2, "the holes were filled"
    peak_mb = peak_rss_mb(push.pid)
    with capsys.disabled():
        print(f"\nssh: 3 GB there and back, push resident at most {peak_mb:.0f} MB")
    assert peak_mb < 80
