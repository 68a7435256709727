"""`hold` together with `logs = redact`: reviewers see what would leave, that leaves, and the logs themselves stay at the site."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.abroad import COMMAND, Abroad
from agent.company import Company, files_below
from agent.test_held import WALL, WALLED, events, lies_held, nothing_at_mint, reviewer
from components.rig import REPO
from components.tap import Tap
from components.waiting import wait_until
from spool.published import LOGS

SECRET = "license=ABC 顧客TOYOTA"
LAW = {"allow": "*.dat", "logs": "redact", "redact": "license=[^ ]*\n    顧客[A-Z]+", "hold": "always"}
SCRIPT = f"echo 結果 > a.dat; echo {SECRET} 計算; echo 二; echo err {SECRET} >&2"
SHOWN = {"stdout.txt": "[withheld by the site] [withheld by the site] 計算\n二\n",
         "stderr.txt": "err [withheld by the site] [withheld by the site]\n"}  # fmt: skip
ORDER = ["receipt", "start", "end", "measured", "held", "decision", "released", "sending", "sent", "delivered"]


@pytest.fixture
def site(company: Company) -> Company:
    company.release, company.commands = dict(LAW), dict(WALLED)
    return company


def of(site: Company, job: str) -> list[str]:
    return [one["event"] for one in events(site) if one.get("job") == job]


def is_laid_out(site: Company, job: str) -> None:
    shown = reviewer(site, "show", job)
    assert "ABC" not in shown
    assert "TOYOTA" not in shown
    assert "計算" in shown
    log = files_below(site.local(job) / "log")
    for name, text in SHOWN.items():
        assert log[name].decode() == text
        assert SECRET in log[f"unredacted.{name}"].decode(), "the log itself stays here"
        assert (site.local(job) / "log" / f"unredacted.{name}").stat().st_mode & 0o077 == 0
    assert not [name for name in log if name.endswith((".new", ".part"))]


def has_left(site: Company, job: str) -> None:
    assert site.completed(job) == {"a.dat": "結果\n".encode()}
    log = files_below(site.rig.job(job) / "log")
    assert {name: log[name].decode() for name in SHOWN} == SHOWN
    for name, data in files_below(site.rig.spool).items():
        assert SECRET.split(maxsplit=1)[0].encode() not in data or job not in name or name.endswith("job.json"), name


@pytest.mark.slow
def test_what_was_shown_leaves(site: Company) -> None:
    agent = site.start()
    job = lies_held(site, SCRIPT)
    nothing_at_mint(site, job)
    is_laid_out(site, job)
    agent.kill()
    is_laid_out(site, job)
    site.start()
    reviewer(site, "release", job)
    has_left(site, job)
    site.locally(job, "completed")
    assert list(dict.fromkeys(of(site, job))) == ORDER
    (measured,) = [one for one in events(site) if one.get("job") == job and one["event"] == "measured"]
    sent = {item["path"]: item["sha256"] for one in events(site) if one.get("job") == job and one["event"] == "sent"
            for item in one["files"]}  # fmt: skip
    assert sent == {item["path"]: item["sha256"] for item in measured["files"]}


@pytest.mark.slow
def test_the_words_of_a_refusal_are_redacted(site: Company) -> None:
    site.start()
    job = lies_held(site, SCRIPT)
    reviewer(site, "refuse", job, "--because", f"応力表 {SECRET} を含むため")
    state = site.failed(job, "refused_by_site")
    assert state["message"] == "応力表 [withheld by the site] [withheld by the site] を含むため"
    nothing_at_mint(site, job)
    site.locally(job, "failed")
    told = {one["event"]: one for one in events(site) if one.get("job") == job}
    assert SECRET in told["decision"]["because"], "what the person said stays in the site's own log"
    assert told["refused"]["message"] == state["message"], "and beside it what MInt was told"


@pytest.mark.slow
def test_with_a_published_server(tmp_path: Path) -> None:
    """Nothing on that line before the release; then what was shown, also after a restart; nothing of the logs themselves."""
    abroad = Abroad(tmp_path / "rig")
    try:
        tap = Tap(int(abroad.server.url.rpartition(":")[2]))
        abroad.release = dict(LAW)
        abroad.commands = {COMMAND: {"argv": "/bin/sh job.sh", "wrapper": WALL}}
        agent = abroad.start(url=tap.url)
        job = abroad.submit(SCRIPT, "a.dat")
        abroad.locally(job, "held")
        wait_until((abroad.base / "held" / f"{job}.json").exists, 60, "it lies before the reviewers")
        assert "計算" in reviewer(abroad, "show", job)
        assert b"send-results" not in tap.sent
        agent.kill()
        abroad.start(url=tap.url)
        reviewer(abroad, "release", job)
        assert abroad.ended(job, 60) == "completed"
        found = abroad.results(job)
        assert found["a.dat"][0].decode() == "結果\n"
        assert [found[name][0].decode() for name in LOGS] == list(SHOWN.values())
        tap.close()
        assert b"license=" not in tap.sent.partition(b"send-results")[2]
    finally:
        abroad.close()


KILLER = """
import os, sys
sys.path.insert(0, os.environ["REPO"])
real, (name, when) = os.replace, os.environ["KILL"].split()

def replace(source, target, **more):
    here = os.path.basename(os.fspath(source)) == name
    if here and when == "before":
        os.kill(os.getpid(), 9)
    real(source, target, **more)
    if here:
        os.kill(os.getpid(), 9)

os.replace = replace
"""


@pytest.mark.slow
def test_killed_while_the_logs_are_laid_out(site: Company) -> None:
    """Before, between and after the renames that put the copies in the logs' place, and again when these are taken back."""
    (site.rig.root / "killer").mkdir()
    (site.rig.root / "killer" / "sitecustomize.py").write_text(KILLER)
    points = (("stdout.txt", "after"), (".stdout.txt.new", "after"), (".stderr.txt.new", "before"), (".stderr.txt.new", "after"))
    for first in points:
        env = {"PYTHONPATH": str(site.rig.root / "killer"), "REPO": str(REPO), "KILL": " ".join(first)}
        agent = site.start(env=env)
        job = site.sh(SCRIPT, outputs=("*.dat",))
        assert agent.wait(60) == -9, first
        aside = site.start(env={**env, "KILL": "unredacted.stdout.txt after"})
        assert aside.wait(60) == -9, first
        site.start()
        site.is_at(job, "held")
        wait_until((site.folder / "base" / "held" / f"{job}.json").exists, 30, "it lies before the reviewers")
        is_laid_out(site, job)
        reviewer(site, "release", job)
        has_left(site, job)
        site.locally(job, "completed")
        site.kill_agent()
    assert json.loads((site.local(job) / "result.json").read_bytes())["reason"] == ""
    assert os.listdir(site.folder / "base" / "decisions") == []
