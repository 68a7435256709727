"""The agent's own jobs: the same folder layout below its base directory, its own `state.json`, and what survives a restart.

The local state uses the same words and the same table as MInt's. `running` is written here, durably, before the runner is told to
start; `ready` in the record says that inputs and policy are done with and only the permission is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.agent.audit import Audit
from spool.agent.held import tellable
from spool.attempts import set_attempt_aside
from spool.errors import ConfigError, InvalidRecord, SpoolError
from spool.fields import Fields
from spool.files import append_line, fsync_dir, read_record, remove_tree, replace_file
from spool.instants import utc_now
from spool.locks import file_lock
from spool.names import is_id
from spool.paths import JobPaths
from spool.records import JOB_LIMIT_BYTES, FileEntry, HistoryEntry, Job, JobState, Result
from spool.states import FINAL, State, check_transition

PROBE_S = 3600.0  # how old a probe's folder is when nobody works in it any more


class Base:
    """The agent's base directory: one folder a job, and a control folder of the agent's own (mode 0700)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / f".mint-spool-{os.geteuid()}"
        self.audit = Audit(self.control / "audit.jsonl")

    def logs_of(self, job_id: str, run_id: str) -> Path:
        """The folder of one run's redacted logs (``log/NAME``)."""
        return self.control / "logs" / job_id / run_id

    def clean_up(self) -> None:
        """Remove the redacted logs of jobs whose folders were removed, and what a killed probe of a wall has left."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.control / "logs"):
                if not (self.folder / name).exists():
                    remove_tree(self.control / "logs" / name)
        for path in self.folder.glob("probe.*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.lstat(path).st_mtime > PROBE_S:
                    remove_tree(path)

    def open(self) -> None:
        """Make the folders.

        Raises `ConfigError` where the control folder is not this user's alone (a base such as /tmp belongs to all).
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.control.mkdir(mode=0o700, exist_ok=True)
            info = os.lstat(self.control)
        except OSError as exc:
            raise ConfigError(f"the base {self.folder} cannot be used: {exc.strerror}", hint=self._whose()) from exc
        if info.st_uid != os.geteuid() or info.st_mode & 0o077 or not self.control.is_dir() or self.control.is_symlink():
            raise ConfigError(f"{self.control} is not this user's own", hint="remove it, or set another [agent] base")

    def _whose(self) -> str:
        """Return what to do where the base cannot be used by this user."""
        with contextlib.suppress(OSError, KeyError):
            owner = os.stat(self.folder).st_uid
            if owner != os.geteuid():
                return f"it is {pwd.getpwuid(owner).pw_name}'s: run this as that user, or set another [agent] base"
        return "make it for the agent's account, or set another [agent] base"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the base for this process; `Busy` where another agent has it."""
        return file_lock(self.control / "lock", timeout_s=0, mode=0o600)

    def identity(self) -> tuple[str, int]:
        """Return (the agent's id, this start's generation), both durable; the caller holds the base.

        Raises `ConfigError` where the base was copied from another machine.
        """
        path = self._identity
        if (self.control / "gate.json").exists():
            raise ConfigError(f"{self.folder} belongs to a gate", hint="give the agent a base of its own")
        try:
            fields = Fields(jsonio.loads(read_record(path, 65536), "agent.json"), "agent.json")
            name, generation = fields.string("id"), fields.integer("generation", low=0)
            here = fields.string("machine", "")
        except FileNotFoundError:
            name, generation, here = f"agent-{os.urandom(6).hex()}", 0, ""
        machine = _machine()
        if here and machine and here != machine:
            raise ConfigError(
                f"{path} was made on another machine: two agents with one identity would take each other's jobs",
                hint="a copied base: remove agent.json and the job folders; a base that was moved: set its machine to \"\"",
            )
        value = {"format": 1, "id": name, "generation": generation + 1, "machine": machine or here}
        replace_file(path, jsonio.dumps(value), mode=0o600)
        return name, generation + 1

    def name(self) -> str:
        """Return the id under which MInt knows what works here, an agent or a gate; empty before its first start."""
        for path in (self._identity, self.control / "gate.json"):
            with contextlib.suppress(FileNotFoundError):
                return Fields(jsonio.loads(read_record(path, 65536), path.name), path.name).string("id")
        return ""

    @property
    def _identity(self) -> Path:
        return self.control / "agent.json"

    def jobs(self, *, ended: bool = False) -> Iterator[LocalJob]:
        """Yield the jobs that are still in hand, or those that have ended; a folder that cannot be read is left alone."""
        for name in sorted(filter(is_id, os.listdir(self.folder))):
            job = LocalJob(self.folder / name)
            try:
                job.load()
            except FileNotFoundError:
                continue  # made, and killed before its first record: the server tells of it again
            except (SpoolError, OSError) as exc:
                log.error("local_job_unreadable", job=name, why=exc, folder=job.paths.folder)
                continue
            if (job.state.state in FINAL) == ended:
                yield job


def _machine() -> str:
    """Return what tells this machine from others: a digest of /etc/machine-id (machine-id(5) asks not to show it); or nothing."""
    try:
        text = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"mint-spool agent\0" + text).hexdigest()[:16] if text else ""


class LocalJob:
    """One job in the agent's hands. Only the thread that carries it writes to it."""

    def __init__(self, folder: Path) -> None:
        self.paths = JobPaths(folder)
        self._state: JobState | None = None

    @property
    def state(self) -> JobState:
        """The local state as last written or read."""
        if self._state is None:
            raise InvalidRecord(f"{self.paths.folder} has no state yet", hint="load or begin it first")
        return self._state

    @property
    def ready(self) -> bool:
        """True where only the permission to start is missing."""
        return bool(self.state.extra.get("ready"))

    def load(self) -> None:
        """Read the local state."""
        self._state = JobState.parse(read_record(self.paths.state, jsonio.MAX_BYTES))

    def job(self) -> Job:
        """Return what the job asks for."""
        return Job.parse(read_record(self.paths.job, JOB_LIMIT_BYTES))

    def result(self) -> Result | None:
        """Return what may be told of the result that was measured, or None before that: see `spool.agent.held.tellable`."""
        try:
            data = read_record(self.paths.result, jsonio.MAX_BYTES)
        except FileNotFoundError:
            return None
        return tellable(data, self.state)

    def begin(self, state: JobState) -> None:
        """Take a job up: `state` is MInt's record, its `extra` this agent's own. An earlier run's leavings are moved to
        `attempts/` first.
        """
        folder = self.paths.folder
        if folder.exists() and os.lstat(folder).st_uid != os.geteuid():
            raise ConfigError(f"{folder} belongs to someone else", hint="use a base of the agent's own")
        folder.mkdir(mode=0o700, exist_ok=True)
        fsync_dir(folder.parent)
        if self.paths.state.exists():
            self.load()
            number = self.state.attempt
            while self.paths.attempt(number).exists():
                number += 1_000_000  # the same attempt again, with another run_id: a restore or a give-back
            set_attempt_aside(self.paths, number)
            with contextlib.suppress(FileNotFoundError):  # the former command may have written to them
                os.rename(self.paths.inputs, self.paths.attempt(number) / "in")
            self.paths.job.unlink(missing_ok=True)
            self.paths.signature.unlink(missing_ok=True)
        entry = HistoryEntry(state.revision, utc_now(), "", "claimed", "agent", state.attempt, state.run_id, "taken up")
        self._write(replace(state, state=State.CLAIMED, cancel_requested_at="").with_entry(entry))

    def announce(self, inputs: tuple[FileEntry, ...], command: str) -> None:
        """Note what the job's own documents say of it, where its record did not. Safe to repeat."""
        state = self.state
        if (state.inputs, state.command) != (inputs, command):
            self._write(replace(state, inputs=inputs, command=command))

    def mark_ready(self) -> None:
        """Note that only the permission is missing. Safe to repeat."""
        self.note(ready=True)

    def note(self, **more: Any) -> None:
        """Add to what this site itself keeps of the job. Safe to repeat."""
        self._write(replace(self.state, extra={**self.state.extra, **more}))

    def note_all(self, extra: Mapping[str, Any]) -> None:
        """Replace what this agent notes of the job beside its record, durably. Safe to repeat."""
        self._write(replace(self.state, extra=extra))

    def advance(self, target: State, why: str, **changes: Any) -> None:
        """Go to `target`, durably. Nothing where the job is there already."""
        state = self.state
        if state.state == target:
            return
        check_transition(state.id, state.state, target)
        entry = HistoryEntry(
            state.revision + 1, utc_now(), str(state.state), str(target), "agent", state.attempt, state.run_id, why
        )
        self._write(replace(state, state=target, **changes).with_entry(entry))
        log.info("local", job=state.id, source=state.state, to=target, run=state.run_id, attempt=state.attempt, why=why)

    def reopen(self, why: str) -> None:
        """Return an ended job's results once more: `returning`, out of the table's order, because MInt has gone back in time."""
        self.close(State.RETURNING, why)

    def close(self, target: State, why: str) -> None:
        """End the job here, whatever state it is in: it was delivered, refused as stale, or given back."""
        state = self.state
        entry = HistoryEntry(
            state.revision + 1, utc_now(), str(state.state), str(target), "agent", state.attempt, state.run_id, why
        )
        self._write(replace(state, state=target, message=why).with_entry(entry))
        log.info("local_end", job=state.id, to=target, run=state.run_id, why=why)

    def _write(self, state: JobState) -> None:
        replace_file(self.paths.state, state.encode(), mode=0o600)
        self._state = state
        if state.last is not None:
            append_line(self.paths.history, jsonio.dumps_line(state.last.encode()))
