"""The doubles of the published programs, one against another: what the project is tested with must itself be right."""

from __future__ import annotations

import base64
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from components.waiting import wait_until
from published import their_poller, their_submitter
from published.their_poller import STDERR, STDOUT, STOPPING, NoAnswer, Seen, TheirPoller
from published.their_server import TheirServer
from published.their_submitter import Refused, TheirSubmitter, calc_info, submit

SITE, TOKEN, OTHER_TOKEN = "nims-dev", "5" * 64, "6" * 64
COMMAND = "sh job.sh"
SCALE = 0.002
ALL_BYTES = bytes(range(256)) * 40
STEPS = ["calc-request", "calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results", "end-send"]


@pytest.fixture
def server() -> Iterator[TheirServer]:
    with TheirServer({SITE: [COMMAND], "rme": []}, {TOKEN: "user", OTHER_TOKEN: "other"}) as server:
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def poller_of(server: TheirServer, tmp_path: Path, site: str = SITE, token: str = TOKEN, after: str = "send") -> TheirPoller:
    return TheirPoller(server.url, site, token, tmp_path / "base", scale=SCALE, after_abnormal=after)


def waiting_job(server: TheirServer, **inputs: str) -> str:
    """A job that the pollers may have, registered call by call."""
    files = {name: [base64.b64encode(text.encode()).decode(), "text/plain;", "charset=utf-8"] for name, text in inputs.items()}
    calc = {**calc_info(SITE, COMMAND, [], ["out.dat"], "", Path()), "parameter_files": files}
    submitter = TheirSubmitter(server.url, TOKEN)
    accept_id: str = submitter.add(calc).json()["errors"][0]["accept_id"]
    assert submitter.allow(accept_id).status_code == 200
    return accept_id


def both(threads: ThreadPoolExecutor, server: TheirServer, tmp_path: Path, script: str, outputs: list[str]) -> tuple[int, Seen]:
    """One job through their submitter and their poller; the inputs are what lies in tmp_path/module, and the script."""
    module = tmp_path / "module"
    module.mkdir(exist_ok=True)
    (module / "job.sh").write_text(script, encoding="utf-8")
    inputs = sorted(Path(path.name) for path in module.iterdir())
    seen = threads.submit(poller_of(server, tmp_path).run_one, 500)
    more: dict[str, Any] = {"scale": SCALE, "into": module, "status_again": True}
    exit_status = threads.submit(submit, server.url, SITE, TOKEN, COMMAND, inputs, outputs, **more)
    return done(exit_status), done(seen)


def done(future: Future[Any]) -> Any:
    wait_until(future.done, 20, "the thread's end")
    return future.result()


def status_and_code(answer: requests.Response) -> tuple[int, object]:
    return answer.status_code, answer.json()["errors"][0]["code"]


def test_every_byte_arrives(server: TheirServer, threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    module = tmp_path / "module"
    module.mkdir()
    contents = {"入力 一.txt": "熱処理\n".encode(), "all.bin": ALL_BYTES, "empty": b"", "text.dat": b"1 2\r\n3"}
    for name, content in contents.items():
        (module / name).write_bytes(content)
    script = 'for f in "入力 一.txt" all.bin empty text.dat; do cp "$f" "出力 $f"; done; pwd; echo "$CALC_DIR"; echo 警告 >&2'
    assert both(threads, server, tmp_path, script, [f"出力 {name}" for name in contents])[0] == 0
    assert {name: (module / f"出力 {name}").read_bytes() for name in contents} == contents
    folder = str(next((tmp_path / "base").iterdir()))
    assert (module / STDOUT).read_text() == f"{folder}\n{folder}\n"
    assert (module / STDERR).read_text() == "警告\n"


def test_one_step_after_another(server: TheirServer, tmp_path: Path) -> None:
    accept_id = waiting_job(server, **{"job.sh": "echo 1 > out.dat"})
    poller = poller_of(server, tmp_path)
    seen = poller.run_one(2)
    assert (seen.accept_id, seen.exit_status, seen.word) == (accept_id, 0, "calc end")
    assert [answer.call for answer in seen.answers] == STEPS
    assert seen.codes == [200] * 7
    # The first answer named the job too, and was printed and ignored.
    assert [line.partition(" / ")[0] for line in poller.printed if line.startswith("code")][:2] == ["code = 200"] * 2
    assert sum(path.endswith(f"calc-request?site_id={SITE}") for _, path in server.requests) == 2
    assert server.jobs[accept_id].results["out.dat"] == {
        "content": base64.b64encode(b"1\n").decode(),
        "mimetype1": "text/plain;",
        "mimetype2": "charset=us-ascii",
    }


@pytest.mark.parametrize("script", ["echo 1 > out.dat; exit 3", "echo 1 > other.dat"])
def test_abnormal_end(server: TheirServer, threads: ThreadPoolExecutor, tmp_path: Path, script: str) -> None:
    exit_status, seen = both(threads, server, tmp_path, script, ["out.dat"])
    assert (exit_status, seen.word, seen.codes) == (1, "abnormal", [200] * 7)
    assert (tmp_path / "module" / "out.dat").exists() == ("exit" in script)


@pytest.mark.parametrize("finishes", [False, True])
def test_abnormal_end_and_no_results(tmp_path: Path, finishes: bool) -> None:
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}, finish_abandoned=finishes) as server:
        accept_id = waiting_job(server, **{"job.sh": "exit 1"})
        poller = poller_of(server, tmp_path, after="poll")
        assert poller.run_one(2).answers[-1].call == "calc-end"
        poller.request()
        assert (server.jobs[accept_id].status, server.jobs[accept_id].progress) == (
            "abnormal",
            "got return" if finishes else "calc end",
        )


def test_a_missing_result_file_is_told(
    server: TheirServer, threads: ThreadPoolExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_status, seen = both(threads, server, tmp_path, "echo 1 > a.dat", ["a.dat", "b.dat"])
    assert (exit_status, seen.word) == (0, "calc end")
    assert sorted(path.name for path in (tmp_path / "module").iterdir()) == sorted(["a.dat", "job.sh", STDOUT, STDERR])
    assert "b.dat: b.dat: No such file or directory" in capsys.readouterr().out


def test_the_manuals_lines(server: TheirServer, tmp_path: Path) -> None:
    for site, token in ((SITE, TOKEN), ("gone", TOKEN), (SITE, "7" * 64)):
        poller = poller_of(server, tmp_path, site, token)
        assert poller.run_one(2).accept_id == ""
        stamp, _, sent = poller.printed[-2].partition(":send ")
        assert stamp.count("/") == 2
        assert sent == f"{server.url}/mi-distcomp-api/calc-request?site_id={site}"
        line = poller.printed[-1]
        if token != TOKEN:
            reason = '{"errors":[{"code":"0005","message":"/mi-distcomp-api/calc-requestへの実行権がありません。"}]}'
            assert line.endswith(f":status code = 403 / reason = {reason}")
        elif site == SITE:
            assert line == f"code = 0300 / message = There is no information for accept_id(None), about the your site id({site})"
        else:
            assert line == f"code = 400 / message = Your site-id({site}) does not match in the list that acceptable to."


def test_forced_cancel_of_a_running_job(server: TheirServer, tmp_path: Path) -> None:
    poller, submitter = poller_of(server, tmp_path), TheirSubmitter(server.url, TOKEN)
    accept_id = waiting_job(server)
    for step in (poller.params, poller.params_complete, poller.start):
        assert step(accept_id).status_code == 200
    assert status_and_code(submitter.cancel(accept_id)) == (400, 401)
    assert status_and_code(submitter.cancel(accept_id, force=True)) == (200, 200)
    assert status_and_code(poller.end(accept_id, "calc end")) == (400, 400)
    assert status_and_code(submitter.status(accept_id)) == (200, 400)


def test_a_submitter_cut_short_cancels(server: TheirServer, tmp_path: Path) -> None:
    server.html("calc-progress")
    with pytest.raises(Refused, match="502"):
        submit(server.url, SITE, TOKEN, COMMAND, [], [], scale=SCALE, into=tmp_path)
    assert server.requests[-1] == ("POST", "/mi-distcomp-api/cancel-wait-calc")
    assert server.jobs == {}


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("call", STEPS)
def test_a_lost_answer(tmp_path: Path, call: str, repeatable: bool) -> None:
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}, repeatable=repeatable) as server:
        waiting_job(server, **{"job.sh": "echo 1 > out.dat"})
        server.drop_answer(call)
        seen = poller_of(server, tmp_path).run_one(3)
        lost = [] if repeatable or call == "calc-request" else [(call, 200, 401)]
        assert [tuple(answer) for answer in seen.answers if answer.code != 200] == lost
        assert (seen.answers[-1].call == "end-send") == (not lost or call == "end-send")


def test_requests_that_do_not_arrive(server: TheirServer, tmp_path: Path) -> None:
    accept_id = waiting_job(server, **{"job.sh": "echo 1 > out.dat"})
    server.refuse("calc-end", 5)
    server.html("send-results")
    seen = poller_of(server, tmp_path).run_one(2)
    assert [answer.status for answer in seen.answers] == [200] * 5 + [502, 200]
    assert (server.jobs[accept_id].status, server.jobs[accept_id].progress) == ("abnormal", "got return")
    server.refuse("calc-request", 6)
    with pytest.raises(NoAnswer, match="6 requests"):
        poller_of(server, tmp_path).request()


def test_a_name_with_a_folder(server: TheirServer, tmp_path: Path) -> None:
    waiting_job(server, **{"folder/in.dat": "1"})
    with pytest.raises(KeyError, match=r"in\.dat"):
        poller_of(server, tmp_path).run_one(2)


def test_what_the_mint_side_refuses(server: TheirServer) -> None:
    submitter = TheirSubmitter(server.url, TOKEN)
    calc = calc_info(SITE, COMMAND, [], [], "", Path())
    wrong = [None, {**calc, "remote-site": "gone"}, {**calc, "command": ""}, {**calc, "command": "rm"}]
    assert [status_and_code(submitter.add(one)) for one in wrong] == [(202, 400)] * 3 + [(202, 401)]
    new: str = submitter.add(calc).json()["errors"][0]["accept_id"]
    assert status_and_code(submitter.cancel(new)) == (400, 401)
    assert [status_and_code(submitter.allow(one)) for one in (new, new, "gone")] == [(200, 200), (400, 401), (400, 400)]
    assert [status_and_code(submitter.progress(one)) for one in ("", "gone", new)] == [(400, 400), (200, 400), (200, 200)]
    assert submitter.progress(new).json()["errors"][0]["message"] == "status:not start"
    assert status_and_code(submitter.result(new)) == (200, 400)
    assert list(submitter.calcinfo().json()) == [new]
    assert status_and_code(TheirSubmitter(server.url, OTHER_TOKEN).status(new)) == (200, 400)
    assert status_and_code(submitter.cancel(new)) == (200, 200)


def test_what_the_external_side_refuses(server: TheirServer, tmp_path: Path) -> None:
    accept_id = waiting_job(server)
    poller, other_site = poller_of(server, tmp_path), poller_of(server, tmp_path, "rme")
    assert status_and_code(poller_of(server, tmp_path, token=OTHER_TOKEN).request()) == (200, "0300")
    assert status_and_code(poller.params("gone")) == status_and_code(other_site.params(accept_id)) == (400, 400)
    assert status_and_code(poller.end(accept_id, "")) == (400, 402)
    assert list(poller.params(accept_id).json()) == ["calc-info"]
    assert status_and_code(poller.params(accept_id)) == status_and_code(poller.start(accept_id)) == (200, 401)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    page = requests.get(f"{server.url}/v1/", headers=headers, timeout=5)
    assert (page.status_code, page.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert status_and_code(requests.get(f"{server.url}/mi-distcomp-api/calc-request", headers=headers, timeout=5)) == (400, 400)


def test_what_nobody_claims_is_dropped(tmp_path: Path) -> None:
    now_s = [0.0]
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}, clock=lambda: now_s[0]) as server:
        waiting_job(server)
        poller = poller_of(server, tmp_path)
        for now_s[0], code in ((1800.0, 200), (1801.0, "0300")):
            assert status_and_code(poller.request()) == (200, code)
        assert server.jobs == {}


def test_the_programs_over_https(tmp_path: Path) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject]
    subprocess.run([*made, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "job.sh").write_text("cat in.dat > out.dat")
    (tmp_path / "in.dat").write_bytes(ALL_BYTES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    options = ["no_auth:cert.pem", "calc_base:base", "retry:2,1.5", "scale:0.002"]
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}, ssl_context=context) as server:
        polling = [sys.executable, their_poller.__file__, SITE, "https://127.0.0.1", TOKEN, f"port:{server.port}", *options]
        submitting = [sys.executable, their_submitter.__file__, server.url, SITE, TOKEN, COMMAND]
        with subprocess.Popen(polling, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as poller:
            try:
                subprocess.run(
                    [*submitting, "job.sh:in.dat", "out.dat", "a parameter", "scale:0.002"],
                    cwd=tmp_path,
                    env={"PATH": "/usr/bin:/bin", "REQUESTS_CA_BUNDLE": "cert.pem"},
                    check=True,
                    capture_output=True,
                    timeout=20,
                )
            finally:
                poller.send_signal(signal.SIGINT)
            printed, _ = poller.communicate(timeout=20)
    assert (tmp_path / "out.dat").read_bytes() == ALL_BYTES
    assert poller.returncode == 0
    assert printed.splitlines()[:3] == [f"site id = {SITE}", f"base url = {server.url}", f" token = {TOKEN}"]
    assert STOPPING in printed.splitlines()
