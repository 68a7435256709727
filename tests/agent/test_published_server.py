"""Which protocol a server speaks, found out by asking and remembered; the manual's command line with a published one."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.abroad import COMMAND, MANY, SITE, STDOUT, TOKEN, UNTIL_GO, WRONG_TOKEN, Abroad
from agent.company import SITE as OUR_SITE
from agent.company import Company, noise
from agent.wire import Act, Request, Wire
from components.nginx import make_certificate
from components.proc import peak_rss_mb
from components.rig import write_ini
from components.waiting import stays, wait_until
from spool.agent import arguments
from spool.agent.config import finish_config, read_config

Make = Callable[..., Wire]
ENVELOPE = '{"errors":[{"code":"0005","message":"/v1/syncへの実行権がありません。"}]}'.encode()
slow = pytest.mark.slow


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Abroad]:
    """A strict published server; the agent is started by the test."""
    made = Abroad(tmp_path / "rig")
    yield made
    made.close()


def remembered(base: Path) -> object:
    (path,) = base.glob(".mint-spool-*/protocol.json")
    return json.loads(path.read_bytes())["servers"]


def syncs(wire: Wire) -> int:
    return len(wire.of("POST", "/v1/sync"))


# ---- found out


@slow
def test_it_is_found_out_once_and_remembered(abroad: Abroad) -> None:
    abroad.start()
    abroad.called("calc-request", 5)
    assert abroad.said().count("event=protocol") == 1
    assert f"event=protocol protocol=published url={abroad.server.url}" in abroad.said()
    assert [path for _, path in abroad.server.requests].count("/v1/sync") == 1
    assert remembered(abroad.base) == {abroad.server.url: "published"}


@slow
def test_no_page_decides(abroad: Abroad, make_wire: Make) -> None:
    """Gateways' errors for /v1, and for calc-request, first; only the published envelope after what is not /v1 counts."""
    acts = [Act(status=status) for status in (502, 503, 504, 429, 403, 400, 200, 302, 501)]
    wire = make_wire(abroad.server.port, lambda request: acts.pop(0) if acts and "/v1/" in request.path else None)
    abroad.server.html("calc-request", 6)
    abroad.start(SITE, wire.url, TOKEN, "retry:50,0.05", f"calc_base:{abroad.base}")
    wait_until(lambda: "event=protocol " in abroad.said(), 20, "the protocol is found out")
    asked = [request.path.partition("?")[0].rpartition("/")[2] for request in list(wire.seen)]
    assert asked[:18] == ["sync"] * 4 + ["sync", "calc-request"] * 7
    assert abroad.ended(abroad.submit("echo x > a", "a")) == "completed"


@slow
@pytest.mark.parametrize("status", [404, 302, 200, 400, 501, 502])
def test_pages_alone_never_decide(abroad: Abroad, make_wire: Make, status: int) -> None:
    wire = make_wire(abroad.server.port, lambda request: Act(status=status))
    agent = abroad.start(SITE, wire.url, TOKEN, "retry:3,0.05", f"calc_base:{abroad.base}")
    assert agent.wait(20) == 75
    assert "event=protocol" not in abroad.said()
    assert "not the server" in abroad.said()


@slow
@pytest.mark.parametrize("status", [403, 404, 401, 400])
def test_a_gateway_that_answers_for_every_path(abroad: Abroad, make_wire: Make, status: int) -> None:
    act = Act(status=status, page=ENVELOPE, headers={"Content-Type": "application/json; charset=utf-8"})
    wire = make_wire(abroad.server.port, lambda request: act if "/v1/" in request.path else None)
    abroad.start(url=wire.url)
    assert abroad.ended(abroad.submit("echo x > a", "a")) == "completed"


LOGIN = {"Content-Type": "text/html", "Location": "https://sso.example/login"}
JSON = {"Content-Type": "application/json"}


@slow
@pytest.mark.parametrize(
    "act",
    [Act(status=302, headers=LOGIN), Act(status=200), Act(status=204, page=b""), Act(status=400), Act(status=403),
     Act(status=501), Act(status=200, page=b'{"message":"unknown path"}', headers=JSON)],
    ids=["302", "200", "204", "400", "403", "501", "200 of another API"],
)  # fmt: skip
def test_a_gateway_that_answers_unknown_paths_with_a_page(abroad: Abroad, make_wire: Make, act: Act) -> None:
    """calc-request in the published envelope is the proof."""
    wire = make_wire(abroad.server.port, lambda request: act if "/v1/" in request.path else None)
    abroad.start(url=wire.url)
    assert abroad.ended(abroad.submit("echo x > a", "a")) == "completed"
    assert syncs(wire) == 1


@slow
def test_calc_request_that_says_it_is_busy_is_no_proof(abroad: Abroad, make_wire: Make) -> None:
    wire = make_wire(abroad.server.port)
    abroad.server.busy("calc-request", 2)
    abroad.start(SITE, wire.url, TOKEN, "retry:50,0.05", f"calc_base:{abroad.base}")
    wait_until(lambda: "event=protocol " in abroad.said(), 20, "the protocol is found out")
    assert syncs(wire) == 3


@slow
def test_a_page_does_not_turn_our_own_server_into_a_published_one(company: Company, make_wire: Make) -> None:
    """It speaks both; where /v1 has been, also before a restart, a page must come again and again before it counts."""
    acts: list[Act] = []
    wire = make_wire(company.rig.port, lambda request: acts.pop(0) if acts and "/v1/sync" in request.path else None)
    for pages in ([], [403, 302, 200, 501]):
        acts[:] = [Act(status=status) for status in pages]
        company.start(url=wire.url, wait_s=0, poll_s="0.1")
        job = company.sh("echo x > a", outputs=("a",))
        assert company.completed(job, 60) == {"a": b"x\n"}
        company.kill_agent()
        assert acts == []
    assert wire.of("GET", "calc-request") == []


@slow
def test_a_job_keeps_the_protocol_by_which_it_came(abroad: Abroad, make_wire: Make) -> None:
    """Started again with it in hand, the agent does not ask for /v1; without one, it does."""
    wire = make_wire(abroad.server.port)
    job = abroad.submit(UNTIL_GO, "out.dat")
    abroad.start(url=wire.url)
    abroad.pid(job)
    abroad.kill()
    assert syncs(wire) == 1
    abroad.start(url=wire.url)
    abroad.called("calc-progress", abroad.asked("calc-progress") + 2)
    abroad.go(job)
    assert abroad.ended(job) == "completed"
    assert syncs(wire) == 1
    abroad.locally(job, "completed")
    abroad.kill()
    abroad.start(url=wire.url)
    wait_until(lambda: syncs(wire) == 2, 20, "an idle start asks for /v1")


@slow
def test_a_server_that_was_upgraded_is_noticed(abroad: Abroad, company: Company, make_wire: Make) -> None:
    """Started again, idle, the agent speaks /v1 with our own server, which has come to the same address."""
    wire = make_wire(abroad.server.port)
    agent_token = company.rig.token("mint", "agent", site=OUR_SITE)
    abroad.server.tokens[agent_token] = "user"
    abroad.server.shelf.sites[OUR_SITE] = [COMMAND]
    base = company.folder / "base"
    first = company.start(OUR_SITE, wire.url, agent_token, f"calc_base:{base}")
    first.wait_for_output("protocol=published", 20)
    first.stop()
    wire.upstream = company.rig.port
    job = company.sh("echo x > a", outputs=("a",))
    company.start(OUR_SITE, wire.url, agent_token, f"calc_base:{base}").wait_for_output("protocol=v1", 20)
    assert company.completed(job) == {"a": b"x\n"}
    assert remembered(base) == {wire.url: "v1"}


@slow
def test_our_own_server_by_the_published_protocol(company: Company, make_wire: Make) -> None:
    """Where only `/mi-distcomp-api` passes the gateway: a job of this project's own form, its outputs patterns."""
    wire = make_wire(company.rig.port, lambda request: Act(status=404) if "/v1/" in request.path else None)
    company.commands = {"sh": {"argv": "/bin/sh job.sh", "users": "token-owner"}}
    company.start(url=wire.url, poll_s="0.2")
    data = noise(100_000)
    job = company.drop("sh", inputs={"job.sh": b"cp in.bin out.bin; echo log", "in.bin": data}, outputs=("out.bin", "none.dat"))
    assert company.completed(job) == {"out.bin": data}
    assert (company.rig.job(job) / "log" / "stdout.txt").read_bytes() == b"log\n"
    failing = company.drop("sh", inputs={"job.sh": b"exit 3"}, outputs=("a",))
    assert company.ended(failing)["state"] == "failed"
    refused = company.drop("other", outputs=("a",))
    state = company.ended(refused)
    assert state["state"] == "failed"
    assert "protocol=published" in (company.folder / "log").read_text()


@slow
def test_jobs_of_v1_wait_for_v1(company: Company, abroad: Abroad, make_wire: Make) -> None:
    """A published server at the address of ours, for a while: what came by /v1 is not returned to it."""
    wire = make_wire(company.rig.port)
    job = company.sh("while [ ! -e go ]; do sleep 0.05; done; echo x > a", outputs=("a",))
    company.start(url=wire.url, wait_s=0)
    company.locally(job, "running")
    wire.upstream = abroad.server.port
    (company.local(job) / "work" / "go").touch()
    stays(lambda: company.local_state(job) in ("running", "returning"), 2, "it waits")
    assert "protocol=published" not in company.agent.output() if company.agent else True
    wire.upstream = company.rig.port
    assert company.completed(job, 60) == {"a": b"x\n"}


@slow
def test_check_says_what_it_is(abroad: Abroad) -> None:
    assert abroad.start("check").wait(30) == 0
    assert f"send {abroad.server.url}/mi-distcomp-api/calc-request" in abroad.said()
    assert abroad.start("check", token=WRONG_TOKEN).wait(30) == 1
    assert "problem" in abroad.said()


# ---- answers that are no answers


@slow
@pytest.mark.parametrize(
    "part", [b'{"calc-info": {"command": "x"', b"<html>", b'{"calc-info": 1}', b'{"calc-info": {"parameter_files": 3}}']
)
def test_inputs_that_cannot_be_read(abroad: Abroad, make_wire: Make, part: bytes) -> None:
    """Nothing runs; the job ends with the reason after the tries, and the next one comes."""
    act = Act(status=200, page=part, headers={"Content-Type": "application/json"})
    wire = make_wire(abroad.server.port)
    job = abroad.submit("echo x > a", "a")

    def rule(request: Request) -> Act | None:
        if "calc-params?" in request.path and job in request.path:
            abroad.server.jobs[job].step = max(1, abroad.server.jobs[job].step)
            return act
        return None

    wire.rule = rule
    abroad.start(url=wire.url)
    assert abroad.ended(job) == "abnormal"
    assert "cannot be read" in abroad.results(job)[STDOUT][2]
    assert abroad.ended(abroad.submit("echo x > a", "a")) == "completed"


@slow
def test_a_big_job_in_little_memory(abroad: Abroad) -> None:
    data = noise(96 << 20)
    job = abroad.submit(
        "cp big.bin out.bin; kill -0 $$; while [ ! -e go ]; do sleep 0.05; done", "out.bin", inputs={"big.bin": data}
    )
    abroad.server.html("end-send", MANY)
    agent = abroad.start()
    wait_until((abroad.local(job) / "work" / "out.bin").exists, 60, "the command runs")
    abroad.go(job)
    abroad.called("end-send", deadline_s=90)
    assert peak_rss_mb(agent.pid) < 90
    abroad.server.html("end-send", 0)
    assert abroad.ended(job, 90) == "completed"
    assert abroad.out(job) == {"out.bin": data}


# ---- the manual's command line


def test_the_manual_s_example_means_https() -> None:
    args = arguments.parse(["nims-dev", "http://nims.mintsys.jp", "TOKEN"])
    assert args.url == "https://nims.mintsys.jp:50443"
    assert arguments.parse(["nims-dev", "http://nims.mintsys.jp", "TOKEN", "port:443"]).url == "https://nims.mintsys.jp:443"


def test_the_published_interval_holds_unless_the_ini_has_one(tmp_path: Path) -> None:
    agent = {"site": SITE, "url": "https://h"}
    for options, overrides, poll_s in (({}, {}, 15), ({}, {"site": SITE}, 30), ({"poll_s": "15"}, {"site": SITE}, 15)):
        config = read_config(write_ini(tmp_path / "agent.ini", {"agent": {**agent, **options}}))
        assert finish_config(config, overrides, token="t").published_poll_s == poll_s


@slow
def test_no_auth_over_https(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    abroad = Abroad(tmp_path / "rig", ssl_context=context)
    words = (SITE, "https://127.0.0.1", TOKEN, f"port:{abroad.server.port}", f"calc_base:{abroad.base}", "retry:1,0.1")
    try:
        for word in ("no_auth", f"no_auth:{tmp_path / 'ca.crt'}"):
            job = abroad.submit("echo x > a", "a")
            agent = abroad.start(*words, word)
            assert abroad.ended(job) == "completed"
            agent.wait_for_output(f"event=local_end job={job}", 20)  # it knows, and has nothing in hand
            abroad.kill()
        assert abroad.start(*words).wait(20) == 75, "an authority that nobody named is not trusted"
    finally:
        abroad.close()


PACKAGE = """
def miLogin(host):
    print("asked for", host)
    return {answer}
"""


def operator(folder: Path, file: str, answer: str) -> dict[str, str]:
    (folder / "operator" / "openam_operator").mkdir(parents=True, exist_ok=True)
    (folder / "operator" / "openam_operator" / "__init__.py").touch()
    (folder / "operator" / "openam_operator" / file).write_text(PACKAGE.format(answer=answer))
    return {"AUTHENTICATION_OPERATOR": str(folder / "operator")}


@slow
@pytest.mark.parametrize("file", ["__init__.py", "openam_operator.py"])
def test_login(abroad: Abroad, tmp_path: Path, file: str) -> None:
    """The user that logged in is the one that the company's rules judge."""
    abroad.commands = {COMMAND: {"argv": "/bin/sh job.sh", "users": "alice"}}
    job = abroad.submit("env > a", "a")
    env = operator(tmp_path, file, f'("alice", "{TOKEN}")')
    abroad.start(SITE, abroad.server.url, "login", f"calc_base:{abroad.base}", env=env, token=WRONG_TOKEN)
    assert abroad.ended(job) == "completed"
    assert "asked for 127.0.0.1\n" in abroad.said()
    assert TOKEN not in abroad.said()
    assert b"AUTHENTICATION_OPERATOR" not in abroad.out(job)["a"]


@slow
@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [("(None, None)", 77, "login failed"), ("1 / 0", 77, "ZeroDivisionError"), ("int('geheim-97')", 77, "ValueError"),
     (None, 78, "AUTHENTICATION_OPERATOR is not set")],
    ids=["nobody", "broken", "with a password in its words", "no variable"],
)
def test_a_login_that_fails(abroad: Abroad, tmp_path: Path, answer: str | None, code: int, said: str) -> None:
    env = operator(tmp_path, "__init__.py", answer) if answer else {}
    assert abroad.start(SITE, abroad.server.url, "login", f"calc_base:{abroad.base}", env=env).wait(20) == code
    assert said in abroad.said()
    assert "Traceback" not in abroad.said()
    assert "geheim" not in abroad.said()


@slow
def test_a_login_without_its_package(abroad: Abroad, tmp_path: Path) -> None:
    env = {"AUTHENTICATION_OPERATOR": str(tmp_path)}
    assert abroad.start(SITE, abroad.server.url, "login", f"calc_base:{abroad.base}", env=env).wait(20) == 78
    assert "openam_operator" in abroad.said()
