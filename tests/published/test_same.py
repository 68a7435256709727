"""The same job on the published server and on ours comes to the same bytes; so it does where answers are lost on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.wire import Act, Request, Wire, once
from published.conftest import COMMAND, SITE, Institute, done, first
from published.their_poller import STDERR, STDOUT, TheirPoller
from published.their_server import TheirServer
from published.their_submitter import TheirSubmitter, submit

SCALE = 0.002
SCRIPT = "cat 入力.dat bin.dat >出力.dat; : >empty.dat; printf 'a\\r\\nb' >crlf.txt; echo 標準; echo 誤り >&2; exit {code}"
OUTPUTS = ["出力.dat", "empty.dat", "crlf.txt", "never.dat"]
INPUTS = {"入力.dat": "熱処理\n".encode(), "bin.dat": bytes(range(256)) * 300}
POLLER_CALLS = ["calc-request", "calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results", "end-send"]


def outcome(url: str, token: str, root: Path, code: int) -> tuple[int, dict[str, bytes], dict[str, Any]]:
    """(exit status, files in the module's folder, RESULTS) of one job through their submitter and their poller."""
    module = root / "module"
    module.mkdir(parents=True)
    (module / "job.sh").write_text(SCRIPT.format(code=code), encoding="utf-8")
    for name, data in INPUTS.items():
        (module / name).write_bytes(data)
    names = [Path("job.sh"), *map(Path, INPUTS)]
    with ThreadPoolExecutor() as threads:
        poller = TheirPoller(url, SITE, token, root / "base", scale=SCALE)
        seen = threads.submit(poller.run_one, 2000)
        more: dict[str, Any] = {"scale": SCALE, "into": module, "status_again": False}
        exit_status = threads.submit(submit, url, SITE, token, COMMAND, names, OUTPUTS, **more)
        status, job = done(exit_status), done(seen).accept_id
    results = first(TheirSubmitter(url, token).result(job))["result-info"]["result_files"]
    return status, {path.name: path.read_bytes() for path in module.iterdir()}, results


@pytest.mark.parametrize("code", [0, 3])
def test_the_same_bytes_as_before(institute: Institute, tmp_path: Path, code: int) -> None:
    with TheirServer({SITE: [COMMAND]}, {institute.token: "alice"}) as theirs:
        before = outcome(theirs.url, institute.token, tmp_path / "theirs", code)
    now = outcome(institute.url, institute.token, tmp_path / "ours", code)
    assert now == before
    assert now[0] == (1 if code else 0)
    assert set(now[1]) == {"job.sh", *INPUTS, "出力.dat", "empty.dat", "crlf.txt", STDOUT, STDERR}


@pytest.mark.parametrize("lost", POLLER_CALLS)
def test_a_lost_answer_at_every_step(institute: Institute, lost: str) -> None:
    def matches(request: Request) -> bool:
        return f"/{lost}" in request.path and (lost != "calc-params" or "complete" not in request.path)

    wire = Wire(institute.rig.port, once(matches, Act(lose=True), Act(lose=True)))
    try:
        counter = institute.rig.root / "counter"
        exit_status = institute.submit(f"echo x >>{counter}; echo 42 >out.dat", ["out.dat"])
        poller = TheirPoller(wire.url, SITE, institute.token, institute.rig.root / "base", scale=SCALE)
        seen = done(institute.threads.submit(poller.run_one, 2000))
        assert done(exit_status) == 0
        assert institute.rig.state(seen.accept_id)["state"] == "completed"
        assert (institute.module / "out.dat").read_text() == "42\n"
        assert counter.read_text() == "x\n"
        assert sum(matches(request) for request in wire.seen) >= 3
    finally:
        wire.close()
