"""tools/spoolctl as a user calls it, and jobs brought to an end without an agent."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from components.process import Process, run
from components.rig import REPO, Rig, write_ini
from spool.creation import SPOOL_UMASK
from spool.incoming import Incoming
from spool.records import JobState, Result
from spool.results import accept
from spool.store import Store

SITES = {"s": {"commands": "c"}}


class Ctl:
    """spoolctl over one spool that exists and has the site ``s`` with the command ``c``; a test may start the server."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.here = rig.root / "here"
        self.here.mkdir()
        self.store = Store.open(rig.spool, create=True)
        write_ini(rig.spool / "spool.ini", {"server": {}, "site s": SITES["s"]})
        (self.here / "a.inp").write_text("input\n")

    def __call__(
        self, *args: str | os.PathLike[str], code: int | None = 0, env: Mapping[str, str] | None = None, spool: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, which must be `code`."""
        words = ["--spool", self.rig.spool, *args] if spool else list(args)
        done = run([REPO / "tools" / "spoolctl", *words], env={**self.rig.env, **(env or {})}, cwd=self.here, check=False)
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *args: str | os.PathLike[str], log: str = "ctl.log") -> Process:
        """Run it in the background."""
        words = [REPO / "tools" / "spoolctl", "--spool", self.rig.spool, *args]
        process = Process(words, log=self.rig.root / log, env=self.rig.env, cwd=self.here)
        self.rig._processes.append(process)
        return process

    def serve(self) -> None:
        """Start the server; it leaves a link to its own ini, which has the same site."""
        (self.rig.spool / "spool.ini").unlink()
        self.rig.start_server(SITES)

    def remote(self, *roles: str, user: str = "mint") -> list[str]:
        """The options that reach the server with a new token."""
        path = self.here / f"token.{user}.{'.'.join(roles)}"
        path.write_text(self.rig.token(user, *(roles or ("submitter",))))
        path.chmod(0o600)
        return ["--url", self.rig.url, "--token", f"@{path}"]

    def submit(self, *args: str) -> str:
        """The id of a job that waits in the queue."""
        return self("submit", "--site", "s", "--command", "c", "--in", "a.inp", *args).stdout.split()[-1]

    def run(self, job_id: str) -> JobState:
        """Bring a queued job to running, as an agent would."""
        for state in self.store.claim("s", self.store.queue.users("s"), agent="agent", room=100):
            self.store.start(state.id, state.run_id, by="agent")
        return self.store.state(job_id)

    def bring(self, state: JobState, files: Mapping[str, bytes]) -> Incoming:
        """Have files (``out/...``, ``log/...``) of a running job arrive."""
        incoming = Incoming(self.store.paths.job(state.id).incoming_of(state.run_id))
        for name, data in files.items():
            here = incoming.offset(name)
            incoming.append(name, here, io.BytesIO(data[here:]), len(data) - here)
        return incoming

    def finish(self, job_id: str, files: Mapping[str, bytes], *, reason: str = "", message: str = "", exit_code: int = 0,
               withheld: Iterable[str] = ()) -> JobState:  # fmt: skip
        """End a queued or running job with these results."""
        state = self.run(job_id)
        incoming = self.bring(state, files)
        result = Result(
            id=job_id, run_id=state.run_id, attempt=state.attempt, exit_code=exit_code, reason=reason, message=message,
            files=tuple(incoming.entry(name) for name in files), withheld=tuple(withheld),
        )  # fmt: skip
        return accept(self.store, result, by="agent")

    def folder(self, job_id: str) -> Path:
        return self.rig.job(job_id)


@pytest.fixture
def ctl(rig: Rig) -> Iterator[Ctl]:
    before = os.umask(SPOOL_UMASK)  # as the programs set it, for what a test does to the spool by itself
    yield Ctl(rig)
    os.umask(before)
