"""A token is replaced or revoked while a command runs, or the site's section goes: the command runs on, the result arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.company import SITE
from agent.wire import Request
from components import proc
from components.rig import Section, write_ini
from components.waiting import stays, wait_until
from faults.web import Web, call_of


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


def revoke_all(web: Web) -> None:
    told: Any = json.loads(web.rig.spoolctl("token", "ls", "--json").stdout)
    for token in told["tokens"] if isinstance(told, dict) else told:
        web.rig.spoolctl("token", "revoke", token["id"])


@pytest.mark.slow
def test_replaced_while_jobs_run_and_return(web: Web) -> None:
    """The old one is revoked first; the file is half written for a while; the agent is not started again."""
    agent = web.start(slots=3)
    running, ending = web.waiting(), web.waiting()
    pid = web.pid(running)
    web.pid(ending)
    web.is_at(running, "running")
    revoke_all(web)
    web.go(ending)
    web.locally(ending, "returning")
    web.says("code=unauthorized")
    token = web.folder / "token"
    token.write_text("")
    web.says("event=token_not_read")
    waiting = web.at_once()
    token.write_text(web.rig.token("mint", "agent", site=SITE) + "\n")
    web.says("event=token_read_again")
    web.right(ending)
    web.right(waiting)
    assert proc.alive(pid)
    web.go(running)
    web.right(running)
    assert agent.running
    said = web.said()
    assert token.read_text().strip() not in said, "a token does not stand in the log"


@pytest.mark.slow
def test_replaced_in_the_published_form(web: Web) -> None:
    """The same where the file is named on the command line: @FILE."""
    web.start()  # writes the ini and the token
    web.says("event=started_agent")
    web.kill_agent()
    web.start(SITE, web.wire.url, "@token", "retry:50,1", f"calc_base:{web.folder / 'base'}")
    job = web.waiting()
    web.pid(job)
    revoke_all(web)
    web.says("code=unauthorized")
    (web.folder / "token").write_text(web.rig.token("mint", "agent", site=SITE) + "\n")
    web.go(job)
    web.right(job)


@pytest.mark.slow
def test_revoked_for_a_while_and_back(web: Web) -> None:
    """The very token that was revoked is put back by an operator: the jobs go on in every phase, no try too many."""
    tokens = web.rig.spool / "tokens.json"
    agent = web.start(slots=3)
    running, ending = web.waiting(), web.waiting()
    web.pid(running)
    web.pid(ending)
    web.is_at(running, "running")
    good = tokens.read_bytes()
    revoke_all(web)
    web.go(ending)
    new = web.at_once()
    refused = len(web.wire.seen)
    wait_until(lambda: len(web.wire.seen) > refused + 6, 60, "several tries were refused")
    stays(lambda: agent.running and web.rig.state(running)["state"] == "running", 1, "all stay as they are")
    aside = tokens.with_suffix(".new")
    aside.write_bytes(good)
    aside.chmod(0o600)
    aside.replace(tokens)
    web.right(ending)
    web.go(running)
    web.right(running)
    web.right(new)


@pytest.mark.slow
def test_a_job_that_could_not_be_asked_about_is_not_given_up(web: Web) -> None:
    """Told to fetch, refused when it asks for the record, more often than an agent tries a folder that it cannot use."""

    def rule(request: Request) -> None:
        if call_of(request) == "state":
            revoke_all(web)

    tokens = web.rig.spool / "tokens.json"
    web.start(poll_s="0.2", wait_s=0)
    web.says("event=protocol")
    good = tokens.read_bytes()
    web.wire.rule = rule
    job = web.at_once()
    server = web.rig.root / "spool.log"
    for tries in range(1, 6):  # each sync that gets through tells of the job again; the record is refused by then
        wait_until(lambda tries=tries: server.read_text().count(f"refused call=/v1/jobs/{job}") >= tries, 60, f"try {tries}")
        if tries == 5:
            web.wire.rule = lambda request: None
        tokens.write_bytes(good)
    web.right(job)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["the section goes", "the site is disabled", "the ini is broken"])
def test_the_site_changes_in_spool_ini(web: Web, change: str) -> None:
    """What runs ends and is returned; what is new waits; put right, it goes on without a restart of anything."""
    ini = web.rig.root / "spool.ini"
    good = ini.read_text()
    web.start(slots=2)
    job = web.waiting()
    web.pid(job)
    web.is_at(job, "running")
    if change == "the section goes":
        server: Section = {"listen": f"127.0.0.1:{web.rig.port}", "spool": web.rig.spool}
        write_ini(ini, {"server": server, "site other": {"commands": "*"}})
        web.says("code=unknown_site")
    elif change == "the site is disabled":
        ini.write_text(good + "enabled = no\n")
    else:
        ini.write_text("[server\n" + good)
        web.server.wait_for_output("event=configuration", 60)
    web.go(job)
    web.right(job)
    ini.write_text(good)
    web.right(web.at_once())
