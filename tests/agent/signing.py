"""Submitters with ssh keys, a site that trusts some of them, and a MInt that somebody has broken into."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.company import FINAL, SITE, Company
from components.proc import working_in
from components.waiting import wait_until
from spool.queue import make_key
from spool.signatures import NAMESPACE
from spool.store import Store


def make_key_pair(folder: Path, name: str, *options: str) -> Path:
    """A key without passphrase unless `options` say otherwise; its public half has `.pub` behind the name."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-C", name, "-f", path, *(options or ("-N", ""))], check=True)
    return path


class Signing:
    """A company that runs nothing but jobs signed by `mint`, its token's user. `ran` tells whether a job's command ever ran."""

    def __init__(self, company: Company) -> None:
        self.company = company
        self.rig = company.rig
        self.keys = company.rig.root / "keys"
        self.keys.mkdir()
        self.key = make_key_pair(self.keys, "mint")
        self.signers = self.keys / "allowed_signers"
        self.revoked = self.keys / "revoked"
        self.revoked.write_text("")
        self.trust(("mint", self.key))
        self.deck = self.keys / "deck.inp"
        self.deck.write_text("*HEADING\n")
        self.marks = company.rig.root / "marks"
        self.marks.mkdir()
        company.commands = {"mark": {"argv": f"/bin/sh -c 'cat deck.inp; touch {self.marks}/$MINT_SPOOL_JOB' mark {{args}}",
                                     "args": ".*", "env_allow": "A"}}  # fmt: skip
        company.signatures = {"required": "yes", "allowed_signers": self.signers, "revoked": self.revoked}

    def trust(self, *entries: tuple[str, Path], options: str = f'namespaces="{NAMESPACE}"') -> None:
        lines = [f"{user} {options} {key.with_suffix('.pub').read_text()}" for user, key in entries]
        self.signers.write_text("".join(lines))

    def submit(self, *args: str | os.PathLike[str], key: Path | None = None, user: str = "mint") -> str:
        """`spoolctl submit --sign`; returns the id."""
        words = ["--sign", key or self.key, "--in", f"deck.inp={self.deck}", "--out", "result.dat", *args]
        return self.rig.submit(SITE, "mark", *words, user=user)

    def ran(self, job_id: str) -> bool:
        return (self.marks / job_id).exists()

    def refused(self, job_id: str, *, fetched: bool = False, deadline_s: float = 90) -> dict[str, Any]:
        """The job ends at MInt without its command having run; returns its last state."""
        ended = self.rig.wait_state(job_id, *FINAL, deadline_s=deadline_s)
        assert ended["state"] == "failed", ended
        assert not self.ran(job_id)
        assert not (self.company.local(job_id) / "run" / "started").exists()
        if not fetched:
            assert not list((self.company.local(job_id)).glob("in/**/*.inp")), "an input was fetched"
        assert not list(working_in(self.company.local(job_id)))
        return ended

    def refused_again(self, job_id: str) -> dict[str, Any]:
        """As `refused`, of a job that ran before: its mark was taken away."""
        ended = self.rig.wait_state(job_id, *FINAL, deadline_s=90)
        assert not self.ran(job_id)
        assert ended["reason"] == "refused_by_site", ended
        self.settle()
        return ended

    def audit(self, job_id: str) -> list[dict[str, Any]]:
        """The audit's `signature` lines of this job."""
        control = next((self.company.folder / "base").glob(".mint-spool-*"))
        lines = [json.loads(line) for line in (control / "audit.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == "signature" and line["job"] == job_id]

    # MInt, broken into: whatever lies in the spool is edited as its owner can

    def edit(self, job_id: str, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change one of MInt's records of a queued job."""
        path = self.rig.job(job_id) / name
        value = json.loads(path.read_bytes())
        change(value)
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def queue_again(self, job_id: str) -> None:
        """Put a job that has ended into the queue once more, as the same attempt."""
        store = Store.open(self.rig.spool)
        state = store.state(job_id)
        key = make_key(job_id, state.attempt, 0)
        store.queue.add(state.site, state.user, key)

        def queued(value: dict[str, Any]) -> None:
            for name in ("run_id", "agent", "agent_order", "claimed_at", "started_at", "ended_at", "reason", "message"):
                value.pop(name, None)
            value.update(state="queued", queue_key=key)

        self.edit(job_id, "state.json", queued)

    def settle(self) -> None:
        """Wait until the agent has nothing in hand."""
        wait_until(lambda: not list((self.rig.spool / "active").glob("*/*/*")), 60, "nothing is with the site")
