"""The product on hosts of its own: server and push at MInt, an agent or an sshd in each company (`components.netns`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from components.netns import Host, Line, Net
from components.process import Process
from components.rig import Rig, Section, Value
from components.sshd import Sshd
from components.waiting import wait_until
from spool.names import new_id

STALL_S = 4  # the least that the programs take
SH: Mapping[str, Section] = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*"}}
FINAL = ("completed", "failed", "canceled", "expired")


class NetRig(Rig):
    """A rig over a `Net`. Site `siteN` is in company N, counted from 1; its line is `line("siteN")`."""

    def __init__(self, root: Path, net: Net) -> None:
        super().__init__(root)
        self.net, self.address = net, net.mint.address
        self.url = f"http://{net.mint.address}:{self.port}"
        self.counter = root / "counter"

    @staticmethod
    def _number(site: str) -> int:
        return int(site[len("site") :]) - 1

    def company(self, site: str) -> Host:
        return self.net.companies[self._number(site)]

    def line(self, site: str) -> Line:
        return self.net.lines[self._number(site)]

    # ---- the programs, each on its host

    def start_server(self, *args: Any, **options: Any) -> Process:
        there = {"listen": f"{self.net.mint.address}:{self.port}", "allow_http": "yes", **options}
        return super().start_server(*args, **{"deadline_s": 60, **there})

    def start_agent(self, site: str, commands: Mapping[str, Section] = SH, *args: str, **options: Any) -> Process:
        ours: dict[str, Value] = {"allow_http": "yes", "stall_s": STALL_S, "poll_s": "0.5", "heartbeat_s": "60"}
        return super().start_agent(site, commands, *args, **{**ours, **options})

    def agent_log(self, site: str) -> str:
        return (self.agent_folder(site) / "log").read_text(encoding="utf-8", errors="replace")

    def _run_program(
        self, program: str, args: Iterable[str], cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        host = self.company(cwd.name) if program == "spool_agent.py" else self.net.mint
        start = super()._run_program
        return host.within(lambda: start(program, args, cwd, log, env))

    def health(self) -> int | None:
        """The status of `GET /health`, asked on MInt's host; None when nothing answers."""
        return self.net.mint.within(super().health)

    # ---- jobs

    def drop(self, site: str, script: str, inputs: Mapping[str, bytes] | None = None, **more: Any) -> str:
        """Hand in a job of `sh -c SCRIPT`, which first appends its id to the counter; returns its id."""
        job_id = new_id()
        making = self.root / "making" / job_id
        (making / "in").mkdir(parents=True)
        for name, data in (inputs or {}).items():
            (making / "in" / name).write_bytes(data)
        # An agent's command is `sh -c` by its agent.ini; at an ssh site it is the job's.
        counted = f'echo {job_id} >>"{self.counter}"; {script}'
        args = [counted] if (self.root / "agents" / site).exists() else ["-c", counted]
        job = {"site": site, "command": "sh", "args": args, "inputs": list(inputs or {}), "outputs": ["*.out"]}
        job.update({"user": "mint", **more})
        (making / "job.json").write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        making.rename(self.spool / "drop" / job_id)
        return job_id

    def ended(self, job_id: str, deadline_s: float = 120) -> dict[str, Any]:
        return self.wait_state(job_id, *FINAL, deadline_s=deadline_s)

    def starts(self, job_id: str) -> int:
        """How often the job's command was started, over all attempts."""
        return self.counter.read_text().split().count(job_id) if self.counter.exists() else 0

    def out(self, job_id: str, name: str) -> bytes:
        return (self.job(job_id) / "out" / name).read_bytes()

    def ended_well(self, job_id: str, wanted: Mapping[str, bytes], deadline_s: float = 120) -> None:
        """Completed, started once, accepted once, and each output as it must be."""
        state = self.ended(job_id, deadline_s)
        assert state["state"] == "completed", state
        assert self.starts(job_id) == 1, f"started {self.starts(job_id)} times"
        for name, data in wanted.items():
            assert self.out(job_id, name) == data, f"{name} is not what the command wrote"
        # The history is written after the state.
        wait_until(lambda: self._ends(job_id) >= 1, 30, f"the history of {job_id} tells its end")
        assert self._ends(job_id) == 1, f"accepted {self._ends(job_id)} times"

    def _ends(self, job_id: str) -> int:
        history = map(json.loads, (self.job(job_id) / "history.jsonl").read_text().splitlines())
        return sum(line["to"] in FINAL and line["from"] != line["to"] for line in history)


class CompanySshd(Sshd):
    """An sshd on a company's host."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        super().__init__(name, address=host.address)

    def start(self) -> None:
        self._host.within(super().start)

    def site(self, **options: Value) -> Section:
        """The site's section in spool.ini."""
        there: dict[str, Value] = {
            "mode": "ssh", "host": self.name, "ssh_config": self.ssh_config, "base": self.home / "base", "commands": "*",
            "stall_s": STALL_S, "connect_timeout_s": STALL_S,
        }  # fmt: skip
        return {**there, **options}
