"""A broken-into MInt that speaks the gate's own words: what it may not do with them. The gate is started as sshd starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.rig import REPO, Rig
from components.sshd import Sshd
from components.waiting import wait_until
from spool import gate
from spool.names import new_id

from .guarded import COMMANDS, Guarded, Run, parts


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    yield Guarded(rig, sshd)
    rig.close()


def test_only_announced_names_are_written_and_only_before_the_start(site: Guarded) -> None:
    run = Run(site, "cat a sub/b", {"a": b"12345", "sub/b": b"xyz"})
    assert run.refused("put", parts({"a": 0}) + b"12345") == "lost"
    run.good("enter", run.request())
    for name in ("c", "work/c", ".bashrc", "a/x", "state.json"):
        assert run.refused("put", parts({name: 0}) + b"12345") == "refused_by_site", name
    for name in ("../run/argv/000", "/etc/cron.d/x", "sub/../../x", "-x", "a\n", ".."):
        assert run.refused("put", parts({name: 0}) + b"12345") in ("invalid_name", "invalid_record"), name
    assert run.refused("put", parts({"a": 3}) + b"45") == "conflict", "a gap"
    assert run.refused("put", parts({"a": 0}) + b"12") == "unreachable", "cut"
    assert (run.folder / "in" / "a").read_bytes() == b"12"
    run.good("put", parts({"a": 2}) + b"345 and what was never announced")
    assert (run.folder / "in" / "a").read_bytes() == b"12345"
    assert run.refused("start") == "conflict", "not all is there"
    run.good("put", parts({"sub/b": 0}) + b"XYZ")
    assert run.good("prepare")["wrong"] == ["sub/b"]
    assert not (run.folder / "in" / "sub" / "b").exists()
    run.good("put", parts({"sub/b": 0}) + b"xyz")
    assert run.good("prepare")["wrong"] == []
    for _ in range(2):
        assert run.refused("put", parts({"a": 0}) + b"54321") == "conflict", "the inputs are taken"
        run.good("start")
    (run.folder / "in" / "a").unlink()
    assert run.refused("put", parts({"a": 0}) + b"54321") == "conflict", "nothing is written after the start"
    (run.folder / "in" / "a").touch()
    assert sorted(path.name for path in (run.folder / "in").rglob("*")) == ["a", "b", "sub"]
    run.wait_exited()
    assert (run.folder / "log" / "stdout.txt").read_bytes() == b"12345xyz", "started once, on what was announced"


def test_links_in_the_inputs_lead_nowhere(site: Guarded, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(b"keep")
    run = Run(site, "true", {"a": b"12345", "sub/b": b"xyz"})
    run.good("enter", run.request())
    (run.folder / "in" / "sub").symlink_to(outside)
    (run.folder / "in" / "a").symlink_to(outside / "b")
    assert run.refused("put", parts({"sub/b": 0}) + b"xyz") == "invalid_name"
    assert run.refused("put", parts({"a": 0}) + b"12345") == "invalid_name"
    assert run.refused("prepare") == "conflict"
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"b": b"keep"}


def test_only_released_names_are_read(site: Guarded) -> None:
    site.law(release={"allow": "*.dat", "logs": "withhold"})
    run = Run(site, "echo out; echo y >y.dat; echo n >n.txt; ln -s ../state.json l.dat; cp in.txt z.dat", {"in.txt": b"in"})
    run.to_start()
    assert run.refused("get", parts({"in/in.txt": 0})) == "refused_by_site"
    run.good("start")
    run.wait_exited()
    assert run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site", "measured first, then sent"
    assert run.ask("tail", parts({"log/stdout.txt": 0})).stdout == b'{"files":[]}\n', "the logs are withheld"
    result = run.good("finish")["result"]
    assert [entry["path"] for entry in result["files"]] == ["out/y.dat", "out/z.dat"]
    for name in (
        "in/in.txt", "work/in.txt", "work/n.txt", "out/n.txt", "out/l.dat", "log/stdout.txt", "run/argv/000", "state.json",
        "job.json", "result.json",
    ):  # fmt: skip
        assert run.refused("get", parts({name: 0})) == "refused_by_site", name
    for name in ("../agent.ini", "/etc/passwd", "out/../state.json", f"../{run.id}/out/y.dat", "out//y.dat", "./out/y.dat"):
        assert run.refused("get", parts({name: 0})) in ("invalid_name", "invalid_record"), name
    assert run.ask("get", parts({"out/y.dat": 0, "out/z.dat": 1})).stdout == b"y\nn"
    other = Run(site, "true")
    other.to_end()
    assert other.refused("get", parts({"out/y.dat": 0})) == "refused_by_site", "another job's"
    listed = {entry["path"]: entry for entry in result["files"]}
    wanted = [listed["out/y.dat"], {**listed["out/z.dat"], "start": 1}]
    told = [(entry["event"], entry["bytes"], entry["files"]) for entry in site.audit() if entry["event"] in ("sending", "sent")]
    assert told == [("sending", 3, wanted), ("sent", 3, wanted)], "every file by its SHA-256, and from which byte on"


@pytest.mark.parametrize("how", ["other bytes", "longer", "shorter", "a link", "gone", "out/ a link"])
def test_what_was_changed_after_it_was_measured_does_not_leave(site: Guarded, how: str, tmp_path: Path) -> None:
    run = Run(site, "echo released >y.dat")
    run.to_end()
    path, secret = run.folder / "out" / "y.dat", tmp_path / "y.dat"
    secret.write_text("SECRET!!\n")
    if how == "out/ a link":
        (run.folder / "out").rename(run.folder / "was")
        (run.folder / "out").symlink_to(tmp_path)
    elif how == "a link":
        path.unlink()
        path.symlink_to(secret)
    elif how == "gone":
        path.unlink()
    else:
        path.write_text({"other bytes": "SECRET!!\n", "longer": "SECRET!!\nSECRET", "shorter": "SEC"}[how])
    done = run.ask("get", parts({"out/y.dat": 0}))
    assert (done.returncode, done.stdout) == (gate.REFUSED, b"")
    assert b"SECRET" not in done.stderr


def test_an_entry_that_the_law_does_not_have(site: Guarded) -> None:
    run = Run(site, "true", {"a": b"1"})
    entries = json.loads(run.request())["inputs"]
    for changes in (
        {"user": "../x"}, {"user": ""}, {"attempt": 0}, {"attempt": "1"}, {"inputs": []}, {"inputs": [*entries, *entries]},
        {"job": "%%%"}, {"inputs": [{**entries[0], "path": "../a"}]}, {"inputs": [{**entries[0], "size": -1}]},
        {"earlier": ["../x"]}, {"job": ""},
    ):  # fmt: skip
        assert run.refused("enter", run.request(**changes)) in ("invalid_name", "invalid_record", "refused_by_site"), changes
    assert run.refused("enter", b"{}\n") == "invalid_record"
    assert run.refused("enter", b"") == "unreachable"
    run.job["id"] = new_id()
    assert run.refused("enter", run.request()) == "refused_by_site"
    assert not run.folder.exists()
    del run.job["id"]
    run.to_start()
    run.job["args"] = ["echo other"]
    assert run.refused("enter", run.request()) == "conflict", "the same run with another job.json"


def test_a_law_that_changed_stops_what_was_not_started(site: Guarded) -> None:
    run = Run(site, "echo ran >ran")
    run.to_start()
    site.law({"sh": {**COMMANDS["sh"], "users": "alice"}})
    assert run.refused("start") == "refused_by_site"
    site.law()
    assert run.good("start")["status"]["word"] == "canceled"
    assert not (run.folder / "work" / "ran").exists()


def test_nothing_of_the_callers_environment_counts(site: Guarded, tmp_path: Path) -> None:
    """As where a site's sshd takes any variable (AcceptEnv *)."""
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    here = os.fsencode(tmp_path)
    more = {b"XDG_CONFIG_HOME": here, b"HOME": here, b"PYTHONPATH": here, b"LC_EVIL": b"x"}
    assert json.loads(site.original(b"mint-gate 1 hello", more=more).stdout)["site"] == "site"
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "mint-spool").mkdir()
    law = (site.site_folder / "agent.ini").read_text().replace("site = site", "site = evil")
    (tmp_path / "mint-spool" / "agent.ini").write_text(law)
    program = [sys.executable, "-Es", str(REPO / "spool_agent.py"), "gate"]
    env = {b"PATH": b"/usr/bin:/bin", b"SSH_ORIGINAL_COMMAND": b"mint-gate 1 hello", **more}
    assert b"evil" not in subprocess.run(program, env=env, capture_output=True, timeout=60, check=False).stdout
    run = Run(site, "env >env.dat")
    run.to_start()
    command = f"mint-gate 1 start {run.id} {run.run_id}".encode()
    assert site.original(command, more=more).returncode == 0
    run.wait_exited()
    names = {line.split("=")[0] for line in (run.folder / "work" / "env.dat").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "LANG", "CALC_DIR", "MINT_SPOOL_JOB", "MINT_SPOOL_COMMAND", "PWD", "SHLVL", "OLDPWD", "_"}


def test_one_session_at_a_time_has_a_job(site: Guarded) -> None:
    """A put that hangs holds the job until its line counts as cut; meanwhile nothing else writes or starts."""
    site.law(stall_s=4)
    run = Run(site, "true", {"a": b"12345"})
    run.good("enter", run.request())
    program = ["ssh", "-F", str(site.sshd.ssh_config), site.sshd.name, f"mint-gate 1 put {run.id} {run.run_id}"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stderr is not None
        first.stdin.write(parts({"a": 0}) + b"12")
        first.stdin.flush()
        path = run.folder / "in" / "a"
        wait_until(lambda: path.exists() and path.stat().st_size == 2, 60, "it has begun")
        began = time.monotonic()
        run.good("put", parts({"a": 2}) + b"345")
        assert time.monotonic() - began > 2, "the second did not wait for the first"
        assert b"nothing passed on the line" in first.stderr.read()
    assert path.read_bytes() == b"12345"


def test_a_base_of_an_agent_that_polls_is_refused(site: Guarded) -> None:
    control = site.base / f".mint-spool-{os.geteuid()}"
    control.mkdir(parents=True, mode=0o700)
    (control / "agent.json").write_text("{}")
    done = site.gate("hello")
    assert (done.returncode, done.stdout) == (78, b"")
    assert str(site.site_folder).encode() not in done.stderr, "paths of the site are not told"
