"""Results in the site's custody: laid out for a person, told of, released or refused (docs/security.md, "Release by a person").

What persons have said counts where it is about exactly the manifest that lies here; the last word is this program's, which
compares every file before it goes on and every piece while it is sent. Who waits for it is an agent's thread (`holding`), or a
push that asks the gate (`gated_job`).
"""

from __future__ import annotations

import contextlib
import grp
from typing import Any

from spool import log
from spool.agent import release, remarks
from spool.agent.decisions import REFUSE, Decision, Rules
from spool.agent.held import CHANGED, ChangedAfterSnapshot, Mark, digest
from spool.agent.shelf import Lying, Shelf
from spool.agent.snapshot import Snapshot, freeze
from spool.agent.steps import Steps
from spool.errors import ConfigError, InvalidRecord
from spool.files import read_record, replace_file
from spool.instants import utc_now
from spool.jsonio import MAX_BYTES
from spool.records import CANCELED, Result
from spool.results import no_run
from spool.runner import RunStatus
from spool.states import Reason, State

REFUSED = "refused by the site"
TABLES = ""  # the name under which what is wrong with the tables is remarked


def rules_of(release: dict[str, Any]) -> Rules:
    """Return who may decide."""
    return Rules(release["reviewers"], release["persons"], release["not_submitter"])


class Custody(Steps):
    """The steps between a command's end and the return of its results; each is safe to repeat."""

    def _measure(self, status: RunStatus) -> None:
        """Write `result.json`: how it ended and the manifest of what may leave. From here on nothing is run any more."""
        self._book.end(status)
        result = release.spoken(self._config, self._judged(status))
        if not self._lay_out(result):
            extra = {**self.local.state.extra, release.LAW: release.content_law(self._config)}
            self.local.advance(State.RETURNING, "measured", exit_code=result.exit_code, extra=extra)

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

    # Decisions

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

    def _settle(self, reason: str, message: str) -> None:
        """Note durably how this job ends, without any results; from here on a decision changes nothing."""
        state = self.local.state
        self.local.note_all(self._mark.extra(state, released=False, reason=reason, message=message))
        log.info("held_end", job=state.id, run=state.run_id, reason=reason, why=message)

    def _cancel_held(self) -> None:
        """End what is held because MInt has canceled it."""
        self._tell_site("canceled_while_held", manifest=self._mark.manifest)
        self._settle(CANCELED, "canceled while its results were held")

    def _note_change(self, exc: ChangedAfterSnapshot) -> None:
        self._tell_site("changed_after_snapshot", manifest=self._mark.manifest, why=exc.message)
        log.error("changed_after_snapshot", job=self.local.state.id, run=self.local.state.run_id, why=exc.message,
                  hint="nothing of the change left; who can write to the agent's base?")  # fmt: skip
        self._settle(Reason.REFUSED_BY_SITE.value, CHANGED)

    def _close(self, target: State, why: str) -> None:
        if Mark.of(self.local.state) is not None:  # first: a job that has ended is not looked at again
            self._shelf().remove(self.local.state.id, self.local.state.run_id)
        super()._close(target, why)
