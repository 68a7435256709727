"""The agent against a published server: every job runs once, by the company's rules, and its result arrives."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.abroad import COMMAND, COUNT, MANY, SITE, STDERR, STDOUT, STEPS, TOKEN, UNTIL_GO, WRONG_TOKEN, Abroad
from agent.company import gone, noise
from agent.wire import Act, Request, Wire
from components import proc
from components.waiting import stays, wait_until
from published.their_server import TheirServer

Make = Callable[..., Wire]
pytestmark = pytest.mark.slow


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Abroad]:
    """A strict published server; the agent is started by the test."""
    made = Abroad(tmp_path / "rig")
    yield made
    made.close()


# ---- a job's life


def test_every_byte_arrives(abroad: Abroad) -> None:
    data = noise(3_000_000)
    inputs = {"メッシュ 入力.dat": "節点 1\n".encode(), "big.bin": data, "nothing": b""}
    job = abroad.submit(
        "cat big.bin big.bin > twice.bin; cp メッシュ*.dat 結果.txt; cp nothing empty; "
        "echo 計算; echo oops >&2; echo a > plain.txt",
        "twice.bin", "結果.txt", "empty", "plain.txt", inputs=inputs,
    )  # fmt: skip
    abroad.start()
    assert abroad.ended(job) == "completed"
    assert abroad.results(job) == {
        "twice.bin": (data * 2, "application/octet-stream;", "charset=binary"),
        "結果.txt": ("節点 1\n".encode(), "text/plain;", "charset=utf-8"),
        "empty": (b"", "inode/x-empty;", "charset=binary"),
        "plain.txt": (b"a\n", "text/plain;", "charset=us-ascii"),
        STDOUT: ("計算\n".encode(), "text/plain;", "charset=utf-8"),
        STDERR: (b"oops\n", "text/plain;", "charset=us-ascii"),
    }
    abroad.locally(job, "completed")
    assert [path.rpartition("/")[2].partition("?")[0] for _, path in abroad.server.requests if "/calc-" in path][:2] == [
        "calc-request", "calc-params",
    ]  # fmt: skip


def test_an_abnormal_end_returns_what_there_is(abroad: Abroad) -> None:
    job = abroad.submit("echo half > a.dat; exit 3", "a.dat", "b.dat")
    abroad.start()
    assert abroad.ended(job) == "abnormal"
    results = abroad.results(job)
    assert results["a.dat"][0] == b"half\n"
    assert results["b.dat"][:2] == (b"", "Error")
    assert "exit code 3" in results["b.dat"][2]


def test_a_missing_result_is_said_and_none_at_all_is_abnormal(abroad: Abroad) -> None:
    one, none = abroad.submit("echo x > a[1].dat", "a[1].dat", "b.dat"), abroad.submit("true", "a.dat")
    abroad.start()
    assert abroad.ended(one) == "completed"
    assert abroad.out(one) == {"a[1].dat": b"x\n"}
    assert abroad.results(one)["b.dat"] == (b"", "Error", "the command did not write it")
    assert abroad.ended(none) == "abnormal"


def test_result_names_that_reach_elsewhere(abroad: Abroad) -> None:
    job = abroad.submit("mkdir sub; echo x > sub/a.dat; echo y > ../b.dat", "sub/a.dat", "../b.dat", "/etc/hostname")
    abroad.start()
    assert abroad.ended(job) == "completed"
    assert abroad.out(job) == {"sub/a.dat": b"x\n"}
    assert "'..'" in abroad.results(job)["../b.dat"][2]


def test_one_at_a_time_whatever_slots_says(abroad: Abroad) -> None:
    """A poller that asks for a job has none in hand: servers take back, or take for lost, what it had."""
    jobs = [abroad.submit(UNTIL_GO, "out.dat") for _ in range(2)]
    abroad.start(slots=2)
    abroad.pid(jobs[0])
    asked = abroad.asked("calc-request")
    stays(lambda: abroad.asked("calc-request") == asked, 1, "nothing is asked for while a job is in hand")
    assert abroad.server.jobs[jobs[1]].progress == "not start"
    abroad.go(jobs[0])
    abroad.pid(jobs[1])
    abroad.go(jobs[1])
    assert [abroad.ended(job) for job in jobs] == ["completed"] * 2
    assert abroad.starts() == 2


def test_a_server_that_gives_up_what_a_poller_abandons(tmp_path: Path) -> None:
    """An abnormal end, and the poller asks for more before it has sent: that would end the job without its results."""
    abroad = Abroad(tmp_path / "rig", finish_abandoned=True)
    try:
        job = abroad.submit("echo half > a; exit 1", "a")
        abroad.server.html("send-results", 2)
        abroad.start(slots=3, poll_s="0.1")
        assert abroad.ended(job) == "abnormal"
        assert abroad.out(job) == {"a": b"half\n"}
    finally:
        abroad.close()


def test_calc_dir_and_the_environment(abroad: Abroad) -> None:
    job = abroad.submit('echo "$CALC_DIR" > dir; pwd >> dir; env > env; echo "$#" > count', "dir", "env", "count")
    abroad.start()
    assert abroad.ended(job) == "completed"
    out = abroad.out(job)
    assert out["dir"].decode().split() == [str(abroad.local(job) / "work")] * 2
    assert out["count"] == b"0\n", "`parameters` never reaches the command"
    assert TOKEN.encode() not in out["env"]


def test_one_pass_and_the_next(abroad: Abroad) -> None:
    """As cron starts it: the first pass leaves the command running, the next one returns."""
    job = abroad.submit(UNTIL_GO, "out.dat")
    assert abroad.start("--once", once_wait_s="0.2").wait(20) == 0
    abroad.go(job)
    gone(abroad.pid(job))
    assert abroad.start("--once").wait(20) == 0
    assert abroad.ended(job, 1) == "completed"
    assert abroad.starts() == 1


def test_ctrl_c_finishes_what_is_in_hand(abroad: Abroad) -> None:
    job = abroad.submit(UNTIL_GO, "out.dat")
    agent = abroad.start(slots=2)
    abroad.pid(job)
    agent.signal(signal.SIGINT)
    agent.wait_for_output("停止要求受付", 10)
    other = abroad.submit("true")
    stays(lambda: agent.running and abroad.server.jobs[other].progress == "not start", 1, "it stays, and takes nothing new")
    abroad.go(job)
    assert abroad.ended(job) == "completed"
    assert agent.wait(10) == 0


def test_an_accept_id_of_another_form(abroad: Abroad) -> None:
    job = abroad.submit("echo x > a", "a")
    odd = "../../ODD & 受付=1"
    abroad.server.jobs[odd] = abroad.server.jobs.pop(job)
    abroad.start()
    assert abroad.ended(odd) == "completed"
    assert abroad.out(odd) == {"a": b"x\n"}


# ---- the company's law


def test_a_refusal_is_told(abroad: Abroad) -> None:
    job = abroad.submit("true", "a.dat", command="/opt/other")
    after = abroad.submit("echo x > a", "a")
    abroad.start()
    assert abroad.ended(job) == "abnormal"
    assert {kind for _, kind, _ in abroad.results(job).values()} == {"Error"}
    assert "refused_by_site" in abroad.results(job)["a.dat"][2]
    assert "'/opt/other' is not allowed" in abroad.results(job)[STDOUT][2]
    assert abroad.ended(after) == "completed"
    assert not (abroad.local(job) / "work").exists()


def test_users_and_inputs_are_judged(abroad: Abroad) -> None:
    abroad.commands = {COMMAND: {"argv": "/bin/sh job.sh", "users": "alice", "inputs_allow": "*.sh"}}
    refused = abroad.submit("true")
    abroad.start()
    assert abroad.ended(refused) == "abnormal"
    assert "user 'token-owner' may not run" in abroad.results(refused)[STDOUT][2]
    abroad.kill()
    abroad.commands = {COMMAND: {"argv": "/bin/sh job.sh", "users": "token-owner", "inputs_allow": "*.sh"}}
    allowed, refused = abroad.submit("echo x > a", "a"), abroad.submit("true", inputs={"abaqus_v6.env": b"x"})
    abroad.start()
    assert abroad.ended(allowed) == "completed"
    assert abroad.ended(refused) == "abnormal"
    assert "'abaqus_v6.env' is not allowed" in abroad.results(refused)[STDOUT][2]


def test_what_is_withheld_does_not_leave(abroad: Abroad) -> None:
    abroad.release = {"allow": "*.dat", "deny": "secret*"}
    job = abroad.submit("echo x > a.dat; echo y > secret.dat; echo z > b.txt; echo log", "a.dat", "secret.dat", "b.txt")
    abroad.start()
    assert abroad.ended(job) == "completed"
    assert abroad.out(job) == {"a.dat": b"x\n"}
    for name in ("secret.dat", "b.txt", STDOUT, STDERR):
        assert abroad.results(job)[name] == (b"", "Error", "withheld by the site")


def test_caps_refuse_all_of_it(abroad: Abroad) -> None:
    abroad.release = {"allow": "**", "logs": "return", "max_bytes": "3"}
    job = abroad.submit("echo long > a.dat", "a.dat")
    abroad.start()
    assert abroad.ended(job) == "abnormal"
    assert "more bytes than the site lets leave" in abroad.results(job)["a.dat"][2]


@pytest.mark.parametrize(
    ("names", "why"),
    [(("a/x.dat", "b/x.dat"), "twice"), (("-rf",), "'-'"), (("a\nb",), "control")],
    ids=["twice", "dash", "newline"],
)
def test_input_names_that_cannot_be(abroad: Abroad, names: tuple[str, ...], why: str) -> None:
    job = abroad.submit(f"{COUNT}; echo x > a", "a", inputs=dict.fromkeys(names, b"x"))
    after = abroad.submit("echo x > a", "a", inputs={"folder/in.dat": b"x"})
    abroad.start()
    assert abroad.ended(job) == "abnormal"
    assert why in abroad.results(job)["a"][2]
    assert abroad.ended(after) == "completed"
    assert (abroad.local(after) / "work" / "in.dat").exists()
    assert abroad.starts() == 0


def test_more_than_the_protocol_carries(abroad: Abroad) -> None:
    job = abroad.submit("truncate -s 1700M big; echo x > small", "big", "small")
    abroad.start()
    assert abroad.ended(job, 100) == "abnormal"
    assert "once encoded" in abroad.results(job)["big"][2]
    assert "once encoded" in abroad.results(job)["small"][2]
    abroad.locally(job, "failed")


def test_a_proxy_that_takes_no_results(abroad: Abroad, make_wire: Make) -> None:
    def rule(request: Request) -> Act | None:
        return Act(status=413) if "send-results" in request.path and request.body_bytes > 100_000 else None

    wire = make_wire(abroad.server.port, rule)
    job = abroad.submit("head -c 200000 /dev/zero > a", "a")
    abroad.start(url=wire.url)
    assert abroad.ended(job) in ("completed", "abnormal")
    assert "no body of this size" in abroad.results(job)["a"][2]


# ---- killed and started again


def test_inputs_are_not_fetched_twice(abroad: Abroad) -> None:
    job = abroad.submit(f"{COUNT}; cat in.bin > out.bin", "out.bin", inputs={"in.bin": noise(100_000)})
    abroad.server.html("calc-params-complete", MANY)
    abroad.start()
    abroad.called("calc-params-complete")
    abroad.kill()
    abroad.server.html("calc-params-complete", 0)
    abroad.start()
    assert abroad.ended(job) == "completed"
    assert abroad.out(job) == {"out.bin": noise(100_000)}
    assert (abroad.asked("calc-params"), abroad.starts()) == (1, 1)


def test_a_command_runs_on_while_the_agent_is_away(abroad: Abroad) -> None:
    job = abroad.submit(UNTIL_GO, "out.dat")
    abroad.start()
    pid = abroad.pid(job)
    abroad.kill()
    assert proc.alive(pid)
    abroad.start()
    stays(lambda: proc.alive(pid), 1, "the command runs on")
    abroad.go(job)
    assert abroad.ended(job) == "completed"
    assert abroad.out(job) == {"out.dat": b"done\n"}
    assert (abroad.starts(), abroad.asked("send-results"), abroad.asked("calc-start")) == (1, 1, 1)


@pytest.mark.parametrize("call", ["calc-end", "send-results", "end-send"])
def test_a_finished_command_is_returned_after_a_kill(abroad: Abroad, call: str) -> None:
    job = abroad.submit(f"{COUNT}; echo x > a", "a")
    abroad.server.html(call, MANY)
    abroad.start()
    abroad.called(call)
    abroad.kill()
    abroad.server.html(call, 0)
    abroad.start()
    assert abroad.ended(job) == "completed"
    assert (abroad.out(job), abroad.starts()) == ({"a": b"x\n"}, 1)


def test_a_refusal_stands_although_the_rules_changed_in_between(abroad: Abroad) -> None:
    """Its end was being told when the agent was killed: the server has the job past its start, so it must not run now."""
    job = abroad.submit(f"{COUNT}; echo x > a", "a")
    allowed, abroad.commands = abroad.commands, {"another": {"argv": "/bin/true"}}
    abroad.server.html("send-results", MANY)
    abroad.start()
    abroad.called("send-results")
    abroad.kill()
    abroad.server.html("send-results", 0)
    abroad.commands = allowed
    abroad.start()
    assert abroad.ended(job) == "abnormal"
    assert abroad.starts() == 0


# ---- answers that get lost


@pytest.mark.parametrize("restart", [False, True], ids=["carries on", "killed"])
@pytest.mark.parametrize("repeatable", [False, True], ids=["strict", "repeatable"])
@pytest.mark.parametrize("call", STEPS)
def test_a_lost_answer(tmp_path: Path, call: str, repeatable: bool, restart: bool) -> None:
    abroad = Abroad(tmp_path / "rig", repeatable=repeatable)
    try:
        job = abroad.submit(f"{COUNT}; cat in.dat > out.dat", "out.dat", inputs={"in.dat": b"data"})
        abroad.server.drop_answer(call)
        abroad.start()
        if restart:
            wait_until(lambda: not abroad.server.pending("drop", call), 30, f"{call} is done, and its answer lost")
            abroad.kill()
            abroad.start()
        if call == "calc-params" and not repeatable:
            assert abroad.ended(job) == "abnormal", "the server gave the inputs once, and they are lost"
            assert "lost on the way" in abroad.results(job)[STDOUT][2]
            assert abroad.starts() == 0
        else:
            assert abroad.ended(job) == "completed"
            assert (abroad.out(job), abroad.starts()) == ({"out.dat": b"data"}, 1)
            if call in STEPS[2:]:
                assert abroad.asked(call) == 1, "a step whose answer was lost is looked up, not repeated"
        abroad.locally(job, abroad.server.jobs[job].status.replace("abnormal", "failed"))
        after = abroad.submit("echo x > a", "a")
        assert abroad.ended(after) == "completed", "the slot is free again"
    finally:
        abroad.close()


@pytest.mark.parametrize(
    ("call", "repeatable", "ended"),
    [("calc-start", True, "completed"), ("calc-start", False, "canceled"), ("calc-end", False, "completed")],
)
def test_a_lost_answer_where_nobody_tells_the_progress(
    tmp_path: Path, make_wire: Make, call: str, repeatable: bool, ended: str
) -> None:
    """calc-progress is a call of the submitter's side: a gateway may keep it from this token. Not sure of the start: none."""
    abroad = Abroad(tmp_path / "rig", repeatable=repeatable)
    page = b'{"errors":[{"code":"0005","message":"no"}]}'
    act = Act(status=403, page=page, headers={"Content-Type": "application/json"})
    wire = make_wire(abroad.server.port, lambda request: act if "calc-progress" in request.path else None)
    try:
        job = abroad.submit(f"{COUNT}; echo x > a", "a")
        abroad.server.drop_answer(call)
        abroad.start(url=wire.url)
        abroad.locally(job, ended)
        assert abroad.starts() == (1 if ended == "completed" else 0)
        after = abroad.submit("echo x > a", "a")
        assert abroad.ended(after) == "completed"
    finally:
        abroad.close()


def test_a_request_that_never_arrived_is_sent_again(abroad: Abroad) -> None:
    for call in STEPS:
        abroad.server.refuse(call)
    job = abroad.submit(f"{COUNT}; echo x > a", "a")
    abroad.start(poll_s="0.1")
    assert abroad.ended(job, 60) == "completed"
    assert abroad.starts() == 1


# ---- canceled by force


@pytest.mark.parametrize("call", STEPS[1:])
def test_a_forced_cancel(abroad: Abroad, call: str) -> None:
    job = abroad.submit(f"{COUNT}; echo x > a", "a")
    abroad.server.html(call, MANY)
    abroad.start()
    abroad.called(call)
    assert abroad.submitter.cancel(job, force=True).status_code == 200
    after = abroad.submit("echo y > a", "a")
    abroad.server.html(call, 0)
    assert abroad.ended(after) == "completed"
    # Gone after end-send was asked for: it may as well have been taken, and the result fetched and removed.
    abroad.locally(job, "completed" if call == "end-send" else "canceled")
    assert abroad.starts() == (0 if call in STEPS[:4] else 1)


def test_a_forced_cancel_stops_the_command(abroad: Abroad) -> None:
    job = abroad.submit(UNTIL_GO, "out.dat")
    abroad.start()
    pid = abroad.pid(job)
    abroad.submitter.cancel(job, force=True)
    gone(pid)
    abroad.locally(job, "canceled")
    after = abroad.submit("echo y > a", "a")
    assert abroad.ended(after) == "completed"


def test_another_poller_was_quicker(abroad: Abroad) -> None:
    """It has claimed the job between this agent's question and its claim: it is left to it."""
    job = abroad.submit(f"{COUNT}; echo x > a", "a")
    abroad.server.html("calc-params", MANY)
    abroad.start()
    abroad.called("calc-params")
    abroad.kill()
    steps = abroad.local(job) / "published" / "steps.json"
    steps.write_text(json.dumps({**json.loads(steps.read_text()), "trying": ""}))
    abroad.server.jobs[job].step = 3
    abroad.server.html("calc-params", 0)
    abroad.start()
    abroad.locally(job, "canceled")
    assert (abroad.server.jobs[job].progress, abroad.starts()) == ("running", 0)


# ---- the manual's words, and who ends when


def test_the_lines_of_the_manual(abroad: Abroad) -> None:
    words = (SITE, abroad.server.url, TOKEN, f"calc_base:{abroad.base}", "retry:1,0.1")
    abroad.start(*words)
    text = wait_until(lambda: abroad.said() if "code = 0300" in abroad.said() else "", 20, "it polls")
    assert f"site id = {SITE}\nbase url = {abroad.server.url}\n token = ********5555\n" in text
    url = re.escape(f"{abroad.server.url}/mi-distcomp-api/calc-request?site_id={SITE}")
    nothing = re.escape(f"There is no information for accept_id(None), about the your site id({SITE})")
    assert re.search(rf"(?m)^\d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d:send {url}\ncode = 0300 / message = {nothing}$", text)
    assert TOKEN not in text
    assert abroad.agent
    abroad.agent.signal(signal.SIGINT)
    assert abroad.agent.wait(10) == 0
    assert "Ctrl + C スクリプト停止要求受付" in abroad.said()


def test_a_wrong_site_and_a_wrong_token_are_answers(abroad: Abroad) -> None:
    for site, token, line in (
        ("unknown", TOKEN, "code = 400 / message = Your site-id(unknown) does not match in the list that acceptable to."),
        (SITE, WRONG_TOKEN, "/calc-requestへの実行権がありません。"),
    ):
        before = abroad.asked("calc-request")
        agent = abroad.start(site, abroad.server.url, token, "retry:1,0.1", f"calc_base:{abroad.base}", site=site)
        agent.wait_for_output(line, 20)
        abroad.called("calc-request", before + 4)
        assert agent.running, "an answer uses up no try"
        abroad.kill()
        assert abroad.start("--once", site=site, token=token).wait(20) == 77
    pattern = r'(?m)^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d:status code = 403 / reason = \{"errors":\[\{"code":"0005",'
    assert re.search(pattern, abroad.said())


def test_an_idle_agent_ends_when_its_tries_are_used_up(abroad: Abroad) -> None:
    agent = abroad.start(SITE, abroad.server.url, TOKEN, "retry:2,0.1", f"calc_base:{abroad.base}")
    abroad.called("calc-request")
    abroad.server.refuse("calc-request", MANY)
    assert agent.wait(20) == 75
    assert "event=given_up tries=3" in abroad.said()


def test_never_with_a_job_in_hand(abroad: Abroad) -> None:
    """The server is away and comes back; what it knew is taken over by the new one."""
    job = abroad.submit(UNTIL_GO, "out.dat")
    agent = abroad.start(SITE, abroad.server.url, TOKEN, "retry:2,0.1", f"calc_base:{abroad.base}")
    abroad.pid(job)
    old = abroad.server
    old.__exit__()
    wait_until(lambda: abroad.said().count("event=sync_failed") > 4, 20, "more tries than are allowed to an idle one")
    abroad.go(job)
    abroad.locally(job, "returning")
    assert agent.running
    abroad.server = TheirServer(old.shelf.sites, old.tokens, port=old.port).__enter__()
    abroad.server.jobs.update(old.jobs)
    assert abroad.ended(job) == "completed"
    assert abroad.starts() == 1
    assert agent.running
