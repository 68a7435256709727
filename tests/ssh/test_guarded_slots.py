"""What MInt keeps of a guarded site besides its jobs: where its audit log ended. What waits for a person takes no slot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.rig import REPO, Rig
from components.sshd import Sshd
from components.waiting import wait_until

from .guarded import COMMANDS, WALL, Guarded


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    yield Guarded(rig, sshd)
    rig.close()


def heads(site: Guarded) -> list[dict[str, Any]]:
    path = site.rig.spool / "sites" / "site.audit.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def verified(site: Guarded) -> int:
    words = ["--config", str(site.site_folder / "agent.ini"), "--head", f"@{site.rig.spool}/sites/site.audit.jsonl"]
    program = [sys.executable, REPO / "spool_agent.py", "audit", "verify", *words]
    return subprocess.run(program, capture_output=True, check=False, timeout=60).returncode


def test_the_end_of_the_audit_log_is_kept_at_mint(site: Guarded) -> None:
    push = site.start()
    assert site.ended(site.sh("true"))["state"] == "completed"
    [log] = site.base.glob(".mint-spool-*/audit.jsonl")
    wait_until(lambda: heads(site) and heads(site)[0]["head"].startswith("1:"), 30, "the head at the receipt is kept")
    assert site.ended(site.sh("true"))["state"] == "completed"
    assert push.stop() == 0
    assert heads(site)[0]["agent"].startswith("gate-")
    assert verified(site) == 0
    log.write_bytes(b"")  # cut off, and begun anew
    assert verified(site) == 1
    site.start()
    assert site.ended(site.sh("true"))["state"] == "completed"
    wait_until(lambda: any("before" in told for told in heads(site)), 30, "MInt has seen it go back")


def test_what_waits_for_a_person_takes_no_slot(site: Guarded) -> None:
    site.options["slots"] = 1
    site.law({"sh": {**COMMANDS["sh"], "wrapper": WALL}}, {"allow": "**", "logs": "return", "hold": "when: failed"})
    site.start()
    waiting = site.sh("exit 3")
    site.rig.wait_state(waiting, "held", deadline_s=60)
    assert site.ended(site.sh("true"))["state"] == "completed"
    assert site.rig.state(waiting)["state"] == "held"
