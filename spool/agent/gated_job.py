"""One job at a guarded site, a verb at a time: no process lives between two verbs, everything is in the job's folder.

The same law as for an agent that polls: `policy` says what may run, before a byte of input is taken and again at the start;
`release` says what may leave; the runner's latch starts a command at most once. `running` is written here before the runner
is told. Every verb may be repeated.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from dataclasses import asdict, replace
from typing import Any

from spool import gate, jsonio, log
from spool.agent import gated_files, policy, release
from spool.agent.audit import Audit
from spool.agent.config import AgentConfig
from spool.agent.folder import Base, LocalJob
from spool.agent.gated_files import Line
from spool.errors import Busy, Conflict, InvalidName, InvalidRecord, NoSpace, NotFound, Refused, SpoolError
from spool.fields import Fields
from spool.files import free_bytes, read_record, replace_file
from spool.instants import utc_now
from spool.manifest import hash_file, list_files
from spool.names import check_id, check_user
from spool.records import CANCELED, JOB_LIMIT_BYTES, FileEntry, Job, JobState, Result, parse_entries
from spool.results import Outputs, final_state, judge, no_run
from spool.runner import LocalRunner, RunStatus, write_run
from spool.states import FINAL, Reason, State

BY = "ssh-push"
TAIL_BYTES = 1024 * 1024
SIGNATURE_BYTES = 64 * 1024
_STARTED = ("starting", "running", "exited", "lost")
_MEASURED = frozenset({State.HELD, State.RETURNING}) | FINAL


class Gone(SpoolError):
    """The folder of this run is not here, or is another run's."""

    code = "lost"


class Replaced(SpoolError):
    """This run was here, and a later one has taken its place."""

    code = "replaced"


def released(local: LocalJob) -> bool:
    """True where the measured results may leave: nothing holds them for a person's word."""
    return local.state.state != State.HELD


class GatedJob:
    """`job_id` and `run_id` are as the command line names them; but for `status` the caller holds the job's lock."""

    def __init__(self, config: AgentConfig, base: Base, runner: LocalRunner, job_id: str, run_id: str) -> None:
        self._config = config
        self._base = base
        self._runner = runner
        self._job_id = job_id
        self._run_id = run_id
        self._audit = Audit(base.control / "audit.jsonl")
        self._local = LocalJob(base.folder / job_id)
        self._paths = self._local.paths

    # ---- To the site

    def enter(self, line: Line) -> dict[str, Any]:
        """Judge the job and make the folder this run's; say how much of each input is here, or which other run was started."""
        request = _Request(line.read_line(), self._job_id)
        state = request.state(self._job_id, self._run_id)
        if self._has_state():
            here = self._local.state.run_id
            if here == self._run_id:
                return self._enter_again(request, state)
            if self._was_here():
                raise Replaced(f"run {self._run_id} was here and was replaced since", hint="a restore? requeue the job")
            if here not in request.earlier and self._runner.status(self._paths.folder).word in _STARTED:
                return {"other": here, "here": {}}
            self._stop_former()
        self._judge(request.job, state)
        self._tell("receipt", user=state.user, command=state.command, attempt=state.attempt, via="ssh",
                   job_sha256=hashlib.sha256(request.job_bytes).hexdigest(),
                   inputs=len(state.inputs), bytes=sum(entry.size for entry in state.inputs))  # fmt: skip
        self._local.begin(state)
        return self._taken(request)

    def _enter_again(self, request: _Request, state: JobState) -> dict[str, Any]:
        same = self._paths.job.exists() and read_record(self._paths.job, JOB_LIMIT_BYTES) == request.job_bytes
        mine = self._local.state
        if mine.state != State.CLAIMED or self._local.ready:
            if not same:
                raise Conflict("the job is here with other bytes", hint="a job is never changed; submit a new one")
            return {"other": "", "here": {entry.path: entry.size for entry in mine.inputs}}
        if (mine.user, mine.inputs) != (state.user, state.inputs):
            raise Conflict("the run was entered with other inputs or another user", hint="requeue the job")
        self._judge(request.job, state)
        return self._taken(request)

    def _taken(self, request: _Request) -> dict[str, Any]:
        replace_file(self._paths.job, request.job_bytes, mode=0o600)
        if request.signature:
            replace_file(self._paths.signature, request.signature, mode=0o600)
        self._paths.inputs.mkdir(mode=0o700, exist_ok=True)
        return {"other": "", "here": gated_files.sizes_here(self._paths.inputs, self._announced())}

    def _judge(self, job: Job, state: JobState) -> policy.Order:
        try:
            order = policy.allow(self._config, job, state, self._paths.work)
        except Refused as exc:
            self._tell("refused", why=exc.message)
            raise
        missing = sum(entry.size for entry in state.inputs) + self._config.agent["min_free"]
        if not self._local.paths.inputs.exists() and free_bytes(self._base.folder) < missing:
            raise NoSpace("there is no room for the inputs at the site", hint="free space below base; it is tried again")
        return order

    def _stop_former(self) -> None:
        if self._paths.run.exists():
            self._runner.cancel(self._paths.folder)
        if self._local.state.state not in FINAL:
            self._local.close(State.CANCELED, "replaced by a later run")

    def put(self, line: Line) -> dict[str, Any]:
        """Take bytes of announced inputs, in the order and from the offsets that the first line names."""
        self._mine()
        self._claimed()
        announced = self._announced()
        parts = gate.parse_parts(line.read_line(), "offset")
        if unknown := [name for name, _ in parts if name not in announced]:
            raise Refused(f"{unknown[0]!r} is no input of this job", hint="only what job.json and the run announced is taken")
        for name, offset in parts:
            gated_files.receive(line, self._paths.inputs, announced[name], offset)
        return {"taken": len(parts)}

    def prepare(self, line: Line) -> dict[str, Any]:
        """See that the inputs are those that were announced, write `run/`, make `work/`; what is wrong is removed and named."""
        self._mine()
        if self._local.state.state != State.CLAIMED or self._local.ready:
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
        order = self._judge(self._local.job(), self._local.state)
        write_run(self._paths.folder, order.argv, order.job_env, wall_time_s=order.wall_time_s,
                  grace_s=self._config.agent["cancel_grace_s"])  # fmt: skip
        self._runner.prepare(self._paths.folder)
        self._local.mark_ready()
        return {"wrong": []}

    def _is_here(self, entry: FileEntry) -> bool:
        try:
            return hash_file(self._paths.inputs, entry.path) == entry
        except (FileNotFoundError, InvalidName, Busy):
            return False

    # ---- The run

    def start(self, line: Line) -> dict[str, Any]:
        """Start the command unless it ever was; the policy is asked once more, for it may have changed."""
        self._mine()
        local = self._local
        if local.state.state not in (State.CLAIMED, State.RUNNING):
            return self._told(self._where())
        if not local.ready:
            raise Conflict("the job is not prepared", hint="prepare it first")
        if self._where().word == "new":
            try:
                order = self._judge(local.job(), local.state)
            except Refused as exc:
                self._runner.cancel(self._paths.folder)  # takes the latch: it can never start
                self._end(no_run(local.state, Reason.REFUSED_BY_SITE.value, exc.message), State.FAILED)
                raise
            self._tell("start", command=local.state.command, argv_sha256=_digest(order.argv), policy=self._policy())
            local.advance(State.RUNNING, "may start")
            self._runner.start(self._paths.folder, order.site_env)
            self._local.note(launched=True)
            log.info("started", job=self._job_id, run=self._run_id)
        return self._told(self._where())

    def status(self, line: Line) -> dict[str, Any]:
        """Where the run stands."""
        self._mine()
        return self._told(self._where())

    def cancel(self, line: Line) -> dict[str, Any]:
        """Stop the command, or see to it that it never starts."""
        self._mine()
        if not self._paths.run.exists() and self._local.state.state == State.CLAIMED:
            self._end(no_run(self._local.state, CANCELED, "canceled before it started"), State.CANCELED)
            return self._told(RunStatus("canceled"))
        if self._local.state.state in (State.CLAIMED, State.RUNNING):
            self._runner.cancel(self._paths.folder)
        return self._told(self._where())

    def _where(self) -> RunStatus:
        if not self._paths.run.exists() and self._local.state.state in (State.CLAIMED, State.CANCELED):
            return RunStatus("new" if self._local.state.state == State.CLAIMED else "canceled")
        status = self._runner.status(self._paths.folder)
        if status.word in ("absent", "new") and self._local.state.extra.get("launched"):
            return RunStatus("lost", why="vanished")  # the command has removed what is known of it
        return status

    def _told(self, status: RunStatus) -> dict[str, Any]:
        return {"status": asdict(replace(status, pid=None))}

    # ---- From the site

    def finish(self, line: Line) -> dict[str, Any]:
        """Measure what may leave, once; answer the result, or that it is held until a person has decided."""
        self._mine()
        if self._local.state.state not in _MEASURED:
            status = self._where()
            if not status.is_over:
                raise Conflict("the command is not over", hint="ask for its status")
            self._measure(status)
        if not released(self._local):
            return {"held": True}
        result = self._local.result()
        if result is None:
            raise InvalidRecord("result.json is missing", hint="it was there when the job was measured; ask the site")
        return {"held": False, "result": jsonio.loads(result.encode(), "result.json")}

    def _measure(self, status: RunStatus) -> None:
        local, job = self._local, self._local.job()
        self._tell("end", word=status.word, exit_code=status.exit_code)
        if local.state.state == State.CLAIMED:  # canceled, and never started
            self._end(judge(job, local.state, status, Outputs()), State.CANCELED)
            return
        outputs = Outputs()
        try:
            outputs = release.collect(self._config, job, self._paths)
            limit_s = policy.limit_s(self._config, job)
            result = judge(job, local.state, status, outputs, release.logs(self._config, self._paths), wall_time_s=limit_s)
        except Refused as exc:
            self._tell("not_released", why=exc.message)
            result = replace(judge(job, local.state, status, outputs), reason=Reason.REFUSED_BY_SITE.value, message=exc.message)
        self._end(result, State.RETURNING)

    def _end(self, result: Result, target: State) -> None:
        data = result.encode()
        replace_file(self._paths.result, data, mode=0o600)
        self._tell("measured", reason=result.reason, files=len(result.files), bytes=sum(entry.size for entry in result.files),
                   result_sha256=hashlib.sha256(data).hexdigest())  # fmt: skip
        self._local.advance(target, "measured", exit_code=result.exit_code)

    def get(self, line: Line) -> None:
        """Send files of the measured result, and no others, in the order and from the offsets that the first line names."""
        self._mine()
        result = self._local.result()
        if self._local.state.state not in _MEASURED or not released(self._local) or result is None:
            raise Refused("nothing of this job is released", hint="its results are measured, then released, then sent")
        listed = {entry.path: entry for entry in result.files}
        parts = gate.parse_parts(line.read_line(), "offset")
        if unknown := [name for name, _ in parts if name not in listed]:
            raise Refused(f"{unknown[0]!r} was not released", hint="result.json lists what was")
        self._audit.append_all([("sent", {**self._who(), "file": name, "offset": offset, "bytes": listed[name].size - offset,
                                          "sha256": listed[name].sha256}) for name, offset in parts])  # fmt: skip
        for name, offset in parts:
            gated_files.send(line, self._paths.folder, listed[name], offset)

    def tail(self, line: Line) -> None:
        """Send what the logs have grown by, where agent.ini returns logs as they are; else nothing."""
        self._mine()
        parts = gate.parse_parts(line.read_line(), "offset")
        may = self._config.release["logs"] == "return" and self._local.state.state == State.RUNNING
        known = {f"log/{name}" for name in release.LOG_NAMES}
        found = [(name, gated_files.grown(self._paths.folder, name, offset, TAIL_BYTES))
                 for name, offset in parts if may and name in known]  # fmt: skip
        if some := [("sent", {**self._who(), "file": name, "bytes": len(data)}) for name, data in found if data]:
            self._audit.append_all(some)
        line.write(gate.encode_parts([(name, len(data)) for name, data in found], "length"))
        for _, data in found:
            line.write(data)

    def delivered(self, line: Line) -> dict[str, Any]:
        """MInt has ended the run: it ends here too, unless its command still runs. The folder stays; the site cleans up."""
        with contextlib.suppress(Gone, NotFound):
            self._mine()
            if self._local.state.state not in FINAL and (self._where().is_over or self._local.state.state == State.CLAIMED):
                result = self._local.result()
                self._tell("delivered")
                self._local.close(final_state(result) if result else State.CANCELED, "MInt has ended the run")
        return {}

    # ---- What the verbs share

    def _has_state(self) -> bool:
        try:
            self._local.load()
        except FileNotFoundError:
            return False
        return True

    def _mine(self) -> None:
        """Read the local state; `Gone` where the folder is not this run's."""
        if not self._has_state() or self._local.state.run_id != self._run_id:
            raise Gone("the folder of this run is not at the site", hint="requeue the job, or ask the site")

    def _was_here(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return f'"run_id":"{self._run_id}"'.encode() in self._paths.history.read_bytes()
        return False

    def _claimed(self) -> None:
        if self._local.state.state != State.CLAIMED or self._local.ready:
            raise Conflict("the inputs of this run are complete and taken", hint="nothing is written to in/ any more")

    def _announced(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self._local.state.inputs}

    def _who(self) -> dict[str, Any]:
        return {"job": self._job_id, "run": self._run_id}

    def _tell(self, event: str, **details: Any) -> None:
        self._audit.append(event, **self._who(), **details)

    def _policy(self) -> str:
        source = self._config.source
        return hashlib.sha256(source.read_bytes()).hexdigest() if source else ""


def _digest(argv: tuple[str, ...]) -> str:
    return hashlib.sha256(b"\0".join(word.encode("utf-8", "surrogateescape") for word in argv)).hexdigest()


class _Request:
    """What `enter` brings: the exact bytes of job.json, a signature or none, and what MInt's record says of the run."""

    def __init__(self, line: bytes, job_id: str) -> None:
        fields = Fields(jsonio.loads(line, "the request"), "the request")
        self.job_bytes = _bytes(fields, "job", JOB_LIMIT_BYTES)
        self.signature = _bytes(fields, "signature", SIGNATURE_BYTES)
        self.user = check_user(fields.string("user"))
        self.attempt = fields.integer("attempt", low=1, high=10**6)
        self.inputs = parse_entries(fields.list("inputs"), "the request")
        self.earlier = {check_id(run) for run in fields.strings("earlier")}
        self.job = Job.parse(self.job_bytes)
        if self.job.id and self.job.id != job_id:
            raise Refused(f"job.json is of job {self.job.id}", hint="send it under its own id")
        asked = {item.path: item for item in self.job.inputs}
        if {entry.path for entry in self.inputs} != set(asked):
            raise Refused("the inputs announced are not those of job.json", hint="send exactly what the job names")
        for entry in self.inputs:
            item = asked[entry.path]
            if item.sha256 is not None and (item.size, item.sha256) != (entry.size, entry.sha256):
                raise Refused(f"the input {entry.path!r} is not the one that job.json fixes", hint="send that one")

    def state(self, job_id: str, run_id: str) -> JobState:
        """Return the local record to begin with."""
        return JobState(job_id, State.CLAIMED, self.job.site, self.user, 1, command=self.job.command, attempt=self.attempt,
                        run_id=run_id, agent=BY, claimed_at=utc_now(), inputs=self.inputs)  # fmt: skip


def _bytes(fields: Fields, key: str, most: int) -> bytes:
    try:
        data = base64.b64decode(fields.string(key, ""), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise fields.wrong(key, "must be base64") from exc
    if len(data) > most:
        raise fields.wrong(key, f"is longer than {most} bytes")
    return data
