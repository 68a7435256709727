"""One job's run at a guarded site: the same questions as to an open one, put to the site's gate (`spool.gate`).

Nothing is installed, no rsync is run and no path is named there: inputs go as bytes of names that were announced, results come as
bytes of names that the site's own manifest lists. What the site says is hostile until checked: records are parsed, names
checked, every byte verified by `spool.results.accept`. The site decides what may run and what leaves.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from spool import gate, jsonio
from spool.errors import (
    Busy,
    DigestMismatch,
    InvalidName,
    InvalidRecord,
    NoSpace,
    Refused,
    SpoolError,
    TransferFailed,
    Unreachable,
)
from spool.fields import Fields
from spool.files import open_beneath, sync_tree, write_all
from spool.heads import HEAD
from spool.names import is_id
from spool.paths import JobPaths
from spool.records import FileEntry, JobState, Result
from spool.runner import RunStatus
from spool.ssh.connection import Connection, Done, SiteTrouble
from spool.ssh.site import CannotTell, FolderGone, Replaced
from spool.states import Reason

_WORDS = ("new", "canceled", "starting", "running", "exited", "lost", "absent")
_TRANSIENT: Mapping[str, type[SpoolError]] = {"busy": Busy, "no_space": NoSpace, "unreachable": Unreachable}


class GatedSite:
    """The folder of one run at a guarded site. Every method may be repeated; errors as `AtSite`, and `Refused` by the site's law.

    `disk` is the id of the base that the run first went to.
    """

    guarded = True

    def __init__(self, connection: Connection, base: str, job_id: str, run_id: str, disk: str = "") -> None:
        self.connection = connection
        self.base = base
        self.disk = disk
        self.job_id = job_id
        self.run_id = run_id
        self.audit = ""  # where the site's audit log ended, as it was told last
        self.folder = f"{job_id} at site {connection.site.name}"
        self._place = f"gate of {connection.site.name}"

    def hello(self) -> dict[str, Any]:
        """Return what the gate says of itself."""
        answer = self._answer(self.connection.run(gate.words("hello")))
        self._note_end(Fields(answer, "the site's answer"))
        return answer

    # ---- To the site

    def enter(self, earlier: Collection[str], state: JobState, paths: JobPaths) -> tuple[str, dict[str, int]]:
        """Have the site judge the job and make the folder this run's; see `AtSite.enter`.

        Returns the id of another run that was started there, or nothing; and how many bytes of each input are there.
        """
        signature = paths.signature.read_bytes() if paths.signature.exists() else b""
        request = {
            "job": base64.b64encode(paths.job.read_bytes()).decode(), "signature": base64.b64encode(signature).decode(),
            "user": state.user, "attempt": state.attempt, "inputs": [entry.encode() for entry in state.inputs],
            "earlier": list(earlier),
        }  # fmt: skip
        if unseen := [one for one, (base, _) in self.connection.blind.items() if base == self._place and one != self.job_id]:
            what = f"nothing new goes to site {self.connection.site.name} while job {unseen[0]} cannot be seen there"
            raise CannotTell(what, since_s=0.0, hint="is its disk mounted?")
        answer = self._ask("enter", request, long=True)
        with self._strict():
            base, other, here = answer.string("base"), answer.string("other", ""), answer.mapping("here")
            if other and not is_id(other):
                raise InvalidRecord("the site names a run that is none", hint="")
        if self.disk and base != self.disk:
            raise CannotTell("the site's base is another one now", since_s=self._blind_for_s(), hint="is its disk mounted?")
        self.disk = base
        self.forget_blindness()
        return other, {name: size for name, size in here.items() if isinstance(size, int) and not isinstance(size, bool)}

    def put(self, inputs: Sequence[FileEntry], here: Mapping[str, int], folder: Path) -> None:
        """Send what is missing of the inputs in `folder`."""
        missing = [(entry, here.get(entry.path, 0)) for entry in inputs if here.get(entry.path) != entry.size]
        if not missing:
            return

        def feed(pipe: IO[bytes]) -> None:
            pipe.write(gate.encode_parts([(entry.path, offset) for entry, offset in missing], "offset"))
            for entry, offset in missing:
                _feed(pipe, folder, entry, offset)

        self._answer(self.connection.stream(self._words("put"), feed))

    def verify(self) -> list[str]:
        """Have the site verify the inputs and make ``work/``; return the names that must be sent again."""
        answer = self._ask("prepare", long=True)
        with self._strict():
            return list(answer.strings("wrong"))

    def prepare(self) -> None:
        """Nothing more: `verify` has made ``work/``."""

    # ---- The run

    def start(self) -> RunStatus:
        """Start the command unless it ever was."""
        return self._status("start")

    def status(self) -> RunStatus:
        """Where the run stands."""
        return self._status("status")

    def cancel(self) -> RunStatus:
        """Stop the command, or see to it that it never starts."""
        return self._status("cancel")

    def _status(self, verb: str) -> RunStatus:
        answer = self._ask(verb, long=verb == "cancel")
        with self._strict():
            fields = Fields(answer.mapping("status"), "the site's status")
            word = fields.string("word")
            if word not in _WORDS:
                raise fields.wrong("word", "is no status")
            status = RunStatus(
                word, exit_code=fields.optional_integer("exit_code", high=255), why=fields.string("why", ""),
                started_at=fields.optional_integer("started_at"), finished_at=fields.optional_integer("finished_at"),
                spawn_failed=fields.boolean("spawn_failed", False), wall_time=fields.boolean("wall_time", False),
                cancel=fields.boolean("cancel", False),
            )  # fmt: skip
        self.forget_blindness()
        return status

    # ---- From the site

    def finish(self, attempt: int) -> Result | None:
        """Return the result that the site releases; None while it is held there for a person's decision."""
        answer = self._ask("finish", long=True)
        with self._strict():
            if answer.boolean("held", False):
                return None
            result = Result.parse(jsonio.dumps(answer.mapping("result")))
            if (result.id, result.run_id, result.attempt) != (self.job_id, self.run_id, attempt):
                raise InvalidRecord("the site's result is another run's", hint="ask the site")
        return result

    def get(self, entries: Sequence[FileEntry], files: Path) -> None:
        """Fetch what is missing of `entries` into `files`, going on where an earlier try stopped; durable when this returns."""
        missing = []
        for entry in entries:
            size = _size_here(files, entry)
            if size != entry.size or size == 0:
                missing.append((entry, size))
        if missing:
            request = gate.encode_parts([(entry.path, offset) for entry, offset in missing], "offset")

            def take(pipe: IO[bytes]) -> None:
                for entry, offset in missing:
                    _take(pipe, files, entry.path, offset, entry.size - offset)

            done = self.connection.stream(self._words("get"), lambda pipe: _write(pipe, request), take)
            self._check(done)
        sync_tree(files)

    def tail(self, names: Sequence[str], files: Path) -> None:
        """Fetch what has come to the logs, as far as the site lets them be read while the command runs."""
        offsets = [(name, _size_here(files, FileEntry(name, 2**53, ""))) for name in names]

        def take(pipe: IO[bytes]) -> None:
            line = pipe.readline(gate.MAX_LINE_BYTES)
            if not line:
                return
            for name, length in gate.parse_parts(line, "length"):
                if name in dict(offsets):
                    _take(pipe, files, name, dict(offsets)[name], length)

        request = gate.encode_parts(offsets, "offset")
        self._check(self.connection.stream(self._words("tail"), lambda pipe: _write(pipe, request), take))

    def over(self, state: str, reason: str) -> None:
        """Tell the site that the run is over at MInt, and as what. What it keeps, and for how long, is the site's own."""
        self._ask("delivered", {"state": state, "reason": reason})

    # ---- Asking

    def _words(self, verb: str) -> tuple[str, ...]:
        return gate.words(verb, self.job_id, self.run_id)

    def _ask(self, verb: str, request: Mapping[str, Any] | None = None, *, long: bool = False) -> Fields:
        stdin = jsonio.dumps_line(request) if request is not None else b""
        answer = Fields(self._answer(self.connection.run(self._words(verb), stdin=stdin, long=long)), "the site's answer")
        self._note_end(answer)
        return answer

    def _note_end(self, answer: Fields) -> None:
        with self._strict():
            head = answer.string("audit", "")
            if head and not HEAD.fullmatch(head):
                raise answer.wrong("audit", "is no end of an audit log")
        self.audit = head or self.audit

    def _answer(self, done: Done) -> dict[str, Any]:
        self._check(done)
        with self._strict():
            lines = done.out.splitlines()  # what a login shell says by itself comes before it
            return jsonio.loads(lines[-1].encode("utf-8", "surrogateescape") if lines else b"", "the site's answer")

    def _check(self, done: Done) -> None:
        """Raise what the gate says went wrong, as one of the family."""
        if done.code == 0:
            return
        name = self.connection.site.name
        for line in reversed(done.err.splitlines()):
            if line.encode().startswith(gate.ERROR_MARK):
                with self._strict():
                    told = Fields(jsonio.loads(line.encode(), "the site's answer"), "the site's answer").mapping("gate_error")
                    fields = Fields(told, "the site's answer")
                    code, hint = fields.string("code"), fields.string("hint", "")
                    message = fields.string("message")[:2000]
                raise self._error(code, message if code == "refused_by_site" else f"site {name}: {message}", hint)
        said = " ".join(done.err.split())[-400:] or f"exit code {done.code}"
        raise SiteTrouble(f"site {name}: no answer of a gate: {said}", hint="is the key's forced command spool_agent.py gate?")

    def _error(self, code: str, message: str, hint: str) -> SpoolError:
        if code in _TRANSIENT:
            return _TRANSIENT[code](message, hint=hint)
        if code == "refused_by_site":
            return Refused(message, hint=hint)
        if code == "lost":
            if self.disk and self.hello().get("base") != self.disk:
                what = f"site {self.connection.site.name}: the base that has this run is not there"
                return CannotTell(what, since_s=self._blind_for_s(), hint="is its disk mounted?")
            return FolderGone(message, hint=hint)
        if code == "replaced":
            return Replaced(message, hint=hint)
        if code == "digest_mismatch":
            return DigestMismatch(message, hint=hint)
        if code == "configuration":
            return CannotTell(message, since_s=self._blind_for_s(), hint=hint)
        return SiteTrouble(message, hint=hint, reason=Reason.TRANSFER)

    @contextlib.contextmanager
    def _strict(self) -> Any:
        try:
            yield
        except (InvalidRecord, InvalidName) as exc:
            hint = "does the login shell there print something by itself (.bashrc)? ssh_push.py check SITE tells"
            raise SiteTrouble(f"site {self.connection.site.name}: {exc.message}", hint=hint) from exc

    def _blind_for_s(self) -> float:
        now = time.monotonic()
        _, since = self.connection.blind.setdefault(self.job_id, (self._place, now))
        return now - since

    def forget_blindness(self) -> None:
        """The run was seen, or is over."""
        self.connection.blind.pop(self.job_id, None)


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(data)


def _feed(pipe: IO[bytes], folder: Path, entry: FileEntry, offset: int) -> None:
    fd = open_beneath(folder, entry.path, os.O_RDONLY)
    try:
        while offset < entry.size:
            block = os.pread(fd, min(gate.BLOCK_BYTES, entry.size - offset), offset)
            if not block:
                what = f"{entry.path!r} is shorter than when it was accepted"
                raise TransferFailed(what, hint="it was changed at MInt: submit the job again")
            pipe.write(block)
            offset += len(block)
    finally:
        os.close(fd)


def _size_here(files: Path, entry: FileEntry) -> int:
    """Return how many bytes of the file are here; a longer one, or what is no file, is emptied or refused."""
    try:
        fd = open_beneath(files, entry.path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(fd).st_size
        if size > entry.size:
            os.ftruncate(fd, 0)
            return 0
        return size
    finally:
        os.close(fd)


def _take(pipe: IO[bytes], files: Path, name: str, offset: int, length: int) -> None:
    """Write `length` bytes of the stream; fewer where it ends, which the exit code or the digest tells."""
    fd = open_beneath(files, name, os.O_WRONLY | os.O_CREAT, make=True)
    try:
        while length and (block := pipe.read(min(gate.BLOCK_BYTES, length))):
            write_all(fd, block, offset)
            offset, length = offset + len(block), length - len(block)
    finally:
        os.close(fd)


