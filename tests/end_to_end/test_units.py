"""etc/systemd: the units are right, score as promised, and take nothing away that the programs use.

systemd as process 1 is not needed: what a unit forbids is compared with what strace sees of a whole job, children included.
"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable

import pytest

from components.process import Process, run
from components.rig import REPO, Rig
from components.sshd import Sshd
from components.waiting import wait_until
from ssh.conftest import Pushed

UNITS = REPO / "etc" / "systemd"
HARDENED = ("mint-spool-server.service", "mint-spool-push.service")
MOST = 2.0
# Where the rest of /proc is asked though it may be hidden (ProcSubset=pid): libraries that then take a default.
GUESSES = ("/proc/filesystems", "/proc/sys/kernel/ngroups_max", "/proc/sys/crypto/fips_enabled", "/proc/sys/vm/overcommit_memory",
           "/proc/meminfo", "/proc/stat", "/proc/cpuinfo")  # fmt: skip


def settings(unit: str) -> Mapping[str, list[str]]:
    """The lines of [Service]: key -> values, in order; a key may come more than once."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text(encoding="utf-8").partition("[Service]")[2].partition("[Install]")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_units_are_right(tmp_path: Path) -> None:
    """systemd-analyze verify ends with 0 on an unknown key: what it says counts. The programs stand where the tests have them."""
    for unit in sorted(UNITS.glob("*.service")):
        text = unit.read_text(encoding="utf-8")
        text = text.replace("/opt/mint-spool/.venv/bin/python", sys.executable).replace("/opt/mint-spool/", f"{REPO}/")
        (tmp_path / unit.name).write_text(text)
        done = run(["systemd-analyze", "verify", tmp_path / unit.name], check=False, deadline_s=100)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), unit.name
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(text)
        program = re.findall(r"/(\S+\.py) ", parser["Service"]["ExecStart"])[0]
        assert Path("/", program).exists()


@pytest.mark.parametrize("unit", HARDENED)
def test_the_score(unit: str) -> None:
    threshold = str(round(MOST * 10))
    done = run(["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", UNITS / unit], deadline_s=100)
    score = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert len(score) == 1
    assert float(score[0]) <= MOST


def test_umasks() -> None:
    masks = {unit.name: settings(unit.name)["UMask"] for unit in UNITS.glob("*.service")}
    assert masks == {
        "mint-spool-server.service": ["0007"], "mint-spool-push.service": ["0007"], "mint-spool-agent.service": ["0077"],
    }  # fmt: skip


# ---- what they take away is not used


class Traced(Rig):
    """The product, its programs of that name under strace, with everything that they start."""

    traced = ""

    def _run_program(
        self, program: str, args: Iterable[str], cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        if program != self.traced:
            return super()._run_program(program, args, cwd, log, env)
        strace = ["strace", "-f", "-qq", "-s", "300", "-e", "signal=none", "-o", str(self.root / "strace")]
        argv = [*strace, sys.executable, REPO / program, *args]
        process = Process(argv, log=log, env={**self.env, **(env or {})}, cwd=cwd)
        self._processes.append(process)
        return process

    def calls(self) -> list[tuple[str, str]]:
        """(name, the rest of the line) of each system call that was made."""
        begun: dict[str, str] = {}
        whole = []
        for line in (self.root / "strace").read_text(errors="replace").splitlines():
            pid, _, call = line.partition(" ")
            if call.endswith("<unfinished ...>"):
                begun[pid] = call.partition(" <unfinished")[0]
            elif "resumed>" in call:
                whole.append(begun.pop(pid, "") + call.partition("resumed>")[2])
            else:
                whole.append(call)
        found = (re.match(r" *([a-z_0-9]+)\((.*)", call) for call in [*whole, *begun.values()])
        return [(match[1], match[2]) for match in found if match]


def allowed(unit: str) -> set[str]:
    """The system calls that a unit lets through."""
    sets: dict[str, list[str]] = {}
    name = ""
    for line in run(["systemd-analyze", "syscall-filter", "--no-pager"], deadline_s=100).stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
        elif line.startswith("    ") and not line.strip().startswith("#"):
            sets.setdefault(name, []).append(line.strip())

    def calls(word: str) -> set[str]:
        return set().union(*(calls(one) for one in sets[word])) if word.startswith("@") else {word}

    found: set[str] = set()
    for line in settings(unit)["SystemCallFilter"]:
        words = set().union(*(calls(word) for word in line.lstrip("~").split()))
        found = found - words if line.startswith("~") else found | words
    return found


def forbidden(rig: Traced, unit: str) -> list[str]:
    """What the run did that the unit would not let it do."""
    lets, found = allowed(unit), []
    families = set(" ".join(settings(unit)["RestrictAddressFamilies"]).split())
    for name, rest in rig.calls():
        if name not in lets:
            found.append(f"{name}({rest}")
        family = re.match(r"(AF_\w+)", rest) if name in ("socket", "socketpair") else None
        if family and family[1] not in {*families, "AF_NETLINK"}:
            found.append(f"{name}({rest}")
        if name in ("mmap", "mprotect", "pkey_mprotect") and "PROT_EXEC" in rest and ("PROT_WRITE" in rest or name != "mmap"):
            found.append(f"MemoryDenyWriteExecute: {name}({rest}")
        opened = re.match(r'AT_FDCWD, "(/[^"]*)", (\S+).* = \d+', rest) if name == "openat" else None
        if opened and not _may_open(rig, opened[1], opened[2]):
            found.append(f"openat({rest}")
    return sorted(set(found))


def _may_open(rig: Traced, path: str, flags: str) -> bool:
    if path.startswith("/proc/") and not re.match(r"/proc/(self|thread-self|\d+)/", path):
        return path in GUESSES
    if path.startswith(("/home/", "/root/")):
        return path.startswith((sys.prefix, sys.base_prefix, str(REPO)))  # where the tests have what stands in /opt
    if not re.search("O_WRONLY|O_RDWR|O_CREAT", flags):
        return True
    own = (str(rig.root), "/tmp/", "/dev/null", "/dev/tty")  # /tmp is the unit's own
    return f"{path}/".startswith(own) or "__pycache__" in path


@pytest.fixture
def traced(tmp_path: Path) -> Iterable[Traced]:
    rig = Traced(tmp_path / "rig")
    yield rig
    rig.close()


def end(rig: Traced, process: Process) -> None:
    """Stop the program under strace: strace passes no signal on."""
    run(["pkill", "-TERM", "-P", str(process.pid)])
    process.wait(60)


@pytest.mark.slow
def test_the_server_s_unit_lets_it_work(traced: Traced) -> None:
    traced.traced = "spool_server.py"
    server = traced.start_server({"site-a": {"commands": "*"}}, deadline_s=60)
    big = traced.root / "big"
    big.write_bytes(bytes(3_000_000))
    job = traced.submit("site-a", "sh", "--arg=cp big out.dat; echo x >b.dat", "--in", big, "--out", "*.dat")
    traced.start_agent("site-a", {"sh": {"argv": "/bin/sh -c {args}", "args": ".*"}}, poll_s="0.3")
    traced.wait_state(job, "completed", deadline_s=100)
    end(traced, server)
    names = {name for name, _ in traced.calls()}
    assert {"accept4", "fsync", "poll", "openat"} <= names, "it was seen at work"
    assert forbidden(traced, "mint-spool-server.service") == []


@pytest.mark.slow
def test_the_push_s_unit_lets_it_work(traced: Traced, make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    traced.traced = "ssh_push.py"
    base = tmp_path / "base"
    base.mkdir()
    push = Pushed(traced, make_sshd(), base, {})
    process = push.start()
    job = push.drop("sh", "-c", "cp a.dat b.dat", inputs={"a.dat": b"x" * 100_000}, outputs=["*.dat"])
    traced.wait_state(job, "completed", deadline_s=100)
    end(traced, process)
    wait_until(lambda: not process.running, 20, "strace ended")
    programs = {rest.split('"')[1] for name, rest in traced.calls() if name == "execve" and rest.endswith("= 0")}
    assert {"ssh", "rsync"} <= {Path(path).name for path in programs}
    assert forbidden(traced, "mint-spool-push.service") == []
