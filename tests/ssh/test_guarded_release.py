"""Results held at a guarded site, with the real gate: nothing leaves before a person's word, and then only what was shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.rig import REPO, Rig
from components.sshd import Sshd
from components.waiting import wait_until
from spool import gate
from spool.heads import read_heads

from .guarded import COMMANDS, WALL, Guarded, Run, parts

HELD = {"allow": "**", "logs": "return", "hold": "always", "redact": "顧客[A-Z]+"}
WALLED = {"sh": {**COMMANDS["sh"], "wrapper": WALL}}
ORDER = ["receipt", "start", "end", "measured", "held", "decision", "released", "sending", "sent", "delivered"]


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    """A site that holds whatever has ended."""
    rig = Rig(tmp_path / "rig")
    made = Guarded(rig, sshd)
    made.law(WALLED, HELD)
    yield made
    rig.close()


def lies_held(site: Guarded, script: str = "echo 結果 >a.dat; echo said", **more: Any) -> str:
    job_id = site.sh(script, outputs=["*.dat"], **more)
    is_held(site, job_id)
    return job_id


def is_held(site: Guarded, job_id: str) -> None:
    """Seen at MInt, of which nothing is there."""
    site.rig.wait_state(job_id, "held", deadline_s=60)
    wait_until((site.base / "held" / f"{job_id}.json").exists, 30, "it lies before the reviewers")
    nothing_at_mint(site, job_id)
    assert site.rig.state(job_id).get("exit_code") is None


def nothing_at_mint(site: Guarded, job_id: str) -> None:
    folder = site.rig.job(job_id)
    found = [path for name in ("out", "log", "incoming") for path in (folder / name).rglob("*") if path.is_file()]
    assert [path.name for path in found if path.name not in ("site.json", "fetch.lock")] == []


@pytest.mark.slow
def test_released_refused_and_canceled(site: Guarded) -> None:
    """With one slot, which nothing that is held takes."""
    site.options["slots"] = 1
    site.start()
    first = lies_held(site)
    second = lies_held(site, "echo x >顧客A.dat")
    third = lies_held(site)
    assert "none of 1" in site.person("held")
    shown = site.person("show", first[:13])
    assert "結果" in shown
    assert "out/a.dat" in shown
    [manifest] = re.findall(r"^manifest  (\w{64})$", shown, re.MULTILINE)
    site.person("release", first[:13], "--manifest", manifest)
    state = site.ended(first)
    assert (state["state"], state["exit_code"]) == ("completed", 0), state
    assert site.out(first) == {"a.dat": "結果\n".encode()}
    assert site.log(first) == "said\n"
    path, told = site.rig.job(first) / "history.jsonl", ["queued", "claimed", "running", "held", "returning", "completed"]
    wait_until(lambda: [json.loads(line)["to"] for line in path.read_text().splitlines()] == told, 30, f"the history is {told}")
    wait_until(lambda: site.events(first) == ORDER, 30, f"the audit log has each event of {first} once, in its order")
    by_event = {entry["event"]: entry for entry in site.audit(first)}
    assert {by_event[name]["manifest"] for name in ("measured", "held", "decision", "released", "delivered")} == {manifest}
    assert by_event["sent"]["files"] == by_event["measured"]["files"] == site.result(first)["files"]

    site.person("refuse", second[:13], "--because", "応力表 顧客TOYOTA を含む")
    state = site.ended(second)
    assert (state["state"], state["reason"]) == ("failed", "refused_by_site"), state
    assert state["message"] == "応力表 [withheld by the site] を含む"
    assert state.get("exit_code") is None
    nothing_at_mint(site, second)
    assert site.result(second)["files"] == []
    wait_until(lambda: site.events(second)[-1] == "delivered", 30, "the site knows of its end")
    assert site.events(second)[4:] == ["held", "decision", "refused", "delivered"]

    site.store().cancel(third, by="operator")
    state = site.ended(third)
    assert state["state"] == "canceled", state
    nothing_at_mint(site, third)
    wait_until(lambda: site.events(third)[-1] == "delivered", 30, "the site knows of its end")
    assert site.events(third)[4:] == ["held", "canceled_while_held", "delivered"]
    assert list((site.base / "held").iterdir()) == list((site.base / "decisions").iterdir()) == []
    assert "nothing is held" in site.person("held")

    heads = site.rig.spool / "sites" / "site.audit.jsonl"
    wait_until(lambda: [told["head"] for told in read_heads(heads)][-1:] == [_end(site)], 30, "MInt was told the log's end")
    assert "ok: " in site.person("audit", "verify", "--head", f"@{heads}")
    log = site.control / "audit.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    site.person("audit", "verify", "--head", f"@{heads}", code=1)


def _end(site: Guarded) -> str:
    last = site.audit()[-1]
    return f"{last['seq']}:{last['hash']}"


@pytest.mark.slow
def test_through_passes_kills_and_a_requeue(site: Guarded) -> None:
    """Each pass of `--once` looks and ends; a new push goes on; a run that MInt gives up is not released any more."""
    site.rig.start_push({"site": site.options}, "--once").wait(60)
    job_id = site.sh("echo $MINT_SPOOL_JOB >a.dat", outputs=["*.dat"])
    assert site.once() == 75
    is_held(site, job_id)
    assert site.once(job_id) == 75, "nobody waits for a person"
    process = site.start()
    wait_until(lambda: "connected" in process.output(), 60, "the push is at it")
    process.kill()
    is_held(site, job_id)
    site.store().requeue(job_id, by="operator", force=True)
    process = site.start()
    site.rig.wait_state(job_id, "held", deadline_s=60)
    assert site.rig.state(job_id)["attempt"] == 2
    assert Counter(site.events(job_id))["held"] == 2, "once a run"
    assert "given_up" in site.events(job_id)
    [decided] = (json.loads(path.read_bytes()) for path in (site.base / "held").iterdir())
    assert decided["attempt"] == 2
    site.person("release", job_id)
    process.stop()
    state = site.rig.state(job_id)
    if state["state"] != "completed":
        assert site.once() == 0
        state = site.rig.state(job_id)
    assert (state["state"], state["attempt"]) == ("completed", 2), state
    assert [entry["run"] for entry in site.audit(job_id) if entry["event"] == "sent"] == [state["run_id"]]


KILLER = """
import os, sys
sys.path.insert(0, {repo!r})
left = {left}
def strike(real):
    def struck(*args, **more):
        global left
        left -= 1
        if left < 0 and not {after}:
            os.kill(os.getpid(), 9)
        found = real(*args, **more)
        if left < 0:
            os.kill(os.getpid(), 9)
        return found
    return struck
from spool.agent import audit, folder, custody, gated_job, gated_run, shelf
audit.Audit.append_all = strike(audit.Audit.append_all)
for module in (folder, custody, gated_job, gated_run, shelf):
    module.replace_file = strike(module.replace_file)
import spool_agent
sys.exit(spool_agent.main(["gate", "--config", {config!r}]))
"""


def killed(run: Run, verb: str, left: int, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A session whose gate is killed at its durable write number `left`: before it, or after it, in turns."""
    config = str(run.site.site_folder / "agent.ini")
    program = KILLER.format(repo=str(REPO), left=left // 2, after=bool(left % 2), config=config)
    env = {"PATH": "/usr/bin:/bin", "SSH_ORIGINAL_COMMAND": f"mint-gate 1 {verb} {run.id} {run.run_id}"}
    return subprocess.run([sys.executable, "-c", program], input=stdin, capture_output=True, env=env, timeout=60, check=False)


@pytest.mark.slow
def test_killed_at_each_write(site: Guarded) -> None:
    """While it is measured and laid out, while a decision is heard, while it is sent: the steps are gone through to their end."""
    run, met = Run(site, "echo released >y.dat", outputs=["*.dat"]), 0
    run.to_exit()

    def strikes(verb: str, stdin: bytes = b"") -> bytes:
        nonlocal met
        for left in range(0, 60, 3):
            done = killed(run, verb, left, stdin)
            if done.returncode == 0:
                return done.stdout
            assert done.returncode == -signal.SIGKILL, done
            met += 1
            assert b"released\n".startswith(done.stdout)
            assert verb == "get" or run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site" or "released" in events()
        raise AssertionError(f"{verb} never comes to its end")

    def events() -> list[str]:
        return site.events(run.id)

    assert json.loads(strikes("finish"))["held"] is True
    site.person("release", run.id)
    result = json.loads(strikes("finish"))["result"]
    assert strikes("get", parts({"out/y.dat": 0})) == b"released\n"
    assert met >= 6
    run.over("completed")
    assert list(dict.fromkeys(events())) == ORDER, "in order, and none is missing"
    assert len({entry["manifest"] for entry in site.audit(run.id) if entry["event"] in ("held", "decision", "released")}) == 1
    assert "out/y.dat" in [entry["path"] for entry in result["files"]]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the release", "after it"])
@pytest.mark.parametrize("what", ["a file", "result.json"])
def test_a_change_after_the_snapshot_stops_it(site: Guarded, what: str, when: str) -> None:
    run = Run(site, "echo released >y.dat")
    run.to_exit()
    assert run.good("finish")["held"] is True
    if when == "after it":
        site.person("release", run.id)
        assert run.good("finish")["held"] is False
    path = run.folder / ("out/y.dat" if what == "a file" else "result.json")
    path.chmod(0o600)
    was = path.read_bytes()
    path.write_bytes(re.sub(rb'("exit_code": ?)0', rb"\g<1>7", was.replace(b"released", b"SECRET!!")))
    assert path.read_bytes() != was
    if when == "before the release":
        site.person("release", run.id, code=1)
        assert run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site"
        _forge_release(site, run)
    done = run.get("out/y.dat")
    assert (done.returncode, done.stdout) == (gate.REFUSED, b"")
    result = run.good("finish")["result"]
    assert (result["reason"], result["files"], result["exit_code"]) == ("refused_by_site", [], None)
    assert "changed at the site" in result["message"]
    assert b"SECRET" not in run.ask("finish").stdout
    assert site.events(run.id).count("changed_after_snapshot") == 1
    run.over("failed", "refused_by_site")
    assert "sent" not in site.events(run.id)


def _forge_release(site: Guarded, run: Run) -> None:
    """As one does who releases without having looked again."""
    lying = json.loads((site.base / "held" / f"{run.id}.json").read_bytes())
    about = {key: lying[key] for key in ("id", "run_id", "manifest")}
    said = {"format": 1, **about, "decision": "release", "at": "", "because": ""}
    path = site.base / "decisions" / f"{run.id}.{run.run_id}.{os.geteuid()}.json"
    path.write_text(json.dumps(said))
    path.chmod(0o644)
    assert run.good("finish")["held"] is False


@pytest.mark.slow
def test_a_change_while_it_is_sent_stops_it(site: Guarded) -> None:
    run = Run(site, "yes released | head -c 8388608 >y.dat")
    run.to_exit()
    assert run.good("finish")["held"] is True
    site.person("release", run.id)
    assert run.good("finish")["held"] is False
    env = {"SSH_ORIGINAL_COMMAND": f"mint-gate 1 get {run.id} {run.run_id}"}
    with subprocess.Popen(site.gate_words(), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(parts({"out/y.dat": 0}))
        process.stdin.close()
        came = process.stdout.read(4096)
        (run.folder / "out" / "y.dat").chmod(0o600)
        with open(run.folder / "out" / "y.dat", "r+b") as file:
            file.seek(4 << 20)
            file.write(b"SECRET!!\n" * 1000)
        came += process.stdout.read()
        assert process.wait(60) == gate.REFUSED
    assert (b"released\n" * 932068).startswith(came)
    assert 4096 < len(came) <= 4 << 20
    [cut] = [entry for entry in site.audit(run.id) if entry["event"] == "cut"]
    assert (cut["file"], cut["bytes"], cut["size"]) == ("out/y.dat", 0, 8 << 20)
    assert cut["at_most"] >= len(came)
    assert site.events(run.id)[-3:] == ["sending", "cut", "changed_after_snapshot"]
    assert run.good("finish")["result"]["reason"] == "refused_by_site"
    assert run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site"


@pytest.mark.slow
def test_a_change_after_the_release_at_mint(site: Guarded, tmp_path: Path) -> None:
    """The push meets it between the answer of `finish` and the bytes."""
    mark = tmp_path / "changed"
    keeper = tmp_path / "keeper"
    gate_words = " ".join(site.gate_words())
    keeper.write_text(
        f"#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in *' get '*) [ -e {mark} ] ||"
        f" {{ touch {mark}; for f in {site.base}/*/out/a.dat; do echo SECRET >$f; done; }};; esac\nexec {gate_words}\n"
    )
    keeper.chmod(0o755)
    site.sshd.authorize(f'restrict,command="{keeper}"')
    site.start()
    job_id = lies_held(site, "echo fine >a.dat")
    site.person("release", job_id)
    state = site.ended(job_id)
    assert mark.exists()
    assert (state["state"], state["reason"]) == ("failed", "refused_by_site"), state
    assert "changed at the site" in state["message"]
    here = [path for path in site.rig.job(job_id).rglob("*") if path.is_file()]
    assert [path.name for path in here if b"SECRET" in path.read_bytes()] == []
    assert [path.name for path in here if path.parent.name in ("out", "log") and "incoming" not in path.parts] == []
    wait_until(lambda: site.events(job_id)[-1] == "delivered", 30, "the site knows of its end")
    assert "sent" not in site.events(job_id)


def test_the_same_run_is_no_other_job(site: Guarded) -> None:
    """A broken-into MInt enters a run as one command and once more as another, which would be held."""
    site.law({**WALLED, "other": WALLED["sh"]}, {**HELD, "hold": "when: command=sh"})
    run = Run(site, "echo secret >y.dat")
    run.job["command"] = "other"
    run.good("enter", run.request())
    run.job["command"] = "sh"
    assert run.refused("enter", run.request()) == "conflict"
    (run.folder / "job.json").unlink()  # as after a kill just before it was written
    assert run.refused("enter", run.request()) == "conflict"
    run.job["command"] = "other"
    run.to_exit()
    assert run.good("finish")["held"] is False
    lying = Run(site, "echo secret >y.dat")
    lying.to_exit()
    assert lying.good("finish")["held"] is True
    assert lying.refused("get", parts({"out/y.dat": 0})) == "refused_by_site"


def test_a_hold_without_a_wall_is_refused(site: Guarded) -> None:
    site.law(COMMANDS, HELD)
    done = site.gate("hello")
    assert (done.returncode, done.stdout) == (78, b"")
    assert str(site.site_folder).encode() not in done.stderr
    run = Run(site, "true")
    assert run.ask("enter", run.request()).returncode == 78
    assert not run.folder.exists()
    site.law({"sh": {**COMMANDS["sh"], "wrapper": "/usr/bin/env"}}, HELD)
    assert site.gate("hello").returncode == 0
    assert run.ask("enter", run.request()).returncode == 78, "its wall is tried before it is taken"
    assert not run.folder.exists()


def test_a_person_who_need_not_be_asked(site: Guarded) -> None:
    """`when:` holds what meets a condition, and nothing else; a running job's logs stay until that is known."""
    site.law(WALLED, {**HELD, "hold": "when: bytes>1K"})
    small, large = Run(site, "echo small >y.dat"), Run(site, "echo said; head -c 2000 /dev/zero >y.dat; touch done; sleep 600")
    assert small.to_end()["reason"] == ""
    large.to_start()
    large.good("start")
    wait_until((large.work / "done").exists, 60, "it has said something")
    assert large.tail() == b"", "nobody knows yet whether it is held"
    large.good("cancel")
    result = large.good("finish")["result"]
    assert (result["reason"], result["files"]) == ("canceled", [])
