"""The published poller's calls at once, late, by another, for another attempt: one run, one result, never two mixed."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any, Callable

import pytest

from published.conftest import COMMAND, SITE, Institute, first
from published.raw_calls import HERE, THERE, Answer, Caller, at_once
from published.their_poller import STDERR, STDOUT

NAMES = [f"out{number}.dat" for number in range(12)]


def entry(data: bytes) -> dict[str, str]:
    return {"content": base64.b64encode(data).decode(), "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}


def results(word: str, names: list[str] | None = None) -> dict[str, dict[str, str]]:
    """RESULTS, every file of them saying the same."""
    return {name: entry(f"{word} {name}\n".encode()) for name in [*(names or ["out.dat"]), STDOUT, STDERR]}


@pytest.fixture
def here(institute: Institute) -> Caller:
    return Caller(institute.rig.port, institute.token, SITE, HERE)


@pytest.fixture
def there(institute: Institute) -> Caller:
    """Another poller with the same token."""
    return Caller(institute.rig.port, institute.token, SITE, THERE)


def returned(institute: Institute, job: str) -> dict[str, Any]:
    """RESULTS as the submitter gets them."""
    found: dict[str, Any] = first(institute.submitter().result(job))["result-info"]["result_files"]
    return found


def history(institute: Institute, job: str) -> list[str]:
    lines = (institute.rig.job(job) / "history.jsonl").read_text().splitlines()
    return [line["to"] for line in map(json.loads, lines)]


def said(found: dict[str, Any]) -> set[str]:
    """The first word of every file that came back."""
    return {base64.b64decode(item["content"]).decode().partition(" ")[0] for item in found.values()}


# ---- one job, many pollers


def test_two_pollers_with_one_token_race_for_one_job(institute: Institute, here: Caller, there: Caller) -> None:
    for _ in range(6):
        job = institute.registered()
        pollers = [here, there] * 6
        told = [answer.told for answer in at_once([partial(one.params, job) for one in pollers])]
        by_address = {one.address: set(told[number::2]) for number, one in enumerate(pollers[:2])}
        assert sorted(by_address.values(), key=str) == [{(200, 200)}, {(200, 401)}]
        assert history(institute, job) == ["new", "queued", "claimed"]
        first(institute.submitter().cancel(job, force=True))


def test_a_poller_whose_job_went_to_another_may_not_go_on(institute: Institute, here: Caller, there: Caller) -> None:
    """Its claim was given back (no contact), the job claimed by another: both would run it."""
    job = institute.registered()
    here.params(job)
    here.request()
    there.params(job)
    assert here.params_complete(job).told == (200, 401)
    assert there.params(job).told == (200, 200), "not spoiled by the other's step"
    assert there.params_complete(job).told == (200, 200)
    assert here.start(job).told == (200, 401)
    assert there.start(job).told == (200, 200)
    assert here.start(job).told == (200, 401)
    assert there.start(job).told == (200, 200)
    assert there.end(job).told == (200, 200)


def test_late_steps_of_an_earlier_attempt_touch_nothing(institute: Institute, here: Caller, there: Caller) -> None:
    job = institute.registered()
    here.up_to(job, "start")
    here.request()
    here.request()  # lost
    institute.rig.spoolctl("requeue", job)
    there.up_to(job, "start")
    for step in (here.start, here.end, lambda name: here.send_results(name, results("old")), here.end_send):
        assert step(job).told == (200, 401)
    assert institute.rig.state(job)["state"] == "running"
    assert there.end(job).told == (200, 200)
    for step in (here.end, lambda name: here.send_results(name, results("old")), here.end_send):
        assert step(job).told == (200, 401)
    assert there.send_results(job, results("new")).told == (200, 200)
    assert here.send_results(job, results("old")).told == (200, 401)
    assert there.end_send(job).told == (200, 200)
    assert here.end_send(job).told == (200, 401)
    assert said(returned(institute, job)) == {"new"}


def test_another_token_of_the_same_user_may_not_go_on(institute: Institute, here: Caller) -> None:
    job = institute.registered()
    other = Caller(institute.rig.port, institute.rig.token("alice", "submitter", "agent"), SITE)
    here.up_to(job, "start")
    assert other.start(job).told == (200, 401)
    assert other.end(job).told == (200, 401)
    assert here.end(job).told == (200, 200)


def test_a_poller_whose_address_changed_while_the_command_ran_goes_on(institute: Institute, here: Caller, there: Caller) -> None:
    job = institute.registered()
    here.up_to(job, "start")
    assert there.end(job).told == (200, 200)
    assert there.send_results(job, results("moved")).told == (200, 200)
    assert there.end_send(job).told == (200, 200)
    assert said(returned(institute, job)) == {"moved"}


# ---- every step many times at once


def test_every_step_eight_times_at_once(institute: Institute, here: Caller) -> None:
    job = institute.registered(outputs=NAMES)
    files = results("one", NAMES)
    steps: list[Callable[[], Answer]] = [
        lambda: here.params(job), lambda: here.params_complete(job), lambda: here.start(job), lambda: here.end(job),
        lambda: here.send_results(job, files), lambda: here.end_send(job),
    ]  # fmt: skip
    for step in steps:
        assert {answer.told for answer in at_once([step] * 8)} == {(200, 200)}
    assert returned(institute, job) == files
    assert history(institute, job) == ["new", "queued", "claimed", "running", "returning", "completed"]
    assert list(institute.rig.spool.glob("tmp/*")) == []
    assert list(institute.rig.spool.glob("active/*/*/*")) == []
    assert list(institute.rig.job(job).glob("incoming/*")) == []


def test_delayed_duplicates_of_old_steps(institute: Institute, here: Caller) -> None:
    """Each step, once the next but one is done, is refused and changes nothing."""
    job = institute.registered()
    steps: list[Callable[[], Answer]] = [
        lambda: here.params(job), lambda: here.params_complete(job), lambda: here.start(job), lambda: here.end(job),
        lambda: here.send_results(job, results("one")), lambda: here.end_send(job),
    ]  # fmt: skip
    for done, step in enumerate(steps):
        assert step().told == (200, 200)
        before = (institute.rig.job(job) / "state.json").read_bytes()
        assert {old().told for old in steps[: max(0, done - 1)]} <= {(200, 401)}
        assert (institute.rig.job(job) / "state.json").read_bytes() == before
    assert {old().told for old in steps[:-1]} == {(200, 401)}
    assert said(returned(institute, job)) == {"one"}


def test_different_words_at_once(institute: Institute, here: Caller) -> None:
    job = institute.registered()
    here.up_to(job, "start")
    words = ["calc end", "abnormal"] * 4
    answers = at_once([partial(here.end, job, word) for word in words])
    accepted = {word for word, answer in zip(words, answers) if answer.told == (200, 200)}
    assert len(accepted) == 1
    status = {"calc end": "status:completed", "abnormal": "status:abnormal"}[accepted.pop()]
    assert first(institute.submitter().status(job))["message"] == status


# ---- results are of one sending


def test_two_sendings_at_once_are_never_mixed(institute: Institute, here: Caller) -> None:
    for _ in range(4):
        job = institute.registered(outputs=NAMES)
        here.up_to(job, "end")
        words = [f"sending{number}" for number in range(8)]
        answers = at_once([partial(here.send_results, job, results(word, NAMES)) for word in words])
        assert {answer.told for answer in answers} <= {(200, 200), (200, 401)}
        assert here.end_send(job).told == (200, 200)
        assert len(said(returned(institute, job))) == 1


def test_a_sending_that_meets_the_end_is_never_mixed(institute: Institute, here: Caller) -> None:
    for _ in range(4):
        job = institute.registered(outputs=NAMES)
        here.up_to(job, "results", results("early", NAMES))
        calls: list[Callable[[], Answer]] = [partial(here.end_send, job)] * 3
        calls += [partial(here.send_results, job, results(word, NAMES)) for word in ("late", "later")]
        answers = at_once(calls)
        assert {answer.told for answer in answers[:3]} == {(200, 200)}
        assert {answer.told for answer in answers[3:]} <= {(200, 200), (200, 401)}
        assert len(said(returned(institute, job))) == 1
        kept = json.loads((institute.rig.job(job) / "result.json").read_bytes())["files"]
        assert {item["size"] for item in kept} == {(institute.rig.job(job) / item["path"]).stat().st_size for item in kept}
        assert not (institute.rig.job(job) / "incoming").exists()


def test_a_later_sending_with_other_files_replaces_all(institute: Institute, here: Caller) -> None:
    job = institute.registered(outputs=["a", "a/b", "c"])
    here.up_to(job, "end")
    gone = {"content": "", "mimetype1": "Error", "mimetype2": "no such file"}
    logs = {STDOUT: entry(b""), STDERR: entry(b"")}
    sendings: list[dict[str, Any]] = [
        {"a": entry(b"a"), "a/b": gone, "c": entry(b"c"), **logs}, {"a": gone, "a/b": entry(b"b"), "c": gone, **logs},
        {"a": entry(b"again"), "a/b": gone, "c": gone, **logs},
    ]  # fmt: skip
    for files in sendings:
        assert here.send_results(job, files).told == (200, 200)
    assert here.end_send(job).told == (200, 200)
    assert returned(institute, job) == sendings[-1]


# ---- other carriers


def sync(caller: Caller, **body: Any) -> list[dict[str, Any]]:
    """What POST /v1/sync tells of jobs."""
    answer = caller.call("POST", "sync", {"site": SITE, "agent": "agent-1", "room": 0, "jobs": [], **body}, base="/v1")
    assert answer.status == 200, answer
    jobs: list[dict[str, Any]] = answer.document["jobs"]
    return jobs


def test_a_job_of_an_agent_is_no_pollers(institute: Institute, here: Caller) -> None:
    job = institute.registered()
    (told,) = sync(here, room=1)
    assert told["id"] == job

    def refused() -> None:
        assert here.request().told == (200, "0300")
        assert here.params(job).told == (200, 401)
        assert here.params_complete(job).told == (200, 401)
        assert here.start(job).told == (200, 401)
        assert here.end(job).told == (200, 401)
        assert here.send_results(job, results("x")).told == (200, 401)
        assert here.end_send(job).told == (200, 401)

    refused()
    held = {"id": job, "run_id": told["run_id"], "state": "claimed", "ready": True}
    (told,) = sync(here, seq=1, jobs=[held])
    assert told["want"] == "start"
    refused()
    sync(here, seq=2, jobs=[{**held, "state": "returning"}])
    assert institute.rig.state(job)["state"] == "returning"
    refused()
    assert not list(institute.rig.job(job).glob("incoming/*/poller.json"))
    institute.store().cancel(job, by="operator")
    refused()
    assert institute.rig.state(job)["state"] == "returning", "the cancel is the agent's to confirm"


def test_a_job_of_the_push_is_no_pollers(institute: Institute, here: Caller) -> None:
    job = institute.registered()
    (state,) = institute.store().claim(SITE, ["alice"], agent="ssh-push", room=1)
    for step in (here.params, here.params_complete, here.start, here.end, here.end_send):
        assert step(job).told == (200, 401)
    institute.store().start(job, state.run_id, by="ssh-push")
    institute.store().returning(job, state.run_id, by="ssh-push")
    assert here.send_results(job, results("x")).told == (200, 401)
    assert here.end_send(job).told == (200, 401)
    assert institute.rig.state(job)["state"] == "returning"


@pytest.mark.parametrize("step", ["params", "start", "results"])
def test_a_job_of_a_poller_is_no_agents(institute: Institute, here: Caller, step: str) -> None:
    job = institute.registered()
    here.up_to(job, step, results("x"))
    before = institute.rig.state(job)
    assert sync(here, room=5) == []
    run_id = "00000000-0000-4000-8000-000000000000"
    (told,) = sync(here, room=5, seq=1, jobs=[{"id": job, "run_id": run_id, "state": "running"}])
    assert told["want"] == "keep", "a run that MInt does not know: nothing of it is touched"
    upload = here.call("PATCH", f"jobs/{job}/files/out/out.dat?run_id={run_id}", b"x", base="/v1", Upload_Offset="0")
    assert upload.status == 409
    finish = {"format": 1, "id": job, "run_id": run_id, "attempt": 1, "exit_code": 0, "reason": "", "files": []}
    assert here.call("POST", f"jobs/{job}/finish", finish, base="/v1").status in (400, 409)
    remarked = {"revision", "changed_at", "last"}  # a late result is noted in the history
    after = institute.rig.state(job)
    assert {key: after[key] for key in after if before.get(key) != after[key]}.keys() <= remarked
    assert not (institute.rig.job(job) / "out").exists()


# ---- cancel


@pytest.mark.parametrize("how", ["operator", "submitter"])
@pytest.mark.parametrize("step", ["params", "start", "end", "results"])
def test_a_cancel_races_with_the_next_step(institute: Institute, here: Caller, how: str, step: str) -> None:
    """Whoever is first, the job ends once: canceled, or complete where its end was quicker than the cancel."""
    following: dict[str, Callable[[str], Answer]] = {
        "params": here.params_complete, "start": here.end, "results": here.end_send,
        "end": lambda name: here.send_results(name, results("x")),
    }  # fmt: skip
    job = institute.registered()
    here.up_to(job, step, results("x"))

    def cancel() -> bool:
        if how == "operator":
            return institute.rig.spoolctl("cancel", job, check=False).returncode == 0
        return here.post("cancel-wait-calc", accept_id=job, delete="force").told == (200, 200)

    canceled, answer = at_once([cancel, lambda: following[step](job)])
    assert canceled or how == "operator"
    assert isinstance(answer, Answer)
    assert answer.told in {(200, 200), (200, 401)}
    if how == "submitter":
        assert first(institute.submitter().status(job))["code"] == 400
    for _ in range(2):  # the first may be one that was given up long ago
        assert here.request().told == (200, "0300")
    ends = [state for state in history(institute, job) if state in ("canceled", "completed", "failed")]
    assert set(ends) == {"completed" if step == "results" and "completed" in ends else "canceled"}
    assert institute.rig.state(job)["state"] == ends[0]


def test_the_cancel_of_a_waiting_job_never_hits_one_that_was_claimed(institute: Institute, here: Caller) -> None:
    """Without `delete: force` a job that a poller has just fetched goes on."""
    for _ in range(15):
        job = institute.registered()
        canceled, fetched = at_once([partial(here.post, "cancel-wait-calc", accept_id=job), partial(here.params, job)])
        if fetched.told == (200, 200):
            assert canceled.told == (400, 401)
            assert here.params_complete(job).told == (200, 200)
            assert first(institute.submitter().cancel(job, force=True))["code"] == 200
        else:
            assert canceled.told == (200, 200)
            assert institute.rig.state(job)["state"] == "canceled"


def test_allow_many_times_at_once_enqueues_once(institute: Institute, here: Caller) -> None:
    job = institute.registered(allow=False)
    answers = at_once([lambda: here.post("allow-wait-calc", accept_id=job)] * 8)
    assert {answer.told for answer in answers} <= {(200, 200), (400, 401)}
    assert (200, 200) in {answer.told for answer in answers}
    assert history(institute, job) == ["new", "queued"]
    assert len(list(institute.rig.spool.glob("queue/*/*/*"))) == 1
    assert here.params(job).document["calc-info"]["command"] == COMMAND
