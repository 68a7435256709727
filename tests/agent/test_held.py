"""Results held for a person, end to end: laid out, seen at MInt, released or refused, through every restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.abroad import COMMAND, Abroad
from agent.company import Company, files_below
from components.process import run
from components.rig import REPO
from components.waiting import stays, wait_until
from spool.agent import audit

HELD = {"allow": "**", "logs": "return", "hold": "always"}
WALL = f"{REPO}/etc/bwrap-wrapper.sh --hide {{base}} {{work}} --"
WALLED = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*", "wrapper": WALL}}
SCRIPT = "echo 結果 > a.dat; echo b > 'b c.dat'; echo said"


@pytest.fixture
def site(company: Company) -> Company:
    """A company that holds whatever ended."""
    company.release, company.commands = dict(HELD), dict(WALLED)
    return company


def reviewer(site: Any, *words: str, code: int = 0) -> str:
    """What a reviewer's command prints, errors included."""
    (folder,) = (site.rig.root / "agents").iterdir()
    done = run([sys.executable, REPO / "spool_agent.py", *words, "--config", "agent.ini"],
               env=site.rig.env, cwd=folder, check=False, deadline_s=60)  # fmt: skip
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def lies_held(site: Company, script: str = SCRIPT, **more: Any) -> str:
    job = site.sh(script, outputs=("*.dat",), **more)
    site.is_at(job, "held")
    wait_until((site.folder / "base" / "held" / f"{job}.json").exists, 30, "it lies before the reviewers")
    return job


def nothing_at_mint(site: Company, job: str) -> None:
    folder = site.rig.job(job)
    here = {**files_below(folder / "out"), **files_below(folder / "log"), **files_below(folder / "incoming")}
    assert here == {}
    assert site.rig.state(job).get("exit_code") is None


def events(site: Any) -> list[dict[str, Any]]:
    (path,) = (site.folder / "base").glob(".mint-spool-*/audit.jsonl")
    assert audit.verify(path)[1] == []
    return [json.loads(line) for line in path.read_text().splitlines()]


def words_of(site: Any, job: str) -> list[str]:
    ours = ("held", "decision", "released", "refused", "changed_after_snapshot", "canceled_while_held")
    return [one["event"] for one in events(site) if one.get("job") == job and one["event"] in ours]


def test_released(site: Company) -> None:
    site.start()
    job = lies_held(site)
    nothing_at_mint(site, job)
    assert [entry["to"] for entry in history(site, job)][-2:] == ["running", "held"]
    listed = reviewer(site, "held")
    assert job in listed
    assert "mint" in listed
    assert "sh" in listed
    assert "none of 1" in listed
    shown = reviewer(site, "show", job[:8])
    assert "結果" in shown
    assert "out/b c.dat" in shown
    assert "log/stdout.txt" in shown
    assert "said" in shown
    (row,) = map(json.loads, reviewer(site, "held", "--json").splitlines())
    assert row["manifest"] in shown
    assert row["files"] == 4
    assert row["manifest"] in reviewer(site, "release", job[:13], "--manifest", row["manifest"])
    found = site.completed(job)
    assert (found["a.dat"], found["b c.dat"]) == ("結果\n".encode(), b"b\n")
    assert (site.rig.job(job) / "log" / "stdout.txt").read_bytes() == b"said\n"
    assert words_of(site, job) == ["held", "decision", "released"]
    assert {one["manifest"] for one in events(site) if one["event"] in ("held", "decision", "released")} == {row["manifest"]}
    assert reviewer(site, "held").strip() == "nothing is held"
    assert os.listdir(site.folder / "base" / "decisions") == []
    reviewer(site, "release", job, code=1)


def history(site: Company, job: str) -> list[dict[str, Any]]:
    lines = (site.rig.job(job) / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_refused_with_the_given_reason_only(site: Company) -> None:
    site.start()
    job = lies_held(site, SCRIPT + "; exit 3")
    reviewer(site, "refuse", job, "--because", "機密の表を含むため")
    state = site.failed(job, "refused_by_site")
    assert state["message"] == "機密の表を含むため"
    assert state.get("exit_code") is None
    result = site.result(job)
    assert {key: result[key] for key in ("files", "missing", "withheld", "not_carried", "exit_code", "started_at")} == {
        "files": [], "missing": [], "withheld": [], "not_carried": [], "exit_code": None, "started_at": ""
    }  # fmt: skip
    nothing_at_mint(site, job)
    assert [entry["to"] for entry in history(site, job)][-2:] == ["held", "failed"]
    assert words_of(site, job) == ["held", "decision", "refused"]
    wait_until(lambda: site.local_state(job) == "failed", 30, "it has ended here too")
    assert (site.local(job) / "out" / "a.dat").exists(), "the snapshot stays at the site"


def test_canceled_while_held(site: Company) -> None:
    site.start()
    job = lies_held(site)
    site.rig.spoolctl("cancel", job)
    site.is_at(job, "canceled")
    assert site.result(job)["files"] == []
    nothing_at_mint(site, job)
    assert words_of(site, job) == ["held", "canceled_while_held"]


@pytest.mark.slow
def test_stopped_while_held_nothing_leaves_whatever_persons_say(site: Company) -> None:
    """The kill switch stands above a release, over a restart too; what was said counts once it is undone."""
    agent = site.start()
    job = lies_held(site)
    reviewer(site, "stop")
    reviewer(site, "release", job)
    stays(lambda: site.local_state(job) == "held", 2, "it stays held")
    agent.kill()
    site.start()
    stays(lambda: site.local_state(job) == "held", 2, "it stays held after a restart")
    nothing_at_mint(site, job)
    reviewer(site, "resume")
    assert site.completed(job)["a.dat"] == "結果\n".encode()
    site.locally(job, "completed")
    assert words_of(site, job) == ["held", "decision", "released"]


def test_a_cancel_while_it_runs_brings_nothing_home(site: Company) -> None:
    site.start()
    job = site.sh("echo secret > a.dat; echo said; touch up; sleep 600", outputs=("*.dat",))
    wait_until((site.local(job) / "work" / "up").exists, 30, "it runs")
    site.rig.spoolctl("cancel", job)
    site.is_at(job, "canceled")
    assert site.result(job)["files"] == []
    nothing_at_mint(site, job)


def test_it_takes_no_slot_and_is_waited_for(site: Company) -> None:
    site.start(slots=1)
    first = lies_held(site)
    waiting = subprocess.Popen(
        [sys.executable, REPO / "tools" / "spoolctl", "--spool", site.rig.spool, "wait", first, "--timeout", "300"],
        env={**site.rig.env, "LANG": "C.UTF-8"}, cwd=site.rig.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        second = lies_held(site)
        reviewer(site, "refuse", second)
        assert site.failed(second, "refused_by_site")["message"] == "refused by the site"
        assert waiting.poll() is None
        reviewer(site, "release", first)
        out, _ = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
    assert waiting.returncode == 0
    assert "wait at the site for a person's release" in out
    assert first in site.rig.spoolctl("ls").stdout


@pytest.mark.slow
def test_through_restarts_and_passes(site: Company) -> None:
    """The agent is killed, or ends, between each step; a decision that came meanwhile counts."""
    agent = site.start()
    job = lies_held(site)
    agent.kill()
    assert "結果" in reviewer(site, "show", job), "also while no agent runs"
    assert site.once() == 0
    assert site.local_state(job) == "held"
    assert site.rig.state(job)["state"] == "held"
    reviewer(site, "release", job)
    assert site.local_state(job) == "held"
    assert site.once() == 0
    assert site.rig.state(job)["state"] == "completed"
    assert site.out(job)["a.dat"] == "結果\n".encode()
    other = site.sh(SCRIPT, outputs=("*.dat",))
    assert site.once() == 0
    site.is_at(other, "held")
    reviewer(site, "refuse", other, "--because", "no")
    site.start()
    assert site.failed(other, "refused_by_site")["message"] == "no"
    assert words_of(site, other) == ["held", "decision", "refused"]


def test_several_through_a_restart(site: Company) -> None:
    """No sync after the start may list a part of them: MInt would take the others for lost."""
    agent = site.start()
    jobs = [lies_held(site) for _ in range(5)]
    agent.kill()
    agent = site.start()
    wait_until(lambda: agent.output().count("event=taken_up_again") == len(jobs), 30, "they are taken up again")
    reviewer(site, "release", jobs[0])
    site.is_at(jobs[0], "completed")
    assert {site.rig.state(job)["state"] for job in jobs[1:]} == {"held"}
    assert "run_given_up" not in agent.output()


@pytest.mark.parametrize("what", ["swapped", "gone", "link", "appended", "manifest"])
def test_a_change_after_the_snapshot_stops_it(site: Company, what: str) -> None:
    agent = site.start()
    job = lies_held(site)
    agent.kill()
    target = site.local(job) / "out" / "a.dat"
    changed_before = what == "gone"
    if not changed_before:
        reviewer(site, "release", job)
    spoil(what, target)
    if changed_before:
        assert "CHANGED" in reviewer(site, "show", job)
        assert "a.dat" in reviewer(site, "release", job, code=1)
        assert site.once() == 0
        assert site.rig.state(job)["state"] == "held", "a person decides"
        reviewer(site, "refuse", job)
    site.start()
    state = site.failed(job, "refused_by_site")
    assert "a.dat" not in json.dumps(state)
    nothing_at_mint(site, job)
    assert words_of(site, job)[-1] == ("refused" if changed_before else "changed_after_snapshot")


def spoil(what: str, target: Path) -> None:
    if what == "swapped":
        target.write_bytes(b"x" * target.stat().st_size)
    elif what == "gone":
        target.unlink()
    elif what == "link":
        target.rename(target.with_name("elsewhere"))
        target.symlink_to("elsewhere")
    elif what == "appended":
        with open(target, "ab") as file:
            file.write(b"more")
    else:
        result = target.parent.parent / "result.json"
        result.write_bytes(result.read_bytes().replace(b'"missing": []', b'"missing": ["secret"]'))


def test_configuration_without_a_wall_is_refused(site: Company) -> None:
    site.commands = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*"}}
    agent = site.start()
    assert agent.wait(30) == 78
    assert "wall around every command" in agent.output()
    assert "wall around every command" in reviewer(site, "check", code=78)


def test_a_wall_of_paper_is_refused(site: Company) -> None:
    """It is tried at the start, by a command that wants to get out."""
    site.commands = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*", "wrapper": "/usr/bin/env"}}
    agent = site.start()
    assert agent.wait(30) == 78
    for thing in ("can read the token", "can write agent.ini", "can read the agent's own folder", "can write other files"):
        assert thing in agent.output()
    assert not list((site.folder / "base").glob("probe.*"))


def test_conditions(site: Company) -> None:
    site.release = {**HELD, "hold": "when: bytes>1K failed", "logs": "withhold"}
    site.start()
    assert site.completed(site.sh(SCRIPT, outputs=("*.dat",)))
    job = lies_held(site, "head -c 2000 /dev/zero > a.dat")
    assert "bytes>1K" in reviewer(site, "show", job)


def test_the_confidential_table_is_told_of(site: Company) -> None:
    table = site.folder / "table.csv"
    table.write_text("# strain, stress\n0.0100, 2.350E+08\n0.0200, 2.910E+08\n")
    site.release = {**HELD, "warn_table": "table.csv", "hold": "when: table"}
    site.start()
    assert site.completed(site.sh("echo 0.01 235 > a.dat", outputs=("*.dat",)))
    odd = r"""printf 'a\0b' > b.dat; printf '\033[31mred' > 'c\u3000d.dat'"""
    job = lies_held(site, f"echo node 17 0.01 235000000 end > a.dat; {odd}".replace("\\u3000", "\u3000"))
    shown = reviewer(site, "show", job)
    assert "line 1 contains a line of the confidential table" in shown
    assert "binary" in shown
    assert "characters that do not show" in shown
    assert "\\x1b[31mred" in shown


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Abroad]:
    made = Abroad(tmp_path / "rig")
    yield made
    made.close()


@pytest.mark.slow
def test_with_the_published_server(abroad: Abroad) -> None:
    """Held: not ended yet. Refused: ended abnormal, each file an entry that has the reason and nothing else."""
    abroad.release = dict(HELD)
    abroad.commands = {COMMAND: {"argv": "/bin/sh job.sh", "wrapper": WALL}}
    agent = abroad.start()
    job = abroad.submit("echo secret > out.dat", "out.dat")
    abroad.locally(job, "held")
    wait_until((abroad.base / "held" / f"{job}.json").exists, 30, "it lies before the reviewers")
    stays(lambda: abroad.server.jobs[job].progress == "running", 1, "it has not ended there")
    agent.kill()
    abroad.start()
    reviewer(abroad, "refuse", job, "--because", "機密")
    assert abroad.ended(job) == "abnormal"
    assert abroad.results(job)["out.dat"] == (b"", "Error", "refused_by_site: 機密")
    assert abroad.out(job) == {}
    other = abroad.submit("echo result > out.dat", "out.dat")
    abroad.locally(other, "held")
    wait_until((abroad.base / "held" / f"{other}.json").exists, 30, "it lies before the reviewers")
    reviewer(abroad, "release", other)
    assert abroad.ended(other) == "completed"
    assert abroad.out(other) == {"out.dat": b"result\n"}
    gone = abroad.submit("echo result > out.dat", "out.dat")
    abroad.locally(gone, "held")
    assert abroad.submitter.cancel(gone, force=True).status_code == 200
    abroad.locally(gone, "canceled")
