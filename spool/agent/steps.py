"""One job under agent.ini: what its rules ask for at each step, whoever carries the job.

An agent's thread (`hands`) and a session at a guarded site's gate (`gated_job`) are built on this: one law, one code.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from spool import log
from spool.agent import pins, policy, prerun, release, scrub, signed, walls
from spool.agent.book import Book
from spool.agent.config import AgentConfig, Command, walled
from spool.agent.folder import Base, LocalJob
from spool.agent.redacted import RedactedLogs
from spool.agent.signed import Gatekeeper
from spool.agent.snapshot import own_logs
from spool.agent.standing import Switch
from spool.errors import Refused, SpoolError
from spool.records import FileEntry, Job, Result
from spool.results import Outputs, judge
from spool.runner import LocalRunner, RunStatus, write_run
from spool.states import Reason, State


class Steps:
    """The rules' steps for the job `local`; each is safe to repeat."""

    def __init__(self, local: LocalJob, config: AgentConfig, base: Base, runner: LocalRunner) -> None:
        self.local = local
        self._config = config
        self._base = base
        self._runner = runner
        self._book = Book(base.audit, local, config.policy)
        self._keeper = Gatekeeper(config, base.control)
        self._switch = Switch(base.control)
        self._asked: Job | None = None
        self._written: policy.Order | None = None

    def _job(self) -> Job:
        """Return what the job asks for, as read once."""
        if self._asked is None:
            self._asked = self.local.job()
        return self._asked

    def _stay(self) -> None:
        """Raise `Left` where the site's operator has stopped everything."""
        self._switch.check()

    def _pause(self, seconds: float) -> None:
        """Wait; raise as `_stay`."""
        raise NotImplementedError

    # To the start

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

    def _make_ready(self, order: policy.Order) -> None:
        """Write `run/`, make `work/`, and have the site's own program and the pins say whether the job may run."""
        self._write_run(order)
        self._runner.prepare(self.local.paths.folder)
        prerun.ask(self._command(), self.local.state, self.local.paths, self._pause)
        pins.check(self._command(), self.local.state.id)
        self.local.mark_ready()

    def _launch(self) -> RunStatus:
        """Start the command, which provably never was: the law is asked once more, for it may have changed."""
        self._stay()
        order = policy.allow(self._config, self._job(), self.local.state, self.local.paths.work)
        pins.check(self._command(), self.local.state.id)
        self._write_run(order)
        signed.check_start(self._keeper, self.local)
        self._book.start(order.argv)  # durable before the command is
        walls.open_way(self._command(), self.local)
        return self._runner.start(self.local.paths.folder, order.site_env)

    # From its end

    def _seal(self) -> None:
        """See to it that nothing of a walled command can change what is measured. Safe to repeat."""
        walls.seal(self.local)
        command = self._config.commands.get(self._job().command)
        if command is not None and walled(command):
            walls.strip_set_id(self.local.paths.work)

    def _judged(self, status: RunStatus) -> Result:
        """Return the result with all that may leave; where the site refuses, with nothing but how the command ended."""
        local, job, config = self.local, self._job(), self._config
        limit_s = policy.limit_s(config, job)
        try:
            if config.release["hold"]:
                own_logs(local.paths, release.LOG_NAMES)
            scrub.scrub(config, local.state.id, job.command, local.paths, status, self._base.control / "scrub", self._pause)
            outputs = release.collect(config, job, local.paths)
            return judge(job, local.state, status, outputs, self._final_logs(), wall_time_s=limit_s)
        except Refused as exc:
            ended = judge(job, local.state, status, Outputs(), wall_time_s=limit_s)
            return replace(ended, reason=Reason.REFUSED_BY_SITE.value, message=exc.message)

    def _close(self, target: State, why: str) -> None:
        try:
            walls.seal(self.local)
        except (SpoolError, OSError) as exc:  # the account stays taken, and is given back by the next job that wants it
            log.error("account_not_free", job=self.local.state.id, why=exc, hint="look for its processes at the site")
        try:
            self.local.close(target, why)
        except OSError as exc:  # the folder is gone or spoiled; at MInt the job has ended
            log.error("local_end_not_written", job=self.local.state.id, to=target, why=exc)

    # The logs

    def _may_stream(self) -> bool:
        """True where logs may leave while the command runs."""
        law = self._config.release
        # scrub may clean the logs; with hold nobody knows yet
        return law["logs"] != "withhold" and not law["scrub"] and not law["hold"]

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
