"""One job through the agent's hands: fetch, run, return. One function a step, each safe to repeat after a restart.

The order that keeps "at most once": inputs and policy first; then the server is asked and writes `running`; then `running` is
written here; only then is the runner told to start, and the runner's own latch lets that happen once.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from dataclasses import replace
from typing import Callable, TypeVar

from spool import log
from spool.agent import policy, release, transfer
from spool.agent.client import retry_delay_s
from spool.agent.config import AgentConfig
from spool.agent.folder import LocalJob
from spool.agent.protocol import JobClient
from spool.agent.troubles import Left, hint_for, is_tried_again, may_pass, said
from spool.errors import (
    Conflict,
    DigestMismatch,
    InvalidRecord,
    NotFound,
    Refused,
    SpoolError,
    StaleRun,
    TransferFailed,
    UnknownRun,
    Unreachable,
)
from spool.files import replace_file
from spool.records import CANCELED, Job, Result
from spool.results import Outputs, final_state, judge, no_run
from spool.runner import LocalRunner, RunStatus, write_run
from spool.states import Reason, State

FIRST_LOOK_S = 0.02
LAST_LOOK_S = 0.5
STATUS_EVERY_S = 10.0
LOG_EVERY_S = 2.0
SEND_TRIES = 4
MOST_TRIES = 4
RUNNER_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0

T = TypeVar("T")


class Carrier:
    """Carries one job in a thread of its own. `told` is what the latest sync said is wanted of it."""

    def __init__(
        self, local: LocalJob, client: JobClient, config: AgentConfig, runner: LocalRunner, sync_soon: Callable[[], None]
    ) -> None:
        self.local = local
        self.done = False
        self.kept = False
        self.waits_for_command = threading.Event()
        self._client = client
        self._config = config
        self._runner = runner
        self._sync_soon = sync_soon
        self._wanted = ""
        self._asked: Job | None = None
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

    # The steps

    def _run(self) -> None:
        tries = 0
        while not self.done:
            try:
                self._carry()
                self.done = True
            except Left:
                log.info("left", job=self.local.state.id, state=self.local.state.state)
                return
            except (UnknownRun, NotFound) as exc:
                self._tell_late()
                log.error("kept", job=self.local.state.id, run=self.local.state.run_id, state=self.local.state.state, why=exc,
                          hint="MInt has forgotten it (a restore?); the folder stays, MInt's operator decides")  # fmt: skip
                self.kept = True
                return
            except (StaleRun, Conflict) as exc:
                self._stop_command()
                log.warning("run_given_up", job=self.local.state.id, run=self.local.state.run_id, why=exc,
                            hint=f"nothing of it is merged at MInt; what it made stays in {self.local.paths.folder}")  # fmt: skip
                self._tell_late()
                self._close(State.CANCELED, f"the server gave this run up: {exc.message}")
                self.done = True
            except Exception:  # noqa: BLE001 - outermost frame of the thread: a defect; the job is carried on after a while
                log.error("carrier_failed", trace=True, job=self.local.state.id, state=self.local.state.state)
                tries += 1
                self._leave.wait(retry_delay_s(tries))
        self._sync_soon()

    def _carry(self) -> None:
        if self.local.state.state == State.CLAIMED:
            try:
                self._again("fetch", self._fetch)
            except (StaleRun, Conflict):
                raise
            except SpoolError as exc:
                self._end_without_results(Reason.REFUSED_BY_SITE if isinstance(exc, Refused) else Reason.TRANSFER, exc)
                return
            if not self._permitted():
                self._runner.cancel(self.local.paths.folder)  # takes the latch: it can never start
                self._end_without_results(CANCELED, StaleRun("canceled before it started", hint=""))
                return
            self._again("start", lambda: self.local.advance(State.RUNNING, "may start"))
        if self.local.state.state == State.RUNNING and not self._run_to_its_end():
            return
        try:
            self._again("return", self._return)
        except TransferFailed as exc:
            self._end_without_results(Reason.TRANSFER, exc)

    def _run_to_its_end(self) -> bool:
        """Run and measure; False where the job had to be ended in another way, and has been told of."""
        try:
            status = self._again("run", self._run_and_watch, most=1)
            self._again("measure", lambda: self._measure(status), most=MOST_TRIES)
            return True
        except Refused as exc:  # the policy changed between permission and start
            self._runner.cancel(self.local.paths.folder)
            self._end_without_results(Reason.REFUSED_BY_SITE, exc)
        except (StaleRun, Conflict):
            raise
        except (SpoolError, OSError, ValueError, subprocess.CalledProcessError) as exc:
            # The command, which can write to its folder, has made it unusable; it must not keep the slot for ever.
            self._stop_command()
            why = f"what the command left cannot be used, and it was stopped where it still ran: {said(exc)}"
            self._end_without_results(Reason.LOST, SpoolError(why, hint="look at the folder at the site"))
        return False

    def _fetch(self) -> None:
        """Bring job.json and the inputs here, judge them by the site's policy, and make `run/` and `work/` ready."""
        local = self.local
        job = self._job()
        local.announce(self._client.inputs(local.state), job.command)
        state = local.state
        # Judged before a byte of input is fetched, and again at every start: the policy may have changed.
        order = policy.allow(self._config, job, state, local.paths.work)
        transfer.fetch_inputs(self._client, state.id, local.paths, state.inputs)
        if not (local.paths.run / "started").exists():
            write_run(
                local.paths.folder,
                order.argv,
                order.job_env,
                wall_time_s=order.wall_time_s,
                grace_s=self._config.agent["cancel_grace_s"],
            )
        self._runner.prepare(local.paths.folder)
        local.mark_ready()

    def _job(self) -> Job:
        """Return what the job asks for: as fetched once, whatever the command does to the folder meanwhile."""
        if self._asked is None:
            if not self.local.paths.job.exists():
                replace_file(self.local.paths.job, self._client.job_bytes(self.local.state.id), mode=0o600)
            self._asked = self.local.job()
        return self._asked

    def _permitted(self) -> bool:
        """Ask until the start is permitted (True) or the job is to be canceled (False)."""
        while self._wanted != "start":
            self._sync_soon()
            deadline = time.monotonic() + self._config.agent["poll_s"]
            while self._wanted not in ("start", "forget", "cancel", "keep") and time.monotonic() < deadline:
                self._pause(deadline - time.monotonic())
            if self._wanted == "cancel":
                return False
            if self._wanted == "keep":
                raise UnknownRun("MInt does not know the job; it was not started", hint="MInt's operator decides")
            if self._wanted == "forget":
                raise StaleRun("the job was given back or canceled before it started", hint="nothing was run")
        return True

    def _run_and_watch(self) -> RunStatus:
        """Start the command unless it ever was, and wait for its end; pass on a cancel; stream the log where it may leave."""
        look_s, next_status, next_log = FIRST_LOOK_S, 0.0, time.monotonic() + LOG_EVERY_S
        exit_file = self.local.paths.run / "exit"
        while True:
            if exit_file.exists() or time.monotonic() >= next_status:
                status = self._ask_runner(self._status)
                if status is not None and status.is_over:
                    return status
                next_status = time.monotonic() + STATUS_EVERY_S
            if self._wanted in ("cancel", "forget"):
                canceled = self._ask_runner(self._canceled)
                if canceled is not None:
                    return canceled
                continue
            if time.monotonic() >= next_log:
                self._stream_log()
                next_log = time.monotonic() + LOG_EVERY_S
            self.waits_for_command.set()
            self._pause(look_s)
            look_s = min(LAST_LOOK_S, look_s * 1.3)

    def _ask_runner(self, ask: Callable[[], RunStatus]) -> RunStatus | None:
        """Return where the run stands, or None where the runner could not tell; raise only after several such in a row."""
        try:
            status = ask()
        except (OSError, ValueError, subprocess.CalledProcessError) as exc:
            self._hiccups += 1
            self._warn("runner_failed", exc, times=self._hiccups)
            if self._hiccups >= MOST_TRIES and not may_pass(exc, self.local.paths.folder):
                raise
            self._pause(min(LONGEST_PAUSE_S, RUNNER_PAUSE_S * self._hiccups))
            return None
        self._hiccups = 0
        return status

    def _status(self) -> RunStatus:
        folder = self.local.paths.folder
        status = self._runner.status(folder)
        if status.word == "new" and not self._launched:  # the latch is not taken: provably not started
            order = policy.allow(self._config, self._job(), self.local.state, self.local.paths.work)
            status = self._runner.start(folder, order.site_env)
            log.info("started", job=self.local.state.id, run=self.local.state.run_id, status=status.word, pid=status.pid)
            self._launched = True
        if status.word in ("absent", "new"):  # "new" after a start: the command has removed run/ and what is known there
            return RunStatus("lost", why="vanished")
        return status

    def _canceled(self) -> RunStatus:
        log.info("cancel", job=self.local.state.id, run=self.local.state.run_id)
        return self._runner.cancel(self.local.paths.folder)

    def _stop_command(self) -> None:
        if self.local.state.state != State.RUNNING:
            return
        try:
            self._runner.cancel(self.local.paths.folder)
        except (OSError, ValueError, subprocess.CalledProcessError) as exc:
            log.error("not_stopped", job=self.local.state.id, why=exc, hint="look for its processes at the site")

    def _stream_log(self) -> None:
        """Send what the log has grown by. Whatever fails here is made up for when the results are returned."""
        if self._config.release["logs"] != "return":
            return
        try:
            for name in release.LOG_NAMES:
                path = self.local.paths.log / name
                size = path.stat().st_size if path.exists() else 0
                if size:
                    self._sender().send_file(f"log/{name}", size)
        except (SpoolError, OSError) as exc:
            log.debug("log_not_sent", job=self.local.state.id, why=exc)

    def _measure(self, status: RunStatus) -> None:
        """Write `result.json`: how it ended and the manifest of what may leave. From here on nothing is run any more."""
        local, job = self.local, self._job()
        outputs = Outputs()
        try:
            outputs = release.collect(self._config, job, local.paths)
            limit_s = policy.limit_s(self._config, job)
            result = judge(job, local.state, status, outputs, release.logs(self._config, local.paths), wall_time_s=limit_s)
        except Refused as exc:
            result = replace(judge(job, local.state, status, outputs), reason=Reason.REFUSED_BY_SITE.value, message=exc.message)
        replace_file(local.paths.result, result.encode(), mode=0o600)
        local.advance(State.RETURNING, "measured", exit_code=result.exit_code)
        self._sync_soon()

    def _return(self) -> None:
        """Send what the manifest lists, then the manifest; the job ends here with the server's word for it."""
        result = self.local.result()
        if result is None:
            raise InvalidRecord(f"{self.local.paths.result} is missing", hint="it was there when the job began to return")
        for tries in range(SEND_TRIES):
            try:
                self._send(result)
                answer = self._client.finish(result)
                break
            except DigestMismatch as exc:
                self._sender().forget_sent()
                log.warning("sent_again", job=result.id, run=result.run_id, why=exc)
                if tries == SEND_TRIES - 1:
                    raise TransferFailed(f"the results did not verify: {exc.message}", hint="look at work/ at the site") from exc
            except Conflict as exc:
                if not self._client.still_wants(result.id, result.run_id):
                    raise
                self._sync_soon()  # restored to before the start, which a sync tells it of
                raise Unreachable(f"MInt has not heard of this run's end: {exc.message}", hint="a sync tells it") from exc
        ended = str(answer.get("state", ""))
        self._close(State(ended) if ended in State.__members__.values() else State.COMPLETED, "delivered")

    def _send(self, result: Result) -> None:
        try:
            self._sender().send(result.files)
        except Conflict:  # it has ended at MInt already: `finish` tells whether by this very result, its answer lost
            log.info("takes_no_more", job=result.id, run=result.run_id)

    def _tell_late(self) -> None:
        """Have MInt keep the record of a measured result that it does not take, where it can be read."""
        with contextlib.suppress(SpoolError, OSError):
            if (result := self.local.result()) is not None:
                self._client.finish(result)

    def _close(self, target: State, why: str) -> None:
        try:
            self.local.close(target, why)
        except OSError as exc:  # the folder is gone or spoiled; at MInt the job has ended
            log.error("local_end_not_written", job=self.local.state.id, to=target, why=exc)

    def _end_without_results(self, reason: str, why: SpoolError) -> None:
        log.warning("no_results", job=self.local.state.id, reason=reason, why=why.message)
        result = no_run(self.local.state, str(reason), why.message)
        self._again("report", lambda: self._close_unrun(result))

    def _close_unrun(self, result: Result) -> None:
        with contextlib.suppress(OSError):  # a folder that the command has spoiled keeps nobody
            replace_file(self.local.paths.result, result.encode(), mode=0o600)  # to be told again after a restore at MInt
        self._client.finish(result)
        self._close(final_state(result), result.message)

    def _sender(self) -> transfer.Sender:
        state = self.local.state
        if self._kept is None:
            self._kept = transfer.Sender(self._client, state.id, state.run_id, self.local.paths, self._config.agent["chunk"])
        return self._kept

    # Trying again

    def _again(self, name: str, step: Callable[[], T], *, most: int = 0) -> T:
        """Do `step` until it works; transient errors are tried again for ever, at the pace of `retry_delay_s`.

        With `most`, an error is raised after so many tries, unless only the line or a lack of resources stands in the way.
        """
        tries = 0
        while True:
            try:
                return step()
            except (SpoolError, OSError, ValueError, subprocess.CalledProcessError) as exc:
                if isinstance(exc, SpoolError) and not is_tried_again(exc):
                    raise
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

    def _pause(self, seconds: float) -> None:
        """Wait, ending early at news; raise `Left` where the agent is stopping."""
        if self._leave.is_set():
            raise Left
        self._news.wait(seconds)
        self._news.clear()
        if self._leave.is_set():
            raise Left
