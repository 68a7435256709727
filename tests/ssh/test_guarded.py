"""A guarded site from the drop to the result: the push as ever, the site's own law, and nothing else through that key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until

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
    events = site.events(job_id)
    assert [event for event in events if event not in ("sending", "sent")] == ["receipt", "start", "end", "measured", "delivered"]
    sent = [entry for told in site.audit(job_id) if told["event"] == "sent" for entry in told.get("files", [])]
    streamed = {told["file"] for told in site.audit(job_id) if told["event"] == "sent" and "file" in told}  # as the logs grew
    left = [entry for entry in result["files"] if entry in sent or entry["path"] not in streamed]
    assert sorted(sent, key=str) == sorted(left, key=str), "each file that left, by its SHA-256"


LOGS = ("stdout.txt", "stderr.txt")


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
    assert result["withheld"] == ["2 files: withheld by the site", *(f"log/{name}: withheld by the site" for name in LOGS)]
    assert [entry["path"] for entry in result["files"]] == ["out/a.dat"]
    assert not list((site.rig.job(job_id) / "log").glob("*"))


def ask(site: Guarded, *words: str) -> tuple[int, str]:
    process = site.rig.start_push({"site": site.options}, *words)
    code = process.wait(60)
    text = process.output()
    process.log.unlink()
    return code, text


def test_authorize_and_check(site: Guarded) -> None:
    site.options["commands"] = ["sh", "ccx"]
    code, said = ask(site, "check", "site")
    assert code == 1, said
    for words in ("gate: it answers", "a shell: refused", "rsync: refused", "sftp: refused", "sh allowed", "ccx not allowed"):
        assert words in said, said
    assert said.count("problem") == 1
    site.options["commands"] = ["sh"]
    assert ask(site, "check", "site")[0] == 0
    code, said = ask(site, "authorize", "site", "--from", "127.0.0.1")
    assert code == 0
    assert ',command="/opt/mint-spool/.venv/bin/python -Es /opt/mint-spool/spool_agent.py gate --config ' in said
    assert ask(site, "authorize", "site", "--gate", 'sh -c "$SSH_ORIGINAL_COMMAND"')[0] == 78
    gate = site.line().partition('command="')[2].rstrip('"')
    code, said = ask(site, "authorize", "site", "--gate", gate)
    site.sshd.authorized_keys.write_text(said)
    assert ask(site, "check", "site")[0] == 0
    site.sshd.authorize()
    code, said = ask(site, "check", "site")
    assert code == 1, "a key without its forced command"


def test_a_shell_behind_the_gate_is_found(site: Guarded) -> None:
    """A forced command that answers for the gate and lets everything else through."""
    command = site.line().partition('command="')[2].rstrip('"')
    lenient = f"case $SSH_ORIGINAL_COMMAND in mint-gate*) exec {command};; *) exec sh -c $SSH_ORIGINAL_COMMAND;; esac"
    site.sshd.authorize(f'command="{lenient}"')
    code, said = ask(site, "check", "site")
    assert (code, "a shell: not refused" in said) == (1, True), said


def test_a_cancel_and_a_push_killed_meanwhile(site: Guarded, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    process = site.start()
    job_id = site.sh(f"echo started >>{counter}; while :; do sleep 0.1; done")
    wait_until(counter.exists, 60, "the command runs")
    site.rig.wait_state(job_id, "running")
    process.kill()
    site.store().cancel(job_id, by="operator")
    site.start()
    state = site.ended(job_id)
    assert state["state"] == "canceled", state
    assert lines(counter) == ["started"]


def test_a_requeue_makes_a_new_run_of_the_folder(site: Guarded) -> None:
    site.start()
    job_id = site.sh("exit 3", inputs={"a": b"a"})
    assert site.ended(job_id)["state"] == "failed"
    site.store().requeue(job_id, by="operator")
    wait_until(lambda: site.rig.state(job_id)["attempt"] == 2, 30, "attempt 2")
    state = site.ended(job_id)
    assert (state["state"], state["attempt"], state["exit_code"]) == ("failed", 2, 3), state
    assert (site.there(job_id) / "attempts" / "1" / "work").is_dir()
    assert [entry["event"] for entry in site.audit()].count("start") == 2
