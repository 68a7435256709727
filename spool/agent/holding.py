"""An agent's job whose results wait for a person (docs/security.md, "Release by a person"); the rules are those of `custody`.

Before the release nothing of them leaves: no file, no name, no exit code, no log.
"""

from __future__ import annotations

import contextlib
import os
import time

from spool import log
from spool.agent import release, transfer
from spool.agent.held import ChangedAfterSnapshot, Mark
from spool.agent.snapshot import Snapshot
from spool.agent.troubles import Left
from spool.agent.watching import Watcher
from spool.errors import SpoolError, StaleRun
from spool.files import replace_file
from spool.records import Result
from spool.results import final_state, no_run

LOOK_S = 0.5  # between looks at the decisions
LOOK_AGAIN_S = 60.0  # where nothing seems to have changed


class Holder(Watcher):
    """The step between a command's end and the return of its results; safe to repeat after a restart."""

    # Waiting

    def _released(self) -> bool:
        """Wait for the persons' word. True: the results may leave. False: the job has ended without them, and is told of."""
        looked, seen = 0.0, -1
        if not self._mark.reason:
            self._put(self._mark)
        self._sync_soon()
        try:
            while not (mark := self._mark).reason:
                if self._wanted == "cancel":
                    self._cancel_held()
                    break
                if self._wanted == "forget":
                    raise StaleRun("the server gave this run up", hint="nothing was returned")
                stamp = self._stamp()
                if stamp != seen or time.monotonic() - looked > LOOK_AGAIN_S:
                    looked, seen = time.monotonic(), stamp
                    if self._hear(mark):
                        return True
                    if self._mark.reason:
                        break
                if not self.waits_for_person.is_set():
                    self.waits_for_person.set()
                    self._sync_soon()
                self._pause(LOOK_S)
        finally:
            self.waits_for_person.clear()
        self._end_held()
        return False

    def _is_settled(self) -> bool:
        """True where a held job is to end without results, and that is written down already."""
        mark = Mark.of(self.local.state)
        return mark is not None and bool(mark.reason)

    def _stamp(self) -> int:
        """Return what changes with the folder of decisions; within the clock's own step it never counts as unchanged."""
        try:
            stamp = os.stat(self._shelf().decisions.folder).st_mtime_ns
        except OSError:
            return 0
        return stamp if time.time_ns() - stamp > 2_000_000_000 else time.monotonic_ns()

    def _let_go(self, mark: Mark, persons: list[str]) -> bool:
        self._kept = None
        return super()._let_go(mark, persons)

    # Ending without results

    def _ended_changed(self, exc: ChangedAfterSnapshot) -> bool:
        """End a job whose released results are not what was released; False for one that was never held."""
        if Mark.of(self.local.state) is None:
            return False
        self._note_change(exc)
        self._again("report", self._end_held)
        return True

    def _end_held(self) -> None:
        mark, state = self._mark, self.local.state
        log.warning("no_results", job=state.id, reason=mark.reason, why=mark.message)
        self._close_unrun(no_run(state, mark.reason, mark.message))

    def _close_unrun(self, result: Result) -> None:
        """Tell the end of a run that returns nothing, and end the job here."""
        with contextlib.suppress(OSError):  # a folder that the command has spoiled keeps nobody
            if (mark := Mark.of(self.local.state)) is not None:
                changes = {"released": False, "reason": result.reason, "message": result.message}
                self.local.note_all(mark.extra(self.local.state, **changes))
            replace_file(self.local.paths.result, result.encode(), mode=0o600)  # to be told again after a restore at MInt
        self._client.finish(result)
        self._close(final_state(result), result.message)

    def _tell_late(self) -> None:
        """Have MInt keep the record of a measured result that it does not take, where that may be read there."""
        mark = Mark.of(self.local.state)
        if mark is not None and not mark.released:
            return
        with contextlib.suppress(SpoolError, OSError, Left):
            if (result := self.local.result()) is not None:
                release.check_still(self._config, self.local.state, result)
                self._client.finish(result)

    # Sending

    def _sender(self) -> transfer.Sender:
        mark = Mark.of(self.local.state)
        if mark is None or self._kept is not None:
            return super()._sender()
        if not mark.released:
            raise ChangedAfterSnapshot("the results are held", hint="nothing leaves before the release")
        files = Result.parse(self._manifest(mark)).files
        opened = Snapshot(self.local.paths.folder, files).open
        state = self.local.state
        self._kept = transfer.Sender(
            self._client, state.id, state.run_id, self.local.paths, self._config.agent["chunk"], book=self._book, opened=opened
        )
        return self._kept
