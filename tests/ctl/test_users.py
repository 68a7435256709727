"""Users, logging in from both clients, and that no password or token stands where another account could read it."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.rig import REPO, write_ini
from components.waiting import wait_until
from spool.passwords import read_password

PASSWORD = "tr0ub4dor and three"


@pytest.fixture
def served(ctl: Any) -> Any:
    """A running server with the user alice."""
    ctl.serve()
    password = ctl.here / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    ctl("user", "add", "alice", "--role", "submitter", "--role", "agent", "--password", "@password")
    return ctl


def typed(words: list[str], answers: list[str], cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    """Run a program on a terminal of its own, type an answer at each prompt; its exit code and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(words[0], words, env)
    shown, left = "", list(answers)
    try:
        while select.select([terminal], [], [], 60)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data.decode("utf-8", "replace")
            if left and shown.rstrip().endswith(("User:", "Password:", "Again:")):
                os.write(terminal, (left.pop(0) + "\n").encode())
                shown += "<typed>"
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert left == [], shown
    return os.waitstatus_to_exitcode(status), shown


def agent_ini(ctl: Any) -> Path:
    agent = {"site": "s", "url": ctl.rig.url, "token_file": "token", "base": "base"}
    return write_ini(ctl.here / "agent.ini", {"agent": agent, "command c": {"argv": "/bin/true"}})


def test_users(ctl: Any) -> None:
    (ctl.here / "p").write_text("a good password\n")
    ctl("user", "ls")
    ctl("user", "add", "alice", "--role", "submitter", "--password", "@p", code=78)
    (ctl.here / "p").chmod(0o600)
    ctl("user", "add", "alice", "--role", "submitter", "--site", "s", "--password", "@p")
    ctl("user", "add", "alice", "--role", "submitter", "--password", "@p", code=1)
    ctl("user", "add", "bob", "--role", "king", "--password", "@p", code=2)
    ctl("user", "add", "b b", "--role", "agent", "--password", "@p", code=2)
    given = ctl("user", "add", "bob", "--role", "agent", "--password", "in-the-clear", code=78)
    assert "in-the-clear" not in given.stdout + given.stderr
    (ctl.here / "p").write_text("short\n")
    ctl("user", "passwd", "alice", "--password", "@p", code=2)
    (listed,) = json.loads(ctl("user", "ls", "--json").stdout)["users"]
    assert (listed["user"], listed["roles"], listed["sites"]) == ("alice", ["submitter"], ["s"])
    assert set(listed) == {"user", "roles", "sites", "changed_at"}
    ctl("user", "remove", "bob", code=1)
    ctl("user", "remove", "alice")
    assert json.loads(ctl("user", "ls", "--json").stdout)["users"] == []


def test_a_password_is_typed_without_echo(ctl: Any) -> None:
    words = [sys.executable, str(REPO / "tools" / "spoolctl"), "--spool", str(ctl.rig.spool), "user", "add"]
    words += ["carol", "--role", "agent"]
    code, shown = typed(words, [PASSWORD, PASSWORD], ctl.here, {**ctl.rig.env, "LC_ALL": "C"})
    assert code == 0, shown
    assert PASSWORD not in shown
    code, shown = typed([*words[:-3], "dave", "--role", "agent"], [PASSWORD, "another one here"], ctl.here, ctl.rig.env)
    assert code == 78, shown


def test_spoolctl_logs_in(served: Any) -> None:
    where = ["--url", served.rig.url, "--token", "@mine"]
    served(*where, "login", "--user", "alice", "--password", "@password", spool=False)
    path = served.here / "mine"
    assert path.stat().st_mode & 0o777 == 0o600
    served(*where, "ls", spool=False)
    former = path.read_text()
    refused = served(*where, "login", "--user", "bob", "--password", "@password", spool=False, code=77)
    assert path.read_text() == former
    assert PASSWORD not in refused.stdout + refused.stderr
    served("--url", served.rig.url, "login", spool=False, code=2)
    served("--url", "http://mint.example", "--token", "@mine", "login", "--password", "@password", spool=False, code=2)


def test_the_agent_logs_in_and_works(served: Any) -> None:
    ini = agent_ini(served)
    words = [sys.executable, str(REPO / "spool_agent.py"), "login", "--config", str(ini)]
    code, shown = typed(words, ["alice", PASSWORD], served.here, served.rig.env)
    assert code == 0, shown
    token = served.here / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    secret = token.read_text().strip()
    assert PASSWORD not in shown
    assert secret not in shown
    run = [sys.executable, str(REPO / "spool_agent.py"), "--config", str(ini), "--once"]
    done = subprocess.run(run, cwd=served.here, env=served.rig.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    piped = subprocess.run(
        [*words, "--user", "alice", "--password", "-"], cwd=served.here, env=served.rig.env, input="no such password\n",
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    assert piped.returncode == 77, piped.stderr
    assert "no such password" not in piped.stdout + piped.stderr
    assert token.read_text().strip() == secret
    silent = subprocess.run(
        [*words, "--user", "alice"], cwd=served.here, env=served.rig.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    assert silent.returncode == 78
    assert "no terminal" in silent.stderr


def test_what_a_password_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes("パスワード です\r\n".encode())
    path.chmod(0o600)
    assert read_password(f"@{path}") == "パスワード です"


# ---- where another account could read it


def test_no_secret_in_process_lists_logs_or_traces(served: Any) -> None:
    """While they run: arguments and environment of every process of the rig; afterwards every file but those that hold it."""
    where = ["--url", served.rig.url, "--token", "@mine"]
    served(*where, "login", "--user", "alice", "--password", "@password", spool=False)
    secret = (served.here / "mine").read_text().strip()
    command = {"argv": "/bin/sh -c 'cat /proc/self/environ; sleep 60'"}
    agent = served.rig.start_agent("s", {"c": command}, token=secret, user="alice")
    agent.wait_for_output("event=started_agent", 60)
    job = served.rig.submit("s", "c", user="alice")
    served.rig.wait_state(job, "running", deadline_s=60)
    looked = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            looked.add(int(folder.name))
        except OSError:
            continue
        assert secret.encode() not in told, folder
        assert PASSWORD.encode() not in told, folder
    assert {agent.pid, served.rig.pid_of("spool_server.py")} <= looked
    kept = {served.here / "mine", served.here / "password", served.rig.agent_folder("s") / "token"}
    for path in served.rig.root.rglob("*"):
        if path.is_file() and path not in kept:
            data = path.read_bytes()
            assert secret.encode() not in data, path
            assert PASSWORD.encode() not in data, path


def core_of(words: list[str], cwd: Path, env: dict[str, str], ready: str, how: signal.Signals) -> bool:
    """Run a program with core files allowed, kill it by `how` once it has said `ready`; whether the kernel dumped its memory."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert hard != 0, "this test needs a system that allows core files"
    said = cwd / "said"
    said.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
            os.chdir(cwd)
            fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.execvpe(words[0], words, env)
        finally:
            os._exit(99)
    try:
        wait_until(lambda: said.exists() and ready in said.read_text(errors="replace"), 60, f"{ready} of {words[1]}")
    finally:
        os.kill(pid, how)
        _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == how, said.read_text()
    return os.WCOREDUMP(status)


@pytest.mark.parametrize("how", [signal.SIGABRT, signal.SIGSEGV])
def test_no_core_file(served: Any, tmp_path: Path, how: signal.Signals) -> None:
    """Of agent, server and push none, although the system allows it: a program of the same kind leaves one."""
    env, place = served.rig.env, tmp_path / "cores"
    place.mkdir()
    plain = "import time; print('ready', flush=True); time.sleep(60)"
    assert core_of([sys.executable, "-c", plain], place, env, "ready", how), "the kernel writes core files here"
    for path in place.iterdir():
        path.unlink()
    ini = agent_ini(served)
    served("--url", served.rig.url, "--token", "@token", "login", "--user", "alice", "--password", "@password", spool=False)
    server = write_ini(place.parent / "other.ini", {"server": {"spool": place.parent / "other", "listen": "127.0.0.1:0"}})
    site = {"mode": "ssh", "host": "nowhere"}
    push = write_ini(place.parent / "push.ini", {"server": {"spool": served.rig.spool}, "site x": site})
    programs = [
        (["spool_agent.py", "--config", str(ini)], "event=started_agent"),
        (["spool_server.py", "--config", str(server)], "event=serving"),
        (["ssh_push.py", "--config", str(push)], "event="),
    ]
    for words, ready in programs:
        assert not core_of([sys.executable, str(REPO / words[0]), *words[1:]], place, env, ready, how), words
    assert [path.name for path in place.iterdir()] == ["said"]
