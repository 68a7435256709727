"""A client that says what it is told, right or wrong, over a real socket; and the server it speaks to."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.rig import Rig, Section
from components.waiting import wait_until
from server.spools import DECK, job_json
from spool.names import new_id
from spool.records import FileEntry, Result
from spool.server.tokens import TokenFile
from spool.store import Store

SITES: dict[str, Section] = {"site-a": {"commands": "*"}, "site-b": {"commands": "ccx", "users": "alice"}}


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, code: str = "") -> dict[str, Any]:
        """The problem document; fails where the answer is none."""
        assert self.status == status, (self.status, self.body[:500])
        assert self.headers["Content-Type"].startswith("application/problem+json")
        found = dict(self.json)
        assert set(found) == {"code", "message", "hint"}
        assert found["message"]
        assert not code or found["code"] == code, found
        return found


class Client:
    """Requests with one token."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.token = token

    def __call__(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float = 30, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            if self.token:
                headers.setdefault("Authorization", f"Bearer {self.token}")
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def ok(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """A request that must succeed."""
        answer = self(method, path, body, **headers)
        assert answer.status in (200, 201, 204, 206), (answer.status, answer.body[:500])
        return answer

    def patch(self, path: str, offset: int, data: bytes, *, digest: bytes | None = None, **headers: str) -> Answer:
        """One chunk."""
        if digest is not None:
            headers["Content_Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
        return self("PATCH", path, data, Upload_Offset=str(offset), **headers)


class Agent(Client):
    """An agent as the wire sees it."""

    def __init__(self, port: int, token: str, site: str = "site-a", name: str = "agent-1") -> None:
        super().__init__(port, token)
        self.site = site
        self.name = name
        self.generation = 1
        self.seq = 0

    def body(self, *jobs: Mapping[str, Any], room: int = 1, wait_s: int = 0, **more: Any) -> bytes:
        """The body of the next sync."""
        self.seq += 1
        value = {
            "site": self.site,
            "agent": self.name,
            "generation": self.generation,
            "seq": self.seq,
            "room": room,
            "wait_s": wait_s,
        }
        return json.dumps({**value, "jobs": list(jobs), **more}).encode()

    def sync(self, *jobs: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
        """One sync; what is told of each job."""
        return list(self.ok("POST", "/v1/sync", self.body(*jobs, **more)).json["jobs"])

    def claim(self) -> dict[str, Any]:
        """Claim the one job that waits."""
        (job,) = self.sync()
        assert (job["want"], job["state"]) == ("fetch", "claimed")
        return job

    def start(self) -> dict[str, Any]:
        """Claim the one job that waits and get the permission to start it."""
        job = self.claim()
        (told,) = self.sync(held(job, ready=True), room=0)
        assert (told["want"], told["state"]) == ("start", "running"), told
        return job

    def finish(self, job: Mapping[str, Any], files: Mapping[str, bytes], **more: Any) -> Answer:
        """Hand in result.json."""
        return self("POST", f"/v1/jobs/{job['id']}/finish", result(job, files, **more).encode())

    def deliver(self, job: Mapping[str, Any], files: Mapping[str, bytes], **more: Any) -> Answer:
        """Upload and finish."""
        for name, data in files.items():
            answer = self.patch(f"/v1/jobs/{job['id']}/files/{quote(name)}?run_id={job['run_id']}", 0, data)
            assert answer.status == 204, answer.body
        return self.finish(job, files, **more)


def held(job: Mapping[str, Any], state: str = "claimed", *, ready: bool = False, **more: Any) -> dict[str, Any]:
    """A job as an agent lists it."""
    return {"id": job["id"], "run_id": job["run_id"], "state": state, "ready": ready, **more}


def result(job: Mapping[str, Any], files: Mapping[str, bytes], **more: Any) -> Result:
    """A result.json that lists `files`."""
    entries = tuple(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())
    return Result(job["id"], job["run_id"], job["attempt"], exit_code=more.pop("exit_code", 0), files=entries, **more)


def tar_of(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A tar of plain files, then further members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


class Service:
    """A server process, its spool, and clients for it."""

    def __init__(self, root: Path) -> None:
        self.rig = Rig(root)
        self.options: dict[str, Any] = {"drop_quiet_s": "0.3"}
        self.sites = dict(SITES)
        self.process = self.rig.start_server(self.sites, **self.options)
        self.port = self.rig.port
        self.store = Store.open(self.rig.spool)
        self.tokens = TokenFile(self.store.paths.tokens)
        self.alice = self.client("alice", "submitter")
        self.agent = self.agent_of("alice")
        self.operator = self.client("root", "operator")

    def client(self, user: str, *roles: str, sites: tuple[str, ...] = ()) -> Client:
        """A client with a new token."""
        return Client(self.port, self.tokens.add(user, roles, sites)[0])

    def agent_of(self, user: str, site: str = "site-a", name: str = "agent-1", sites: tuple[str, ...] = ()) -> Agent:
        """An agent with a new token."""
        return Agent(self.port, self.tokens.add(user, ["agent"], sites)[0], site, name)

    def drop(self, *, wait: bool = True, **keys: Any) -> str:
        """Hand in a job of alice by rename."""
        name = new_id()
        folder = self.rig.root / f"making.{name}"
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "beam.inp").write_bytes(keys.pop("deck", DECK))
        (folder / "job.json").write_bytes(job_json(**keys))
        folder.rename(self.store.paths.drop / name)
        if wait:
            self.rig.wait_state(name, "queued", "claimed", deadline_s=10)
        return name

    def restart(self, *, kill: bool = True, **options: Any) -> None:
        """Kill or stop the server and start it again on the same spool and port."""
        if kill:
            self.process.kill()
        else:
            assert self.process.stop() == 0
        self.options.update(options)
        self.process = self.rig.start_server(self.sites, **self.options)

    def configure(self, sites: Mapping[str, Section] | None = None, **options: Any) -> None:
        """Rewrite spool.ini under the running server, as an operator does."""
        self.sites = dict(sites or self.sites)
        self.options.update(options)
        ini = self.rig.root / "spool.ini"
        lines = [f"[server]\nlisten = 127.0.0.1:{self.port}\nspool = {self.rig.spool}\n"]
        lines += [f"{name} = {value}\n" for name, value in self.options.items()]
        for name, section in self.sites.items():
            lines.append(f"[site {name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items()))
        temp = ini.with_suffix(".new")
        temp.write_text("".join(lines), encoding="utf-8")
        temp.replace(ini)

    def health(self, status: int) -> None:
        """Until /health answers so."""
        wait_until(lambda: self.rig.health() == status, 5, f"/health answers {status}")

    def close(self) -> None:
        """End the server."""
        self.rig.close()
