"""A workflow module as it calls tools/mi-system-wf.py: its current directory, a server to speak to, and a published poller."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from components.process import Process, clean_env
from components.rig import REPO
from components.waiting import wait_until
from published.their_poller import TheirPoller
from published.their_server import TheirServer

SITE, TOKEN, COMMAND = "nims-dev", "5" * 64, "sh job.sh"


class Module:
    """A workflow module's current directory with a job.sh, the published server, and a poller that a test may start."""

    def __init__(self, root: Path, server: TheirServer) -> None:
        self.server = server
        self.here = root / "module"
        self.here.mkdir()
        self.home = root / "home"
        self.home.mkdir()
        (self.home / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
        (self.home / ".netrc").chmod(0o600)
        self.log = root / "log"
        self.poller = TheirPoller(server.url, SITE, TOKEN, root / "base", scale=0.0005)
        self.base = root / "base"
        self._threads: list[threading.Thread] = []
        self._processes: list[Process] = []
        self.script("")

    def script(self, text: str) -> None:
        """What the command does."""
        (self.here / "job.sh").write_text(text, encoding="utf-8")

    def poll(self) -> None:
        """Have the poller do one job."""
        self._threads.append(threading.Thread(target=self.poller.run_one))
        self._threads[-1].start()

    def start(
        self, ins: str = "job.sh", outs: str = "out.dat", *, url: str = "", site: str = SITE, token: str = TOKEN,
        command: str = COMMAND, before: tuple[str, ...] = (), **env: str,
    ) -> Process:  # fmt: skip
        """The program, in the background."""
        words = [*before, sys.executable, str(REPO / "tools" / "mi-system-wf.py")]
        words += [url or self.server.url, site, token, command, ins, outs, "a b"]
        self._processes.append(Process(words, log=self.log, env=clean_env(self.home, **env), cwd=self.here))
        return self._processes[-1]

    def run(self, ins: str = "job.sh", outs: str = "out.dat", *, code: int = 0, url: str = "", site: str = SITE,
            token: str = TOKEN, command: str = COMMAND, before: tuple[str, ...] = (), **env: str) -> str:  # fmt: skip
        """The program to its end, which must be `code`; returns what it said."""
        started = self.start(ins, outs, url=url, site=site, token=token, command=command, before=before, **env)
        found = started.wait(60)
        assert found == code, f"{found}\n{started.output()}"
        assert not [name for name in os.listdir(self.here) if name.startswith(".")]
        return started.output()

    def asked(self, call: str) -> int:
        """How often the server was asked that."""
        return sum(f"/{call}" in path for _, path in list(self.server.requests))

    def wait_for(self, call: str, times: int = 1) -> str:
        """Until the server was asked that so often; returns the latest accept_id."""
        wait_until(lambda: self.asked(call) >= times, 20, f"{times} x {call}")
        return list(self.server.jobs)[-1]

    def returned(self, accept_id: str, files: dict[str, dict[str, str]], word: str = "calc end") -> None:
        """Do the poller's part step by step, sending these files."""
        poller = self.poller
        for step in (poller.params, poller.params_complete, poller.start):
            assert step(accept_id).status_code == 200
        poller.end(accept_id, word)
        poller.send_results(accept_id, files)
        poller.end_send(accept_id)

    def close(self) -> None:
        self.poller.stop()
        for process in self._processes:
            process.close()
        for thread in self._threads:
            thread.join(20)
