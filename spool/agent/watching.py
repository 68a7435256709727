"""A command under way: started unless it ever was, watched to its end, stopped where MInt says so."""

from __future__ import annotations

import subprocess
import time
from typing import Callable

from spool import log
from spool.agent.hands import Hands
from spool.agent.troubles import may_pass
from spool.errors import SpoolError
from spool.runner import RunStatus
from spool.states import State

FIRST_LOOK_S = 0.02
LAST_LOOK_S = 0.5
STATUS_EVERY_S = 10.0
LOG_EVERY_S = 2.0
MOST_TRIES = 4
RUNNER_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Watcher(Hands):
    """The step between the permission to start and the command's end; safe to repeat after a restart."""

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
            status = self._launch()
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

    def _stop_at_the_switch(self) -> None:
        """End the command because the site's operator has stopped everything; its end is told once he resumes."""
        if self.local.state.state != State.RUNNING:
            return
        for _ in range(MOST_TRIES):
            try:
                status = self._runner.cancel(self.local.paths.folder)
                log.warning("stopped_here", job=self.local.state.id, run=self.local.state.run_id, status=status.word)
                return
            except (OSError, ValueError, subprocess.CalledProcessError) as exc:
                self._warn("runner_failed", exc)
                self._leave.wait(RUNNER_PAUSE_S)
        log.error("not_stopped", job=self.local.state.id, why="the runner failed", hint="look for its processes at the site")

    def _stream_log(self) -> None:
        """Send what the log has grown by. Whatever fails here is made up for when the results are returned."""
        if not self._may_stream():
            return
        try:
            for name, size in self._log_sizes().items():
                if size:
                    self._sender().stream(f"log/{name}", size)
        except (SpoolError, OSError) as exc:
            log.debug("log_not_sent", job=self.local.state.id, why=exc)
