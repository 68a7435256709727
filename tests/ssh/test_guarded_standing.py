"""The switch of a guarded site's operator, and what its audit log tells of every byte: with the real gate, and a push."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until

from .guarded import Guarded, Run, parts

LOOP = "touch {0}; while [ ! -e off ]; do sleep 0.05; done; echo x >a.dat"


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    yield Guarded(rig, sshd)
    rig.close()


@pytest.mark.slow
def test_paused_then_stopped(site: Guarded) -> None:
    at_work, returning, entered = Run(site, LOOP.format("a")), Run(site, "echo x >a.dat"), Run(site, "true")
    at_work.to_start()
    at_work.good("start")
    wait_until((at_work.work / "a").exists, 60, "it runs")
    returning.to_end()
    entered.good("enter", entered.request())
    for word in ("pause", "drain"):
        site.person(word, *(("--timeout", "0") if word == "drain" else ()), code=75 if word == "drain" else 0)
        new = Run(site, "true")
        assert new.refused("enter", new.request()) == "busy"
        assert not new.folder.exists()
    assert entered.good("enter", entered.request())["here"] == {}, "what is in hand goes on"
    entered.good("prepare")
    assert returning.get("out/a.dat").stdout == b"x\n"
    site.person("resume")
    new.good("enter", new.request())

    assert at_work.id in site.person("stop", "--because", "fire")
    assert at_work.good("status")["status"]["cancel"] is True
    for run, verb, stdin in (
        (at_work, "finish", b""), (returning, "get", parts({"out/a.dat": 0})), (returning, "finish", b""),
        (entered, "start", b""), (new, "prepare", b""), (new, "put", parts({})), (new, "enter", new.request()),
        (at_work, "tail", parts({"log/stdout.txt": 0})),
    ):  # fmt: skip
        assert run.refused(verb, stdin) == "busy", verb
    assert not (entered.folder / "run" / "started").exists()
    told = json.loads(new.ask("enter", new.request()).stderr)["gate_error"]
    assert "fire" not in json.dumps(told), "why, is the site's own"
    site.person("resume")
    assert at_work.good("finish")["result"]["reason"] == "canceled"
    assert entered.good("start")["status"]["word"] in ("starting", "running", "exited")
    told = [entry["event"] for entry in site.audit() if entry["event"] in ("paused", "draining", "stopped", "resumed")]
    assert told == ["paused", "draining", "resumed", "stopped", "resumed"]


@pytest.mark.slow
def test_a_push_waits_for_the_resume(site: Guarded) -> None:
    site.start()
    first = site.sh(LOOP.format("b"), outputs=["*.dat"])
    wait_until((site.there(first) / "work" / "b").exists, 60, "it runs")
    site.person("pause")
    second, third = site.sh("echo y >a.dat", outputs=["*.dat"]), site.sh("true")
    (site.there(first) / "work" / "off").touch()
    assert site.ended(first)["state"] == "completed", "what runs is carried to its end"
    log = site.control / "gate.log"
    wait_until(lambda: {job for job in (second, third) if f"job={job}" in log.read_text()} == {second, third}, 60, "both asked")
    assert site.rig.state(second)["state"] == site.rig.state(third)["state"] == "claimed"
    assert not site.there(second).exists()
    assert "the site takes no new job for now" in (site.rig.root / "push.log").read_text(), "why it waits"
    site.store().cancel(third, by="operator")
    assert site.ended(third)["state"] == "canceled"
    push = site.rig.root / "push.log"  # a last asking may be under way
    wait_until(lambda: f"event=run_over job={third}" in push.read_text(), 120, "the push has heard of it")
    site.person("resume")
    assert site.ended(second, 120)["state"] == "completed"
    assert site.events(third) == [], "nothing of it was ever there"


def session(run: Run, **files: int) -> subprocess.Popen[bytes]:
    """A `get` whose answer nobody has read yet."""
    env = {"SSH_ORIGINAL_COMMAND": f"mint-gate 1 get {run.id} {run.run_id}"}
    process = subprocess.Popen(run.site.gate_words(), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(parts({f"out/{name}": offset for name, offset in files.items()}))
    process.stdin.close()
    return process


@pytest.mark.slow
def test_every_byte_that_left_is_told_of(site: Guarded) -> None:
    """A session that is killed, one whose line is cut, and the one that goes on from there."""
    size = 3 << 20
    run = Run(site, f"echo s >small; head -c {size} /dev/zero >large", outputs=["small", "large"])
    listed = {entry["path"]: entry for entry in run.to_end()["files"]}
    with session(run, small=0, large=0) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"s\n"
        process.send_signal(signal.SIGKILL)
    told = site.audit(run.id)[4:]
    assert [(entry["event"], entry["bytes"]) for entry in told] == [("sending", size + 2)], "so much may have left"
    assert told[0]["files"] == [listed["out/small"], listed["out/large"]]
    with session(run, small=0, large=0) as process:
        assert process.stdout is not None
        came = len(process.stdout.read(700_000)) - 2
        process.stdout.close()
        assert process.wait(60) != 0
    told = site.audit(run.id)[5:]
    assert [entry["event"] for entry in told] == ["sending", "sent", "cut"]
    assert told[1]["files"] == [listed["out/small"]]
    assert (told[2]["file"], told[2]["bytes"], told[2]["size"]) == ("out/large", 0, size)
    assert came <= told[2]["at_most"] < size
    with session(run, large=came) as process:
        assert process.stdout is not None
        assert len(process.stdout.read()) == size - came
        assert process.wait(60) == 0
    told = site.audit(run.id)[8:]
    assert [(entry["event"], entry["bytes"]) for entry in told] == [("sending", size - came), ("sent", size - came)]
    assert told[1]["files"] == [{**listed["out/large"], "start": came}]
    assert run.refused("get", parts({"out/large": size + 1})) == "refused_by_site"
    run.over("failed", "transfer")
    assert site.events(run.id)[-1] == "given_up", "MInt has ended it, and not by this result"


@pytest.mark.slow
def test_a_log_that_takes_nothing_lets_nothing_leave(site: Guarded) -> None:
    run = Run(site, "echo s >small")
    run.to_end()
    log = site.control / "audit.jsonl"
    log.rename(log.with_name("aside"))
    log.mkdir()
    done = run.get("out/small")
    assert (done.returncode == 0, done.stdout) == (False, b"")
    new = Run(site, "true")
    assert new.ask("enter", new.request()).returncode != 0
    assert not new.folder.exists()
    log.rmdir()
    log.with_name("aside").rename(log)
    assert run.get("out/small").stdout == b"s\n"
    assert site.events(run.id)[-2:] == ["sending", "sent"]
