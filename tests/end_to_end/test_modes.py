"""Who may read what a job leaves behind: the modes of every file on both sides, whatever umask the programs inherit."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until
from ssh.conftest import Pushed

OWNERS = {"tokens.json": 0o600, "spool.json": 0o640}  # the owner's to write
PUSH_S = ("run", "argv", "env")  # folders of a job that the push alone uses
IN, OUT = "a.dat", "b.dat"


@contextmanager
def inherited(umask: int) -> Iterator[None]:
    """What is started within has this umask, as from a careless or a strict service manager."""
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def modes(root: Path, *but: str) -> dict[str, int]:
    """Path -> mode (set-group-id and sticky bits too) of all below `root`, links left out."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            info = path.lstat()
            short = str(path.relative_to(root))
            if not stat.S_ISLNK(info.st_mode) and not short.startswith(but):
                found[short + ("/" if stat.S_ISDIR(info.st_mode) else "")] = stat.S_IMODE(info.st_mode)
    return found


def check_spool(rig: Rig) -> None:
    """Nothing for others; folders carry the group, and files are the group's to read and write."""
    found = modes(rig.spool)
    assert "jobs/" in found
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o007} == {}
    folders = {path: oct(mode) for path, mode in found.items() if path.endswith("/") and mode & 0o2770 != 0o2770}
    assert {path for path in folders if Path(path).name not in PUSH_S} == set(), folders
    own = {path: mode for path, mode in found.items() if not path.endswith("/") and mode & 0o060 != 0o060}
    assert all(OWNERS.get(Path(path).name) == mode or Path(path).parent.name in PUSH_S for path, mode in own.items()), own


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["000", "077"])
def test_a_job_of_the_web_api(rig: Rig, tmp_path: Path, umask: int) -> None:
    source = tmp_path / IN
    source.write_bytes(b"x" * 100_000)
    with inherited(umask):
        rig.start_server({"site-a": {"commands": "*"}}, deadline_s=60)
        job = rig.submit("site-a", "sh", f"--arg=mkdir d; cp {IN} d/{OUT}; echo said", "--in", source, "--out", "d/*")
        agent = rig.agent_folder("site-a")
        rig.start_agent("site-a", {"sh": {"argv": "/bin/sh -c {args}", "args": ".*"}}, poll_s="0.3", log="agent.log")
        rig.wait_state(job, "completed", deadline_s=100)
    check_spool(rig)
    wait_until((agent / "base" / job / "result.json").exists, 60, "the agent has noted the end")
    found = modes(agent / "base")
    assert f"{job}/work/d/{OUT}" in found
    assert f"{job}/in/{IN}" in found
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}, "only the agent's account"
    assert stat.S_IMODE((agent / "agent.log").stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["000", "077"])
def test_a_job_of_the_push(rig: Rig, sshd: Sshd, tmp_path: Path, umask: int) -> None:
    base = tmp_path / "base"
    base.mkdir()
    push = Pushed(rig, sshd, base, {})
    with inherited(umask):
        push.start()
    with inherited(0o007):  # the folder that is handed in has its maker's modes
        job = push.drop("sh", "-c", f"mkdir d; cp {IN} d/{OUT}; echo said", inputs={IN: b"x" * 100_000}, outputs=["d/*"])
        rig.wait_state(job, "completed", deadline_s=100)
    check_spool(rig)
    found = modes(base)
    assert {f"{job}/in/{IN}", f"{job}/work/d/{OUT}"} <= set(found)
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
