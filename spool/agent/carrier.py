"""One job through the agent's hands: fetch, run, return. One function a step, each safe to repeat after a restart.

The order that keeps "at most once": inputs and policy first; then the server is asked and writes `running`; then `running` is
written here; only then is the runner told to start, and the runner's own latch lets that happen once.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any

from spool import log
from spool.agent import policy, release, signed, transfer
from spool.agent.client import retry_delay_s
from spool.agent.held import ChangedAfterSnapshot
from spool.agent.holding import Holder
from spool.agent.troubles import Left, said
from spool.agent.watching import MOST_TRIES
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
from spool.records import CANCELED, Result
from spool.results import no_run
from spool.runner import RunStatus
from spool.states import Reason, State

SEND_TRIES = 4


class Carrier(Holder):
    """Carries one job from its claim to its end."""

    def _run(self) -> None:
        tries = 0
        while not self.done:
            try:
                self._carry_or_give_up()
                self.done = True
            except Left:
                if self._switch.stopped:
                    self._stop_at_the_switch()
                self.left = True
                log.info("left", job=self.local.state.id, state=self.local.state.state)
                return
            except (UnknownRun, NotFound) as exc:
                self._tell_late()
                log.error("kept", job=self.local.state.id, run=self.local.state.run_id, state=self.local.state.state, why=exc,
                          hint="MInt has forgotten it (a restore?); the folder stays, MInt's operator decides")  # fmt: skip
                self.kept = True
                return
            except Exception:  # noqa: BLE001 - outermost frame of the thread: a defect; the job is carried on after a while
                log.error("carrier_failed", trace=True, job=self.local.state.id, state=self.local.state.state)
                tries += 1
                self._leave.wait(retry_delay_s(tries))
        self._sync_soon()

    def _carry_or_give_up(self) -> None:
        try:
            self._carry()
        except UnknownRun:
            raise
        except (StaleRun, Conflict) as exc:
            self._stop_command()
            log.warning("run_given_up", job=self.local.state.id, run=self.local.state.run_id, why=exc,
                        hint=f"nothing of it is merged at MInt; what it made stays in {self.local.paths.folder}")  # fmt: skip
            why = exc.message
            self._tell_late()
            self._again("audit", lambda: self._book.given_up(why))
            self._close(State.CANCELED, f"the server gave this run up: {why}")

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
        if self.local.state.state == State.HELD and not self._again("hold", self._released):
            return
        try:
            self._again("return", self._return)
        except Refused as exc:
            self._end_without_results(Reason.REFUSED_BY_SITE, exc)
        except TransferFailed as exc:
            self._end_without_results(Reason.TRANSFER, exc)
        except ChangedAfterSnapshot as exc:
            if not self._ended_changed(exc):
                self._end_without_results(Reason.TRANSFER, exc)

    def _run_to_its_end(self) -> bool:
        """Run and measure; False where the job had to be ended in another way, and has been told of."""
        try:
            status = self._again("run", self._run_and_watch, most=1)
            self._again("seal", self._seal)
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
            log.error("left_unusable", job=self.local.state.id, why=said(exc), hint=f"look at {self.local.paths.folder}")
            why = "what the command left cannot be used, and it was stopped where it still ran"
            self._end_without_results(Reason.LOST, TransferFailed(why, hint="look at the folder at the site"))
        return False

    def _fetch(self) -> None:
        """Bring job.json and the inputs here, judge them by the site's policy, and make `run/` and `work/` ready."""
        local = self.local
        job = self._job()
        signed.check_fetched(self._keeper, self._client, local)
        local.announce(self._client.inputs(local.state), job.command)
        self._book.receipt(job, local.paths.job.read_bytes())
        state = local.state
        # Judged before a byte of input is fetched, and again at every start: the policy may have changed.
        order = policy.allow(self._config, job, state, local.paths.work)
        policy.check_room(self._config, job, state, local.paths)
        transfer.fetch_inputs(self._client, state.id, local.paths, state.inputs)
        self._make_ready(order)

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

    def _measure(self, status: RunStatus) -> None:
        super()._measure(status)
        self._sync_soon()

    def _return(self) -> None:
        """Send what the manifest lists, then the manifest; the job ends here with the server's word for it."""
        result = self.local.result()
        if result is None:
            raise InvalidRecord(f"{self.local.paths.result} is missing", hint="it was there when the job began to return")
        release.check_still(self._config, self.local.state, result)
        for tries in range(SEND_TRIES):
            try:
                self._send(result)
                answer = self._finish(result)
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
        if self._client.in_one_piece and not answer.get("refused"):
            self._book.sent(result.files)
        self._book.delivered(result, ended)
        self._close(State(ended) if ended in State.__members__.values() else State.COMPLETED, "delivered")

    def _send(self, result: Result) -> None:
        if not result.files:
            return
        try:
            self._sender().send(result.files)
        except Conflict:  # it has ended at MInt already: `finish` tells whether by this very result, its answer lost
            log.info("takes_no_more", job=result.id, run=result.run_id)

    def _finish(self, result: Result) -> dict[str, Any]:
        try:
            return self._client.finish(result)
        except SpoolError:
            if self._client.in_one_piece:  # the files go with it
                size = sum(entry.size for entry in result.files)
                self._book.cut("result_files", 0, size, size)
            raise

    def _end_without_results(self, reason: str, why: SpoolError) -> None:
        log.warning("no_results", job=self.local.state.id, reason=reason, why=why.message)
        result = no_run(self.local.state, str(reason), release.words(self._config, why))
        self._again("audit", lambda: self._book.ended(str(reason), result.message, why.message))
        self._again("report", lambda: self._close_unrun(result))
