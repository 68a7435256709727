"""A command under way: started unless it ever was, watched to its end, stopped where MInt says so."""

from __future__ import annotations

import functools
import subprocess
import time
from typing import Callable

from spool import log
from spool.agent import pins, policy, release, signed, walls
from spool.agent.config import Command, walled
from spool.agent.hands import Hands
from spool.agent.redacted import RedactedLogs
from spool.agent.troubles import may_pass
from spool.errors import SpoolError
from spool.records import FileEntry
from spool.runner import RunStatus, write_run
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
            self._stay()
            order = policy.allow(self._config, self._job(), self.local.state, self.local.paths.work)
            pins.check(self._command(), self.local.state.id)
            self._write_run(order)
            signed.check_start(self._keeper, self.local)
            self._book.start(order.argv)  # durable before the command is
            walls.open_way(self._command(), self.local)
            status = self._runner.start(folder, order.site_env)
            log.info("started", job=self.local.state.id, run=self.local.state.run_id, status=status.word, pid=status.pid)
            self._launched = True
        if status.word in ("absent", "new"):  # "new" after a start: the command has removed run/ and what is known there
            return RunStatus("lost", why="vanished")
        return status

    def _command(self) -> Command:
        """Return the site's rules for the job's command, once `policy.allow` has found them."""
        return self._config.commands[self._job().command]

    def _write_run(self, order: policy.Order) -> None:
        """Write `run/` for `order`, unless this process has, or the command was started: what runs is what the law says now."""
        paths = self.local.paths
        if order == self._written or (paths.run / "started").exists():
            return
        argv = (*walls.take(self._command(), self.local), *order.argv)
        grace_s = self._config.agent["cancel_grace_s"]
        write_run(paths.folder, argv, order.job_env, wall_time_s=order.wall_time_s, grace_s=grace_s)
        self._written = order

    def _seal(self) -> None:
        """See to it that nothing of a walled command can change what is measured. Safe to repeat."""
        walls.seal(self.local)
        command = self._config.commands.get(self._job().command)
        if command is not None and walled(command):
            walls.strip_set_id(self.local.paths.work)

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
        law = self._config.release
        if law["logs"] == "withhold" or law["scrub"] or law["hold"]:  # scrub may clean the logs; with hold nobody knows yet
            return
        try:
            for name, size in self._log_sizes().items():
                if size:
                    self._sender().stream(f"log/{name}", size)
        except (SpoolError, OSError) as exc:
            log.debug("log_not_sent", job=self.local.state.id, why=exc)

    def _log_sizes(self) -> dict[str, int]:
        """Return how much of each log may leave by now, in bytes."""
        if self._config.release["logs"] == "redact":
            return self._redacted.advance()
        paths = {name: self.local.paths.log / name for name in release.LOG_NAMES}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}

    def _final_logs(self) -> tuple[FileEntry, ...]:
        """Return the manifest of the logs that leave; the redacted copies are made anew for it."""
        if self._config.release["logs"] != "redact":
            return release.logs(self._config, self.local.paths)
        held = bool(self._config.release["hold"])
        entries = self._redacted.finish(own=held)
        release.check_caps(self._config, [entry.size for entry in entries])
        if held:
            self._redacted.lay_out(entries)
        return entries

    @functools.cached_property
    def _redacted(self) -> RedactedLogs:
        state = self.local.state
        folder = self._base.logs_of(state.id, state.run_id)
        return RedactedLogs(folder, self.local.paths, self._config.redactor, release.LOG_NAMES)
