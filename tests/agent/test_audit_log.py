"""The site's audit log with the real agent and server: what it tells, that nothing goes on without it, what is found later."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.abroad import Abroad
from agent.company import SITE, Company, noise
from agent.wire import Act, Request, Wire, once
from components.rig import REPO
from components.waiting import stays, wait_until
from spool.agent.audit import Head, verify

Make = Callable[..., Wire]
Event = Mapping[str, Any]
slow = pytest.mark.slow
MIB = 1 << 20
STORY = ("receipt", "start", "end", "measured", "sending", "sent", "delivered")
COUNTED = "echo x >> ../../count; echo ログ; cat 入力.dat 入力.dat > 結果.dat"


def log_of(base: Path) -> Path:
    (control,) = base.glob(".mint-spool-*")
    return control / "audit.jsonl"


def events(path: Path, job: str = "") -> list[Event]:
    """The whole lines, of `job` where one is named."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"}")]
    return [event for event in found if event.get("job") == job or not job]


def names(found: list[Event]) -> list[str]:
    return [event["event"] for event in found]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_chunk(request: Request) -> bool:
    return request.method == "PATCH" and request.body_bytes > MIB


def audit(company: Company, *words: str) -> subprocess.CompletedProcess[str]:
    """`spool_agent.py audit …` with the site's agent.ini."""
    command = [sys.executable, str(REPO / "spool_agent.py"), "audit", *words, "--config", str(company.folder / "agent.ini")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def told_heads(company: Company) -> Path:
    return company.rig.spool / "sites" / f"{SITE}.audit.jsonl"


# ---- what it tells


@slow
def test_the_story_of_a_job(company: Company) -> None:
    company.start()
    data = noise(300_000)
    job = company.sh(COUNTED, inputs={"入力.dat": data}, outputs=("*.dat",))
    assert company.completed(job) == {"入力.dat": data, "結果.dat": data * 2}
    company.locally(job, "completed")
    path = log_of(company.folder / "base")
    found = events(path, job)
    assert tuple(dict.fromkeys(names(found))) == STORY
    by = {event["event"]: event for event in found}
    assert {(event["run"], event["attempt"]) for event in found} == {(company.rig.state(job)["run_id"], 1)}
    policy = digest((company.folder / "agent.ini").read_bytes())
    receipt = by["receipt"]
    assert (receipt["user"], receipt["command"], receipt["policy"], receipt["site"]) == ("mint", "sh", policy, SITE)
    assert receipt["inputs"] == [{"path": "入力.dat", "size": len(data), "sha256": digest(data)}]
    assert receipt["job_sha256"] == digest((company.local(job) / "job.json").read_bytes())
    assert (by["start"]["argv"], by["start"]["policy"]) == (["/bin/sh", "-c", COUNTED], policy)
    assert by["end"]["exit"] == 0
    assert by["end"]["finished_at"] >= by["end"]["started_at"] > 0
    assert by["measured"]["manifest"] == by["delivered"]["manifest"] == digest((company.local(job) / "result.json").read_bytes())
    left = {item["path"]: item for event in found if event["event"] == "sent" for item in event["files"]}
    mint = company.rig.job(job)
    assert set(left) == {"out/入力.dat", "out/結果.dat", "log/stdout.txt", "log/stderr.txt"}
    for name, item in left.items():
        assert (item["size"], item["sha256"]) == ((mint / name).stat().st_size, digest((mint / name).read_bytes()))
    assert "入力.dat" in path.read_text(encoding="utf-8"), "readable with cat"
    assert path.stat().st_mode & 0o777 == 0o600
    assert audit(company).stdout.split() == [str(path), str(verify(path)[0])]
    assert audit(company, "verify").returncode == 0


@slow
def test_what_did_not_go_as_asked(company: Company) -> None:
    company.release = {"allow": "**", "max_files": 1}
    company.start()
    refused = company.drop("unknown")
    company.failed(refused, "refused_by_site")
    too_many = company.sh("echo 1 > a; echo 2 > b; exit 3", outputs=("*",))
    company.failed(too_many, "refused_by_site")
    canceled = company.sh("touch ../here; sleep 600")
    wait_until((company.local(canceled) / "here").exists, 30, "it runs")
    company.rig.spoolctl("cancel", canceled)
    company.is_at(canceled, "canceled")
    for job, story in (
        (refused, ["receipt", "refused"]),
        (too_many, ["receipt", "start", "end", "measured", "refused", "delivered"]),
        (canceled, ["receipt", "start", "end", "measured", "delivered"]),
    ):
        company.locally(job, "failed", "canceled")
        assert names(events(log_of(company.folder / "base"), job)) == story
    found = events(log_of(company.folder / "base"))
    assert next(event for event in found if event["event"] == "measured")["files"] == []
    assert next(event for event in found if event["event"] == "refused")["message"].startswith("command 'unknown'")


@slow
def test_a_sending_that_was_cut_is_told(company: Company, make_wire: Make) -> None:
    wire = make_wire(company.rig.port, once(_is_chunk, Act(cut_body=MIB)))
    company.start(url=wire.url, chunk="2M")
    job = company.sh("head -c 5000000 /dev/urandom > big.dat", outputs=("big.dat",))
    company.completed(job, 60)
    company.locally(job, "completed")
    found = events(log_of(company.folder / "base"), job)
    (cut,) = [event for event in found if event["event"] == "cut"]
    assert (cut["file"], cut["bytes"], cut["at_most"], cut["size"]) == ("out/big.dat", 0, 2 * MIB, 5_000_000)
    assert names(found).index("sending") < names(found).index("cut") < names(found).index("sent")


@slow
def test_each_streamed_piece_is_told(company: Company) -> None:
    company.start()
    job = company.sh("echo one; while [ ! -e go ]; do sleep 0.05; done; echo two")
    path = wait_until(lambda: next(company.folder.glob("base/.mint-spool-*/audit.jsonl"), None), 30, "the log")
    wait_until(lambda: any("start" in event for event in events(path, job) if event["event"] == "sent"), 30, "a piece was sent")
    (company.local(job) / "work" / "go").touch()
    company.completed(job)
    company.locally(job, "completed")
    found = events(path, job)
    pieces = [(event["start"], event["end"]) for event in found if event["event"] == "sent" and "start" in event]
    assert pieces == [(0, 4)]
    grows = next(number for number, event in enumerate(found) if event.get("grows"))
    assert found[grows]["file"] == "log/stdout.txt"
    assert grows < names(found).index("sent")


@slow
def test_the_story_with_a_published_server(tmp_path: Path) -> None:
    abroad = Abroad(tmp_path / "rig")
    try:
        abroad.start()
        job = abroad.submit("echo 1 > out.dat", "out.dat")
        assert abroad.ended(job) == "completed"
        abroad.locally(job, "completed")
        found = events(log_of(abroad.base), job)
        assert tuple(dict.fromkeys(names(found))) == STORY
        sent = next(event for event in found if event["event"] == "sent")
        assert {item["path"] for item in sent["files"]} == {"out/out.dat", "log/stdout.txt", "log/stderr.txt"}
    finally:
        abroad.close()


# ---- nothing goes on without it


@slow
def test_nothing_is_taken_or_returned_while_it_cannot_be_written(company: Company) -> None:
    company.start(poll_s="0.2")
    job = company.sh("while [ ! -e go ]; do sleep 0.05; done; echo 1 > out.dat", outputs=("out.dat",))
    wait_until((company.local(job) / "work").exists, 30, "it runs")
    company.is_at(job, "running")
    path = log_of(company.folder / "base")
    wait_until(lambda: "start" in names(events(path, job)), 30, "its start is told")
    away = path.with_name("audit.away")
    path.rename(away)
    path.mkdir()
    (company.local(job) / "work" / "go").touch()
    assert company.agent
    company.agent.wait_for_output("event=audit_not_written", 30)
    waits = company.sh("true")
    stays(lambda: company.rig.state(job)["state"] == "running", 2, "the job is not returned")
    assert "event=audit_not_read" in company.agent.output()
    assert company.rig.state(waits).get("state") in (None, "queued")
    path.rmdir()
    away.rename(path)
    assert company.completed(job, 60) == {"out.dat": b"1\n"}
    company.completed(waits, 60)
    assert verify(path)[1] == []


KILLER = """
import os, sys
sys.path.insert(0, os.environ["REPO"])
from spool.agent import audit

real, (word, when) = audit.Audit.append_all, os.environ["KILL"].split()

def append_all(self, events):
    here = any(event == word for event, _ in events)
    if here and when == "before":
        os.kill(os.getpid(), 9)
    head = real(self, events)
    if here:
        os.kill(os.getpid(), 9)
    return head

audit.Audit.append_all = append_all
"""


@slow
def test_killed_at_every_event(company: Company) -> None:
    """kill -9 right before and right after each event: events may be told twice, none is missing, the command runs once."""
    (company.rig.root / "killer").mkdir()
    (company.rig.root / "killer" / "sitecustomize.py").write_text(KILLER)
    company.release = {"allow": "**"}
    points = [(word, when) for word in STORY for when in ("before", "after")]
    for word, when in points:
        env = {"PYTHONPATH": str(company.rig.root / "killer"), "REPO": str(REPO), "KILL": f"{word} {when}"}
        agent = company.start(env=env)
        job = company.sh(COUNTED, inputs={"入力.dat": b"x"}, outputs=("結果.dat",))
        assert agent.wait(60) == -9, (word, when)
        path = log_of(company.folder / "base")
        assert (word in names(events(path, job))) is (when == "after")
        company.start()
        assert company.completed(job, 60) == {"結果.dat": b"xx"}
        company.locally(job, "completed")
        found = names(events(path, job))
        assert [found.index(event) for event in STORY] == sorted(found.index(event) for event in STORY), (word, when, found)
        assert set(found) - {"cut"} == set(STORY), "cut: what it sends again is refused where MInt has it all"
        company.kill_agent()
        assert verify(path)[1] == []
    assert (company.folder / "base" / "count").read_text() == "x\n" * len(points)
    print(f"audit: {len(points)} kills, before and after each of {len(STORY)} events: none missing, the chain whole")


# ---- its end is told to MInt


@slow
def test_what_is_cut_off_is_found_by_the_heads_at_mint(company: Company) -> None:
    company.start(poll_s="0.2", wait_s=0)
    job = company.sh("true")
    company.completed(job)
    company.locally(job, "completed")
    assert company.agent
    company.agent.stop(30)
    path = log_of(company.folder / "base")
    head = verify(path)[0]
    assert str(head) in told_heads(company).read_text(), "told with its goodbye"
    heads = company.rig.spoolctl("audit", SITE, "--json").stdout
    assert str(head) in company.rig.spoolctl("audit", SITE).stdout
    told = company.folder / "heads"
    told.write_text(heads)
    done = audit(company, "verify", "--head", f"@{told}")
    assert (done.returncode, done.stdout.startswith(f"ok: {head.seq} lines")) == (0, True), done.stdout
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert audit(company, "verify").returncode == 0, "whole in itself"
    for given in (f"@{told}", str(head)):
        done = audit(company, "verify", "--head", given)
        assert done.returncode == 1
        assert f"line {head.seq} was told of and is not there" in done.stdout
    company.start(poll_s="0.2", wait_s=0)
    log = company.rig.root / "spool.log"
    wait_until(lambda: "event=audit_went_back" in log.read_text(), 30, "the server says so")
    assert "WENT BACK" in company.rig.spoolctl("audit", SITE).stdout
    assert Head.parse(json.loads(heads.splitlines()[-1])["head"]) == head


@pytest.mark.slow
@pytest.mark.parametrize("huge", ["command", "env", "outputs"])
def test_a_job_of_huge_words_ends_and_holds_nobody_up(company: Company, huge: str) -> None:
    """Words that no line of the log has room for: said in short, and the job ends as any other."""
    company.start()
    names = [f"{number:06}" + "x" * 100 for number in range(3_000)]
    if huge == "command":
        job, reason = company.drop("x" * 300_000), "refused_by_site"
    elif huge == "env":
        job, reason = company.sh("true", env={f"V{name}": "" for name in names}), "refused_by_site"
    else:
        job, reason = company.sh("true", outputs=tuple(names)), "no_outputs"
    company.failed(job, reason)
    assert company.completed(company.sh("echo ok >a", outputs=("a",))) == {"a": b"ok\n"}
    log = log_of(company.folder / "base")
    assert verify(log)[1] == []
    assert max(map(len, log.read_bytes().splitlines())) < 150_000
