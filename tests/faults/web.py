"""A company whose jobs count their starts, behind a proxy that can be told to misbehave; and a second agent of the same site."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.company import SITE, Company, noise, pid_of
from agent.wire import Request, Wire
from components.process import Process
from components.rig import write_ini
from components.waiting import wait_until

MIB = 1 << 20
BIG = noise(MIB + 200_000, "big")
SMALL = {f"小さい {number}.inp": noise(500 + number, str(number)) for number in range(6)}
COUNT = 'echo "$PWD" >>{count}/$MINT_SPOOL_JOB'
UNTIL_GO = "echo $$ >pid; while ! [ -e {go}/$MINT_SPOOL_JOB ]; do sleep 0.05; done"
CALLS = ("state", "job.json", "in.tar", "input", "head", "patch", "out.tar", "finish")


def call_of(request: Request) -> str:
    """Which of `CALLS` a request is, or `sync`, or nothing of interest."""
    path = request.path.partition("?")[0]
    if path == "/v1/sync":
        return "sync"
    parts = path.split("/")[4:]  # after /v1/jobs/ID
    if parts[:2] == ["files", "in"]:
        return "input"
    if parts[:2] == ["files", "out"]:
        return request.method.lower()
    if parts[:2] == ["files", "log"]:
        return ""
    return parts[-1] if parts else "state"


def job_of(request: Request) -> str:
    """The id of the job that a request is about; empty for a sync."""
    parts = request.path.partition("?")[0].split("/")
    return parts[3] if len(parts) > 3 else ""


class Web(Company):
    """`wire` stands between agent and server. Jobs say in `count/ID` where they were started, and wait for `go/ID`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.options.update(poll_s="0.5", wait_s=2)
        self.count, self.gate = self.rig.root / "count", self.rig.root / "go"
        self.count.mkdir()
        self.gate.mkdir()
        self.server = self.serve()
        self.wire = Wire(self.rig.port)

    def start(self, *args: str, **options: Any) -> Process:
        return super().start(*args, **{"url": self.wire.url, **options})

    def second(self, name: str = "second", **options: Any) -> Process:
        """Another agent of the same site and user, with a base, a token and a log of its own below `agents/NAME`."""
        folder = self.rig.root / "agents" / name
        (folder / "base").mkdir(parents=True, mode=0o700, exist_ok=True)
        token = folder / "token"
        if not token.exists():
            token.write_text(self.rig.token("mint", "agent", site=SITE))
            token.chmod(0o600)
        agent = {"site": SITE, "url": self.rig.url, "token_file": "token", "base": "base", **self.options, **options}
        commands = {f"command {key}": section for key, section in self.commands.items()}
        write_ini(folder / "agent.ini", {"agent": agent, "release": self.release, **commands})
        return self.rig._run_program("spool_agent.py", ["--config", "agent.ini"], folder, folder / "log")

    def restart_server(self) -> None:
        """As after a crash."""
        self.server.kill()
        self.server = self.serve(deadline_s=60)

    # ---- jobs

    def counting(self, script: str, **more: Any) -> str:
        """A job that counts its starts, then runs `script`."""
        count = COUNT.format(count=self.count)
        return self.sh(f"{count}; {script}", **more)

    def at_once(self, *, full: bool = False) -> str:
        """A job that ends at once; `full`: with files enough for every call of the protocol."""
        if not full:
            return self.counting("cat in.bin >out.bin", inputs={"in.bin": BIG}, outputs=("out.bin",))
        copy = "for name in *.inp; do cp \"$name\" \"$name.dat\"; done; cat big.bin >big.dat"
        return self.counting(copy, inputs={"big.bin": BIG, **SMALL}, outputs=("*.dat",))

    def waiting(self, then: str = 'echo "$PWD" >out.dat') -> str:
        """A job whose command waits for `go`."""
        return self.counting(f"{UNTIL_GO.format(go=self.gate)}; {then}", outputs=("out.dat",))

    def go(self, job: str) -> None:
        (self.gate / job).touch()

    def pid(self, job: str, agent: str = SITE) -> int:
        """The pid of a waiting job's command, at that agent."""
        return pid_of(self.rig.root / "agents" / agent / "base" / job / "work" / "pid", 60)

    def starts(self, job: str) -> list[str]:
        """Where the command was started, once for each start: work folders."""
        path = self.count / job
        return path.read_text().splitlines() if path.exists() else []

    def right(self, job: str, deadline_s: float = 90) -> None:
        """Completed in its first attempt after exactly one start, accepted once, with the right bytes."""
        out = self.completed(job, deadline_s)
        if out.keys() == {"out.bin"}:
            assert out == {"out.bin": BIG}
        elif "big.dat" in out:
            assert out == {"big.dat": BIG, **{f"{name}.dat": data for name, data in SMALL.items()}}
        assert len(self.starts(job)) == 1, "the command was started more than once"
        assert self.rig.state(job)["attempt"] == 1
        wait_until(lambda: self.ends(job), 30, "the history follows the state")
        assert len(self.ends(job)) == 1, "the result was accepted more than once"

    def history(self, job: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.rig.job(job) / "history.jsonl").read_text().splitlines()]

    def ends(self, job: str) -> list[dict[str, Any]]:
        """The changes of the history that ended an attempt."""
        final = ("completed", "failed", "canceled", "expired")
        return [line for line in self.history(job) if line["to"] in final and line["from"] != line["to"]]

    def late(self, job: str) -> Iterator[str]:
        """The runs whose late results are kept aside."""
        folder = self.rig.job(job) / "late"
        yield from (name[: -len(".json")] for name in (sorted(os.listdir(folder)) if folder.exists() else ()))

    def said(self, agent: str = SITE) -> str:
        return (self.rig.root / "agents" / agent / "log").read_text(errors="replace")

    def says(self, text: str, agent: str = SITE, deadline_s: float = 60) -> None:
        wait_until(lambda: text in self.said(agent), deadline_s, f"{text!r} in the log of {agent}")

    def close(self) -> None:
        super().close()
        self.wire.close()
