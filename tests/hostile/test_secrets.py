"""Tokens in nothing but their files: not in process lists, environments, logs, folders, answers or core files."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.company import COMMANDS, SITE, Company
from agent.wire import Act, Request, Rule, Wire
from components.figures import tell
from components.process import Process
from components.rig import REPO, write_ini
from components.waiting import wait_until

CORES = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Watcher:
    """Reads the command line and the environment of every process, as fast as it can, until the end of the `with`."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets = secrets
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.found: set[tuple[str, bytes]] = set()
        self.rounds = 0

    def _work(self) -> None:
        own = {str(os.getpid()), "self", "thread-self"}
        while not self._ends.is_set():
            for pid in (entry for entry in os.listdir("/proc") if entry.isdigit() and entry not in own):
                for kind in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        text = Path(f"/proc/{pid}/{kind}").read_bytes()
                        if any(secret.encode() in text for secret in self._secrets):
                            self.found.add((kind, text[:300]))
            self.rounds += 1

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        wait_until(lambda: self.rounds > 0, 60, "a look at every process")
        self._ends.set()
        self._thread.join()


def holding(root: Path, secrets: list[str]) -> list[str]:
    """The files below `root` in which a secret stands."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets):
                    found.append(str(path.relative_to(root)))
    return sorted(found)


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    made = Company(tmp_path / "rig")
    yield made
    made.close()


@pytest.fixture
def core_files() -> Iterator[None]:
    """As many as there may be, for what this test starts."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]) if os.geteuid() else CORES)
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (before[0], before[1]))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_job_and_every_trouble(company: Company, core_files: None) -> None:
    """A job through a proxy that errs, a token that is replaced, one that is refused, 429, debug on, and deaths by signal."""
    server = company.serve()
    first, second, wrong = company.rig.token("mint", "agent"), company.rig.token("mint", "agent"), "ab" * 32
    secrets = [first, second, wrong, company.rig.token("mint", "operator")]
    company.commands = {**COMMANDS, "own": {"argv": "/bin/sh -c {args}", "args": "(?s).*", "env_allow": "X"}}
    wire = Wire(company.rig.port, _erring())
    folder = company.folder
    (folder / "token").write_text(f"{first}\n")
    (folder / "token").chmod(0o600)
    try:
        with Watcher(secrets) as watcher:
            agent = company.start(url=wire.url)
            company.completed(company.sh("env; cat /proc/self/environ; ps axeww || true; echo ok >a", outputs=("a",)), 90)
            _replace(folder / "token", second)
            agent.wait_for_output("token_read_again", 60)
            company.completed(company.sh("echo ok >b", outputs=("b",)), 90)
            _replace(folder / "token", wrong)
            wait_until(lambda: "event=bad_token" in server.output(), 60, "the wrong token is refused")
            wait_until(lambda: "too_many_tries" in server.output() or _try(company, wrong), 60, "429")
            _replace(folder / "token", second)
            company.completed(company.sh("echo ok >c", outputs=("c",)), 90)
            agent.signal(signal.SIGSEGV)
            agent.wait(30)
            (folder / "log").rename(folder / "log.1")
            again = company.start(url=wire.url)
            again.wait_for_output("event=", 60)  # before that it has not read its token
            again.signal(signal.SIGABRT)
            again.wait(30)
            server.signal(signal.SIGSEGV)
            server.wait(30)
        assert watcher.found == set()
        assert holding(company.rig.root, secrets) == [f"agents/{SITE}/token"]
        cores = [path for path in company.rig.root.rglob("core*") if path.is_file()]
        assert cores == []
        tell(f"hostile: /proc read {watcher.rounds} times during jobs with every trouble: 0 bytes of a token but in its file")
    finally:
        wire.close()


def _erring() -> Rule:
    """Of every few requests one is answered by a proxy's page, a 502, a login page or nothing."""
    acts = [Act(status=502), Act(status=407), Act(status=200), Act(lose=True), Act(cut_answer=10)]
    acts.append(Act(status=302, headers={"Location": "/x"}))
    count = [0]

    def rule(request: Request) -> Act | None:
        count[0] += 1
        return acts[count[0] // 4 % len(acts)] if count[0] % 4 == 0 and count[0] < 60 else None

    return rule


def _replace(path: Path, token: str) -> None:
    temp = path.with_name("token.new")
    temp.write_text(f"{token}\n")
    temp.chmod(0o600)
    temp.replace(path)


def _try(company: Company, token: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", company.rig.port, timeout=30)
    try:
        connection.request("GET", "/v1/jobs", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == 429
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("form", ["file", "word"])
def test_the_published_command_line(company: Company, core_files: None, form: str) -> None:
    """By @FILE nothing shows the token; as a word it stands in the process list, as published, and that is warned of."""
    company.serve()
    token = company.rig.token("mint", "agent")
    folder = company.folder
    (folder / "token").write_text(f"{token}\n")
    (folder / "token").chmod(0o600)
    host, port = "http://127.0.0.1", company.rig.port
    ini = company.rig.home / ".config" / "mint-spool" / "agent.ini"
    ini.parent.mkdir(parents=True)
    write_ini(ini, {"agent": {"poll_s": "0.3"}})
    words = [SITE, host, f"@{folder}/token" if form == "file" else token, f"port:{port}", f"calc_base:{folder}/base", "debug"]
    with Watcher([token]) as watcher:
        agent = Process(
            [sys.executable, REPO / "spool_agent.py", *words], log=folder / "log", env=company.rig.env, cwd=folder
        )
        try:
            agent.wait_for_output("event=", 60)
            agent.wait_for_output(token[-4:], 60)
            agent.signal(signal.SIGSEGV)
            agent.wait(60)
        finally:
            agent.close()
    if form == "file":
        assert watcher.found == set()
    else:
        assert {kind for kind, _ in watcher.found} == {"cmdline"}
        assert "can be seen by everyone on this host" in agent.output()
    assert holding(company.rig.root, [token]) == [f"agents/{SITE}/token"]
    assert [path for path in folder.rglob("core*") if path.is_file()] == []
