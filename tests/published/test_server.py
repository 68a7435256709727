"""The published programs, unmodified, against our server: every call, every step repeated, every cancel."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from published.conftest import COMMAND, SITE, Institute, done, first, told
from published.their_poller import STDERR, STDOUT
from spool.published import WITHHELD

ALL_BYTES = bytes(range(256)) * 40


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def entry(data: bytes) -> dict[str, str]:
    return {"content": b64(data), "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}


RESULTS: dict[str, Any] = {"out.dat": entry(b"42\n"), STDOUT: entry(b"said\n"), STDERR: entry(b"")}


def test_every_byte_arrives(institute: Institute) -> None:
    script = 'cat bin.dat 入力.txt empty.dat >出力.dat; cp bin.dat bin.out; : >empty.out; pwd; echo "$CALC_DIR" >&2'
    exit_status = institute.submit(
        script, ["出力.dat", "bin.out", "empty.out"], **{"bin.dat": ALL_BYTES, "入力.txt": "秘匿".encode(), "empty.dat": b""}
    )
    seen = done(institute.poll())
    assert done(exit_status) == 0
    assert seen.word == "calc end"
    module = institute.module
    assert (module / "出力.dat").read_bytes() == ALL_BYTES + "秘匿".encode()
    assert (module / "bin.out").read_bytes() == ALL_BYTES
    assert (module / "empty.out").read_bytes() == b""
    folder = str(institute.rig.root / "calc_base" / seen.accept_id)
    assert (module / STDOUT).read_text().strip() == folder
    assert (module / STDERR).read_text().strip() == folder
    state = institute.rig.state(seen.accept_id)
    assert (state["state"], state["exit_code"], state["via"]) == ("completed", 0, "mi-distcomp-api")


@pytest.mark.parametrize("after", ["send", "poll"])
@pytest.mark.parametrize("script", ["echo no >out.dat; exit 3", "exit 0"], ids=["exit status", "no result file"])
def test_an_abnormal_end_is_told(institute: Institute, after: str, script: str) -> None:
    exit_status = institute.submit(f"echo broken >&2; {script}", ["out.dat"])
    poller = institute.poller(after_abnormal=after)
    seen = done(institute.threads.submit(poller.run_one, 500))
    assert seen.word == "abnormal"
    if after == "poll":
        assert told(poller.request()) == (200, "0300")
    assert done(exit_status) == 1
    state = institute.rig.state(seen.accept_id)
    assert (state["state"], state["reason"]) == ("failed", "abnormal")
    if after == "send":
        assert (institute.module / STDERR).read_text() == "broken\n"


def test_a_missing_result_file_is_told(institute: Institute) -> None:
    exit_status = institute.submit("echo yes >a.dat", ["a.dat", "b.dat"])
    seen = done(institute.poll())
    assert done(exit_status) == 0
    found = first(institute.submitter().result(seen.accept_id))["result-info"]["result_files"]
    assert found["a.dat"]["mimetype1"] == "text/plain;"
    assert found["b.dat"]["mimetype1"] == "Error"
    assert "b.dat" in found["b.dat"]["mimetype2"]


def test_the_words_of_every_step(institute: Institute) -> None:
    poller, submitter = institute.poller(), institute.submitter()
    job = institute.registered(allow=False)

    def words() -> tuple[str, str]:
        return first(submitter.status(job))["message"], first(submitter.progress(job))["message"]

    assert told(poller.request()) == (200, "0300")
    assert words() == ("status:none", "status:not start")
    assert told(submitter.result(job)) == (200, 400)
    assert told(submitter.allow(job)) == (200, 200)
    assert told(submitter.allow(job)) == (400, 401)
    assert first(poller.request())["accept_id"] == job
    assert words() == ("status:none", "status:not start"), "calc-request claims nothing"
    calc = poller.params(job).json()["calc-info"]
    assert calc["command"] == COMMAND
    assert words() == ("status:none", "status:sending params")
    assert told(poller.params_complete(job)) == (200, 200)
    assert words() == ("status:none", "status:complete send")
    assert told(poller.start(job)) == (200, 200)
    assert words() == ("status:none", "status:running")
    assert told(poller.end(job, "calc end")) == (200, 200)
    assert words() == ("status:completed", "status:calc end")
    assert told(poller.send_results(job, RESULTS)) == (200, 200)
    assert words() == ("status:completed", "status:getting return")
    assert told(submitter.result(job)) == (200, 400)
    assert told(poller.end_send(job)) == (200, 200)
    assert words() == ("status:completed", "status:got return")
    assert first(submitter.result(job))["result-info"]["result_files"] == RESULTS


def test_every_step_may_be_repeated(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    assert poller.params(job).content == poller.params(job).content
    for step in (poller.params_complete, poller.start):
        assert [told(step(job)), told(step(job))] == [(200, 200)] * 2
    assert [told(poller.end(job, "calc end")), told(poller.end(job, "calc end"))] == [(200, 200)] * 2
    assert told(poller.end(job, "abnormal")) == (200, 401)
    assert told(poller.send_results(job, {**RESULTS, "out.dat": entry(b"first")})) == (200, 200)
    assert told(poller.send_results(job, RESULTS)) == (200, 200)
    assert [told(poller.end_send(job)), told(poller.end_send(job))] == [(200, 200)] * 2
    assert first(institute.submitter().result(job))["result-info"]["result_files"] == RESULTS
    history = [line["to"] for line in map(json.loads, (institute.rig.job(job) / "history.jsonl").read_text().splitlines())]
    assert history == ["new", "queued", "claimed", "running", "returning", "completed"]


def test_a_step_out_of_turn_is_an_error_code(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params_complete, poller.start, poller.end_send):
        assert told(step(job)) == (200, 401)
    assert told(poller.end(job, "calc end")) == (200, 401)
    assert told(poller.send_results(job, RESULTS)) == (200, 401)
    poller.params(job)
    assert told(poller.start(job)) == (200, 401), "the inputs were not received"
    poller.params_complete(job)
    assert told(poller.params(job)) == (200, 401), "past that point"
    assert institute.rig.state(job)["state"] == "claimed"


@pytest.mark.parametrize("steps", range(6))
def test_a_forced_cancel_at_every_step(institute: Institute, steps: int) -> None:
    poller, submitter = institute.poller(), institute.submitter()
    job = institute.registered()
    actions = [
        lambda: poller.params(job), lambda: poller.params_complete(job), lambda: poller.start(job),
        lambda: poller.end(job, "calc end"), lambda: poller.send_results(job, RESULTS), lambda: poller.end_send(job),
    ]  # fmt: skip
    for action in actions[:steps]:
        action()
    if steps:
        assert told(submitter.cancel(job)) == (400, 401), "not waiting, and not forced"
    assert told(submitter.cancel(job, force=True)) == (200, 200)
    for gone in (submitter.status(job), submitter.progress(job), submitter.result(job)):
        assert told(gone) == (200, 400)
    assert told(submitter.cancel(job, force=True)) == (400, 400)
    assert told(actions[steps]()) == (200, 401), "the poller's next call gets an error code"
    assert institute.rig.state(job)["state"] == "canceled"
    assert told(poller.request()) == (200, "0300")


def test_wrong_site_token_user_and_id(institute: Institute) -> None:
    job = institute.registered()
    wrong_site = institute.poller(site="nowhere").request()
    assert told(wrong_site) == (200, "400")
    assert first(wrong_site)["message"] == "Your site-id(nowhere) does not match in the list that acceptable to."
    nothing = institute.poller(site="rme-u-tokyo").request()
    assert first(nothing)["message"] == (
        "There is no information for accept_id(None), about the your site id(rme-u-tokyo)"
    )
    bad_token = institute.poller(token="0" * 64).request()
    assert bad_token.status_code == 403
    assert bad_token.text == '{"errors": [{"code": "0005", "message": "/mi-distcomp-api/calc-requestへの実行権がありません。"}]}'
    bob = institute.rig.token("bob", "submitter", "agent")
    assert told(institute.poller(token=bob).request()) == (200, "0300")
    assert told(institute.poller(token=bob).params(job)) == (403, "0005")
    assert told(institute.submitter(bob).status(job)) == (403, "0005")
    assert told(institute.submitter(bob).cancel(job, force=True)) == (403, "0005")
    unknown = "00000000-0000-4000-8000-000000000000"
    for name in (unknown, "x", "../../etc/passwd"):
        assert told(institute.poller().params(name)) == (400, 400)
        assert told(institute.poller().start(name)) == (400, 400)
        assert told(institute.submitter().status(name)) == (200, 400)
        assert told(institute.submitter().allow(name)) == (400, 400)
        assert told(institute.submitter().cancel(name)) == (400, 400)
    assert institute.poller(site="rme-u-tokyo").params(job).status_code == 400
    assert institute.rig.state(job)["state"] == "queued"


@pytest.mark.parametrize(
    ("calc", "code"),
    [
        (None, 400), ({}, 400), ({"remote-site": "nowhere", "command": COMMAND}, 400), ({"remote-site": SITE}, 400),
        ({"remote-site": SITE, "command": "rm -rf /"}, 401), ({"remote-site": SITE, "command": "sh"}, 401),
        ({"remote-site": SITE, "command": COMMAND, "parameter_files": {"a/x": [b64(b"1")], "b/x": [b64(b"2")]}}, 400),
        ({"remote-site": SITE, "command": COMMAND, "parameter_files": {"..": [b64(b"1")]}}, 400),
        ({"remote-site": SITE, "command": COMMAND, "parameter_files": {"a": ["*"]}}, 400),
        ({"remote-site": SITE, "command": COMMAND, "parameter_files": {"a": "x"}}, 400),
        ({"remote-site": SITE, "command": COMMAND, "result_files": {"/etc/passwd": {}}}, 400),
        ({"remote-site": SITE, "command": COMMAND, "result_files": ["x"]}, 400),
    ],
)  # fmt: skip
def test_what_cannot_be_registered(institute: Institute, calc: Any, code: int) -> None:
    answer = institute.submitter().add(calc)
    assert told(answer) == (202, code)
    assert len(first(answer)["message"]) > 10
    assert list(institute.rig.spool.glob("jobs/*")) == []
    assert list(institute.rig.spool.glob("tmp/*")) == []


def test_what_is_known(institute: Institute) -> None:
    job = institute.registered()
    known = institute.submitter().calcinfo().json()
    assert set(known) == {job}
    assert known[job]["progress"] == "not start"
    assert institute.submitter(institute.rig.token("bob", "submitter")).calcinfo().json() == {}


def test_a_poller_that_starts_again_gives_back_what_it_did_not_start(institute: Institute) -> None:
    job = institute.registered()
    institute.poller().params(job)
    assert first(institute.poller().request())["accept_id"] == job
    assert institute.rig.state(job)["state"] == "queued"


def test_a_request_that_comes_late_ends_nothing(institute: Institute) -> None:
    """A line that was cut delivers it after the steps that followed it; each step makes the next one the first again."""
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params, poller.params_complete, poller.start):
        step(job)
    assert told(poller.request()) == (200, "0300")
    assert told(poller.end(job, "calc end")) == (200, 200)
    assert told(poller.request()) == (200, "0300")
    assert told(poller.send_results(job, RESULTS)) == (200, 200)
    assert told(poller.end_send(job)) == (200, 200)
    assert institute.rig.state(job)["state"] == "completed"


def test_a_poller_that_lost_a_started_job_has_lost_it(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params, poller.params_complete, poller.start):
        step(job)
    assert told(poller.request()) == (200, "0300")
    assert institute.rig.state(job)["state"] == "running", "it may be a request that was given up before the start"
    assert told(poller.request()) == (200, "0300")
    state = institute.rig.state(job)
    assert (state["state"], state["reason"]) == ("failed", "lost")
    assert told(poller.end(job, "calc end")) == (200, 401)
    assert first(institute.submitter().status(job))["message"] == "status:abnormal"
    found = first(institute.submitter().result(job))["result-info"]["result_files"]
    assert {item["mimetype1"] for item in found.values()} == {"Error"}
    assert "another job" in found["out.dat"]["mimetype2"]


def test_results_that_came_whole_count_although_the_last_word_is_missing(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params, poller.params_complete, poller.start):
        step(job)
    poller.end(job, "calc end")
    poller.send_results(job, RESULTS)
    poller.request()
    assert institute.rig.state(job)["state"] == "completed"


def test_end_send_without_results_has_failed(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params, poller.params_complete, poller.start):
        step(job)
    poller.end(job, "calc end")
    assert told(poller.end_send(job)) == (200, 200)
    assert (institute.rig.state(job)["state"], institute.rig.state(job)["reason"]) == ("failed", "transfer")


def test_a_restarted_server_knows_every_step(institute: Institute) -> None:
    poller = institute.poller(retry=(5, 60.0))
    job = institute.registered()
    steps = [poller.params, poller.params_complete, poller.start, lambda name: poller.end(name, "calc end"),
             lambda name: poller.send_results(name, RESULTS), poller.end_send]  # fmt: skip
    for step in steps:
        institute.rig._processes[-1].kill()
        institute.serve()
        assert step(job).status_code == 200
        assert step(job).status_code == 200
    assert first(institute.submitter().result(job))["result-info"]["result_files"] == RESULTS


def test_a_name_with_a_wildcard_is_a_name(institute: Institute) -> None:
    names = ["a[1].dat", "b*.dat", "c?.dat"]
    exit_status = institute.submit("".join(f"echo {n} >'{name}';" for n, name in enumerate(names)), names)
    done(institute.poll())
    assert done(exit_status) == 0
    assert [(institute.module / name).read_text() for name in names] == ["0\n", "1\n", "2\n"]


def test_parameters_and_media_types_reach_the_poller_as_they_were_told(institute: Institute) -> None:
    files = {"sub/in.dat": [b64(b"x"), "odd/type;", "charset=eucjp"]}
    job = institute.registered(parameters="a b 計算", parameter_files=files)
    calc = institute.poller().params(job).json()["calc-info"]
    assert calc["parameters"] == "a b 計算"
    assert calc["parameter_files"] == {"in.dat": files["sub/in.dat"]}
    assert set(calc["result_files"]) == {"out.dat", STDOUT, STDERR}


def test_unclaimed_jobs_expire_and_are_seen(institute: Institute) -> None:
    institute.rig._processes[-1].stop()
    institute.serve({"server": {"unclaimed_s": "1"}})
    waiting, new = institute.registered(), institute.registered(allow=False)
    elsewhere = institute.rig.submit(SITE, COMMAND, user="alice")
    for job in (waiting, new):
        state = institute.rig.wait_state(job, "expired", deadline_s=15)
        assert "not claimed" in state["message"]
        assert first(institute.submitter().status(job))["message"] == "status:abnormal"
    assert institute.rig.state(elsewhere)["state"] == "queued"
    assert list((institute.rig.spool / "new").iterdir()) == []


def test_the_ini_is_read_again_at_a_registration(institute: Institute) -> None:
    ini = institute.rig.root / "spool.ini"
    answer = institute.submitter().add({"remote-site": SITE, "command": "new.sh"})
    assert told(answer) == (202, 401)
    ini.write_text(ini.read_text().replace("/opt/fem-ccv/femccv", "/opt/fem-ccv/femccv\n    new.sh"))
    answer = institute.submitter().add({"remote-site": SITE, "command": "new.sh"})
    assert told(answer) == (200, 200)


def test_no_such_call(institute: Institute) -> None:
    assert institute.call("GET", "no-such-call").json()["errors"][0]["code"] == 404
    assert institute.call("GET", "add-calcinfo").json()["errors"][0]["code"] == 405
    for call in ("calc-request", "calc-params", "calc-status"):
        assert told(institute.call("GET", call)) == (400, 400)


def test_answers_are_printed_raw(institute: Institute, tmp_path: Path) -> None:
    job = institute.registered(outputs=["出力.dat"])
    assert "出力.dat" in institute.poller().params(job).text


def test_what_a_poller_withholds_is_said_to_be_withheld_in_v1_too(institute: Institute) -> None:
    poller = institute.poller()
    job = institute.registered()
    for step in (poller.params, poller.params_complete, poller.start):
        step(job)
    poller.end(job, "calc end")
    stays = {"content": "", "mimetype1": "Error", "mimetype2": WITHHELD}
    poller.send_results(job, {"out.dat": stays, STDOUT: stays, STDERR: {**stays, "mimetype2": "no such file"}})
    poller.end_send(job)
    result = json.loads((institute.rig.job(job) / "result.json").read_bytes())
    assert (result["withheld"], result["missing"]) == ([f"out.dat: {WITHHELD}", f"log/stdout.txt: {WITHHELD}"], [])
