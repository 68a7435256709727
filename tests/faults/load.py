"""Load on a real server over real sockets, every acknowledgement written into a ledger: what is asked for after a power cut.

Each worker takes the loss of the line for what it is and goes on from what it knows, as the real programs do; all it knows is
outside the file system that is cut.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

from components.process import Process
from components.rig import Rig, Section
from components.waiting import wait_until
from faults.ledger import Ledger
from server.client import Agent, Answer, Client, held, tar_of
from spool.names import new_id

SITE, COMMAND, USER = "nims-dev", "sh job.sh", "alice"
INI: dict[str, Section] = {
    "Server": {"ipaddress": "127.0.0.1"}, "RemoteSites": {"remote_site_ids": [SITE]}, SITE: {"commands": [COMMAND]},
}  # fmt: skip
INPUTS = {"梁.inp": 70_000, "mesh/a.inp": 3_000}
CHUNK = 40_000
DOWN = (OSError, http.client.HTTPException)
SLOTS = 4
BACKLOG = 8  # jobs under way; with more the end would take its time


def noise(size: int, seed: str) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def inputs_of(job_id: str) -> dict[str, bytes]:
    return {name: noise(size, job_id + name) for name, size in INPUTS.items()}


def results_of(job_id: str, run_id: str) -> dict[str, bytes]:
    """What the command of that run leaves; names and bytes follow from the ids."""
    many = {f"out/d/{number}.txt": noise(100, f"{run_id}{number}") for number in range(5)}
    return {"log/stdout.txt": b"said\n" * 50, "out/結果.dat": noise(90_000, job_id + run_id), **many}


class Taken(Exception):
    """The result is here already, its answer got lost."""


def good(answer: Answer) -> Answer:
    """A refusal is a defect; a server that cannot reach its disk any more is one that is just being cut off."""
    if answer.status >= 500:
        raise ConnectionError(f"{answer.status}: {answer.body[:200]!r}")
    if answer.status == 409:
        raise Taken(str(answer.body))
    assert answer.status in (200, 201, 202, 204), (answer.status, answer.body[:500])
    return answer


class Load:
    """Submitters, droppers, an operator and an agent. `start` and `stop` as often as wanted, `drain` brings all to its end."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.ledger, self.random = rig, Ledger(), random.Random(seed)
        self.server: Process | None = None
        self.serve()
        token = rig.token(USER, "submitter", "agent", "operator")
        self.client = Client(rig.port, token)
        self.agent = Agent(rig.port, token, SITE)
        self._pending: dict[str, str] = {}  # what is being submitted, and how
        self._hands: dict[str, dict[str, Any]] = {}  # what the agent has, as last told
        self._busy: dict[str, Future[None]] = {}
        self._ended: list[str] = []
        self._over: set[str] = set()  # runs that have ended, and jobs canceled before they had one
        self._queued: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[str] = []

    def serve(self) -> None:
        ini = {**INI, "Server": {**INI["Server"], "portnumber": self.rig.port}}
        self.server = self.rig.start_server({}, extra=ini, deadline_s=60, min_free=0, drop_quiet_s="1")

    def start(self) -> None:
        self._stop.clear()
        self.agent.generation, self.agent.seq = self.agent.generation + 1, 0
        workers = [self._submitter, self._submitter, self._published, self._dropper, self._operator, self._agent]
        self._threads = [threading.Thread(target=self._run, args=(worker,)) for worker in workers]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The workers end as soon as what they ask for is answered, or the line is gone."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a worker hangs"
        assert not self.failures, "\n".join(self.failures)

    def _run(self, worker: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                with contextlib.suppress(*DOWN):
                    worker()
                self._stop.wait(0.002)
        except BaseException as error:  # noqa: BLE001 - outermost frame of the thread: `stop` tells it
            self.failures.append(f"{worker.__name__}: {type(error).__name__}: {error}")

    # ---- handing in

    def _full(self) -> bool:
        counts = self.ledger.counts()
        return counts["registered"] + counts["dropped"] + counts["requeued"] > len(self._over) + BACKLOG

    def _submitter(self) -> None:
        if self._full():
            return
        job_id = new_id()
        self._pending[job_id] = "v1"
        self._submit(job_id)

    def _submit(self, job_id: str) -> None:
        """By /v1, each step safe to repeat."""
        data = inputs_of(job_id)
        job = {"id": job_id, "site": SITE, "command": COMMAND, "inputs": list(data), "outputs": ["**"], "user": USER}
        body = json.dumps(job, ensure_ascii=False).encode()
        good(self.client("POST", "/v1/jobs", body))
        self.ledger.add("registered", job_id, job=body)
        if good(self.client("GET", f"/v1/jobs/{job_id}")).json["state"]["state"] == "new":
            for name, content in data.items():
                self._send(f"/v1/jobs/{job_id}/files/in/{quote(name)}", content, "input", job_id, name=name)
        good(self.client("POST", f"/v1/jobs/{job_id}/enqueue"))
        self.ledger.add("moved", job_id, to="queued", inputs=data)
        self._pending.pop(job_id)
        self._queued.append(job_id)

    def _send(self, path: str, content: bytes, kind: str, job_id: str, **facts: Any) -> None:
        """In chunks from where the server says, each acknowledged offset noted."""
        offset = int(good(self.client("HEAD", path)).headers["Upload-Offset"])
        while offset < len(content):
            answer = good(self.client.patch(path, offset, content[offset : offset + CHUNK]))
            offset = int(answer.headers["Upload-Offset"])
            self.ledger.add(kind, job_id, offset=offset, data=content, **facts)

    def _published(self) -> None:
        """add-calcinfo, then allow-wait-calc."""
        if self._full():
            return
        seed = new_id()
        data = {"job.sh": noise(500, seed), "入力.dat": noise(20_000, seed)}
        files = {name: [base64.b64encode(content).decode(), "text/plain;", "charset=us-ascii"] for name, content in data.items()}
        calc = {
            "command": COMMAND, "remote-site": SITE, "parameters": "", "parameter_files": files,
            "result_files": {"out.dat": {"content": "", "mimetype1": "", "mimetype2": ""}},
        }  # fmt: skip
        added = self._call("add-calcinfo", {"calc-info": calc})
        job_id = added.json["errors"][0]["accept_id"]
        self.ledger.add("registered", job_id, job=b"")
        for name, content in data.items():
            self.ledger.add("input", job_id, name=name, offset=len(content), data=content)
        self._pending[job_id] = "published"
        self._allow(job_id)

    def _allow(self, job_id: str) -> None:
        self._call("allow-wait-calc", {"accept_id": job_id})
        self.ledger.add("moved", job_id, to="queued")
        self._pending.pop(job_id)
        self._queued.append(job_id)

    def _call(self, call: str, body: dict[str, Any]) -> Answer:
        return good(self.client("POST", f"/mi-distcomp-api/{call}", json.dumps(body, ensure_ascii=False).encode()))

    def _dropper(self) -> None:
        """`spoolctl submit`, which prints the id when it has been handed in."""
        if self._full():
            return
        seed = new_id()
        source = self.rig.root / "submitted" / seed / "材料.inp"
        source.parent.mkdir(parents=True)
        source.write_bytes(noise(30_000, seed))
        done = self.rig.spoolctl("submit", "--site", SITE, "--command", COMMAND, "--user", USER, "--in", source, check=False)
        if done.returncode == 0:
            self.ledger.add("dropped", done.stdout.split()[-1], job=b"", inputs={"材料.inp": source.read_bytes()})

    def _operator(self) -> None:
        """Cancels some, requeues some."""
        self._stop.wait(0.1)
        if self._queued and self.random.random() < 0.3:
            job_id = self._queued.pop()
            answer = self.client("POST", f"/v1/jobs/{job_id}/cancel")
            if answer.status != 409:  # it has ended
                good(answer)
                self.ledger.add("cancel_asked", job_id)
                self._over.add(job_id)
        if self._ended and self.random.random() < 0.3:
            job_id = self._ended.pop(0)
            answer = good(self.client("POST", f"/v1/jobs/{job_id}/requeue"))
            self.ledger.add("requeued", job_id, attempt=answer.json["attempt"])

    # ---- the agent

    def _agent(self) -> None:
        with ThreadPoolExecutor(3) as pool:
            while not self._stop.is_set():
                with contextlib.suppress(*DOWN):
                    self._sync(pool)
                self._stop.wait(0.02)

    def _sync(self, pool: ThreadPoolExecutor, room: int = SLOTS) -> int:
        """One sync and what follows from it; returns how many jobs are in hand."""
        for job_id in [job_id for job_id, future in self._busy.items() if future.done()]:
            self._busy.pop(job_id).result()
        listed = [held(job, job["state"], ready=True) for job in self._hands.values()]
        answer = good(self.agent("POST", "/v1/sync", self.agent.body(*listed, room=max(0, room - len(self._hands)))))
        for told in answer.json["jobs"]:
            self._told(told, pool)
        return len(self._hands)

    def _told(self, told: dict[str, Any], pool: ThreadPoolExecutor) -> None:
        job_id, run_id, want = told["id"], told["run_id"], told["want"]
        mine = self._hands.get(job_id)
        if want == "fetch":
            self.ledger.add("moved", job_id, to="claimed", run_id=run_id)
            job = good(self.client("GET", f"/v1/jobs/{job_id}")).json
            self._hands[job_id] = {"id": job_id, "run_id": run_id, "attempt": job["state"]["attempt"], "state": "claimed"}
        elif mine is None or mine["run_id"] != run_id:
            return  # it has ended while the sync was on its way
        elif want == "forget":
            if job_id not in self._busy:
                self._hands.pop(job_id)
        elif want in ("start", "run", "cancel", "return") and job_id not in self._busy:
            if want == "start":
                self.ledger.add("moved", job_id, to="running", run_id=run_id)
                mine["state"] = "running"
            if mine["state"] != "claimed" or want == "cancel":
                self._busy[job_id] = pool.submit(self._finish, dict(mine), canceled=want == "cancel")

    def _finish(self, job: dict[str, Any], *, canceled: bool) -> None:
        """Send the results and result.json; where the line goes, a later sync has it done again."""
        job_id, run_id = job["id"], job["run_id"]
        files = {} if canceled else results_of(job_id, run_id)
        with contextlib.suppress(*DOWN):
            with contextlib.suppress(Taken):
                self._deliver(job_id, run_id, files)
            more = {"exit_code": None, "reason": "canceled"} if canceled else {}
            answer = good(self.agent.finish(job, files, **more))
            self.ledger.add("finished", job_id, run_id=run_id, to=answer.json["state"], files=files)
            self._hands.pop(job_id, None)
            self._ended.append(job_id)
            self._over.add(run_id)

    def _deliver(self, job_id: str, run_id: str, files: dict[str, bytes]) -> None:
        small = {name[len("out/") :]: content for name, content in files.items() if name.startswith("out/d/")}
        for name, content in files.items():
            if not name.startswith("out/d/"):
                path = f"/v1/jobs/{job_id}/files/{quote(name)}?run_id={run_id}"
                self._send(path, content, "appended", job_id, run_id=run_id, name=name)
        if small:
            good(self.client("POST", f"/v1/jobs/{job_id}/files/out.tar?run_id={run_id}", tar_of(small)))
            for name, content in small.items():
                self.ledger.add("appended", job_id, run_id=run_id, name=f"out/{name}", offset=len(content), data=content)

    # ---- to the end

    def drain(self, deadline_s: float = 240) -> None:
        """What is pending is submitted, what waits is claimed and run, until nothing is left."""
        self.agent.generation, self.agent.seq = self.agent.generation + 1, 0
        for job_id, how in list(self._pending.items()):
            if how == "v1":
                self._submit(job_id)
            elif good(self.client("GET", f"/v1/jobs/{job_id}")).json["state"]["state"] == "new":
                self._allow(job_id)
            else:  # it was allowed already; the answer was lost in the cut
                self._pending.pop(job_id)
        with ThreadPoolExecutor(3) as pool:
            try:
                wait_until(lambda: not self._sync(pool) and not self._left(), deadline_s, "every job has ended")
            except AssertionError as error:
                raise AssertionError(f"{error}; left: {self._left()[:9]}; in hand: {self._hands}; at it: {self._busy}") from None

    def _left(self) -> list[str]:
        listed = good(self.client("GET", "/v1/jobs?limit=5000")).json["jobs"]
        open_jobs = [job for job in listed if job["state"] not in ("completed", "failed", "canceled", "expired")]
        known = self.registered()
        return [f"{job['id']} {job['state']}" for job in open_jobs if job["state"] != "new" or job["id"] in known]

    def registered(self) -> set[str]:
        """The ids that were told. A published job that was registered just before a cut has one that nobody knows."""
        return {job_id for kind, job_id, _ in self.ledger.copy() if kind == "registered"}


@contextlib.contextmanager
def under_load(rig: Rig, seed: int) -> Iterator[Load]:
    """A load that is stopped, and its programs ended, whatever happens."""
    load = Load(rig, seed)
    try:
        yield load
    finally:
        load._stop.set()
        rig.close()


def without_fsync(rig: Rig) -> None:
    """Every program of the rig syncs nothing from now on."""
    folder = Path(rig.root) / "nosync"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import os\nos.fsync = os.fdatasync = lambda fd: None\nos.sync = lambda: None\n")
    rig.env["PYTHONPATH"] = str(folder)
