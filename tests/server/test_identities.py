"""Every role by every source of identity, its sites and users; and that nobody else is believed."""

from __future__ import annotations

import http.client
import json
import select
import socket
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.waiting import wait_until
from server.client import Client, Service
from server.identities import SECRET, Known, identity
from server.spools import job_json
from spool.server.tokens import ROLES

SOURCES = ("file", "gateway", "command")
SYNC = json.dumps({"site": "site-a", "agent": "a", "room": 0, "wait_s": 0, "jobs": []}).encode()
# What is asked, and the roles that may. `{job}` is alice's.
CALLS: list[tuple[str, str, bytes | None, set[str]]] = [
    ("POST", "/v1/sync", SYNC, {"agent"}),
    ("POST", "/v1/jobs", job_json(user=None, inputs=[]), {"submitter"}),
    ("GET", "/v1/jobs", None, set(ROLES)),
    ("GET", "/v1/jobs/{job}", None, set(ROLES)),
    ("POST", "/v1/jobs/{job}/enqueue", None, {"submitter", "operator"}),
    ("POST", "/v1/jobs/{job}/cancel", None, {"submitter", "operator"}),
    ("GET", "/metrics", None, {"operator", "viewer"}),
    ("GET", "/", None, {"operator", "viewer"}),
]


def registered(client: Callable[..., Any]) -> str:
    answer = client("POST", "/v1/jobs", job_json(user=None, inputs=[]))
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_role(service: Service, source: str) -> None:
    """Each role alone may what it may, another user's job is not there, another site's is not for it; roles add up."""
    known = Known(service, source)
    alice = known.client("alice", "submitter")
    for role in ROLES:
        job = registered(alice)
        mine, others = known.client("alice", role), known.client("bob", role)
        elsewhere = known.client("alice", role, sites=("site-b",))
        for method, path, body, may in CALLS:
            path = path.replace("{job}", job)
            wanted = 201 if path == "/v1/jobs" and method == "POST" else 200
            assert mine(method, path, body).status == (wanted if role in may else 403), (role, method, path)
            if job in path:
                sees = role in ("operator", "viewer")
                assert others(method, path, body).status == ((200 if role in may else 403) if sees else 404), (role, path)
                assert elsewhere(method, path, body).status == 404, (role, method, path)
        assert elsewhere("POST", "/v1/sync", SYNC).status == 403
        assert elsewhere("POST", "/v1/jobs", job_json(user=None, inputs=[])).status == 403
    both = known.client("alice", "submitter", "agent")
    assert both("POST", "/v1/sync", SYNC).status == 200
    assert registered(both)
    assert known.client("利用者", "submitter")("POST", "/v1/jobs", job_json(user=None, inputs=[])).json["user"] == "利用者"


@pytest.mark.parametrize("source", ["gateway", "command"])
def test_the_token_file_says_nothing_there(service: Service, source: str) -> None:
    """Nor does login offer tokens that would not count."""
    token = service.alice.token
    service.rig.spoolctl("user", "add", "alice", "--role", "submitter", "--password", _file(service, "a long password"))
    Known(service, source)
    assert Client(service.port, token)("GET", "/v1/jobs").status == 401
    body = json.dumps({"user": "alice", "password": "a long password"}).encode()
    assert Client(service.port)("POST", "/v1/login", body).status == 404


def _file(service: Service, text: str) -> str:
    path = service.rig.root / "password"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return f"@{path}"


# ---- the gateway


def test_only_the_gateway_is_believed(service: Service) -> None:
    """Without the secret, with a wrong one, from another address, in another mode: nobody."""
    claims = identity("alice", "operator", "*")
    plain = Client(service.port)
    assert plain("GET", "/v1/jobs", **claims).status == 401, "auth = file reads no headers"
    Known(service, "gateway")
    assert plain("GET", "/v1/jobs", **claims).status == 200
    for secret in ("", "x", SECRET + "x", SECRET[:-1], SECRET.upper()):
        assert plain("GET", "/v1/jobs", **identity("alice", "operator", "*", secret)).status == 401
    service.process.wait_for_output("event=not_the_gateway", 20)
    service.restart(trusted_proxy="127.0.0.2")
    assert plain("GET", "/v1/jobs", **claims).status == 401
    assert plain("GET", "/v1/jobs", **claims, X_Forwarded_For="127.0.0.2").status == 401
    service.process.wait_for_output('why="not from trusted_proxy"', 20)
    assert SECRET not in service.process.output()


def test_what_is_missing_or_twice_is_refused(service: Service) -> None:
    Known(service, "gateway")
    plain = Client(service.port)
    whole = identity("alice", "submitter agent", "site-a site-b")
    assert plain("GET", "/v1/jobs", **whole).status == 200
    for name in whole:
        assert plain("GET", "/v1/jobs", **{key: value for key, value in whole.items() if key != name}).status == 401, name
    for name, second in (("X-Mint-User", "root"), ("X-Mint-Roles", "operator"), ("X-Mint-Sites", "*"), ("X-Mint-Secret", SECRET)):
        lines = [f"{key.replace('_', '-')}: {value}" for key, value in whole.items()]
        assert _raw_status(service.port, [*lines, f"{name}: {second}"]) == 401, name
        assert _raw_status(service.port, [f"{name.lower()}: {second}", *lines]) == 401, name
    # With underscores the same variable of WSGI would be meant: such a header is nobody's.
    assert _raw_status(service.port, [*lines, "X_Mint_Roles: operator"]) == 200


def _raw_status(port: int, lines: list[str]) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall("\r\n".join(["GET /v1/jobs HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]).encode("latin-1"))
        answer = http.client.HTTPResponse(line)
        answer.begin()
        return answer.status


@pytest.mark.slow
def test_hostile_headers(service: Service) -> None:
    """Whatever stands in them: an answer of the API, and only whole identities of known roles get in."""
    Known(service, "gateway")
    plain = Client(service.port)
    text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f\x85\xa0"), max_size=40)
    likely = ["alice", "operator", "agent submitter", "site-a", "*", "agent,operator", " agent", ""]
    word = st.one_of(text, st.sampled_from(likely))

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(user=word, roles=word, sites=word)
    def ask(user: str, roles: str, sites: str) -> None:
        headers = {"X_Mint_User": user, "X_Mint_Roles": roles, "X_Mint_Sites": sites, "X_Mint_Secret": SECRET}
        status = plain("GET", "/v1/jobs", **headers).status
        assert status in (200, 401)
        if status == 200:
            assert roles.strip()
            assert set(roles.strip().split(" ")) <= set(ROLES)
            assert user.strip()
            assert " " not in user.strip()

    ask()
    assert "event=internal" not in service.process.output()


# ---- the command


def test_an_answer_is_kept_for_a_while(service: Service) -> None:
    """Good ones and bad ones; what is revoked there counts no more when that time is over."""
    known = Known(service, "command", auth_cache_s="3")
    alice = known.client("alice", "submitter")
    assert [alice("GET", "/v1/jobs").status for _ in range(5)] == [200] * 5
    bad = Client(service.port, "0" * 64)
    assert [bad("GET", "/v1/jobs").status for _ in range(5)] == [401] * 5
    assert known.asked() == 2
    for path in known.folder.glob("*[0-9a-f]"):
        if path.name != "asked":
            path.unlink()
    wait_until(lambda: alice("GET", "/v1/jobs").status == 401, 20, "the answer is over")


@pytest.mark.parametrize("trouble", ["broken", "gone", "not json", "no roles", "unknown role", "no sites", "too much"])
def test_trouble_lets_nobody_in(service: Service, trouble: str) -> None:
    known = Known(service, "command")
    client = known.client("alice", "operator")
    answers = {
        "not json": "yes", "no roles": '{"user": "alice", "roles": [], "sites": []}', "too much": " " * 70_000 + "{}",
        "unknown role": '{"user": "alice", "roles": ["king"], "sites": []}',
        "no sites": '{"user": "alice", "roles": ["operator"]}',
    }  # fmt: skip
    if trouble == "broken":
        (known.folder / "broken").touch()
    elif trouble == "gone":
        (service.rig.root / "whose.sh").unlink()
    else:
        next(path for path in known.folder.iterdir() if path.name != "asked").write_text(answers[trouble])
    answer = client("GET", "/v1/jobs")
    answer.problem(503, "busy")
    assert answer.headers["Retry-After"]
    assert service.rig.health() == 503
    service.process.wait_for_output("event=auth_command", 20)


def test_a_slow_command_does_not_hold_the_others(service: Service) -> None:
    """Those whose answer is kept are served while strangers wait; a stranger's address gets one place, and 503 beyond."""
    known = Known(service, "command", auth_timeout_s="4", auth_cache_s="600")
    alice = known.client("alice", "submitter")
    assert alice("GET", "/v1/jobs").status == 200
    (known.folder / "slow").touch()
    before, lines = known.asked(), []
    try:
        for number in range(20):
            line = socket.create_connection(("127.0.0.1", service.port), timeout=60)
            line.sendall(f"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {number:064d}\r\n\r\n".encode())
            lines.append(line)
        wait_until(lambda: known.asked() > before, 30, "a stranger is asked about")
        assert [alice("GET", "/v1/jobs", timeout_s=3).status for _ in range(10)] == [200] * 10
        statuses = []
        for line in lines:
            answer = http.client.HTTPResponse(line)
            answer.begin()
            statuses.append(answer.status)
        assert set(statuses) == {503}
    finally:
        for line in lines:
            line.close()
    assert "0" * 60 not in service.process.output()


def test_a_large_body_of_a_stranger_is_not_waited_for(service: Service) -> None:
    """add-calcinfo of 2 GiB may begin while the program is asked, and ends with its answer."""
    known = Known(service, "command")
    calc = json.dumps({"calc-info": {"remote-site": "site-a", "command": "ccx", "parameter_files": {}}}).encode()
    submitter = known.client("alice", "submitter")
    answer = submitter("POST", "/mi-distcomp-api/add-calcinfo", calc)
    assert answer.json["errors"][0]["code"] == 200, answer.body
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as line:
        head = f"Host: x\r\nAuthorization: Bearer {'1' * 64}\r\nContent-Length: {1 << 30}\r\n\r\n"
        line.sendall(f"POST /mi-distcomp-api/add-calcinfo HTTP/1.1\r\n{head}".encode())
        sent = 0
        while sent < 1 << 30 and not select.select([line], [], [], 0)[0]:
            sent += line.send(b" " * 65536)
        said = http.client.HTTPResponse(line)
        said.begin()
        assert said.status == 403
        assert json.loads(said.read())["errors"][0]["code"] == "0005"
        assert sent < 1 << 30
