"""Waiting for jobs, saying each change as it comes, and following a growing log."""

from __future__ import annotations

import codecs
import shlex
import sys
import time
from dataclasses import dataclass

from spool.ctl import exits
from spool.ctl.backend import Backend, Progress, Rejected
from spool.ctl.messages import known, note, say, text
from spool.errors import SpoolError
from spool.records import HistoryEntry, JobState
from spool.states import FINAL, State


@dataclass
class _Watched:
    """One job that is waited for: the last revision that was said, and its exit code once it has ended."""

    id: str
    revision: int | None
    code: int | None = None
    word: str = ""


class Waiter:
    """Waits for `ids`. `from_start` says the history so far too; else the present state is said first."""

    def __init__(self, backend: Backend, ids: list[str], *, from_start: bool = False) -> None:
        self._backend = backend
        self._jobs = [_Watched(job_id, 0 if from_start else None) for job_id in dict.fromkeys(ids)]
        self._poll_s = backend.poll_s[0]

    def wait(self, timeout_s: float | None, progress: Progress) -> int:
        """Return the jobs' exit code; 75 after `timeout_s`; 130 after Ctrl+C, having told how to go on."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while self._look_at_all():
                left = self._poll_s if end is None else end - time.monotonic()
                if left <= 0:
                    return self._timed_out(timeout_s or 0)
                progress(text("waiting", detail=self._detail()), 0, 0)
                time.sleep(min(left, self._poll_s))
                self._poll_s = min(self._poll_s * 1.5, self._backend.poll_s[1])
        except KeyboardInterrupt:
            note("interrupted", where=where(self._backend), ids=self._open_ids())
            return exits.INTERRUPTED
        return exits.worst([job.code or 0 for job in self._jobs])

    def _timed_out(self, timeout_s: float) -> int:
        note("wait_timeout", seconds=f"{timeout_s:g}", where=where(self._backend), ids=self._open_ids())
        return exits.TRY_LATER

    def _open_ids(self) -> str:
        return " ".join(job.id for job in self._jobs if job.code is None)

    def _detail(self) -> str:
        return ", ".join(f"{job.id[:8]} {job.word}".rstrip() for job in self._jobs if job.code is None)

    def _look_at_all(self) -> bool:
        for job in self._jobs:
            if job.code is None:
                self._look(job)
        return any(job.code is None for job in self._jobs)

    def _look(self, job: _Watched) -> None:
        try:
            state = self._backend.look(job.id)
        except SpoolError as exc:
            if exc.transient:  # a job is waited for until it ends, however often the line is cut
                note("retrying", what=job.id, message=exc.message, seconds=f"{self._backend.poll_s[1]:g}")
                self._poll_s = self._backend.poll_s[1]
                return
            tell_error(exc)
            job.code = exits.of_error(exc)
            return
        if state is not None:
            self._tell(job, state)

    def _tell(self, job: _Watched, state: JobState) -> None:
        after = state.revision - 1 if job.revision is None else job.revision
        for entry in self._backend.changes(state, after):
            self._say(job.id, entry)
            self._poll_s = self._backend.poll_s[0]
        if state.state == State.HELD and job.word != state.state:
            note("hint", hint=text("next_held"))  # it may take days: whoever waits should know for whom
        job.revision, job.word = state.revision, str(state.state)
        if state.state in FINAL:
            job.code = exits.DONE if state.state == State.COMPLETED else exits.FAILED
            say("ended", id=job.id, state=state.state, detail=detail_of(state))
            hint = next_step(state)
            if job.code and hint:
                note("hint", hint=hint)

    def _say(self, job_id: str, entry: HistoryEntry) -> None:
        key = "remark" if entry.source in ("", entry.target) else "change"
        key += "_of" if len(self._jobs) > 1 else ""
        values = vars(entry)
        say(key, id=job_id[:8], **{name: values[name] for name in ("at", "source", "target", "by", "why")})


def where(backend: Backend) -> str:
    """Return the options that name this spool, to be put into a command line for copying."""
    return " ".join(shlex.quote(word) for word in backend.options)


def detail_of(state: JobState) -> str:
    """Return how a job ended in one line: reason, message, exit code."""
    parts = [state.reason, state.message, f"exit {state.exit_code}" if state.exit_code is not None else ""]
    return "  ".join(part for part in parts if part)


def next_step(state: JobState) -> str:
    """Return what to do next, by the reason where there is one, else by the state."""
    key = f"reason_{state.reason}"
    return text(key if state.reason and known(key) else f"next_{state.state}")


def tell_error(error: SpoolError) -> None:
    """Say what went wrong and what to do next, on standard error."""
    key = "code_rejected" if isinstance(error, Rejected) else f"code_{error.code}"
    note("error", message=error.message, title=text(key if known(key) else "code_other"))
    if error.hint:
        note("hint", hint=error.hint)


class LogFollower:
    """Prints one log of one job: what is there, and with `follow` what comes until the job has ended."""

    def __init__(self, backend: Backend, job_id: str, name: str) -> None:
        self._backend = backend
        self._id = job_id
        self._name = name
        self._offset = 0
        self._attempt = 0
        # A terminal obeys what it is sent: what a company's command wrote must not steer the reader's terminal.
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace") if sys.stdout.isatty() else None

    def run(self, *, follow: bool) -> int:
        """Return 0, or 1 where the job has ended and there is no such log."""
        poll_s = self._backend.poll_s[0]
        while True:
            state = self._backend.look(self._id)
            before = self._offset
            if state is not None:
                self._print_new(state)
            ended = state is not None and state.state in FINAL
            if ended or not follow:
                return self._finish(state)
            poll_s = self._backend.poll_s[0] if self._offset > before else min(poll_s * 1.5, self._backend.poll_s[1])
            time.sleep(poll_s)

    def _print_new(self, state: JobState) -> None:
        if self._attempt and state.attempt != self._attempt:
            note("log_new_attempt", attempt=state.attempt)
            self._offset = 0
        self._attempt = state.attempt
        for block in self._backend.log(state, self._name, self._offset):
            self._offset += len(block)
            self._put(block)
        sys.stdout.flush()

    def _put(self, block: bytes) -> None:
        if self._decoder is None:
            sys.stdout.buffer.write(block)
        else:
            sys.stdout.write(harmless(self._decoder.decode(block)))

    def _finish(self, state: JobState | None) -> int:
        if self._offset:
            return exits.DONE
        if state is None or state.state not in FINAL:
            note("no_log_yet", name=self._name, state=state.state if state else "drop")
            return exits.DONE
        result = self._backend.result(self._id)
        if result is not None and any(entry.path == f"log/{self._name}" for entry in result.files):
            return exits.DONE  # it is there, and empty
        withheld = result is not None and any(self._name in item for item in result.withheld)
        note("no_log", name=self._name, why=text("log_withheld" if withheld else "log_none"))
        return exits.FAILED


def harmless(line: str) -> str:
    """Return `line` with every control character escaped except line ends, tabs and carriage returns."""
    return "".join(char if char.isprintable() or char in "\n\t\r" else _escaped(char) for char in line)


def _escaped(char: str) -> str:
    return char if char == "\u3000" else char.encode("unicode_escape").decode("ascii")
