"""The company's agent against a published server: a double that is nobody's code here, and the real spool_agent.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.company import pid_of
from components.process import Process
from components.rig import Rig, Section
from components.waiting import wait_until
from published.their_server import TheirServer
from published.their_submitter import ALWAYS, TheirSubmitter, calc_info

SITE, TOKEN, WRONG_TOKEN = "nims-dev", "5" * 64, "6" * 64
COMMAND = "/opt/solver/run.sh"
STDOUT, STDERR = ALWAYS
COMMANDS: dict[str, Section] = {COMMAND: {"argv": "/bin/sh job.sh"}}
STEPS = ("calc-request", "calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results", "end-send")
COUNT = "echo x >> ../../count"
UNTIL_GO = f"{COUNT}; echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done; echo done > out.dat"
MANY = 1_000_000


class Abroad:
    """`submit` registers a job whose command is a script, `start` starts the agent (again), `ended` waits for the job's end."""

    def __init__(self, root: Path, **how: Any) -> None:
        """`how` is for `TheirServer`: repeatable, finish_abandoned, ssl_context."""
        self.rig = Rig(root)
        sites = {SITE: [COMMAND, "/opt/other"], "elsewhere": [COMMAND]}
        self.server = TheirServer(sites, {TOKEN: "user"}, **how).__enter__()
        self.submitter = TheirSubmitter(self.server.url, TOKEN, verify=False)
        self.commands: dict[str, Section] = dict(COMMANDS)
        self.release: Section = {"allow": "**", "logs": "return"}
        self.options: dict[str, Any] = {"poll_s": "0.2", "slots": 1, "cancel_grace_s": 1}
        self.base = self.rig.agent_folder(SITE) / "base"
        self.agent: Process | None = None

    def start(self, *args: str, token: str = TOKEN, url: str | None = None, site: str = SITE, **options: Any) -> Process:
        """The agent, by its agent.ini; `args` may be the published words."""
        env = options.pop("env", None)
        self.agent = self.rig.start_agent(
            site, self.commands, *args, release=self.release, token=token, url=url or self.server.url, env=env,
            **{**self.options, **options},
        )  # fmt: skip
        return self.agent

    def submit(self, script: str, *outputs: str, command: str = COMMAND, inputs: Mapping[str, bytes] | None = None) -> str:
        """Register a job of `script` with more inputs, and let it be fetched; returns its accept_id."""
        calc = calc_info(SITE, command, [], list(outputs), "ignored; rm -rf /", Path())
        calc["parameter_files"] = {
            name: [base64.b64encode(data).decode(), "text/plain;", "charset=us-ascii"]
            for name, data in {"job.sh": script.encode(), **(inputs or {})}.items()
        }
        return self.register(calc)

    def register(self, calc: Mapping[str, Any]) -> str:
        accept_id = str(self.submitter.add(dict(calc)).json()["errors"][0]["accept_id"])
        assert self.submitter.allow(accept_id).status_code == 200
        return accept_id

    def ended(self, job: str, deadline_s: float = 40) -> str:
        """Wait until the results are there; returns the status, completed or abnormal."""
        wait_until(lambda: self.server.jobs[job].progress == "got return", deadline_s, f"{job} got return")
        return self.server.jobs[job].status

    def results(self, job: str) -> dict[str, tuple[bytes, str, str]]:
        """What came back: name -> (bytes, mimetype1, mimetype2)."""
        answer = self.submitter.result(job).json()["errors"][0]
        found = answer["result-info"]["result_files"]
        return {
            name: (base64.b64decode(entry["content"], validate=True), entry["mimetype1"], entry["mimetype2"])
            for name, entry in found.items()
        }

    def out(self, job: str) -> dict[str, bytes]:
        """The contents alone, of what is no error, without the logs."""
        return {
            name: data for name, (data, kind, _) in self.results(job).items() if kind != "Error" and name not in (STDOUT, STDERR)
        }

    def local(self, job: str) -> Path:
        return self.base / job

    def local_state(self, job: str) -> str:
        try:
            return str(json.loads((self.local(job) / "state.json").read_bytes())["state"])
        except FileNotFoundError:
            return ""

    def locally(self, job: str, state: str, deadline_s: float = 30) -> None:
        wait_until(lambda: self.local_state(job) == state, deadline_s, f"{job} is {state} at the company")

    def starts(self) -> int:
        path = self.base / "count"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def pid(self, job: str) -> int:
        return pid_of(self.local(job) / "work" / "pid")

    def go(self, job: str) -> None:
        (self.local(job) / "work" / "go").touch()

    def asked(self, call: str) -> int:
        """How often the server got that call."""
        return sum(path.partition("?")[0].endswith(f"/{call}") for _, path in list(self.server.requests))

    def called(self, call: str, more_than: int = 0, deadline_s: float = 30) -> None:
        wait_until(lambda: self.asked(call) > more_than, deadline_s, f"{call} is called")

    def kill(self) -> None:
        assert self.agent
        self.agent.kill()

    def said(self) -> str:
        assert self.agent
        return self.agent.output()

    def close(self) -> None:
        self.rig.close()
        self.server.__exit__()
