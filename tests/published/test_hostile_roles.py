"""Who may do what through the published calls: role, user and site of the token, in every call, as in /v1."""

from __future__ import annotations

from typing import Any

import pytest

from published.conftest import COMMAND, OTHER_SITE, SITE, Institute, first
from published.raw_calls import Answer, Caller
from published.test_hostile import results

NO = (403, "0005")
STEPS = ("request", "params", "params_complete", "start", "end", "send_results", "end_send")


def step(caller: Caller, name: str, job: str) -> Answer:
    more: dict[str, tuple[Any, ...]] = {"request": (), "send_results": (job, results("x"))}
    answer: Answer = getattr(caller, name)(*more.get(name, (job,)))
    return answer


def caller(institute: Institute, user: str, *roles: str, token_site: str | None = None) -> Caller:
    return Caller(institute.rig.port, institute.rig.token(user, *roles, site=token_site), SITE)


@pytest.mark.parametrize("roles", [("submitter",), ("operator",), ("viewer",), ("submitter", "operator", "viewer")])
def test_only_agents_poll(institute: Institute, roles: tuple[str, ...]) -> None:
    job = institute.registered()
    other = caller(institute, "alice", *roles)
    assert {name: step(other, name, job).told for name in STEPS} == dict.fromkeys(STEPS, NO)
    assert institute.rig.state(job)["state"] == "queued"


@pytest.mark.parametrize("roles", [("agent",), ("operator",), ("viewer",), ("agent", "operator", "viewer")])
def test_only_submitters_register(institute: Institute, roles: tuple[str, ...]) -> None:
    other = caller(institute, "alice", *roles)
    assert other.call("POST", "add-calcinfo", {"calc-info": {"remote-site": SITE, "command": COMMAND}}).told == NO
    assert list(institute.rig.spool.glob("jobs/*")) == []


@pytest.mark.parametrize(
    ("user", "roles", "asks", "changes"),
    [
        ("alice", ("submitter",), 200, True), ("alice", ("agent",), 200, False), ("alice", ("viewer",), 200, False),
        ("bob", ("viewer",), 200, False), ("bob", ("operator",), 200, True), ("bob", ("submitter", "agent"), 403, False),
    ],
)  # fmt: skip
def test_who_may_ask_and_change(institute: Institute, user: str, roles: tuple[str, ...], asks: int, changes: bool) -> None:
    job = institute.registered(allow=False)
    other = caller(institute, user, *roles)
    for question in ("calc-status", "calc-progress"):
        assert other.get(question, accept_id=job).status == asks
    assert set(other.get("get-calcinfo").document) == ({job} if asks == 200 else set())
    assert other.post("allow-wait-calc", accept_id=job).told == ((200, 200) if changes else NO)
    assert other.post("cancel-wait-calc", accept_id=job, delete="force").told == ((200, 200) if changes else NO)
    assert institute.rig.state(job)["state"] == ("canceled" if changes else "new")


def test_a_token_for_another_site(institute: Institute) -> None:
    job = institute.registered()
    other = caller(institute, "alice", "submitter", "agent", "operator", token_site=OTHER_SITE)
    assert {name: step(other, name, job).told for name in STEPS} == dict.fromkeys(STEPS, NO)
    assert other.get("calc-status", accept_id=job).told == NO
    assert other.get("get-calcinfo").document == {}
    assert other.post("cancel-wait-calc", accept_id=job).told == NO
    answer = other.call("POST", "add-calcinfo", {"calc-info": {"remote-site": SITE, "command": COMMAND}})
    assert answer.told == (202, 401)
    theirs = Caller(institute.rig.port, other.token, OTHER_SITE)
    assert {theirs.params(job).told, theirs.start(job).told} <= {NO, (400, 400)}
    assert theirs.request().told == (200, "0300")


def test_another_users_job_is_not_given_away(institute: Institute) -> None:
    job = institute.registered()
    bob = caller(institute, "bob", "submitter", "agent", "operator")
    assert bob.request().told == (200, "0300")
    assert {name: step(bob, name, job).told for name in STEPS[1:]} == dict.fromkeys(STEPS[1:], NO)


def test_a_revoked_token_counts_no_more_not_even_for_a_large_body(institute: Institute) -> None:
    job = institute.registered()
    alice = caller(institute, "alice", "submitter", "agent")
    alice.up_to(job, "end")
    token_id = first_word_with(institute.rig.spoolctl("token", "ls").stdout, alice.token[-4:])
    institute.rig.spoolctl("token", "revoke", token_id)
    assert alice.send_results(job, results("x")).told == NO
    assert alice.end_send(job).told == NO
    assert first(institute.submitter().progress(job))["message"] == "status:calc end"


def first_word_with(text: str, part: str) -> str:
    return next(line.split()[0] for line in text.splitlines() if part in line)


NO_TOKENS = ["", "Bearer", "Bearer ", "Basic eDp5", "bearer {}x", "Bearer {} {}", "{}", "Bearer \xe9\xff", "Bearer " + "x" * 9000]


@pytest.mark.parametrize("header", NO_TOKENS)
def test_no_such_token(institute: Institute, header: str) -> None:
    asker = Caller(institute.rig.port, "", SITE)
    headers = {"Authorization": header.replace("{}", institute.token)} if header else {}
    for method, call in (("GET", "calc-request"), ("POST", "calc-end"), ("POST", "add-calcinfo"), ("GET", "get-calcinfo")):
        answer = asker.call(method, call, {"calc-info": {}}, **headers)  # type: ignore[arg-type]
        assert answer.told == NO
        assert answer.error["message"] == f"/mi-distcomp-api/{call}への実行権がありません。"


def test_the_word_bearer_in_any_case(institute: Institute) -> None:
    asker = Caller(institute.rig.port, "", SITE)
    for word in ("bearer", "BEARER"):
        body = {"calc-info": {"remote-site": SITE, "command": COMMAND}}
        assert asker.call("POST", "add-calcinfo", body, Authorization=f"{word} {institute.token}").told == (200, 200)
