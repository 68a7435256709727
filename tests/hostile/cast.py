"""Who asks, and jobs of alice at site-a in the state that a route needs; for the tests of roles, mutations and names."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.rig import Rig, Section
from hostile.line import Told, ask
from hostile.routes import ASKERS, BASE, DATA, INPUT, OUTPUT, ROUTES, SIGNATURE, WORD, Route, entry_of
from server.spools import AGENT
from spool.drops import first_state
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import Input, Job, JobState, Result
from spool.results import accept
from spool.server.tokens import TokenFile
from spool.states import State
from spool.store import Store

SITES: dict[str, Section] = {"site-a": {"commands": "*"}, "site-b": {"commands": "*"}}
PUBLISHED_STEPS = ("params", "params-complete", "start", "end", "results")
_ROLES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "submitter": ("alice", ("submitter",), ""),
    "other submitter": ("bob", ("submitter",), ""),
    "agent": ("alice", ("agent",), ""),
    "other agent": ("bob", ("agent",), ""),
    "agent of another site": ("alice", ("agent",), "site-b"),
    "submitter of another site": ("alice", ("submitter",), "site-b"),
    "operator": ("root", ("operator",), ""),
    "viewer": ("root", ("viewer",), ""),
    "operator of another site": ("root", ("operator",), "site-b"),
    "viewer of another site": ("root", ("viewer",), "site-b"),
    "submitter and agent": ("alice", ("submitter", "agent"), ""),
    "other submitter and agent": ("bob", ("submitter", "agent"), ""),
    "other agent and viewer": ("bob", ("agent", "viewer"), ""),
}


class Cast:
    """A running server, a token for each asker, and jobs on demand."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.rig = Rig(root)
        self.process = self.rig.start_server(SITES, **options)
        self.port = self.rig.port
        self.store = Store.open(self.rig.spool)
        self.tokens = TokenFile(self.store.paths.tokens)
        self._texts = {name: self.token(user, *roles, site=site) for name, (user, roles, site) in _ROLES.items()}

    def token(self, user: str, *roles: str, site: str = "") -> str:
        return self.tokens.add(user, roles, [site] if site else [])[0]

    def token_of(self, asker: str) -> str:
        """That asker's token; one that does not count is a new one each time, for ten tries with one are answered 429."""
        assert asker in ASKERS
        if asker == "nobody":
            return ""
        if asker == "bad":
            return os.urandom(32).hex()
        if asker in ("expired", "revoked"):
            past = "2020-01-01T00:00:00Z" if asker == "expired" else ""
            text, token = self.tokens.add("alice", ("submitter", "agent", "operator", "viewer"), [], expires_at=past)
            if asker == "revoked":
                self.tokens.revoke(token.id)
            return text
        return self._texts[asker]

    def ask(self, route: Route, job: JobState, token: str) -> Told:
        """One request of that route about the job; bad tokens come from many addresses, each of which may try a hundred."""
        address = "" if token in self._texts.values() else "127." + ".".join(str(random.randint(1, 254)) for _ in range(3))
        (told,) = ask(self.port, [route.make(job, token)], methods=[route.method], address=address)
        return told

    def job(self, state: str, token: str = "", *, user: str = "alice", site: str = "site-a") -> JobState:
        """A job in that state. A published step is taken with `token`; `fresh` is new without inputs, `signable` new and
        complete, `signed` running with a signature."""
        before = os.umask(0o007)
        try:
            if state in PUBLISHED_STEPS:
                return self._stepped(self._made("queued", user, site), state, token)
            return self._made(state, user, site)
        finally:
            os.umask(before)

    def _made(self, word: str, user: str, site: str) -> JobState:
        asked = Job(
            site=site, command=f"{WORD}-command", user=user, inputs=(Input(INPUT),), outputs=(OUTPUT,), labels={WORD: WORD},
        )  # fmt: skip
        job_id = new_id()
        if word == "signable":
            fixed = Input(INPUT, len(DATA), entry_of(INPUT, DATA).sha256)
            asked = replace(asked, id=job_id, inputs=(fixed,), expires_at="2099-01-01T00:00:00.000Z", max_attempts=3)
        waits = word in ("queued", "claimed", "running", "completed", "signed")
        entries = () if word == "fresh" else (entry_of(INPUT, DATA),)
        made = first_state(asked, job_id, user, entries, state=State.QUEUED if waits else State.NEW, by=user)
        paths = JobPaths(self.store.paths.tmp / f"made.{made.id}")
        paths.inputs.mkdir(parents=True)
        if entries:
            (paths.inputs / INPUT).write_bytes(DATA)
        paths.job.write_bytes(asked.encode())
        paths.state.write_bytes(made.encode())
        if waits:
            self.store.queue.add(site, user, made.queue_key)
        else:
            self.store.queue.add_new(made.id)
        paths.folder.rename(self.store.paths.jobs / made.id)
        if word == "signed":
            self.store.paths.job(made.id).signature.write_bytes(SIGNATURE)
        if word in ("queued", "new", "fresh", "signable"):
            return made
        claimed = self.store.claim_one(made.id, agent=AGENT)
        if word == "claimed":
            return claimed
        running = self.store.start(made.id, claimed.run_id, by=AGENT)
        return running if word in ("running", "signed") else self._completed(running)

    def _completed(self, running: JobState) -> JobState:
        incoming = self.store.paths.job(running.id).incoming_of(running.run_id) / "files"
        for name in (f"out/{OUTPUT}", "log/stdout.txt"):
            (incoming / name).parent.mkdir(parents=True, exist_ok=True)
            (incoming / name).write_bytes(DATA)
        files = (entry_of(f"out/{OUTPUT}", DATA), entry_of("log/stdout.txt", DATA))
        result = Result(running.id, running.run_id, running.attempt, exit_code=0, files=files, message=WORD)
        return accept(self.store, result, by=AGENT)

    def _stepped(self, job: JobState, last: str, token: str) -> JobState:
        ways = {"params": "calc-params", "params-complete": "calc-params-complete", "start": "calc-start", "end": "calc-end"}
        ways["results"] = "send-results"
        for step in PUBLISHED_STEPS:
            route = next(route for route in ROUTES if route.path == f"{BASE}/{ways[step]}")
            told = self.ask(route, job, token)
            assert told.status == 200, (step, told)
            if step == last:
                break
        return replace(self.store.state(job.id))

    def close(self) -> None:
        self.rig.close()
