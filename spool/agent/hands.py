"""One job in the agent's hands: what every step needs. The thread, what the server wants, waiting, and trying again."""

from __future__ import annotations

import subprocess
import threading
from typing import Callable, TypeVar

from spool import log
from spool.agent import transfer
from spool.agent.audit import AuditFailed
from spool.agent.client import retry_delay_s
from spool.agent.config import AgentConfig
from spool.agent.custody import Custody
from spool.agent.folder import Base, LocalJob
from spool.agent.protocol import JobClient, log_folder
from spool.agent.troubles import Left, hint_for, is_tried_again, may_pass, said
from spool.errors import SpoolError, StaleRun
from spool.files import replace_file
from spool.records import Job
from spool.runner import LocalRunner
from spool.states import State

T = TypeVar("T")


class Hands(Custody):
    """A job and the thread that carries it. `wanted` is what the latest sync said is wanted of it."""

    def __init__(
        self, local: LocalJob, client: JobClient, config: AgentConfig, runner: LocalRunner, sync_soon: Callable[[], None],
        base: Base,
    ) -> None:  # fmt: skip
        super().__init__(local, config, base, runner)
        self.done = False
        self.kept = False
        self.left = False
        self.waits_for_command = threading.Event()
        self.waits_for_person = threading.Event()
        self._client = client
        self._sync_soon = sync_soon
        self._wanted = ""
        self._hiccups = 0
        self._launched = False
        self._kept: transfer.Sender | None = None
        self._news = threading.Event()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"job-{local.state.id[:8]}", daemon=True)

    def start(self) -> None:
        """Start carrying."""
        self._thread.start()

    @property
    def wanted(self) -> str:
        """What the server was last heard to want of this job."""
        return self._wanted

    def tell(self, want: str) -> bool:
        """Pass on what the server wants of this job; return whether that is news."""
        news, self._wanted = want != self._wanted, want
        if news:
            self._news.set()
        return news

    def forget(self) -> None:
        """End a kept run, whose thread has ended: MInt has kept its record, and takes nothing else of it."""
        self._close(State.CANCELED, "MInt keeps the record of this run, and takes nothing else of it")
        self.kept, self.done = False, True

    def leave(self) -> None:
        """Have the thread end soon, leaving the job (and a running command) as it is."""
        self._leave.set()
        self._news.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread."""
        self._thread.join(timeout_s)

    @property
    def idle(self) -> bool:
        """True where the thread has ended, the job delivered or left."""
        return not self._thread.is_alive()

    @property
    def rests(self) -> bool:
        """True where nothing can be done but by a person who releases the results: it takes no slot."""
        return self.waits_for_person.is_set()

    def _run(self) -> None:
        """The thread's work."""
        raise NotImplementedError

    # What the steps share

    def _job(self) -> Job:
        """Return what the job asks for: as fetched once, whatever the command does to the folder meanwhile."""
        if self._asked is None and not self.local.paths.job.exists():
            replace_file(self.local.paths.job, self._client.job_bytes(self.local.state.id), mode=0o600)
        return super()._job()

    def _sender(self) -> transfer.Sender:
        state = self.local.state
        if self._kept is None:
            logs = log_folder(self._config, self._base, state.id, state.run_id)
            self._kept = transfer.Sender(
                self._client, state.id, state.run_id, self.local.paths, self._config.agent["chunk"], book=self._book, logs=logs
            )
        return self._kept

    # Trying again

    def _again(self, name: str, step: Callable[[], T], *, most: int = 0) -> T:
        """Do `step` until it works; transient errors are tried again for ever, at the pace of `retry_delay_s`.

        With `most`, an error is raised after so many tries, unless only the line or a lack of resources stands in the way.
        """
        tries = 0
        while True:
            self._stay()
            try:
                return step()
            except (SpoolError, OSError, ValueError, subprocess.CalledProcessError) as exc:
                if isinstance(exc, SpoolError) and not is_tried_again(exc):
                    raise
                if isinstance(exc, AuditFailed):
                    self._sync_soon()  # one that waits has told of room for a new job
                if most and tries + 1 >= most and not may_pass(exc, self.local.paths.folder):
                    raise
                delay_s = retry_delay_s(tries, exc if isinstance(exc, SpoolError) else None)
                self._warn("tried_again", exc, step=name, in_s=f"{delay_s:.1f}")
                tries += 1
                self._pause(delay_s)
                if self._wanted == "forget" and name not in ("run", "return"):
                    raise StaleRun("the server gave this run up", hint="nothing is returned") from exc

    def _warn(self, event: str, exc: Exception, **more: object) -> None:
        log.warning(event, job=self.local.state.id, **more, why=said(exc), hint=hint_for(exc, self.local.paths.folder))

    def wake(self) -> None:
        """Have the thread look at the site's switch at once."""
        self._news.set()

    def _stay(self) -> None:
        """Raise `Left` where the agent is stopping, or the site's operator has stopped everything."""
        if self._leave.is_set():
            raise Left
        super()._stay()

    def _pause(self, seconds: float) -> None:
        """Wait, ending early at news; raise as `_stay`."""
        self._stay()
        self._news.wait(seconds)
        self._news.clear()
        self._stay()
