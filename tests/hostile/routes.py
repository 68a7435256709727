"""Every route of the server as one valid request each: what it needs to be asked about, and who may ask.

`RIGHTS` is the table of docs/security.md ("Who is answered what"): right -> asker -> what is answered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable

from hostile.line import request
from server.spools import AGENT
from spool.names import new_id
from spool.records import FileEntry, JobState, Result

BASE = "/mi-distcomp-api"
WORD = "canary-of-a-job"  # stands in everything of a job that its user wrote
INPUT, OUTPUT = f"{WORD}.inp", f"{WORD}.dat"
DATA = f"{WORD}: contents\n".encode()
PATCH = {"X-HTTP-Method-Override": "PATCH"}

ASKERS = (
    "nobody", "bad", "expired", "revoked", "submitter", "other submitter", "agent", "other agent", "agent of another site",
    "submitter of another site", "operator", "viewer", "operator of another site", "viewer of another site",
    "submitter and agent",
    "other submitter and agent", "other agent and viewer",
)  # fmt: skip
YES, NO, HIDDEN, WHO = "yes", "no", "hidden", "who"


def _right(**yes: str) -> dict[str, str]:
    """Askers -> answer; whoever is not named is told of nothing."""
    said = dict.fromkeys(ASKERS, HIDDEN)
    said.update(dict.fromkeys(("nobody", "bad", "expired", "revoked"), WHO))
    return {**said, **{name.replace("_", " "): answer for name, answer in yes.items()}}


_SEEN_ONLY = {"submitter": NO, "agent": NO, "operator": NO, "viewer": NO, "submitter_and_agent": NO, "other_agent_and_viewer": NO}
_ALL = dict.fromkeys(_SEEN_ONLY, YES)
# "without a job": nothing of a job is asked for, so nothing is hidden: the role decides, and what is told holds what one may see.
_ROLE = {name.replace(" ", "_"): NO for name in ASKERS[4:]}
RIGHTS: dict[str, dict[str, str]] = {
    "all": _right(**_ALL),
    "submitter, operator": _right(**{**_SEEN_ONLY, "submitter": YES, "operator": YES, "submitter_and_agent": YES}),
    "agent": _right(**{**_SEEN_ONLY, "agent": YES, "submitter_and_agent": YES}),
    "operator": _right(**{**_SEEN_ONLY, "operator": YES}),
    "submitter without a job": _right(
        **{**_ROLE, "submitter": YES, "other_submitter": YES, "submitter_and_agent": YES, "other_submitter_and_agent": YES}
    ),
    "agent without a job": _right(**{
        **_ROLE, "agent": YES, "other_agent": YES, "submitter_and_agent": YES, "other_submitter_and_agent": YES,
        "other_agent_and_viewer": YES,
    }),
    "all without a job": _right(**dict.fromkeys(_ROLE, YES)),
    "operator, viewer without a job": _right(**{
        **_ROLE, "operator": YES, "viewer": YES, "operator_of_another_site": YES, "viewer_of_another_site": YES,
        "other_agent_and_viewer": YES,
    }),
    "everybody": dict.fromkeys(ASKERS, YES),
}  # fmt: skip

Make = Callable[[JobState, str], bytes]  # (the job that is asked about, the asker's token) -> the request


@dataclass(frozen=True)
class Route:
    """One route: who may, in which state the job must be for success, and the request."""

    method: str
    path: str
    right: str
    state: str
    make: Make

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_published(self) -> bool:
        return self.path.startswith(BASE)


def _v1(method: str, path: str, right: str, state: str = "running", body: Any = b"", query: str = "", **headers: str) -> Route:
    def make(job: JobState, token: str) -> bytes:
        target = path.replace("ID", job.id, 1).replace("PART", "out").replace("NAME", OUTPUT if "PART" in path else INPUT)
        data = body(job) if callable(body) else body
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(method, target + query.replace("RUN", job.run_id), data, sent, token=token)

    return Route(method, path, right, state, make)


def _published(method: str, name: str, right: str, state: str, **body: Any) -> Route:
    def make(job: JobState, token: str) -> bytes:
        fill = {"accept_id": job.id, "site_id": job.site, "result": body.get("result")}
        known = {key: fill[key] if fill.get(key) else value for key, value in body.items()}
        if method == "GET":
            query = "&".join(f"{key}={value}" for key, value in known.items())
            return request("GET", f"{BASE}/{name}?{query}" if query else f"{BASE}/{name}", token=token)
        return request("POST", f"{BASE}/{name}", json.dumps(known).encode(), token=token)

    return Route(method, f"{BASE}/{name}", right, state, make)


def sync_of(job: JobState) -> bytes:
    """A sync of the job's agent that lists the job."""
    told = {"id": job.id, "run_id": job.run_id or new_id(), "state": "running"}
    return json.dumps({"site": "site-a", "agent": AGENT, "room": 0, "jobs": [told]}).encode()


def result_of(job: JobState) -> bytes:
    """A result.json of the run without files."""
    return Result(job.id, job.run_id or new_id(), job.attempt, exit_code=0).encode()


def new_job(_: JobState | None = None) -> bytes:
    """A job.json for site-a."""
    return json.dumps({"site": "site-a", "command": "ccx", "inputs": ["a"], "outputs": ["b"]}).encode()


def out_tar(_: JobState | None = None) -> bytes:
    """One small result."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("small.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


_KEY = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", bytes(32)))
_BLOB = base64.b64encode(b"SSHSIG\0\0\0\1" + len(_KEY).to_bytes(4, "big") + _KEY)
SIGNATURE = b"-----BEGIN SSH SIGNATURE-----\n" + _BLOB + b"\n-----END SSH SIGNATURE-----\n"  # of a form that is taken
CALC = {"remote-site": "site-a", "command": "ccx", "parameters": "", "parameter_files": {"a": ["eA==", "t", "c"]},
    "result_files": {}}
RESULTS = {OUTPUT: {"content": "eA==", "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}}
ROUTES: tuple[Route, ...] = (
    _v1("POST", "/v1/sync", "agent without a job", body=sync_of),
    _v1("POST", "/v1/jobs", "submitter without a job", body=new_job),
    _v1("GET", "/v1/jobs", "all without a job"),
    _v1("GET", "/v1/jobs/ID", "all"),
    _v1("POST", "/v1/jobs/ID/enqueue", "submitter, operator", "new"),
    _v1("POST", "/v1/jobs/ID/cancel", "submitter, operator"),
    _v1("POST", "/v1/jobs/ID/requeue", "operator", "completed"),
    _v1("POST", "/v1/jobs/ID/finish", "agent", body=result_of),
    _v1("GET", "/v1/jobs/ID/files/job.json", "all"),
    _v1("GET", "/v1/jobs/ID/files/job.json.sig", "all", "signed"),
    _v1("POST", "/v1/jobs/ID/files/job.json.sig", "submitter, operator", "signable", body=SIGNATURE),
    _v1("GET", "/v1/jobs/ID/in.tar", "all"),
    _v1("POST", "/v1/jobs/ID/files/out.tar", "agent", body=out_tar, query="?run_id=RUN"),
    _v1("GET", "/v1/jobs/ID/files/in/NAME", "all"),
    _v1("HEAD", "/v1/jobs/ID/files/in/NAME", "all"),
    _v1("PATCH", "/v1/jobs/ID/files/in/NAME", "submitter, operator", "fresh", body=b"x", Upload_Offset="0"),
    _v1("POST", "/v1/jobs/ID/files/in/NAME", "submitter, operator", "fresh", body=b"x", Upload_Offset="0", **PATCH),
    _v1("GET", "/v1/jobs/ID/files/PART/NAME", "all", "completed"),
    _v1("HEAD", "/v1/jobs/ID/files/PART/NAME", "all", "completed"),
    _v1("PATCH", "/v1/jobs/ID/files/PART/NAME", "agent", body=b"x", query="?run_id=RUN", Upload_Offset="0"),
    _v1("POST", "/v1/jobs/ID/files/PART/NAME", "agent", body=b"x", query="?run_id=RUN", Upload_Offset="0", **PATCH),
    _v1("GET", "/health", "everybody"),
    _v1("GET", "/metrics", "operator, viewer without a job"),
    _v1("GET", "/", "operator, viewer without a job"),
    _published("POST", "add-calcinfo", "submitter without a job", "running", **{"calc-info": CALC}),
    _published("POST", "allow-wait-calc", "submitter, operator", "new", accept_id=""),
    _published("POST", "cancel-wait-calc", "submitter, operator", "queued", accept_id="", delete="force"),
    _published("GET", "calc-status", "all", "running", accept_id=""),
    _published("GET", "calc-progress", "all", "running", accept_id=""),
    _published("GET", "get-calc-result", "all", "completed", accept_id=""),
    _published("GET", "get-calcinfo", "all without a job", "running"),
    _published("GET", "calc-request", "agent without a job", "running", site_id=""),
    _published("GET", "calc-params", "agent", "queued", accept_id="", site_id=""),
    _published("POST", "calc-params-complete", "agent", "params", accept_id="", site_id=""),
    _published("POST", "calc-start", "agent", "params-complete", accept_id="", site_id=""),
    _published("POST", "calc-end", "agent", "start", accept_id="", site_id="", result="calc end"),
    _published("POST", "send-results", "agent", "end", accept_id="", site_id="", result_files=RESULTS),
    _published("POST", "end-send", "agent", "results", accept_id="", site_id="", result="end send"),
)


UNTOKENED = [("POST", "/v1/login")]  # asked without a token, about nobody's job: tests/server/test_login.py


def mounted(rules: Iterable[Any]) -> list[tuple[str, str]]:
    """(method, path) of every rule that a bottle application has, with the words of the documentation."""
    found = []
    for route in rules:
        path = route.rule
        for pattern, word in ((r"<job_id>", "ID"), (r"<part:[^>]*>", "PART"), (r"<name:path>", "NAME")):
            path = re.sub(pattern, word, path)
        found.append((route.method, path))
    return found


def entry_of(name: str, data: bytes) -> FileEntry:
    """A manifest's entry."""
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())
