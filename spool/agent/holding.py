"""Results that wait for a person: laid out, told of, released or refused (docs/security.md, "Release by a person").

Before the release nothing of them leaves: no file, no name, no exit code, no log. What persons have said counts where it is
about exactly the manifest that lies here; the last word is this program's, which compares every file before it goes on and
every piece while it is sent.
"""

from __future__ import annotations

import contextlib
import grp
import os
import time
from typing import Any

from spool import log
from spool.agent import remarks, transfer
from spool.agent.decisions import REFUSE, Decision, Rules
from spool.agent.held import CHANGED, ChangedAfterSnapshot, Mark, digest
from spool.agent.shelf import Lying, Shelf
from spool.agent.snapshot import Snapshot, freeze
from spool.agent.troubles import Left
from spool.agent.watching import Watcher
from spool.errors import ConfigError, InvalidRecord, SpoolError, StaleRun
from spool.files import read_record, replace_file
from spool.instants import utc_now
from spool.jsonio import MAX_BYTES
from spool.records import CANCELED, Result
from spool.results import final_state, no_run
from spool.states import Reason, State

LOOK_S = 0.5  # between looks at the decisions
LOOK_AGAIN_S = 60.0  # where nothing seems to have changed
REFUSED = "refused by the site"
TABLES = ""  # the name under which what is wrong with the tables is remarked


def rules_of(release: dict[str, Any]) -> Rules:
    """Return who may decide."""
    return Rules(release["reviewers"], release["persons"], release["not_submitter"])


class Holder(Watcher):
    """The step between a command's end and the return of its results; safe to repeat after a restart."""

    @property
    def _mark(self) -> Mark:
        mark = Mark.of(self.local.state)
        if mark is None:
            raise InvalidRecord("the local record does not say what is held", hint="was state.json edited?")
        return mark

    def _shelf(self) -> Shelf:
        return Shelf(self.local.paths.folder.parent)

    def _gid(self) -> int | None:
        group = self._config.release["reviewers_group"]
        try:
            return grp.getgrnam(group).gr_gid if group else None
        except KeyError as exc:
            raise ConfigError(f"[release] reviewers_group: there is no group {group!r}", hint="groupadd, or correct it") from exc

    def _tell_site(self, event: str, **details: Any) -> None:
        """Write to the audit log, durably, before what it tells of goes on."""
        self._book.tell(event, **details)

    # Holding

    def _lay_out(self, result: Result) -> bool:
        """Write result.json, and have the results held where the site's `hold` says so; False where they just leave.

        What was canceled brings nothing home from a site that would hold it.
        """
        local, hold = self.local, self._config.release["hold"]
        in_table = hold.asks_for_table and bool(self._remarks(result))  # a table that cannot be read counts as found
        why = hold.why(local.state, result, in_table)
        if why and result.reason == CANCELED:
            result, why = no_run(local.state, CANCELED, result.message), ""
        data = result.encode()
        replace_file(local.paths.result, data, mode=0o600)
        self._book.measured(result)
        if not why:
            return False
        manifest = digest(data)
        Snapshot(local.paths.folder, result.files).check()
        freeze(local.paths, result.files, self._gid())
        size = sum(entry.size for entry in result.files)
        state = local.state
        facts = {"manifest": manifest, "files": len(result.files), "bytes": size, "why": why}
        self._tell_site("held", user=state.user, command=state.command, **facts)
        mark = Mark(manifest, utc_now(), why)
        local.advance(State.HELD, "waits for a person's release", extra=mark.extra(state))
        log.info("held", job=state.id, run=state.run_id, **facts)
        return True

    def _remarks(self, result: Result) -> dict[str, str]:
        """Return what is said of the files in comparison with the tables: name -> words."""
        if not self._config.release["warn_table"]:
            return {}
        tables = remarks.Tables(self._config.release["warn_table"])
        found = {TABLES: "; ".join(tables.troubles)}
        snapshot = Snapshot(self.local.paths.folder, result.files)
        for entry in result.files:
            with contextlib.closing(snapshot.open(entry.path)) as file:
                found[entry.path] = tables.remark(file, entry.size)
        return {name: words for name, words in found.items() if words}

    def _put(self, mark: Mark) -> None:
        """Lay out what reviewers read, unless it lies there already; from here on they see it."""
        shelf, state = self._shelf(), self.local.state
        with contextlib.suppress(OSError, InvalidRecord):
            if shelf.get(state.id).manifest == mark.manifest and shelf.get(state.id).run_id == state.run_id:
                return
        try:
            found = self._remarks(Result.parse(self._manifest(mark)))
        except ChangedAfterSnapshot as exc:
            found = {TABLES: f"changed since it was laid out: {exc.message}"}
        run = (state.id, state.run_id, mark.manifest, state.user, state.command, state.attempt)
        shelf.put(Lying(*run, mark.since, mark.why, found), self._gid())

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
                    self._tell_site("canceled_while_held", manifest=mark.manifest)
                    self._settle(CANCELED, "canceled while its results were held")
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

    def _hear(self, mark: Mark) -> bool:
        """Count what was said; True where that is a release of what lies here, byte for byte."""
        state = self.local.state
        said = tuple(self._shelf().decisions.of(state.id, state.run_id, mark.manifest))
        for decision in said:
            self._note_decision(decision)
        word, counted = rules_of(self._config.release).verdict(said, state.user)
        persons = [decision.person for decision in counted]
        if word == REFUSE:
            because = next((decision.because for decision in counted if decision.because), "")
            message = self._config.redactor.text(because) or REFUSED
            self._tell_site("refused", manifest=mark.manifest, persons=persons, because=because, message=message)
            self._settle(Reason.REFUSED_BY_SITE.value, message)
        elif word:
            return self._let_go(self._mark, persons)
        return False

    def _note_decision(self, decision: Decision) -> None:
        mark = self._mark
        key = f"{decision.person}:{decision.word}"
        if key in mark.told:
            return
        why_not = rules_of(self._config.release).why_not(decision.person, self.local.state.user)
        self._tell_site("decision", person=decision.person, word=decision.word, manifest=decision.manifest, at_person=decision.at,
                        because=decision.because, counts=not why_not)  # fmt: skip
        log.info("decision", job=self.local.state.id, person=decision.person, word=decision.word, counts=not why_not, why=why_not)
        self.local.note_all(mark.extra(self.local.state, told=(*mark.told, key)))

    def _let_go(self, mark: Mark, persons: list[str]) -> bool:
        try:
            result = Result.parse(self._manifest(mark))
            Snapshot(self.local.paths.folder, result.files).check()
        except ChangedAfterSnapshot as exc:
            self._note_change(exc)
            return False
        self._kept = None
        self._tell_site("released", manifest=mark.manifest, persons=persons, files=len(result.files))
        extra = mark.extra(self.local.state, released=True)
        self.local.advance(State.RETURNING, f"released by {' '.join(persons)}", exit_code=result.exit_code, extra=extra)
        log.info("released", job=result.id, run=result.run_id, persons=" ".join(persons), manifest=mark.manifest)
        return True

    def _manifest(self, mark: Mark) -> bytes:
        """Return the bytes of result.json, which are those that were laid out."""
        try:
            data = read_record(self.local.paths.result, MAX_BYTES)
        except (FileNotFoundError, PermissionError, InvalidRecord) as exc:
            raise ChangedAfterSnapshot(f"result.json cannot be read: {exc}", hint="who can write to the agent's base?") from exc
        if digest(data) != mark.manifest:
            raise ChangedAfterSnapshot("result.json changed", hint="who can write to the agent's base?")
        return data

    # Ending without results

    def _settle(self, reason: str, message: str) -> None:
        """Note durably how this job ends, without any results; from here on a decision changes nothing."""
        state = self.local.state
        self.local.note_all(self._mark.extra(state, released=False, reason=reason, message=message))
        log.info("held_end", job=state.id, run=state.run_id, reason=reason, why=message)

    def _note_change(self, exc: ChangedAfterSnapshot) -> None:
        self._tell_site("changed_after_snapshot", manifest=self._mark.manifest, why=exc.message)
        log.error("changed_after_snapshot", job=self.local.state.id, run=self.local.state.run_id, why=exc.message,
                  hint="nothing of the change left; who can write to the agent's base?")  # fmt: skip
        self._settle(Reason.REFUSED_BY_SITE.value, CHANGED)

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

    def _close(self, target: State, why: str) -> None:
        super()._close(target, why)
        if Mark.of(self.local.state) is not None:
            self._shelf().remove(self.local.state.id, self.local.state.run_id)

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
