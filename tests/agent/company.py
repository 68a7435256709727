"""One server, one site and its agent, as these tests need them: jobs are folders that are dropped, commands are scripts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components import proc
from components.process import Process
from components.rig import Rig, Section
from components.waiting import wait_until
from spool.names import new_id

SITE = "site-a"
FINAL = ("completed", "failed", "canceled", "expired")
# `sh` runs its one argument as a script: what a job does stands in the test that submits it.
COMMANDS: dict[str, Section] = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*"}}


class Company:
    """`drop` hands a job in; `start` starts the agent (again); `ended` waits for a job's end. `close` ends everything."""

    def __init__(self, root: Path) -> None:
        self.rig = Rig(root)
        self.commands: dict[str, Section] = dict(COMMANDS)
        self.options: dict[str, Any] = {"poll_s": "0.3", "wait_s": 5, "cancel_grace_s": 1}
        self.release: Section = {"allow": "**", "logs": "return"}
        self.signatures: Section = {}
        self.agent: Process | None = None

    @property
    def folder(self) -> Path:
        """The agent's: agent.ini, token, base, log."""
        return self.rig.agent_folder(SITE)

    def local(self, job_id: str) -> Path:
        """The job's folder at the company."""
        return self.folder / "base" / job_id

    def serve(self, **options: Any) -> Process:
        return self.rig.start_server({SITE: {"commands": "*"}}, **options)

    def start(self, *args: str, url: str | None = None, env: Mapping[str, str] | None = None, **options: Any) -> Process:
        self.agent = self.rig.start_agent(
            SITE, self.commands, *args, release=self.release, signatures=self.signatures, url=url, env=env,
            **{**self.options, **options},
        )  # fmt: skip
        return self.agent

    def once(self, *, deadline_s: float = 30, **options: Any) -> int:
        """One pass, as cron starts it; returns its exit code."""
        return self.start("--once", **options).wait(deadline_s)

    def drop(
        self, command: str, *args: str, inputs: Mapping[str, bytes] | None = None, outputs: tuple[str, ...] = (),
        user: str = "mint", **more: Any,
    ) -> str:  # fmt: skip
        """A finished folder, renamed into `drop/`; returns the job's id."""
        job_id = new_id()
        making = self.rig.root / "making" / job_id
        (making / "in").mkdir(parents=True)
        for name, data in (inputs or {}).items():
            (making / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (making / "in" / name).write_bytes(data)
        job = {
            "format": 1, "id": job_id, "site": SITE, "command": command, "user": user, "args": list(args),
            "inputs": list(inputs or {}), "outputs": list(outputs), **more,
        }  # fmt: skip
        (making / "job.json").write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        making.rename(self.rig.spool / "drop" / job_id)
        return job_id

    def sh(self, script: str, **more: Any) -> str:
        """A job that runs `script`."""
        return self.drop("sh", script, **more)

    def is_at(self, job_id: str, *states: str, deadline_s: float = 30) -> dict[str, Any]:
        return self.rig.wait_state(job_id, *states, deadline_s=deadline_s)

    def ended(self, job_id: str, deadline_s: float = 40) -> dict[str, Any]:
        return self.is_at(job_id, *FINAL, deadline_s=deadline_s)

    def completed(self, job_id: str, deadline_s: float = 40) -> dict[str, bytes]:
        """Wait for success; returns what came back, name -> bytes."""
        state = self.ended(job_id, deadline_s)
        assert state["state"] == "completed", json.dumps(state, ensure_ascii=False, indent=1)
        return self.out(job_id)

    def failed(self, job_id: str, reason: str, deadline_s: float = 40) -> dict[str, Any]:
        """Wait for the failure for that reason; returns state.json."""
        state = self.ended(job_id, deadline_s)
        assert (state["state"], state.get("reason")) == ("failed", reason), json.dumps(state, ensure_ascii=False, indent=1)
        return state

    def out(self, job_id: str) -> dict[str, bytes]:
        return files_below(self.rig.job(job_id) / "out")

    def result(self, job_id: str) -> dict[str, Any]:
        return dict(json.loads((self.rig.job(job_id) / "result.json").read_bytes()))

    def local_state(self, job_id: str) -> str:
        """The state at the company; empty before there is one."""
        try:
            return str(json.loads((self.local(job_id) / "state.json").read_bytes())["state"])
        except FileNotFoundError:
            return ""

    def locally(self, job_id: str, *states: str, deadline_s: float = 30) -> None:
        wait_until(lambda: self.local_state(job_id) in states, deadline_s, f"{job_id} is {states} at the company")

    def kill_agent(self) -> None:
        assert self.agent
        self.agent.kill()

    def interrupt(self) -> None:
        assert self.agent
        self.agent.signal(signal.SIGINT)

    def close(self) -> None:
        self.rig.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: name -> bytes; one that goes away meanwhile is left out."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            full = Path(path) / name
            with contextlib.suppress(FileNotFoundError):
                found[str(full.relative_to(folder))] = full.read_bytes()
    return found


def pid_of(path: Path, deadline_s: float = 20) -> int:
    """The process id that a command writes into a file."""
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), deadline_s, f"{path.name} holds a pid"))


def gone(pid: int, deadline_s: float = 15) -> None:
    wait_until(lambda: not proc.alive(pid), deadline_s, f"process {pid} is gone")


def noise(size: int, seed: str = "") -> bytes:
    """Bytes that no compression and no repetition hides."""
    return hashlib.shake_256(seed.encode()).digest(size)
