"""One job at a guarded site, a verb at a time: no process lives between two verbs, everything is in the job's folder.

The law is that of an agent that polls, and so is the code (`steps`, `custody`): the signature and `policy` are asked before
anything is stored and again at the start; a person's release before anything of a held result leaves; the runner's latch starts a
command at most once. `running` is written here before the runner is told. Every verb may be repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from spool import gate, jsonio, log
from spool.agent import checking, gated_files, policy, release
from spool.agent.book import Book
from spool.agent.gated_files import Later, Line, NoRoom
from spool.agent.gated_request import Coming, Request
from spool.agent.gated_run import GatedRun, Gone, Replaced
from spool.agent.held import CHANGED, ChangedAfterSnapshot, Mark
from spool.agent.protocol import log_folder
from spool.agent.snapshot import Snapshot
from spool.errors import Busy, Conflict, DigestMismatch, InvalidName, NotFound, Refused
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.manifest import hash_file, list_files
from spool.records import CANCELED, JOB_LIMIT_BYTES, FileEntry, JobState
from spool.results import Outputs, final_state, judge
from spool.room import why_no_room
from spool.runner import RunStatus
from spool.states import FINAL, Reason, State

TAIL_BYTES = 1024 * 1024
REDACTED_TAIL_BYTES = 16 * 1024 * 1024  # a redacted copy is made anew by each session
_STARTED = ("starting", "running", "exited", "lost")
_MEASURED = frozenset({State.HELD, State.RETURNING}) | FINAL


class GatedJob(GatedRun):
    """The verbs. Each raises `Left` where the site's operator has stopped what it does."""

    # ---- To the site

    def enter(self, line: Line) -> dict[str, Any]:
        """Judge the job and make the folder this run's; say how much of each input is here, or which other run was started."""
        request = Request(line.read_line(), self._job_id)
        self._stay()
        coming = Coming(request.state(self._job_id, self._run_id))
        if self._has_state():
            here = self.local.state.run_id
            if here == self._run_id:
                return self._enter_again(request, coming)
            if self._was_here():
                raise Replaced(f"run {self._run_id} was here and was replaced since", hint="a restore? requeue the job")
            if here not in request.earlier and self._runner.status(self._paths.folder).word in _STARTED:
                return {"other": here, "here": {}}
            self._stop_former()
        if self._switch.get().mode:
            raise Later("the site takes no new job for now", hint="its operator holds them back; it is tried again")
        self._admit(request, coming)
        self.local.begin(coming.state)
        return self._taken(request)

    def _enter_again(self, request: Request, coming: Coming) -> dict[str, Any]:
        here = read_record(self._paths.job, JOB_LIMIT_BYTES) if self._paths.job.exists() else b""
        mine = self.local.state
        taken = mine.state != State.CLAIMED or self.local.ready
        if here != request.job_bytes and (here or taken):
            raise Conflict("the job is here with other bytes", hint="a job is never changed; submit a new one")
        if taken:
            return {"other": "", "here": {entry.path: entry.size for entry in mine.inputs}}
        if _facts(mine) != _facts(coming.state):  # what a later rule asks of the record is what was judged here
            raise Conflict("the run was entered as another job", hint="requeue the job")
        self._admit(request, coming)
        return self._taken(request)

    def _admit(self, request: Request, coming: Coming) -> None:
        """Judge what is asked for, by its signature first; nothing of it is stored before this has returned."""
        book = Book(self._base.audit, coming, self._config.policy)
        try:
            self._keeper.check(coming.claim, request.job_bytes, request.signature or None)
            book.receipt(request.job, request.job_bytes)
            policy.allow(self._config, request.job, coming.state, self._paths.work)
            policy.check_room(self._config, request.job, coming.state, self._paths)
            checking.check_walls(self._config, [request.job.command])
        except Refused as exc:
            book.ended(Reason.REFUSED_BY_SITE.value, release.words(self._config, exc), exc.message)
            raise
        size = sum(entry.size for entry in coming.state.inputs)
        if not self._paths.inputs.exists() and why_no_room(self._base.folder, self._config.agent["min_free"], coming=size):
            raise NoRoom("there is no room for the inputs at the site", hint="free space below base; it is tried again")

    def _taken(self, request: Request) -> dict[str, Any]:
        replace_file(self._paths.job, request.job_bytes, mode=0o600)
        if request.signature:
            replace_file(self._paths.signature, request.signature, mode=0o600)
        else:
            self._paths.signature.unlink(missing_ok=True)
        self._paths.inputs.mkdir(mode=0o700, exist_ok=True)
        return {"other": "", "here": gated_files.sizes_here(self._paths.inputs, self._announced())}

    def _stop_former(self) -> None:
        if self._paths.run.exists():
            self._runner.cancel(self._paths.folder)
        if self.local.state.state not in FINAL:
            self._book.given_up("replaced by a later run")
            self._close(State.CANCELED, "replaced by a later run")

    def put(self, line: Line) -> dict[str, Any]:
        """Take bytes of announced inputs, in the order and from the offsets that the first line names."""
        self._mine()
        self._stay()
        if self.local.state.state != State.CLAIMED or self.local.ready:
            raise Conflict("the inputs of this run are complete and taken", hint="nothing is written to in/ any more")
        announced = self._announced()
        parts = gate.parse_parts(line.read_line(), "offset")
        if unknown := [name for name, _ in parts if name not in announced]:
            raise Refused(f"{unknown[0]!r} is no input of this job", hint="only what job.json and the run announced is taken")
        for name, offset in parts:
            gated_files.receive(line, self._paths.inputs, announced[name], offset)
        return {"taken": len(parts)}

    def prepare(self, line: Line) -> dict[str, Any]:
        """See that the inputs are those that were announced, write `run/`, make `work/`; what is wrong is removed and named.

        The site's own program (`pre_run`) sees them here, and may refuse the job.
        """
        self._mine()
        self._stay()
        if self.local.state.state != State.CLAIMED or self.local.ready:
            return {"wrong": []}
        announced = self._announced()
        listing = list_files(self._paths.inputs)
        if odd := [*listing.odd, *(name for name in listing.files if name not in announced)]:
            raise Conflict(f"in/ holds what was not sent: {odd[0]}", hint="does something else write there?")
        wrong = [name for name, entry in announced.items() if not self._is_here(entry)]
        for name in wrong:
            gated_files.remove(self._paths.inputs, name)
        if wrong:
            return {"wrong": wrong}
        try:
            self._make_ready(policy.allow(self._config, self._job(), self.local.state, self._paths.work))
        except Refused as exc:
            self._refuse(exc)
            raise
        return {"wrong": []}

    def _is_here(self, entry: FileEntry) -> bool:
        try:
            return hash_file(self._paths.inputs, entry.path) == entry
        except (FileNotFoundError, InvalidName, Busy):
            return False

    # ---- The run

    def start(self, line: Line) -> dict[str, Any]:
        """Start the command unless it ever was; the law is asked once more, for it may have changed."""
        self._mine()
        if self.local.state.state not in (State.CLAIMED, State.RUNNING):
            return self._told(self._where())
        self._stay()
        if self.local.state.state == State.CLAIMED and not self.local.ready:
            raise Conflict("the job is not prepared", hint="prepare it first")
        if self._where().word == "new":
            self.local.advance(State.RUNNING, "may start")  # before the switch is asked: `stop` looks for what may run
            try:
                self._launch()
            except Refused as exc:
                self._refuse(exc)
                raise
            self.local.note(launched=True)
            log.info("started", job=self._job_id, run=self._run_id)
        return self._told(self._where())

    def status(self, line: Line) -> dict[str, Any]:
        """Where the run stands."""
        self._mine()
        return self._told(self._where())

    def cancel(self, line: Line) -> dict[str, Any]:
        """Stop the command, or see to it that it never starts; what is held is not returned then."""
        self._mine()
        state = self.local.state.state
        if state == State.CLAIMED and not self._paths.run.exists():
            self._end_without_results(CANCELED, "canceled before it started", "canceled before it started")
        elif state in (State.CLAIMED, State.RUNNING):
            self._runner.cancel(self._paths.folder)
        elif state == State.HELD and not self._mark.reason:
            self._cancel_held()
        return self._told(self._where())

    def _told(self, status: RunStatus) -> dict[str, Any]:
        """Tell whether it is over; how it ended is in the result, which may be held."""
        return {"status": asdict(RunStatus(status.word, why=status.why, cancel=status.cancel))}

    # ---- From the site

    def finish(self, line: Line) -> dict[str, Any]:
        """Measure what may leave, once; answer the result, or that it is held until a person has decided."""
        self._mine()
        self._stay()
        if self.local.state.state not in _MEASURED:
            status = self._where()
            if not status.is_over:
                raise Conflict("the command is not over", hint="ask for its status")
            self._measure(status)
        if self.local.state.state == State.HELD and self._is_held():
            return {"held": True}
        return {"held": False, "result": jsonio.loads(self._leaving().encode(), "result.json")}

    def _measure(self, status: RunStatus) -> None:
        if self.local.state.state == State.CLAIMED:  # canceled, and never started
            result = judge(self._job(), self.local.state, status, Outputs())
            self._end_without_results(result.reason, result.message, "it was never started")
            return
        self._seal()
        super()._measure(status)

    def _is_held(self) -> bool:
        """Hear what persons have said; False where that is a word that holds."""
        if not self._mark.reason:
            self._put(self._mark)
            if not self._hear(self._mark) and not self._mark.reason:
                return True
        self._shelf().remove(self._job_id, self._run_id)
        return False

    def get(self, line: Line) -> None:
        """Send files of the measured result, and no others, in the order and from the offsets that the first line names."""
        self._mine()
        self._stay()
        if self.local.state.state not in _MEASURED or self.local.state.state == State.HELD:
            raise Refused("nothing of this job is released", hint="its results are measured, then released, then sent")
        listed = {entry.path: entry for entry in self._leaving().files}
        starts = dict(parts := gate.parse_parts(line.read_line(), "offset"))
        if unknown := [name for name, offset in parts if name not in listed or offset > listed[name].size]:
            raise Refused(f"{unknown[0]!r} was not released", hint="result.json lists what was")
        left: list[FileEntry] = []
        self._book.sending([listed[name] for name, _ in parts], starts)
        try:
            for name, offset in parts:
                self._send(line, listed[name], offset, left, starts)
                left.append(listed[name])
        except ChangedAfterSnapshot as exc:
            if Mark.of(self.local.state) is None:
                raise DigestMismatch("what was measured was changed since", hint="it does not leave; ask the site") from exc
            self._note_change(exc)
            raise Refused(CHANGED, hint="ask the site") from exc
        self._book.sent(left, starts)

    def _send(self, line: Line, entry: FileEntry, offset: int, left: list[FileEntry], starts: Mapping[str, int]) -> None:
        def cut(at: int) -> None:
            self._book.sent(left, starts)
            self._book.cut(entry.path, offset, at, entry.size)

        folder, log_leaves = self._paths.folder, entry.path.startswith("log/") and Mark.of(self.local.state) is None
        if log_leaves:
            folder = log_folder(self._config, self._base, self._job_id, self._run_id)
        snapshot = Snapshot(folder, [entry], exact=not log_leaves)  # whoever still writes to a log only adds to it
        gated_files.send(line, snapshot, entry, offset, may_send=self._stay, cut=cut)

    def tail(self, line: Line) -> None:
        """Send what the logs have grown by, where agent.ini lets them leave while the command runs; else nothing."""
        self._mine()
        self._stay()
        parts = gate.parse_parts(line.read_line(), "offset")
        sizes = self._tail_sizes()
        folder = log_folder(self._config, self._base, self._job_id, self._run_id)
        found = [(name, offset, gated_files.grown(folder, name, offset, min(TAIL_BYTES, max(0, sizes[name] - offset))))
                 for name, offset in parts if name in sizes]  # fmt: skip
        told = [(name, offset, offset + len(data)) for name, offset, data in found if data]
        for name, _, _ in told:
            self._book.streaming(name)
        line.write(gate.encode_parts([(name, len(data)) for name, _, data in found], "length"))
        for _, _, data in found:
            line.write(data)
        for name, start, end in told:
            self._book.streamed(name, start, end)

    def _tail_sizes(self) -> dict[str, int]:
        """Return how much of each log may leave by now, in bytes."""
        if self.local.state.state != State.RUNNING or not self._may_stream():
            return {}
        if self._config.release["logs"] == "redact":
            logs = [self._paths.log / name for name in release.LOG_NAMES]
            if sum(path.stat().st_size for path in logs if path.exists()) > REDACTED_TAIL_BYTES:
                return {}  # they come with the results
        return {f"log/{name}": size for name, size in self._log_sizes().items()}

    def delivered(self, line: Line) -> dict[str, Any]:
        """MInt has ended the run: it ends here too, unless its command still runs. The folder stays; the site cleans up.

        The first line says as what it has ended: by the result that was measured here, or without it.
        """
        ended = Fields(jsonio.loads(line.read_line(), "the end"), "the end")
        told = ended.string("state"), ended.string("reason", "")
        self._base.clean_up()
        with contextlib.suppress(Gone, NotFound):
            self._mine()
            state, why = self.local.state.state, "MInt has ended the run"
            measured = state == State.RETURNING or (state == State.HELD and bool(self._mark.reason))
            result = self._result() if measured else None
            if result is not None and told in ((str(final_state(result)), word) for word in (result.reason, "")):
                self._book.delivered(result, str(final_state(result)))
                self._close(final_state(result), why)
            elif measured or state in (State.CLAIMED, State.HELD) or (state not in FINAL and self._where().is_over):
                self._book.given_up(why)
                self._close(State.CANCELED, why)
        return {}

def _facts(state: JobState) -> tuple[object, ...]:
    return state.site, state.user, state.command, state.inputs, state.attempt
