"""Slow lines, many large bodies, a full disk, a killed server: memory stays small, jobs stay whole, it works again."""

from __future__ import annotations

import json
import random
import socket
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.proc import peak_rss_mb
from components.process import Process
from components.rig import Section
from components.waiting import stays, wait_until
from published.conftest import COMMAND, SITE, Institute, done, first, told
from published.raw_calls import Caller, parsed
from published.test_hostile import results
from published.test_hostile_bodies import b64, head
from spool.files import free_bytes

MIB = 1 << 20


def registration(size: int, command: str = COMMAND) -> bytes:
    """A body of add-calcinfo with one input of that many bytes."""
    files = {"job.sh": ["A" * (size // 3 * 4), "text/plain;", "charset=us-ascii"]}
    return json.dumps({"calc-info": {"remote-site": SITE, "command": command, "parameter_files": files}}).encode()


@pytest.fixture
def caller(institute: Institute) -> Caller:
    return Caller(institute.rig.port, institute.token, SITE)


@pytest.mark.slow
def test_twenty_large_uploads_that_never_end_cost_little_memory(institute: Institute, caller: Caller) -> None:
    server = institute.rig.pid_of("spool_server.py")
    before = peak_rss_mb(server)
    body = registration(24 * MIB)
    headers = head("add-calcinfo", institute.token, Content_Length=str(len(body)), Connection="close")
    lines = [socket.create_connection(("127.0.0.1", institute.rig.port), timeout=60) for _ in range(20)]
    try:
        for line in lines:
            line.sendall(headers + body[:-100_000])
        assert institute.rig.health() == 200
        assert told(institute.poller().request()) == (200, "0300"), "the others are served meanwhile"
        assert peak_rss_mb(server) - before < 100
        for line in lines[:3]:
            line.sendall(body[-100_000:])
            answer = b"".join(iter(partial(line.recv, 65536), b""))
            assert parsed("add-calcinfo", answer).told == (200, 200)
    finally:
        for line in lines:
            line.close()
    wait_until(lambda: len(list(institute.rig.spool.glob("jobs/*"))) == 3, 20, "three jobs")
    assert list(institute.rig.spool.glob("tmp/*")) == []
    assert peak_rss_mb(server) - before < 100


@pytest.mark.slow
def test_a_slow_download_keeps_its_job(institute: Institute, caller: Caller) -> None:
    """Longer than `claim_return_s`: the poller is there, its line is slow."""
    institute.rig._processes[-1].stop()
    institute.serve({"server": {"claim_return_s": "2"}})
    job = str(caller.call("POST", "add-calcinfo", registration(72 * MIB)).error["accept_id"])
    assert caller.post("allow-wait-calc", accept_id=job).told == (200, 200)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        line.connect(("127.0.0.1", institute.rig.port))
        line.sendall(head(f"calc-params?accept_id={job}&site_id={SITE}", institute.token, "GET"))
        stays(lambda: line.recv(MIB), 12, "the answer goes on", every_s=0.2)
        assert institute.rig.state(job)["state"] == "claimed"
    assert caller.params_complete(job).told == (200, 200)


# ---- a full disk


class Small(Institute):
    """One whose disk may become nearly full."""

    def serve(self, extra: Mapping[str, Section] | None = None, **options: Any) -> Process:
        return super().serve(extra, **{"min_free": "1M", **options})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Institute]:
    """A server whose spool is a file system of 48 MiB."""
    spool = tmp_path / "rig" / "spool"
    spool.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0770", "tmpfs", spool], check=True)
    made = None
    try:
        made = Small(tmp_path / "rig")
        yield made
    finally:
        if made:
            made.close()
        subprocess.run(["umount", "-l", spool], check=True)


def fill(institute: Institute, leave: int) -> Path:
    """Fill the disk but for so many bytes."""
    filler = institute.rig.spool / "journal" / "filler"
    filler.write_bytes(bytes(max(0, free_bytes(institute.rig.spool) - leave)))
    return filler


def test_a_full_disk_refuses_and_recovers(small_disk: Institute) -> None:
    caller = Caller(small_disk.rig.port, small_disk.token, SITE)
    job = small_disk.registered()
    caller.up_to(job, "end")
    filler = fill(small_disk, 6 * MIB)
    for size in (2 * MIB, 4 * MIB, 40 * MIB):
        answer = caller.call("POST", "add-calcinfo", registration(size))
        assert answer.told == (507, 507), size
    big = {**results("x"), "out.dat": {"content": b64(bytes(5 * MIB)), "mimetype1": "a", "mimetype2": "b"}}
    assert caller.send_results(job, big).told == (507, 507)
    assert len(list(small_disk.rig.spool.glob("jobs/*"))) == 1
    assert list(small_disk.rig.spool.glob("tmp/*")) == []
    filler.unlink()
    assert caller.send_results(job, big).told == (200, 200)
    assert caller.end_send(job).told == (200, 200)
    assert small_disk.rig.state(job)["state"] == "completed"
    assert caller.call("POST", "add-calcinfo", registration(2 * MIB)).told == (200, 200)


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_a_disk_that_fills_while_a_body_comes(small_disk: Institute, how: str) -> None:
    """Whoever fills it: refused or cut off, nothing is registered, and what was taken in is given back."""
    body = registration(12 * MIB)
    told_length = {"Content_Length": str(len(body))} if how == "length" else {"Transfer_Encoding": "chunked"}
    with socket.create_connection(("127.0.0.1", small_disk.rig.port), timeout=30) as line:
        line.sendall(head("add-calcinfo", small_disk.token, **told_length))
        filler = fill(small_disk, 4 * MIB)
        answer = b""
        try:
            for at in range(0, len(body), MIB):
                part = body[at : at + MIB]
                line.sendall(part if how == "length" else f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if how == "chunked":
                line.sendall(b"0\r\n\r\n")
            while block := line.recv(65536):
                answer += block
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert not answer or parsed("add-calcinfo", answer).told == (507, 507)
    filler.unlink()
    assert list(small_disk.rig.spool.glob("jobs/*")) == []
    wait_until(lambda: list(small_disk.rig.spool.glob("tmp/*")) == [], 10, "tmp/ is empty")
    caller = Caller(small_disk.rig.port, small_disk.token, SITE)
    assert caller.call("POST", "add-calcinfo", registration(8 * MIB)).told == (200, 200)


# ---- a killed server


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again(institute: Institute) -> None:
    """Their poller repeats what got no answer: the job is done once, whole, and nothing lies about."""
    chance = random.Random(4711)
    caller = Caller(institute.rig.port, institute.token, SITE)
    names = [f"out{number}.dat" for number in range(6)]
    files = {name: {"content": b64(name.encode() * 60_000), "mimetype1": "a", "mimetype2": "b"} for name in names}
    for _ in range(3):
        job = institute.registered(outputs=names)
        caller.up_to(job, "start")
        poller = institute.poller(retry=(60, 100.0))
        steps = [partial(poller.end, job, "calc end"), partial(poller.send_results, job, files), partial(poller.end_send, job)]
        for step in steps:
            under_way = institute.threads.submit(step)
            for _ in range(2):
                stays(lambda: True, chance.random() * 0.05, "some instant", every_s=0.001)
                institute.rig._processes[-1].kill()
                institute.serve()
            assert told(done(under_way, 60)) == (200, 200)
        found = first(institute.submitter().result(job))["result-info"]["result_files"]
        assert {name: found[name]["content"] for name in names} == {name: files[name]["content"] for name in names}
        store = institute.store()
        history = [str(line.target) for line in store.history(store.state(job))]
        assert history == ["new", "queued", "claimed", "running", "returning", "completed"]


@pytest.mark.slow
def test_what_a_killed_registration_has_left_is_swept(institute: Institute) -> None:
    body = registration(8 * MIB)
    under_way = [institute.threads.submit(lambda: institute.call("POST", "add-calcinfo", body)) for _ in range(6)]
    wait_until(lambda: list(institute.rig.spool.glob("tmp/published.*")), 20, "a body is taken in", every_s=0.001)
    institute.rig._processes[-1].kill()
    for one in under_way:
        wait_until(one.done, 20, "no answer")
    left = list(institute.rig.spool.glob("tmp/*"))
    for folder in left:
        subprocess.run(["touch", "-d", "2 hours ago", folder], check=True)
    institute.serve()
    wait_until(lambda: list(institute.rig.spool.glob("tmp/*")) == [], 20, "swept at the start")
    jobs = {path.name for path in institute.rig.spool.glob("jobs/*")}
    assert set(institute.submitter().calcinfo().json()) == jobs
