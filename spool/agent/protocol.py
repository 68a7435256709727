"""Which protocol the server speaks: found out by asking, remembered, logged (docs/agent.md, "With the published server").

/v1 is asked first. Where something else answers there (404, a redirection, a page, the published envelope), calc-request is
asked, and its answer as published is the proof; a page alone, or a 5xx but 501, decides nothing. Where /v1 has been before, which
may be our own server behind a gateway, a page must come `PAGES` times in a row before calc-request is asked. Every job keeps the
protocol by which it came, whatever is found out later; an agent that starts with such jobs in hand does not ask again before they
ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Union

from spool import __version__, jsonio, log
from spool.agent.client import Client, NotThisApi
from spool.agent.config import AgentConfig
from spool.agent.connection import AGENT, Connection, asked_to_wait
from spool.agent.folder import Base
from spool.agent.published import MARK, PublishedClient
from spool.agent.published_calls import Calls
from spool.agent.token import Token
from spool.errors import SpoolError, Unreachable
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.records import JobState, Result
from spool.tls import Tls

V1, PUBLISHED = "v1", "published"
RECORD_BYTES = 65536
PAGES = 5
PUBLISHED_CODES = ("200", "0300", "400")  # of calc-request

JobClient = Union[Client, PublishedClient]  # what a job's carrier talks to


def connect(config: AgentConfig, base: Base, tls: Tls) -> Server:
    """Return the server of `config`; nothing is asked yet."""
    url, token = config.agent["url"], Token(config.token, config.agent["token_file"])
    stall_s = config.agent["stall_s"]
    agent = f"{AGENT}/{__version__}" if config.agent["tell_version"] else AGENT
    calls = Calls(Connection(url, token, tls=tls, stall_s=stall_s, agent=agent))
    logs = None if config.release["logs"] == "withhold" else partial(log_folder, config, base)
    published = PublishedClient(calls, base.folder, user=config.user, logs=logs, hides=config.redactor.hides)
    v1 = Client(url, token, tls=tls, stall_s=stall_s, agent=agent)
    return Server(url, v1, published, base.control / "protocol.json")


def log_folder(config: AgentConfig, base: Base, job_id: str, run_id: str) -> Path:
    """Return the folder whose ``log/`` leaves: of the redacted copies, or the job's own."""
    return base.logs_of(job_id, run_id) if config.release["logs"] == "redact" else base.folder / job_id


class Server:
    """The server, whichever protocol it speaks: `sync`, `state` and `finish` as `Client` has them."""

    def __init__(self, url: str, v1: Client, published: PublishedClient, memory: Path) -> None:
        self._url = url
        self._v1 = v1
        self._published = published
        self._memory = memory
        self._pages = 0
        self.protocol = ""

    def send_only_if(self, may_send: Callable[[], None]) -> None:
        """Have `may_send` asked before anything of a job's results leaves; it raises where nothing may."""
        self._v1.may_send = self._published.may_send = may_send

    def of(self, state: JobState) -> JobClient:
        """Return what carries this job: it keeps the protocol by which it came."""
        if MARK not in state.extra:
            return self._v1
        self._published.adopt(state)
        return self._published

    def state(self, job_id: str) -> JobState:
        """Return the record of a job that a sync told to fetch."""
        if self._published.offered(job_id):
            return self._published.state(job_id)
        return replace(self._v1.state(job_id), extra={})

    def finish(self, result: Result) -> dict[str, Any]:
        """Tell the end of a job that was never taken up."""
        published = self._published.offered(result.id) or self._published.carries(result.id)
        return self._published.finish(result) if published else self._v1.finish(result)

    def sync(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask what is wanted, each job by its own protocol, and for new ones by the server's."""
        came_so = [job for job in request["jobs"] if self._published.carries(job["id"])]
        others = [job for job in request["jobs"] if not self._published.carries(job["id"])]
        if not self.protocol and came_so:
            self._settle(PUBLISHED)
        if self.protocol == PUBLISHED:
            told = self._published.sync({**request, "jobs": came_so})
            return self._merged(told, {**request, "room": 0, "wait_s": 0, "jobs": others}) if others else told
        return self._sync_v1(request)

    def _merged(self, told: dict[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
        """Add what /v1 says of its jobs, which wait for it where it is gone."""
        try:
            return {**told, "jobs": [*told["jobs"], *self._v1.sync(request)["jobs"]]}
        except (SpoolError, KeyError) as exc:
            log.warning("v1_does_not_answer", jobs=len(request["jobs"]), why=exc)
            return told

    def _sync_v1(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self._v1.sync(request)
            if "jobs" not in answer:
                sure = "errors" in answer
                raise NotThisApi(f"{self._url} does not speak /v1", hint="is the URL that of MInt's server?", sure=sure)
        except NotThisApi as exc:
            if request["jobs"]:  # these came by /v1: it has been there, and comes back
                raise
            self._pages += 1
            if not exc.sure and self._pages < PAGES and V1 in (self.protocol, self._remembered()):
                raise
            return self._sync_published(request, exc)
        self._pages = 0
        self._settle(V1)
        return answer

    def _sync_published(self, request: Mapping[str, Any], no_v1: NotThisApi) -> dict[str, Any]:
        try:
            asked = self._published.ask(request["site"])
        except Unreachable as exc:
            raise asked_to_wait(no_v1, getattr(exc, "retry_after_s", 0)) from exc
        if asked.status < 300 and asked.code in PUBLISHED_CODES:
            self._settle(PUBLISHED)
        return self._published.sync(request, asked)

    def goodbye(self, request: Mapping[str, Any]) -> None:
        """Tell what is left behind; the published protocol has no word for that."""
        if self.protocol != PUBLISHED:
            self._v1.sync({**request, "jobs": [job for job in request["jobs"] if not self._published.carries(job["id"])]})

    # What is remembered

    def _settle(self, protocol: str) -> None:
        if self.protocol == protocol:
            return
        self.protocol = protocol
        before = self._remembered()
        log.info("protocol", protocol=protocol, url=self._url, before=before if before != protocol else "")
        if before != protocol:
            try:
                servers = {**self._read(), self._url: protocol}
                replace_file(self._memory, jsonio.dumps({"format": 1, "servers": servers}), mode=0o600)
            except OSError as exc:
                log.warning("protocol_not_remembered", file=self._memory, why=exc)

    def _remembered(self) -> str:
        return str(self._read().get(self._url, ""))

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, SpoolError):
            value = jsonio.loads(read_record(self._memory, RECORD_BYTES), "protocol.json")
            return Fields(value, "protocol.json").mapping("servers")
        return {}
