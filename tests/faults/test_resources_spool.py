"""MInt's disk full, out of inodes, over quota, read-only, and no file descriptors left: refused clearly, and recovered from.

One server process all the way, on a file system of its own; the agent is spoken by hand, so that each answer is seen.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.disks import SHORTAGES, Disk, immutable
from components.figures import tell
from components.waiting import wait_until
from server.client import Service, held
from server.spools import DECK, job_json
from spool.names import new_id

pytestmark = pytest.mark.slow
FIGURES: Counter[str] = Counter()


class Short(Service):
    """A server whose spool lies on a small disk of its own."""

    def __init__(self, root: Path, shortage: str) -> None:
        root.mkdir()
        self.disk = Disk(root / "spool", shortage, size_mb=72)
        try:
            super().__init__(root)
            self.configure(min_free="64K", claim_return_s="600")
        except BaseException:
            self.close()
            raise

    def drop(self, *, wait: bool = True, **keys: Any) -> str:
        job_id = new_id()
        self.made(**keys).rename(self.rig.spool / "drop" / job_id)
        if wait:
            self.rig.wait_state(job_id, "queued", deadline_s=60)
        return job_id

    def made(self, **keys: Any) -> Path:
        """A finished folder on the spool's disk, to be renamed into `drop/`."""
        folder = self.rig.spool / "tmp" / f"made.{new_id()}"
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "beam.inp").write_bytes(DECK)
        (folder / "job.json").write_bytes(job_json(workflow="計算", **keys))
        return folder

    def delivered(self, job: dict[str, Any]) -> int:
        """The status of an attempt to hand the results in."""
        path = f"/v1/jobs/{job['id']}/files/out/beam.dat?run_id={job['run_id']}"
        return max(self.agent.patch(path, 0, b"1").status, self.agent.finish(job, {"out/beam.dat": b"1"}).status)

    def close(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()
        self.disk.close()


@pytest.fixture(params=SHORTAGES)
def short(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Short]:
    made = Short(tmp_path / "rig", request.param)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _figures() -> Iterator[None]:
    yield
    tell(f"resources, spool: {dict(FIGURES)}")


def refused(short: Short, drop: Path) -> str:
    """New work is refused, each way with a word on what to do; returns where the drop waits, or "" where it could not be made."""
    told = short.alice("POST", "/v1/jobs", job_json(inputs=[])).problem(507, "no_space")
    assert told["hint"]
    body = json.dumps({"remote-site": "site-a", "command": "ccx"}).encode()
    told = short.alice("POST", "/mi-distcomp-api/add-calcinfo", body, Content_Type="application/json")
    assert (told.status, told.json["errors"][0]["code"]) == (507, 507), told.body
    done = short.rig.spoolctl("submit", "--site", "site-a", "--command", "ccx", "--user", "alice", check=False)
    assert (done.returncode, "\n  " in done.stderr) == (75, True), (done.returncode, done.stderr)
    job_id = new_id()
    try:
        drop.rename(short.rig.spool / "drop" / job_id)
    except OSError:
        return ""
    return job_id


def test_new_work_is_refused_and_what_runs_goes_on(short: Short, request: pytest.FixtureRequest) -> None:
    for _ in range(3):
        short.drop()
    running = short.agent.start()
    ready = short.agent.sync(held(running, "running"))[1]
    drop = short.made()
    pid = short.process.pid
    short.disk.take()
    if "quota" not in request.node.name:  # statvfs(3) does not tell of a quota
        short.health(503)
    waiting = refused(short, drop)
    # Heartbeats, and what cannot be written for one job delays no answer about the others.
    asked = short.agent.sync(held(running, "running"), held(ready, ready=True), room=1)
    assert {job["id"]: job["want"] for job in asked} == {running["id"]: "run", ready["id"]: "run"}
    assert short.rig.state(ready["id"])["state"] == "claimed"
    assert short.delivered(running) == 507
    assert short.rig.state(running["id"])["state"] == "running"
    said = short.process.output()
    assert ("event=job_put_off" in said, "event=not_claimed" in said, said.count("event=job_put_off")) == (True, True, 1)
    short.disk.give()
    short.health(200)
    assert short.agent.deliver(running, {"out/beam.dat": b"1"}).json["state"] == "completed"
    told = short.agent.sync(held(ready, ready=True), room=1)
    assert [job["want"] for job in told] == ["start", "fetch"]
    if waiting:
        short.rig.wait_state(waiting, "queued", deadline_s=60)
    assert short.alice("POST", "/v1/jobs", job_json(inputs=[])).status == 201
    assert short.process.pid == pid, "no restart was needed"
    done = short.rig.spoolctl("check", check=False)
    assert done.returncode == 0, done.stdout
    FIGURES[f"shortages ridden out: {request.node.callspec.params['short']}"] += 1


def test_an_upload_under_way_goes_on_where_it_was(short: Short) -> None:
    short.drop()
    job = short.agent.start()
    data = os.urandom(600_000)
    path = f"/v1/jobs/{job['id']}/files/out/%E7%B5%90%E6%9E%9C.dat?run_id={job['run_id']}"
    assert short.agent.patch(path, 0, data[:200_000]).status == 204
    short.disk.take()
    short.agent.patch(path, 200_000, data[200_000:]).problem(507, "no_space")
    short.disk.give()
    assert short.agent.ok("HEAD", path).headers["Upload-Offset"] == "200000"
    assert short.agent.patch(path, 200_000, data[200_000:]).status == 204
    assert short.agent.finish(job, {"out/結果.dat": data}).json["state"] == "completed"


def test_one_bad_job_delays_no_other(tmp_path: Path) -> None:
    """Nothing can be written into one job's folder: its agent's other jobs start, or go back to the queue, all the same."""
    service = Service(tmp_path / "rig")
    try:
        service.configure(claim_return_s="1")
        jobs = sorted(service.drop() for _ in range(3))
        claimed = {job["id"]: job for job in service.agent.sync(room=3)}
        with immutable(service.rig.job(jobs[0])) as mend:
            told = service.agent.sync(*(held(claimed[job], ready=True) for job in jobs[:2]), held(claimed[jobs[2]]), room=0)
            assert [job["want"] for job in told] == ["run", "start", "fetch"]
            assert service.rig.state(jobs[0])["state"] == "claimed"
            service.rig.wait_state(jobs[2], "queued", deadline_s=60)  # the agent is silent
            service.process.wait_for_output("event=upkeep_job", 60)
            mend()
        service.rig.wait_state(jobs[0], "queued", deadline_s=60)
        FIGURES["bad jobs beside good ones"] += 1
    finally:
        service.close()


def test_a_fifo_for_a_history_holds_nobody(tmp_path: Path) -> None:
    service = Service(tmp_path / "rig")
    try:
        service.drop()
        job = service.agent.start()
        history = service.rig.job(job["id"]) / "history.jsonl"
        history.rename(history.with_name("kept"))
        os.mkfifo(history)
        service.operator("POST", f"/v1/jobs/{job['id']}/cancel", b"").problem(503, "busy")
        history.unlink()
        history.with_name("kept").rename(history)
        assert service.operator("POST", f"/v1/jobs/{job['id']}/cancel", b"").json["cancel_requested_at"]
    finally:
        service.close()


def test_too_many_open_files(tmp_path: Path) -> None:
    """Idle connections take every descriptor: refused or kept waiting, nothing is thrown away, and when they go it goes on."""
    service = Service(tmp_path / "rig")
    try:
        service.drop()
        job = service.agent.start()
        used = len(os.listdir(f"/proc/{service.process.pid}/fd"))
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (used + 8, used + 8))
        idle = [socket.create_connection(("127.0.0.1", service.port), 10) for _ in range(20)]
        wait_until(lambda: len(os.listdir(f"/proc/{service.process.pid}/fd")) >= used + 8, 30, "no descriptor is left")
        dropped = service.drop(wait=False)
        idle[0].sendall(f"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.alice.token}\r\n\r\n".encode())
        idle[0].settimeout(60)
        told = b""
        while b"\r\n\r\n" not in told or b"}" not in told:
            told += idle[0].recv(4096)
        assert (told[:12], b"ulimit -n" in told) == (b"HTTP/1.1 503", True), told
        for one in idle:
            one.close()
        service.health(200)
        service.rig.wait_state(dropped, "queued", deadline_s=60)
        assert service.agent.deliver(job, {"out/beam.dat": b"1"}).json["state"] == "completed"
        assert list((service.rig.spool / "corrupt").iterdir()) == []
        assert list((service.rig.spool / "rejected").iterdir()) == []
        FIGURES["out of descriptors"] += 1
    finally:
        service.close()
