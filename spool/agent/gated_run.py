"""What the verbs of a gate share: whose folder it is, where the run stands, what may be told of how it ended."""

from __future__ import annotations

import contextlib
import time

from spool.agent import release
from spool.agent.config import AgentConfig
from spool.agent.custody import Custody
from spool.agent.folder import Base, LocalJob
from spool.agent.held import ChangedAfterSnapshot, Mark
from spool.errors import InvalidRecord, Refused, SpoolError
from spool.files import replace_file
from spool.records import FileEntry, Result
from spool.results import final_state, no_run
from spool.runner import LocalRunner, RunStatus
from spool.states import FINAL, Reason, State


class Gone(SpoolError):
    """The folder of this run is not here, or is another run's."""

    code = "lost"


class Replaced(SpoolError):
    """This run was here, and a later one has taken its place."""

    code = "replaced"


class GatedRun(Custody):
    """`job_id` and `run_id` are as the command line names them; but for `status` the caller holds the job's lock."""

    def __init__(self, config: AgentConfig, base: Base, runner: LocalRunner, job_id: str, run_id: str) -> None:
        super().__init__(LocalJob(base.folder / job_id), config, base, runner)
        self._job_id = job_id
        self._run_id = run_id
        self._paths = self.local.paths

    def _pause(self, seconds: float) -> None:
        self._stay()
        time.sleep(seconds)
        self._stay()

    def _where(self) -> RunStatus:
        state = self.local.state
        if not self._paths.run.exists() and (state.state == State.CLAIMED or state.state in FINAL):
            return RunStatus("new" if state.state == State.CLAIMED else "canceled")
        status = self._runner.status(self._paths.folder)
        if status.word in ("absent", "new") and state.extra.get("launched"):
            return RunStatus("lost", why="vanished")  # the command has removed what is known of it
        return status

    def _result(self) -> Result:
        """Return what may be told of the measured result."""
        try:
            result = self.local.result()
        except ChangedAfterSnapshot as exc:
            self._note_change(exc)
            result = self.local.result()
        if result is None:
            raise InvalidRecord("result.json is missing", hint="it was there when the job was measured; ask the site")
        return result

    def _leaving(self) -> Result:
        """Return the measured result as far as the rules of now let it leave; where they do not, the run ends without it."""
        result = self._result()
        if result.exit_code is None and not result.files:  # nothing of what the command made
            return result
        try:
            release.check_still(self._config, self.local.state, result)
        except Refused as exc:
            if self.local.state.state in FINAL:  # it was delivered
                raise
            told = release.words(self._config, exc)
            if Mark.of(self.local.state) is None:
                self._end_without_results(Reason.REFUSED_BY_SITE.value, told, exc.message)
            else:
                self._book.ended(Reason.REFUSED_BY_SITE.value, told, exc.message)
                self._settle(Reason.REFUSED_BY_SITE.value, told)
            return self._result()
        return result

    def _refuse(self, exc: Refused) -> None:
        """End a run that the law does not let start: it never can, whatever is asked."""
        if self._paths.run.exists():
            self._runner.cancel(self._paths.folder)  # takes the latch
        self._end_without_results(Reason.REFUSED_BY_SITE.value, release.words(self._config, exc), exc.message)

    def _end_without_results(self, reason: str, told: str, why: str) -> None:
        result = no_run(self.local.state, reason, told)
        self._book.ended(reason, told, why)
        replace_file(self._paths.result, result.encode(), mode=0o600)
        self._close(final_state(result), told)

    def _has_state(self) -> bool:
        try:
            self.local.load()
        except FileNotFoundError:
            return False
        return True

    def _mine(self) -> None:
        """Read the local state; `Gone` where the folder is not this run's."""
        if not self._has_state() or self.local.state.run_id != self._run_id:
            raise Gone("the folder of this run is not at the site", hint="requeue the job, or ask the site")

    def _was_here(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return f'"run_id":"{self._run_id}"'.encode() in self._paths.history.read_bytes()
        return False

    def _announced(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.local.state.inputs}
