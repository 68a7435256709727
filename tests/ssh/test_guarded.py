"""A guarded site from the drop to the result: the push as ever, the site's own law, and nothing else through that key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until
from spool.agent.audit import verify

from .conftest import lines
from .guarded import COMMANDS, Guarded


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    yield Guarded(rig, sshd)
    rig.close()


def test_a_job_there_and_back(site: Guarded) -> None:
    site.start()
    job_id = site.sh(
        "cat 入力.txt; echo err >&2; tr a-z A-Z <入力.txt >'結果 1.dat'; : >empty; mkdir d; cp sub/深い.txt d/y.frd",
        inputs={"入力.txt": b"abc\n", "x": b"", "sub/深い.txt": b"deep"},
        outputs=["*.dat", "empty", "d/*.frd", "*.missing"],
    )
    state = site.ended(job_id)
    assert (state["state"], state["exit_code"], state["agent"]) == ("completed", 0, "ssh-push"), state
    assert site.out(job_id) == {"結果 1.dat": b"ABC\n", "empty": b"", "d/y.frd": b"deep"}
    assert (site.log(job_id), site.log(job_id, "stderr.txt")) == ("abc\n", "err\n")
    result = site.result(job_id)
    assert result["missing"] == ["*.missing"]
    assert {entry["path"] for entry in result["files"]} == {
        "out/結果 1.dat", "out/empty", "out/d/y.frd", "log/stdout.txt", "log/stderr.txt",
    }  # fmt: skip
    path, wanted = site.rig.job(job_id) / "history.jsonl", ["queued", "claimed", "running", "returning", "completed"]
    wait_until(lambda: [json.loads(line)["to"] for line in lines(path)] == wanted, 30, f"the history is {wanted}")
    local = site.there(job_id) / "state.json"
    wait_until(lambda: json.loads(local.read_bytes())["state"] == "completed", 30, "the site's own record has ended")
    events = [entry["event"] for entry in site.audit()]
    assert events[:4] == ["receipt", "start", "end", "measured"], events
    assert events.count("sent") >= 3
    [log] = site.base.glob(".mint-spool-*/audit.jsonl")
    assert verify(log)[1] == []


def test_the_sites_law_decides(site: Guarded) -> None:
    site.law({"sh": {**COMMANDS["sh"], "users": "alice"}}, {"allow": "*.dat", "deny": "secret*", "logs": "withhold"})
    site.start()
    wrong = {
        "command": site.drop("rm", "-rf", "/"),
        "user": site.sh("true"),
        "input": site.sh("true", inputs={".bashrc": b"x"}, user="alice"),
        "variable": site.sh("true", env={"LD_PRELOAD": "x"}, user="alice"),
    }
    for what, job_id in wrong.items():
        state = site.ended(job_id)
        assert (state["state"], state["reason"]) == ("failed", "refused_by_site"), (what, state)
        assert not site.there(job_id).exists(), what
    job_id = site.sh("echo a >a.dat; echo b >b.txt; echo c >secret.dat; echo out", outputs=["*"], user="alice")
    assert site.ended(job_id)["state"] == "completed"
    assert site.out(job_id) == {"a.dat": b"a\n"}
    result = site.result(job_id)
    assert sorted(result["withheld"]) == ["b.txt: withheld by the site", "secret.dat: withheld by the site"]
    assert [entry["path"] for entry in result["files"]] == ["out/a.dat"]
    assert not list((site.rig.job(job_id) / "log").glob("*"))
