"""A guarded site: a real sshd whose key has the gate as its forced command, an agent.ini, and a push."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from components.rig import REPO, Rig, Section, Value, write_ini
from components.sshd import Sshd

from .conftest import Pushed

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
        self, commands: Mapping[str, Section] = COMMANDS, release: Section | None = None, **agent: Value
    ) -> None:
        """Write agent.ini."""
        sections: dict[str, Section] = {
            "agent": {"site": "site", "base": "base", "cancel_grace_s": 1, **agent},
            "release": release or {"allow": "**", "logs": "return"},
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
        program = [sys.executable, "-Es", str(REPO / "spool_agent.py"), "gate", "--config", str(self.site_folder / "agent.ini")]
        env = {b"PATH": b"/usr/bin:/bin", b"SSH_ORIGINAL_COMMAND": command, **(more or {})}
        return subprocess.run(program, input=stdin, capture_output=True, env=env, timeout=60, check=False)

    def audit(self) -> list[dict[str, Any]]:
        [path] = self.base.glob(".mint-spool-*/audit.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
