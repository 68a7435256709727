"""What may run at a guarded site, with the real gate: pins, the site's own check, typed parameters, walls, accounts and caps."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import proc
from components.privilege import need_root
from components.rig import REPO, Rig, Section
from components.sshd import Sshd
from components.waiting import wait_until

from .guarded import COMMANDS, Guarded, Run, parts

SH: Section = COMMANDS["sh"]


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    made = Guarded(rig, sshd)
    for folder in (sshd.folder, sshd.home, made.site_folder):
        folder.chmod(0o711)  # a job's own account passes through
    yield made
    rig.close()


def refused(run: Run, verb: str, stdin: bytes = b"") -> None:
    assert run.refused(verb, stdin) == "refused_by_site"
    assert "start" not in run.site.events(run.id)


@pytest.mark.slow
def test_pins_and_the_sites_own_check(site: Guarded) -> None:
    """A pinned program is looked at when the job is made ready and again at the start; `pre_run` sees the inputs."""
    program, check = site.site_folder / "solver", site.site_folder / "check"
    program.write_text("#!/bin/sh\necho ran\n")
    check.write_text("#!/bin/sh\n! grep -q INCLUDE ../in/*\n")
    for path in (program, check):
        path.chmod(0o755)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    site.law({"sh": {"argv": program, "sha256": f"{program} {digest}", "pre_run": check}})

    def deck(text: bytes) -> Run:
        run = Run(site, "", {"a.inp": text}, args=[])
        run.good("enter", run.request())
        run.good("put", parts({"a.inp": 0}) + text)
        return run

    good, late, early, bad = deck(b"1"), deck(b"1"), deck(b"1"), deck(b"INCLUDE /etc")
    refused(bad, "prepare")
    assert bad.good("status")["status"]["word"] == "canceled"
    assert bad.good("start")["status"]["word"] == "canceled"
    assert "start" not in site.events(bad.id)
    good.good("prepare")
    good.good("start")
    good.wait_exited()
    late.good("prepare")
    program.write_text("#!/bin/sh\necho other\n")
    refused(early, "prepare")
    refused(late, "start")
    assert late.good("finish")["result"]["reason"] == "refused_by_site"
    assert [event for event in site.events(late.id) if event in ("start", "refused")] == ["refused"]
    assert "pin_broken" in (site.control / "gate.log").read_text()


@pytest.mark.slow
def test_parameters_and_caps(site: Guarded) -> None:
    site.law(
        {"sh": {"argv": "/bin/cp {deck} {n}.dat", "param.deck": "file", "param.n": "integer 1..9", "max_inputs": 1,
                "max_input_bytes": 100}},
        {"allow": "*.dat", "logs": "withhold", "max_bytes": 50},
    )  # fmt: skip
    for args in (["deck", "3"], ["n=3"], ["deck=a.inp", "n=x"], ["deck=b.inp", "n=3"], ["deck=a.inp", "n=3", "m=1"],
                 ["deck=a.inp", "n=99"], ["deck=../a.inp", "n=3"]):  # fmt: skip
        run = Run(site, "", {"a.inp": b"1"}, args=args)
        refused(run, "enter", run.request())
        assert not run.folder.exists(), args
    for inputs in ({"a.inp": b"1" * 101}, {"a.inp": b"1", "b.inp": b"2"}):
        run = Run(site, "", inputs, args=["deck=a.inp", "n=3"])
        refused(run, "enter", run.request())
        assert not run.folder.exists(), inputs
    run = Run(site, "", {"a.inp": b"1"}, args=["deck=a.inp", "n=3"])
    assert [entry["path"] for entry in run.to_end()["files"]] == ["out/3.dat"]
    run = Run(site, "", {"a.inp": b"1" * 60}, args=["deck=a.inp", "n=3"])
    result = run.to_end()
    assert (result["reason"], result["files"]) == ("refused_by_site", [])
    assert run.refused("get", parts({"out/3.dat": 0})) == "refused_by_site"


ATTACK = r"""
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "broke $name"; fi; }
try "read policy" sh -c 'head -c 9 "$0" | grep .' "$site/agent.ini"
echo "#" >>"$site/agent.ini"
try "read audit" sh -c 'head -c 9 "$0" | grep .' "$control/audit.jsonl"
try "write audit" sh -c 'echo x >>"$0"' "$control/audit.jsonl"
try "list control" ls "$control"
try "release itself" sh -c 'echo x >"$0/x"' "$site/base/decisions"
for name in state.json job.json in/a.inp result.json log/stdout.txt run/exit; do
    try "write $name" sh -c 'echo x >>"$0"' "../$name"
    try "remove $name" rm "../$name"
done
try "other job" sh -c 'ls "$0"' "$other/work"
try "leave a link" sh -c 'ln "$0" leak.dat' "$site/agent.ini"
ln -s "$site/agent.ini" link.dat; ln -s ../state.json state.dat
echo "done as $(id -u)" >done.dat
"""


@pytest.mark.slow
@pytest.mark.parametrize("wall", ["bwrap", "run_as"])
def test_a_hostile_command_behind_a_wall(site: Guarded, wall: str) -> None:
    """No process of the gate lives while it runs: the wall, the account and the way to `work/` hold by what is on the disk."""
    need_root()
    uid = 200_000 + os.getpid() % 60_000 * 20 + 19
    if wall == "bwrap":
        assert shutil.which("bwrap"), "tools/test installs bubblewrap"
        command = {**SH, "wrapper": f"{REPO}/etc/bwrap-wrapper.sh --hide {{base}} {{work}} --"}
    else:
        command = {**SH, "run_as": f"{uid}:{uid}"}
    site.law({"sh": command}, {"allow": "*.dat", "logs": "return", "hold": "when: user=alice"})
    other = Run(site, "echo secret >x.dat")
    other.to_exit()
    assert other.good("finish")["held"] is False
    told = {"site": site.site_folder, "control": site.control, "other": other.folder}
    run = Run(site, "".join(f"{name}={value}\n" for name, value in told.items()) + ATTACK, {"a.inp": b"1"})
    policy = (site.site_folder / "agent.ini").read_bytes()
    result = run.to_end()
    assert (site.site_folder / "agent.ini").read_bytes() == policy
    assert run.get("out/done.dat").stdout.decode() == f"done as {0 if wall == 'bwrap' else uid}\n"
    assert [entry["path"] for entry in result["files"] if entry["path"].startswith("out/")] == ["out/done.dat"]
    assert run.get("log/stdout.txt").stdout == b"", "it broke something"
    assert (run.folder / "state.json").stat().st_uid == 0


@pytest.mark.slow
def test_an_account_is_one_jobs_at_a_time(site: Guarded) -> None:
    """The second waits, as a push does that is told to come again; at the end every process of the account is gone."""
    need_root()
    uid = 200_000 + os.getpid() % 60_000 * 20 + 18
    site.law({"sh": {**SH, "run_as": f"{uid}:{uid}"}})
    first = Run(site, "setsid sleep 600 & touch a; while [ ! -e off ]; do sleep 0.05; done; rm off")
    second = Run(site, "id -u >b")
    first.to_start()
    second.good("enter", second.request())
    assert second.refused("prepare") == "busy"
    first.good("start")
    wait_until((first.work / "a").exists, 60, "it runs")
    assert second.refused("prepare") == "busy"
    (first.work / "off").touch()
    first.wait_exited()
    assert first.good("finish")["held"] is False
    left = [one for one in os.listdir("/proc") if one.isdigit() and _uid(one) == uid and proc.alive(int(one))]
    assert left == []
    assert second.good("prepare")["wrong"] == []
    second.good("start")
    second.wait_exited()
    second.good("finish")
    assert second.get("out/b").stdout.decode() == f"{uid}\n"


def _uid(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return -1
