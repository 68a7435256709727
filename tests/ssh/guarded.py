"""A guarded site: a real sshd whose key has the gate as its forced command, an agent.ini, and a push."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.rig import REPO, Rig, Section, Value, write_ini
from components.sshd import Sshd
from components.waiting import wait_until
from spool import gate
from spool.agent.audit import verify
from spool.names import new_id

from .conftest import Pushed

WALL = f"{REPO}/etc/bwrap-wrapper.sh --hide {{base}} {{work}} --"
COMMANDS: dict[str, Section] = {"sh": {"argv": "/bin/sh -c {args}", "args": "(?s).*"}}


class Guarded(Pushed):
    """`base` is the gate's; `law` changes what agent.ini says."""

    def __init__(self, rig: Rig, sshd: Sshd, **options: Value) -> None:
        self.site_folder = sshd.home / "gate"
        self.site_folder.mkdir(parents=True)
        super().__init__(rig, sshd, self.site_folder / "base", {"kind": "guarded", **options})
        self.law()
        sshd.authorize(self.line())

    def line(self) -> str:
        return f'restrict,command="{sys.executable} -Es {REPO}/spool_agent.py gate --config {self.site_folder}/agent.ini"'

    def law(
        self, commands: Mapping[str, Section] = COMMANDS, release: Section | None = None, signatures: Section | None = None,
        **agent: Value,
    ) -> None:  # fmt: skip
        """Write agent.ini."""
        sections: dict[str, Section] = {
            "agent": {"site": "site", "base": "base", "cancel_grace_s": 1, **agent},
            "release": release or {"allow": "**", "logs": "return"},
            **({"signatures": signatures} if signatures else {}),
        }
        sections.update({f"command {name}": section for name, section in commands.items()})
        write_ini(self.site_folder / "agent.ini", sections)

    def ask(self, command: str | bytes, *options: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """What that key gets for `command`: the gate alone, as sshd would start it."""
        text = command if isinstance(command, bytes) else command.encode()
        words = ["ssh", "-F", str(self.sshd.ssh_config), *options, self.sshd.name, text]
        return subprocess.run(words, input=stdin, capture_output=True, timeout=60, check=False)

    def gate(self, verb: str, job_id: str = "", run_id: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """The gate as sshd starts it, without sshd."""
        command = " ".join(word for word in ("mint-gate 1", verb, job_id, run_id) if word)
        return self.original(command.encode(), stdin)

    def original(
        self, command: bytes, stdin: bytes = b"", more: Mapping[bytes, bytes] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        env = {b"PATH": b"/usr/bin:/bin", b"SSH_ORIGINAL_COMMAND": command, **(more or {})}
        return subprocess.run(self.gate_words(), input=stdin, capture_output=True, env=env, timeout=60, check=False)

    def gate_words(self) -> list[str]:
        """The gate's argv, as the forced command has it."""
        return [sys.executable, "-Es", str(REPO / "spool_agent.py"), "gate", "--config", str(self.site_folder / "agent.ini")]

    def person(self, *words: str, code: int = 0) -> str:
        """What a verb of a person at the site prints, errors included."""
        program = [sys.executable, str(REPO / "spool_agent.py"), *words, "--config", str(self.site_folder / "agent.ini")]
        done = subprocess.run(program, capture_output=True, text=True, env=self.rig.env, timeout=60, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @property
    def control(self) -> Path:
        [found] = self.base.glob(".mint-spool-*")
        return found

    def audit(self, job_id: str = "") -> list[dict[str, Any]]:
        """The audit log, whose chain must be whole; of one job where it is named."""
        path = self.control / "audit.jsonl"
        assert verify(path)[1] == []
        told = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [entry for entry in told if job_id in ("", entry.get("job"))]

    def events(self, job_id: str) -> list[str]:
        """The names of a job's events."""
        return [entry["event"] for entry in self.audit(job_id)]


def parts(files: Mapping[str, int], key: str = "offset") -> bytes:
    return json.dumps({"files": [{"path": path, key: number} for path, number in files.items()]}).encode() + b"\n"


class Run:
    """One run, asked for verb by verb; `job` are keys of job.json."""

    def __init__(self, site: Guarded, script: str, inputs: Mapping[str, bytes] | None = None, **job: Any) -> None:
        self.site, self.id, self.run_id = site, new_id(), new_id()
        self.inputs = dict(inputs or {})
        self.job: dict[str, Any] = {
            "site": "site", "command": "sh", "args": [script], "inputs": list(self.inputs), "outputs": ["**"],
            **job,
        }  # fmt: skip
        self.folder = site.base / self.id

    def ask(self, verb: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self.site.gate(verb, self.id, self.run_id, stdin)

    def request(self, **changes: Any) -> bytes:
        entries = [
            {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in self.inputs.items()
        ]
        job = base64.b64encode(json.dumps(self.job).encode()).decode()
        value = {"job": job, "user": "mint", "attempt": 1, "inputs": entries, "earlier": [], **changes}
        return json.dumps(value).encode() + b"\n"

    def good(self, verb: str, stdin: bytes = b"") -> dict[str, Any]:
        done = self.ask(verb, stdin)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def refused(self, verb: str, stdin: bytes = b"") -> str:
        """The code of the refusal; nothing may come on standard output."""
        done = self.ask(verb, stdin)
        assert (done.returncode, done.stdout) == (gate.REFUSED, b""), done
        return str(json.loads(done.stderr.splitlines()[-1])["gate_error"]["code"])

    def to_start(self) -> None:
        self.good("enter", self.request())
        if self.inputs:
            self.good("put", parts(dict.fromkeys(self.inputs, 0)) + b"".join(self.inputs.values()))
        assert self.good("prepare")["wrong"] == []

    def wait_exited(self) -> None:
        wait_until(lambda: self.good("status")["status"]["word"] == "exited", 60, "the command has ended")

    def to_exit(self) -> None:
        self.to_start()
        self.good("start")
        self.wait_exited()

    def to_end(self) -> dict[str, Any]:
        """Returns the result, which is not held."""
        self.to_exit()
        answer = self.good("finish")
        assert answer["held"] is False
        return dict(answer["result"])

    def get(self, *names: str) -> subprocess.CompletedProcess[bytes]:
        return self.ask("get", parts(dict.fromkeys(names, 0)))

    def tail(self, name: str = "log/stdout.txt", offset: int = 0) -> bytes:
        """What a log has grown by."""
        done = self.ask("tail", parts({name: offset}))
        assert done.returncode == 0, done
        return done.stdout.partition(b"\n")[2]

    def over(self, state: str, reason: str = "") -> None:
        """MInt has ended the run."""
        self.good("delivered", json.dumps({"state": state, "reason": reason}).encode() + b"\n")

    @property
    def work(self) -> Path:
        """`work/` of this run."""
        return self.folder / "work"
