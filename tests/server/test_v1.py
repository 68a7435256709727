"""Every route of /v1 over a real socket: what works, who may, and what hostile or broken clients get."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import socket
import tarfile
import threading
from typing import Any
from urllib.parse import quote

import pytest

from server.client import Client, Service, held, result, tar_of
from server.spools import DECK, job_json
from spool.names import new_id

ID = "0d9de71c-5a4b-4b0a-8d20-1f4a3a1f9a10"


def job(name: str, rest: str = "") -> str:
    return f"/v1/jobs/{name}{rest}"


# ---- who may


ROUTES = [
    ("POST", "/v1/sync", b"{}"),
    ("POST", "/v1/jobs", job_json()),
    ("GET", "/v1/jobs", None),
    ("GET", job("@"), None),
    ("POST", job("@", "/enqueue"), b""),
    ("POST", job("@", "/cancel"), b""),
    ("POST", job("@", "/requeue"), b""),
    ("POST", job("@", "/finish"), b"{}"),
    ("GET", job("@", "/files/job.json"), None),
    ("GET", job("@", "/in.tar"), None),
    ("POST", job("@", "/files/out.tar"), b""),
    ("GET", job("@", "/files/in/beam.inp"), None),
    ("HEAD", job("@", "/files/in/beam.inp"), None),
    ("PATCH", job("@", "/files/in/beam.inp"), b""),
    ("GET", job("@", "/files/out/a"), None),
    ("HEAD", job("@", "/files/out/a?run_id=x"), None),
    ("PATCH", job("@", "/files/out/a"), b""),
    ("PATCH", job("@", "/files/log/a"), b""),
    ("GET", "/metrics", None),
    ("GET", "/", None),
]


def test_without_a_token_that_counts_nothing_is_told(service: Service) -> None:
    name = service.drop()
    for method, path, body in ROUTES:
        path = path.replace("@", name)
        for client in (Client(service.port), Client(service.port, hashlib.sha256(f"{method} {path}".encode()).hexdigest())):
            answer = client(method, path, body)
            assert answer.status == 401, (method, path)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            if method != "HEAD":
                answer.problem(401, "unauthorized")
    for header in ("Basic YTpi", "Bearer", "Bearer ", "x", "Bearer \xff\xfe"):
        Client(service.port)("GET", "/v1/jobs", Authorization=header).problem(401)
    assert service.alice.ok("GET", "/v1/jobs", Authorization=f"bearer {service.alice.token}").json["total"] == 1


def test_other_peoples_jobs_are_not_there(service: Service) -> None:
    name = service.drop()
    strangers = [service.client("bob", "submitter", "agent"), service.client("alice", "submitter", "agent", sites=("site-b",))]
    for stranger in strangers:
        for method, path, body in ROUTES[3:18]:
            answer = stranger(method, path.replace("@", name), body, Upload_Offset="0")
            assert answer.status == 404, (method, path, answer.status)
            known = stranger(method, path.replace("@", new_id()), body, Upload_Offset="0")
            assert known.status == 404
        assert stranger.ok("GET", "/v1/jobs").json == {"jobs": [], "total": 0}
    viewer = service.client("carol", "viewer")
    assert viewer.ok("GET", job(name)).json["state"]["user"] == "alice"


@pytest.mark.parametrize(
    ("roles", "method", "path", "body"),
    [
        (["submitter", "operator", "viewer"], "POST", "/v1/sync", b'{"site": "site-a", "agent": "a"}'),
        (["agent", "operator", "viewer"], "POST", "/v1/jobs", job_json()),
        (["agent", "viewer"], "POST", job("@", "/cancel"), b""),
        (["agent", "submitter", "viewer"], "POST", job("@", "/requeue"), b""),
        (["submitter", "operator", "viewer"], "POST", job("@", "/finish"), b"{}"),
        (["submitter", "operator", "viewer"], "PATCH", job("@", "/files/out/a"), b""),
        (["submitter", "operator", "viewer"], "POST", job("@", "/files/out.tar"), b""),
        (["agent", "viewer"], "PATCH", job("@", "/files/in/beam.inp"), b""),
        (["agent", "viewer"], "POST", job("@", "/enqueue"), b""),
        (["submitter", "agent"], "GET", "/metrics", None),
        (["submitter", "agent"], "GET", "/", None),
    ],
)
def test_the_wrong_role(service: Service, roles: list[str], method: str, path: str, body: bytes | None) -> None:
    name = service.drop()
    for role in roles:
        answer = service.client("alice", role)(method, path.replace("@", name), body, Upload_Offset="0")
        answer.problem(403, "not_allowed")
    assert service.rig.state(name)["state"] == "queued"


def test_a_token_for_another_site(service: Service) -> None:
    service.drop()
    agent = service.agent_of("alice", sites=("site-b",))
    agent("POST", "/v1/sync", agent.body()).problem(403)
    client = service.client("alice", "submitter", sites=("site-b",))
    client("POST", "/v1/jobs", job_json()).problem(403)


def test_a_revoked_token_counts_no_more_at_once(service: Service) -> None:
    text, token = service.tokens.add("alice", ["submitter"], ())
    client = Client(service.port, text)
    client.ok("GET", "/v1/jobs")
    service.tokens.revoke(token.id)
    client("GET", "/v1/jobs").problem(401)
    expired = Client(service.port, service.tokens.add("alice", ["submitter"], (), expires_at="2001-01-01T00:00:00Z")[0])
    expired("GET", "/v1/jobs").problem(401)


def test_ten_bad_tries_stop_the_bad_one_only(service: Service) -> None:
    bad = Client(service.port, "0" * 64)
    assert [bad("GET", "/v1/jobs").status for _ in range(12)] == [401] * 10 + [429] * 2
    answer = bad("GET", "/v1/jobs")
    answer.problem(429, "too_many_tries")
    assert 1 <= int(answer.headers["Retry-After"]) <= 61
    service.alice.ok("GET", "/v1/jobs")
    log = service.process.output()
    assert log.count("event=bad_token") == 11, "whoever goes on beyond the limit does not fill the disk"
    assert "0" * 64 not in log


def test_a_damaged_token_file_is_the_servers_fault(service: Service) -> None:
    """400 would tell an agent that its request is wrong, and it would give its job up."""
    whole = service.store.paths.tokens.read_bytes()
    service.store.paths.tokens.write_bytes(whole[:50])
    assert service.alice("GET", "/v1/jobs").status >= 500
    service.store.paths.tokens.write_bytes(whole)
    service.alice.ok("GET", "/v1/jobs")


# ---- submitting


def test_register_upload_enqueue(service: Service) -> None:
    alice = service.alice
    data = job_json(inputs=["beam.inp", "入力/格子.inp"], id=ID)
    answer = alice("POST", "/v1/jobs", data)
    assert (answer.status, answer.json["state"], answer.json["id"]) == (201, "new", ID)
    assert alice("POST", "/v1/jobs", data).json["revision"] == 1
    alice("POST", "/v1/jobs", job_json(id=ID, priority=5)).problem(409, "duplicate")
    service.client("bob", "submitter")("POST", "/v1/jobs", data).problem(409, "duplicate")
    alice("POST", job(ID, "/enqueue")).problem(409, "missing_inputs")
    alice.patch(job(ID, "/files/in/other"), 0, b"x").problem(404)
    path = job(ID, "/files/in/" + quote("入力/格子.inp"))
    assert alice("HEAD", path).headers["Upload-Offset"] == "0"
    assert alice.patch(path, 0, b"123").headers["Upload-Offset"] == "3"
    assert alice("HEAD", path).headers["Upload-Offset"] == "3"
    wrong = alice.patch(path, 0, b"123")
    wrong.problem(409, "offset_mismatch")
    assert wrong.headers["Upload-Offset"] == "3"
    posted = alice("POST", path, b"45", Upload_Offset="3", X_HTTP_Method_Override="PATCH")
    assert posted.headers["Upload-Offset"] == "5"
    alice("POST", path, b"6", Upload_Offset="5").problem(400)
    alice.patch(job(ID, "/files/in/beam.inp"), 0, DECK, digest=hashlib.sha256(DECK).digest())
    state = alice.ok("POST", job(ID, "/enqueue")).json
    assert (state["state"], state["user"]) == ("queued", "alice")
    assert alice.ok("POST", job(ID, "/enqueue")).json == state
    assert alice.ok("GET", path).body == b"12345"
    alice.patch(path, 5, b"late").problem(409, "conflict")
    shown = alice.ok("GET", job(ID)).json
    assert [entry["path"] for entry in shown["state"]["inputs"]] == ["beam.inp", "入力/格子.inp"]
    assert shown["job"]["inputs"] == ["beam.inp", "入力/格子.inp"]
    assert alice.ok("GET", job(ID, "/files/job.json")).body == data
    assert service.agent.claim()["id"] == ID


def test_an_enqueue_that_was_cut_in_two_can_be_begun_again(service: Service) -> None:
    """The server was killed after the inputs moved to in/ and before the state changed; the client starts from HEAD."""
    alice = service.alice
    alice.ok("POST", "/v1/jobs", job_json(id=ID))
    folder = service.rig.job(ID) / "in"
    (folder / "beam.inp").write_bytes(DECK)
    here = int(alice("HEAD", job(ID, "/files/in/beam.inp")).headers["Upload-Offset"])
    if here < len(DECK):
        alice.patch(job(ID, "/files/in/beam.inp"), here, DECK[here:])
    assert alice("POST", job(ID, "/enqueue")).status == 200


@pytest.mark.parametrize(
    ("keys", "status", "code"),
    [
        ({"site": "nowhere"}, 404, "unknown_site"),
        ({"site": "site-b", "command": "rm"}, 403, "command_not_allowed"),
        ({"inputs": ["../x"]}, 400, "invalid_name"),
        ({"site": None}, 400, "invalid_record"),
        ({"format": 9}, 500, "unknown_format"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, 400, "invalid_record"),
        ({"expires_at": "9999-12-31T23:59:59-01:00"}, 400, "invalid_record"),
    ],
)
def test_register_refuses(service: Service, keys: dict[str, Any], status: int, code: str) -> None:
    found = service.alice("POST", "/v1/jobs", job_json(**keys))
    if code != "unknown_format":
        found.problem(status, code)
    else:
        assert found.status in (400, 409, 422, 501), "the client sent something else; nothing is wrong with this server"
    assert os.listdir(service.store.paths.jobs) == []
    assert [name for name in os.listdir(service.store.paths.tmp) if name.startswith("register")] == []


def test_site_users(service: Service) -> None:
    service.client("bob", "submitter")("POST", "/v1/jobs", job_json(site="site-b")).problem(403, "not_allowed")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"site": NaN}', b"[" * 100000, b'{"a":1,"a":2}', b'"' + b"x" * 1000]
)
def test_malformed_bodies(service: Service, body: bytes) -> None:
    name = service.drop()
    job_told = service.agent.claim()
    assert job_told["id"] == name
    service.alice("POST", "/v1/jobs", body).problem(400)
    service.agent("POST", "/v1/sync", body).problem(400)
    service.agent("POST", job(name, "/finish"), body).problem(400)


@pytest.mark.parametrize(
    "body",
    [
        {"site": "site-a"},
        {"agent": "a"},
        {"site": "../x", "agent": "a"},
        {"site": "site-a", "agent": "a/b"},
        {"site": "site-a", "agent": "a", "room": -1},
        {"site": "site-a", "agent": "a", "wait_s": "5"},
        {"site": "site-a", "agent": "a", "jobs": [1]},
        {"site": "site-a", "agent": "a", "jobs": [{"id": "x"}]},
    ],
)
def test_malformed_syncs(service: Service, body: dict[str, Any]) -> None:
    service.agent("POST", "/v1/sync", json.dumps(body).encode()).problem(400)


def test_list_and_its_filters(service: Service) -> None:
    first, second = service.drop(), service.drop(site="site-b")
    service.drop(user="bob")
    alice = service.alice
    assert [state["id"] for state in alice.ok("GET", "/v1/jobs").json["jobs"]] == [second, first]
    assert alice.ok("GET", "/v1/jobs?site=site-b").json["total"] == 1
    assert alice.ok("GET", "/v1/jobs?state=running").json["total"] == 0
    assert alice.ok("GET", "/v1/jobs?limit=1").json["jobs"][0]["id"] == second
    assert service.operator.ok("GET", "/v1/jobs").json["total"] == 3
    assert service.operator.ok("GET", "/v1/jobs?user=bob").json["total"] == 1
    assert "inputs" not in service.operator.ok("GET", "/v1/jobs").json["jobs"][0]
    alice("GET", "/v1/jobs?state=%ff").problem(400)


def test_cancel_and_requeue(service: Service) -> None:
    name = service.drop()
    assert service.alice.ok("POST", job(name, "/cancel")).json["state"] == "canceled"
    assert service.alice.ok("POST", job(name, "/cancel")).json["state"] == "canceled"
    state = service.operator.ok("POST", job(name, "/requeue")).json
    assert (state["state"], state["attempt"]) == ("queued", 2)
    service.operator("POST", job(name, "/requeue")).problem(409, "conflict")


# ---- what bottle and waitress find


def test_problem_documents(service: Service) -> None:
    client = service.alice
    client("GET", "/nowhere").problem(404)
    client("GET", "/v1/jobs/").problem(404)
    client("DELETE", "/v1/jobs").problem(405)
    client("PUT", job(ID, "/files/in/x"), b"").problem(405)
    client("GET", job("not-an-id")).problem(400, "invalid_name")
    client("GET", job(ID)).problem(404, "not_found")
    client("GET", job("..%2f..%2fetc")).problem(404)
    assert service.rig.health() == 200


def test_405_names_what_is_allowed(service: Service) -> None:
    assert service.alice("DELETE", "/v1/jobs").headers["Allow"]


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionResetError):  # it closed with some of ours unread
            while chunk := connection.recv(65536):
                found += chunk
        return found


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/sync HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/sync HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/sync HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nA\x00B: c\r\n\r\n",
    ],
)
def test_rubbish_is_refused_and_the_server_goes_on(service: Service, data: bytes) -> None:
    answer = raw(service.port, data + b"\r\n\r\n")
    assert answer == b"" or answer.split()[1][:1] in (b"4", b"5")
    assert service.rig.health() == 200
    assert b"Traceback" not in answer


def test_too_much_at_a_time(service: Service) -> None:
    service.configure(max_chunk="64K")
    service.drop()
    told = service.agent.start()
    path = job(told["id"], f"/files/out/a?run_id={told['run_id']}")
    service.agent.patch(path, 0, b"x" * 65537).problem(413, "too_large")
    assert service.agent.patch(path, 0, b"x" * 65536).status == 204
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.agent.token}\r\nUpload-Offset: 0\r\n"
    huge = raw(service.port, head.encode() + b"Content-Length: 99999999999\r\nConnection: close\r\n\r\n")
    assert huge.split()[1] == b"413"


@pytest.mark.parametrize("part", ["in", "out"])
@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fspool.json",
        "a/../../state.json",
        "%2e%2e/x",
        "%2fetc/passwd",
        "a%00b",
        "-rf",
        "a%0ab",
        "a%0a",
        "a%ffb",
        "%ff",
        "a//b",
    ],
)
def test_hostile_names_in_urls(service: Service, part: str, name: str) -> None:
    service.drop()
    told = service.agent.start()
    path = job(told["id"], f"/files/{part}/{name}?run_id={told['run_id']}")
    client = service.agent if part == "out" else service.alice
    answer = client("PATCH", path, b"x", Upload_Offset="0")
    assert answer.status in (400, 404, 409), "the name was changed on its way in"
    answer = client("GET", path)
    assert answer.status in (400, 404)
    folder = service.rig.job(told["id"])
    assert not [found for found in folder.rglob("*") if found.is_file() and found.read_bytes() == b"x"]


# ---- downloads


def test_ranges(service: Service) -> None:
    data = bytes(range(256)) * 300
    name = service.drop(deck=data)
    path, agent = job(name, "/files/in/beam.inp"), service.agent
    whole = agent.ok("GET", path)
    etag = f'"sha256-{hashlib.sha256(data).hexdigest()}"'
    assert (whole.status, whole.body, whole.headers["ETag"], whole.headers["Accept-Ranges"]) == (200, data, etag, "bytes")
    size = len(data)
    for header, start, end in (
        ("bytes=0-", 0, size),
        ("bytes=100-199", 100, 200),
        ("bytes=-7", size - 7, size),
        (f"bytes={size - 1}-", size - 1, size),
        ("bytes=10-9999999", 10, size),
        ("bytes=-9999999", 0, size),
        ("bytes=0-0", 0, 1),
    ):
        answer = agent("GET", path, Range=header)
        assert (answer.status, answer.body) == (206, data[start:end]), header
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["Content-Length"] == str(end - start)
    for header in (f"bytes={size}-", "bytes=9999999-", "bytes=-0"):
        answer = agent("GET", path, Range=header)
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    same = agent("GET", path, Range="bytes=5-9", If_Range=etag)
    assert (same.status, same.body) == (206, data[5:10])
    head = agent("HEAD", path)
    assert (head.status, head.headers["Content-Length"], head.headers["ETag"], head.body) == (200, str(size), etag, b"")


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=5-9", "If_Range": '"other"'},
        {"Range": "bytes=5-9", "If_Range": "Mon, 23 Nov 2026 00:00:00 GMT"},
        {"Range": "bytes=0-1,3-4"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=-"},
        {"Range": "bytes=a-b"},
    ],
)
def test_a_range_that_is_not_answered_is_answered_with_200(service: Service, headers: dict[str, str]) -> None:
    """RFC 9110 sections 13.1.5 and 14.2: the whole file is a 200; a client that gets a 206 appends it to what it has."""
    name = service.drop()
    answer = service.agent("GET", job(name, "/files/in/beam.inp"), **headers)
    assert (answer.status, answer.body) == (200, DECK)
    assert answer.headers["Content-Range"] is None


def test_an_empty_file(service: Service) -> None:
    path = job(service.drop(deck=b""), "/files/in/beam.inp")
    answer = service.agent("GET", path)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    for header in ("bytes=0-", "bytes=-5"):
        answer = service.agent("GET", path, Range=header)
        assert answer.status in (200, 416)
        assert answer.headers["Content-Range"] in (None, "bytes */0")


def test_an_input_that_changed_on_disk_is_not_handed_out(service: Service) -> None:
    name = service.drop()
    (service.rig.job(name) / "in" / "beam.inp").write_bytes(b"other")
    service.agent("GET", job(name, "/files/in/beam.inp")).problem(404)
    (service.rig.job(name) / "in" / "beam.inp").unlink()
    (service.rig.job(name) / "in" / "beam.inp").symlink_to("/etc/passwd")
    assert service.agent("GET", job(name, "/files/in/beam.inp")).status in (400, 404)


def test_in_tar(service: Service) -> None:
    alice = service.alice
    files = {"a.inp": b"1", "b/" + "長" * 60 + ".inp": b"22" * 500, "c.inp": b"", "d.inp": b"x" * 5000}
    alice.ok("POST", "/v1/jobs", job_json(id=ID, inputs=list(files)))
    for name, data in files.items():
        alice.patch(job(ID, "/files/in/" + quote(name)), 0, data)
    alice.ok("POST", job(ID, "/enqueue"))

    def got(query: str) -> dict[str, bytes]:
        body = service.agent.ok("GET", job(ID, f"/in.tar{query}")).body
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
            return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]

    assert got("") == files
    assert got("?max_bytes=1000") == {name: data for name, data in files.items() if len(data) <= 1000}
    assert set(got("?after=a.inp")) == set(files) - {"a.inp"}
    assert got("?after=" + quote("長")) == {}


# ---- results


def test_chunks_resume_digest_and_finish(service: Service) -> None:
    name = service.drop(outputs=["*"])
    agent = service.agent
    early = agent.claim()
    path = job(name, "/files/out/" + quote("結果 1.dat") + f"?run_id={early['run_id']}")
    agent.patch(path, 0, b"early").problem(409, "conflict")
    agent.sync(held(early, ready=True), room=0)
    assert agent("HEAD", path).headers["Upload-Offset"] == "0"
    assert agent.patch(path, 0, b"abc", digest=hashlib.sha256(b"abc").digest()).status == 204
    agent.patch(path, 3, b"def", digest=hashlib.sha256(b"xxx").digest()).problem(422, "digest_mismatch")
    agent.patch(path, 3, b"def", Content_Digest="md5=:x:").problem(400)
    assert agent("HEAD", path).headers["Upload-Offset"] == "3"
    repeated = agent.patch(path, 0, b"abc")
    assert (repeated.status, repeated.headers["Upload-Offset"]) == (409, "3")
    for offset in ("", "x", "-1", "1.0", "9" * 30):
        agent("PATCH", path, b"x", Upload_Offset=offset).problem(400)
    agent("PATCH", path, b"x").problem(400)
    agent.patch(path.replace(early["run_id"], new_id()), 3, b"def").problem(409, "unknown_run")
    agent.patch(path.partition("?")[0], 3, b"def").problem(409, "stale_run")
    assert agent.patch(path, 3, b"def").headers["Upload-Offset"] == "6"
    log = job(name, f"/files/log/stdout.txt?run_id={early['run_id']}")
    agent.patch(log, 0, b"running...\n")
    assert service.alice.ok("GET", job(name, "/files/log/stdout.txt")).body == b"running...\n"
    files = {"out/結果 1.dat": b"abcdef", "log/stdout.txt": b"running...\ndone\n"}
    agent.finish(early, files).problem(422, "digest_mismatch")
    agent.patch(log, 11, b"done\n")
    done = agent.finish(early, files)
    assert (done.status, done.json["state"]) == (200, "completed")
    assert agent.finish(early, files).json == done.json
    assert service.alice.ok("GET", job(name, "/files/out/" + quote("結果 1.dat"))).body == b"abcdef"
    assert service.alice("HEAD", job(name, "/files/out/" + quote("結果 1.dat"))).headers["Content-Length"] == "6"
    assert service.alice.ok("GET", job(name)).json["result"]["files"][0]["path"] == "out/結果 1.dat"
    service.alice("GET", job(name, "/files/out/absent")).problem(404)
    agent.patch(path, 6, b"late").problem(409)


def test_finish_refuses(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    other = {**told, "id": new_id()}
    service.agent("POST", job(told["id"], "/finish"), result(other, {}).encode()).problem(400)
    service.agent.finish({**told, "run_id": new_id()}, {}).problem(409, "unknown_run")
    service.agent.finish(told, {"out/absent": b"x"}).problem(422)
    assert service.rig.state(told["id"])["state"] == "running"


def test_a_result_with_a_number_that_no_reader_takes(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    body = result(told, {}).encode().replace(b'"message": ""', b'"message": "", "later": 1e999')
    service.agent("POST", job(told["id"], "/finish"), body)
    service.alice.ok("GET", job(told["id"]))


def test_the_same_chunk_by_8_at_once(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    path = job(told["id"], f"/files/out/a?run_id={told['run_id']}")
    data = os.urandom(300_000)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(service.agent.patch(path, 0, data).status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [204] + [409] * 7
    assert service.agent.finish(told, {"out/a": data}).json["state"] == "completed"


def put_tar(service: Service, told: dict[str, Any], body: bytes) -> Any:
    return service.agent("POST", job(told["id"], f"/files/out.tar?run_id={told['run_id']}"), body)


def test_out_tar(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    files = {"a": b"1", "d/" + "結" * 70: b"2" * 3000, "empty": b""}
    answer = put_tar(service, told, tar_of(files))
    assert answer.json == {"files": 3}
    assert put_tar(service, told, tar_of(files)).status == 200
    for name, data in files.items():
        answer = service.agent("HEAD", job(told["id"], f"/files/out/{quote(name)}?run_id={told['run_id']}"))
        assert answer.headers["Upload-Offset"] == str(len(data)), name
    assert service.agent.finish(told, {f"out/{name}": data for name, data in files.items()}).json["state"] == "completed"


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def patched_size(size: bytes) -> bytes:
    """A tar whose one member says this size (12 bytes of the header)."""
    data = bytearray(tar_of({"a": b"x" * 600}))
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


TARS = {
    "dots": tar_of({"good": b"1", "../evil": b"x"}),
    "absolute": tar_of({"good": b"1", "/evil": b"x"}),
    "option": tar_of({"good": b"1", "-rf": b"x"}),
    "newline": tar_of({"good": b"1", "a\nb": b"x"}),
    "file and folder": tar_of({"good": b"1", "good/x": b"x"}),
    "link": tar_of({"good": b"1"}, member("l", tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": tar_of({"good": b"1"}, member("l", tarfile.LNKTYPE, linkname="../../state.json")),
    "device": tar_of({"good": b"1"}, member("l", tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "fifo": tar_of({"good": b"1"}, member("l", tarfile.FIFOTYPE)),
    "folder": tar_of({"good": b"1"}, member("d", tarfile.DIRTYPE)),
    "huge size": patched_size(b"77777777777\0"),
    "base-256 size": patched_size(b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
    "negative size": patched_size(b"\xff" * 12),
    "very negative size": patched_size(b"\xff" + b"\x80" + b"\0" * 10),
    "truncated": tar_of({"good": b"1", "a": b"x" * 5000})[:3000],
    "no tar": b"PK\x03\x04" + os.urandom(2000),
    "gzip": gzip.compress(tar_of({"good": b"1"})),
    "text": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("kind", TARS)
def test_hostile_tars_leave_nothing(service: Service, kind: str) -> None:
    service.drop()
    told = service.agent.start()
    answer = put_tar(service, told, TARS[kind])
    answer.problem(400)
    folder = service.rig.job(told["id"])
    left = [path for path in (folder / "incoming").rglob("*") if path.is_file()]
    assert left == []
    assert service.agent.finish(told, {}).json["state"] == "completed"
    assert service.rig.health() == 200


# ---- the disk


def test_a_full_disk_refuses_what_is_new_and_recovers(service: Service) -> None:
    service.drop()
    told = service.agent.start()
    service.configure(min_free="1000T")
    service.health(503)
    answer = service.alice("POST", "/v1/jobs", job_json())
    answer.problem(507, "no_space")
    assert answer.headers["Retry-After"]
    path = job(told["id"], f"/files/out/a?run_id={told['run_id']}")
    service.agent.patch(path, 0, b"x").problem(507)
    put_tar(service, told, tar_of({"a": b"x"})).problem(507)
    assert service.agent.sync(held(told, "running"), room=0)[0]["want"] == "run"
    service.configure(min_free="1M")
    service.health(200)
    assert service.alice("POST", "/v1/jobs", job_json()).status == 201
    assert service.agent.deliver(told, {"out/a": b"x"}).json["state"] == "completed"


def test_the_configuration_is_read_again(service: Service) -> None:
    service.alice("POST", "/v1/jobs", job_json(site="site-c")).problem(404, "unknown_site")
    service.configure({**service.sites, "site-c": {"commands": "*"}})
    assert service.alice("POST", "/v1/jobs", job_json(site="site-c")).status == 201
    ini = service.rig.root / "spool.ini"
    good = ini.read_text()
    ini.write_text(good + "[sote d]\n")
    service.health(503)
    health = Client(service.port)("GET", "/health").json
    assert "sote" in health["problems"][0]
    assert service.alice("POST", "/v1/jobs", job_json(site="site-c")).status == 201, "the last good configuration goes on"
    ini.write_text(good)
    service.health(200)


# ---- pages


def test_pages(service: Service) -> None:
    name = service.drop(command="<script>alert(1)</script>")
    service.agent.claim()
    viewer = service.client("carol", "viewer")
    page = viewer.ok("GET", "/")
    assert name in page.body.decode()
    assert b"<script>alert" not in page.body
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    metrics = viewer.ok("GET", "/metrics").body.decode()
    assert 'mint_spool_jobs{state="claimed"} 1' in metrics
    assert re.search(r'mint_spool_contact_age_seconds\{site="site-a",user="[^"]+",agent="agent-1"\} \d', metrics)
    assert Client(service.port)("GET", "/health").json["status"] == "ok"


def test_one_damaged_job_does_not_blind_the_others(service: Service) -> None:
    bad, good = service.drop(priority=9), service.drop()
    path = service.rig.job(bad) / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    assert service.operator("GET", "/v1/jobs").status == 200
    assert service.agent.sync(room=5)[0]["id"] == good
