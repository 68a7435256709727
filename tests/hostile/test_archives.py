"""Hostile tars at both ends: results taken apart by the server, inputs taken apart by the agent."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import proc
from components.figures import tell
from hostile.archives import hostile_archives, member, one
from hostile.cast import Cast
from hostile.line import ask, request
from hostile.routes import entry_of
from hostile.surroundings import Surroundings, holds_canary, odd_below, tree
from spool.agent.client import Client
from spool.agent.transfer import fetch_inputs
from spool.errors import SpoolError
from spool.names import new_id, why_not_carried
from spool.paths import JobPaths

WANTED = [f"w{number}" for number in range(6)]


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    made = Cast(tmp_path / "rig")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_results_in_a_tar(cast: Cast) -> None:
    other = cast.job("completed", user="bob", site="site-b")
    before = tree(cast.store.paths.job(other.id).folder)
    around = Surroundings(cast.rig.root, ["spool", "home", "spool.log"])
    archives = list(hostile_archives(around.outside))
    job = cast.job("running")
    path = f"/v1/jobs/{job.id}/files/out.tar?run_id={job.run_id}"
    statuses: dict[str, int] = {}
    for what, data in archives:
        (told,) = ask(cast.port, [request("POST", path, data, token=cast.token_of("agent"))], methods=["POST"])
        statuses[what] = told.status
        assert told.status in (200, 400, 409, 413), (what, told)
        assert not told.is_traced(), (what, told)
    arrived = cast.store.paths.job(job.id).incoming_of(job.run_id)
    here = [str(path.relative_to(arrived / "files" / "out")) for path in (arrived / "files" / "out").rglob("*") if path.is_file()]
    assert [name for name in here if why_not_carried(name)] == []
    assert [entry.name for entry in arrived.iterdir() if entry.name.startswith("put.")] == []
    around.check()
    assert (odd_below(cast.rig.spool / "jobs"), holds_canary(cast.rig.spool)) == ([], [])
    assert sorted(entry.name for entry in (cast.rig.spool / "jobs").iterdir()) == sorted([job.id, other.id])
    assert tree(cast.store.paths.job(other.id).folder) == before
    assert proc.peak_rss_mb(cast.process.pid) < 200
    log = cast.process.output()
    assert "event=internal" not in log, log[log.find("event=internal") :][:3000]
    taken = sum(status == 200 for status in statuses.values())
    assert 20 < taken < len(archives) // 2
    links = [what for what in statuses if " to " in what and not what.startswith(("old file", "contiguous"))]
    assert [what for what in links if statuses[what] == 200] == []
    tell(f"hostile: {len(archives)} archives as results: {taken} taken in beneath the job, the others refused; 0 escapes")


class HostileServer:
    """Answers every in.tar with `archive`, and everything else with 404."""

    def __init__(self) -> None:
        self.archive = b""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = "in.tar" in self.path
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/x-tar" if found else "application/problem+json")
                body = outer.archive if found else b'{"code": "not_found", "message": "no", "hint": "no"}'
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    made = HostileServer()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_inputs_in_a_tar(hostile: HostileServer, tmp_path: Path) -> None:
    """What the agent takes of a tar is what was announced, and every failure is one that it knows and tries again."""
    base = tmp_path / "base"
    base.mkdir()
    around = Surroundings(tmp_path, ["base"])
    client = Client(hostile.url, lambda: "t" * 64)
    entries = tuple(entry_of(name, name.encode()) for name in WANTED)
    good = [member(name, size=2) for name in WANTED]
    archives = list(hostile_archives(around.outside))
    for what, data in archives:
        paths = JobPaths(base / new_id())
        paths.folder.mkdir()
        hostile.archive = data
        with pytest.raises(SpoolError):  # what it brings was not announced; the rest is asked for one by one, and is not there
            fetch_inputs(client, paths.folder.name, paths, entries)
        assert list(paths.inputs.iterdir()) == [], what
        assert odd_below(paths.folder) == [], what
    around.check()
    assert holds_canary(base) == []
    # Announced names of the wrong kind or content: not taken either.
    link = member(WANTED[0], b"2")
    link.linkname = str(around.outside / "beam.inp")
    for archive in (one(link, *good[1:]), one(*good), one(*(member(name) for name in WANTED))):
        paths = JobPaths(base / new_id())
        paths.folder.mkdir()
        hostile.archive = archive
        with pytest.raises(SpoolError):
            fetch_inputs(client, paths.folder.name, paths, entries)
        assert list(paths.inputs.iterdir()) == []
        assert holds_canary(base) == []
    tell(f"hostile: {len(archives)} archives as inputs at the agent: 0 files of them taken; 0 escapes")
