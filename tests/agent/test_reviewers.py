"""Reviewers who are not the agent's account: real users of this host, what they may read, whose word counts."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.company import Company
from agent.test_held import HELD, SCRIPT, WALLED, events, lies_held, words_of
from components.privilege import need_root
from components.rig import REPO

# The program as that user; what it is made of is read before, wherever the checkout lies.
AS_USER = f"""
import os, sys
sys.path.insert(0, {str(REPO)!r})
import spool_agent, spool.agent.reviewing, encodings.idna, encodings.utf_8_sig, encodings.cp932
uid, gid, group = map(int, sys.argv[1:4])
os.setgroups([group] if group else [])
os.setgid(gid)
os.setuid(uid)
sys.exit(spool_agent.main(sys.argv[4:]))
"""


class People(NamedTuple):
    """Names of users: the job's own, two more reviewers, and one who is no reviewer. The group is the reviewers'."""

    submitter: str
    first: str
    second: str
    stranger: str
    group: str


@pytest.fixture
def people() -> Iterator[People]:
    need_root()
    mark = secrets.token_hex(3)
    names = [f"ms{mark}{letter}" for letter in "abcd"]
    group = f"ms{mark}g"
    subprocess.run(["groupadd", group], check=True)
    try:
        for name in names:
            more = ["-G", group] if name != names[3] else []
            subprocess.run(["useradd", "--no-create-home", "--user-group", *more, name], check=True)
        yield People(*names, group)
    finally:
        for name in names:
            subprocess.run(["userdel", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["groupdel", group], check=False)


@pytest.fixture
def site(people: People) -> Iterator[Company]:
    """A company whose folders other users can come to, as below /var/lib."""
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="reviewers-"))
    root.chmod(0o755)
    made = Company(root / "rig")
    try:
        made.serve()
        made.commands = dict(WALLED)
        made.release = {**HELD, "reviewers": [people.submitter, people.first, people.second], "reviewers_group": people.group,
                        "persons": 2, "not_submitter": "yes"}  # fmt: skip
        (made.folder / "token").write_text(made.rig.token(people.submitter, "agent", site="site-a"))
        (made.folder / "token").chmod(0o600)
        yield made
    finally:
        made.close()
        shutil.rmtree(root)


def as_user(site: Company, user: str, *words: str, code: int = 0) -> str:
    (site.folder / "agent.ini").chmod(0o644)
    record = pwd.getpwnam(user)
    groups = [one.gr_gid for one in grp.getgrall() if user in one.gr_mem]
    command = [sys.executable, "-c", AS_USER, str(record.pw_uid), str(record.pw_gid), str(groups[0] if groups else 0), *words]
    env = {"LANG": "C.UTF-8", "SUDO_USER": "root", "USER": "root", "LOGNAME": "root"}  # none of it is asked
    done = subprocess.run([*command, "--config", "agent.ini"], cwd=site.folder, capture_output=True, text=True, timeout=60,
                          check=False, env=env)  # fmt: skip
    assert done.returncode == code, f"{user} {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def as_root(site: Company, *words: str, code: int) -> None:
    done = subprocess.run([sys.executable, REPO / "spool_agent.py", *words, "--config", "agent.ini"], cwd=site.folder, timeout=60,
                          check=False, capture_output=True, env={"SUDO_USER": "nobody"})  # fmt: skip
    assert done.returncode == code, done


def test_check_tells_of_an_agent_ini_that_they_cannot_read(site: Company) -> None:
    site.start("check").wait(60)
    assert site.agent
    (told,) = [line for line in site.agent.output().splitlines() if " reviewers: " in line]
    assert told.startswith("problem")
    assert "chmod 640" in told


@pytest.mark.slow
def test_two_persons_who_are_not_the_submitter(site: Company, people: People) -> None:
    site.start()
    job = lies_held(site, SCRIPT, user=people.submitter)
    assert job in as_user(site, people.first, "held")
    shown = as_user(site, people.first, "show", job[:8])
    assert "結果" in shown
    as_user(site, people.stranger, "held", code=77)
    as_user(site, people.stranger, "show", job, code=77)
    assert "somebody else decides" in as_user(site, people.submitter, "release", job, code=77)
    as_root(site, "release", job, code=77)
    assert "1 of 2 persons" in as_user(site, people.first, "release", job)
    assert "already" in as_user(site, people.first, "release", job, code=1)
    assert f"{people.first}:release" in as_user(site, people.second, "held")
    assert site.rig.state(job)["state"] == "held"
    as_user(site, people.second, "release", job)
    assert site.completed(job)["a.dat"] == "結果\n".encode()
    assert words_of(site, job) == ["held", "decision", "decision", "released"]
    (released,) = (one for one in events(site) if one["event"] == "released")
    assert released["persons"] == sorted((people.first, people.second))


def test_who_can_read_what(site: Company, people: People) -> None:
    site.start()
    job = lies_held(site, SCRIPT, user=people.submitter)
    base, gid = site.folder / "base", grp.getgrnam(people.group).gr_gid
    for path, mode in (
        (base, 0o710), (base / "held", 0o750), (base / "held" / f"{job}.json", 0o640), (base / "decisions", 0o1730),
        (base / job, 0o710), (base / job / "out", 0o750), (base / job / "out" / "a.dat", 0o440),
        (base / job / "log", 0o750), (base / job / "log" / "stdout.txt", 0o440), (base / job / "result.json", 0o640),
    ):  # fmt: skip
        info = path.stat()
        assert (path, stat.S_IMODE(info.st_mode), info.st_gid) == (path, mode, gid)
    reviewer = pwd.getpwnam(people.first)
    for name in (f"{job}/work/a.dat", f"{job}/state.json", f"{job}/log/runner.log", f".mint-spool-{os.geteuid()}/audit.jsonl"):
        done = subprocess.run(["cat", base / name], user=reviewer.pw_uid, group=gid, extra_groups=[], capture_output=True,
                              check=False)  # fmt: skip
        assert done.returncode != 0, name
        assert b"denied" in done.stderr
    as_user(site, people.second, "refuse", job, "--because", "一人で足りる")
    assert site.failed(job, "refused_by_site")["message"] == "一人で足りる"
