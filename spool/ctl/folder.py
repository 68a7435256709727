"""A spool worked on as the folder it is: through `spool.store` and `spool.drops`, with the rights of whoever calls.

Submitting builds the job's folder under `tmp/` and renames it into `drop/`. Where this process may accept and knows the
configuration it does so at once; else it waits a few seconds for the server or the push to do it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spool import jsonio
from spool.config import SpoolConfig, find_config, read_config
from spool.copying import copy_file
from spool.ctl.backend import Backend, Facts, Progress, Rejected, Wanted
from spool.ctl.messages import note, text
from spool.drops import Drops, may_accept
from spool.errors import Busy, Duplicate, NotFound, SpoolError, from_os_error
from spool.files import COPY_BYTES, fsync_dir, open_beneath, read_record, remove_tree, replace_file, sync_tree
from spool.names import is_id
from spool.paths import JobPaths, SpoolPaths
from spool.records import JOB_LIMIT_BYTES, FileEntry, HistoryEntry, Job, JobState, Result
from spool.signed import signed_by
from spool.store import Store

ACCEPT_WAIT_S = 5
_REASON_WAIT_S = 1


class FolderBackend(Backend):
    """The spool at `root`; `ConfigError` where there is none."""

    def __init__(self, root: Path) -> None:
        self.options = ("--spool", str(root))
        try:
            self.store = Store.open(root)
        except OSError as exc:
            raise from_os_error(exc, f"opening the spool {root}") from exc
        self.paths: SpoolPaths = self.store.paths
        self._me = _login_name()

    # Submitting

    def submit(
        self, job: Job, sources: Mapping[str, Path], progress: Progress, *, document: bytes = b"", signature: bytes | None = None
    ) -> JobState | None:
        """Hand the job in by rename into `drop/`, then have it accepted. All or nothing; safe to repeat with the same id."""
        before = self._rejected(job.id)
        documents = {"job.json": document or job.encode()}
        if signature:
            documents["job.json.sig"] = signature
        self._drop(job, sources, progress, documents)
        state = self._accept(job.id)
        return state if state is not None else self._await_accepting(job.id, before)

    def _drop(self, job: Job, sources: Mapping[str, Path], progress: Progress, documents: Mapping[str, bytes]) -> None:
        folder = JobPaths(self.paths.tmp / f"submit.{job.id}")
        target = self.paths.drop / job.id
        try:
            os.mkdir(folder.folder, 0o770)
        except FileExistsError as exc:
            hint = f"if nobody is: remove {folder.folder} and submit again"
            raise Duplicate(f"job {job.id} is being handed in by someone", hint=hint) from exc
        lock = os.open(folder.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # so that `check --repair` lets it be
            os.mkdir(folder.inputs, 0o770)
            for name, source in sources.items():
                progress(text("copying", name=name), 0, 0)
                _copy_in(source, folder.inputs / name)
            for name, data in documents.items():
                replace_file(folder.folder / name, data)
            sync_tree(folder.folder)
            self._publish(folder.folder, target)
        except BaseException:
            remove_tree(folder.folder)
            raise
        finally:
            os.close(lock)

    def _publish(self, folder: Path, target: Path) -> None:
        try:
            os.rename(folder, target)
        except OSError as exc:
            if target.exists():
                raise Duplicate(f"{target.name} lies in drop/ already", hint="wait until it has been looked at") from exc
            raise
        fsync_dir(self.paths.drop)

    def _accept(self, job_id: str) -> JobState | None:
        config = self._config()
        if config is None or not may_accept(self.paths):
            return None
        drops = Drops(self.store, workers=1)
        try:
            return drops.accept(job_id, config)
        except Busy:
            return None
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            return None  # another process was faster; what became of it is seen on disk
        finally:
            drops.close()

    def _config(self) -> SpoolConfig | None:
        path = find_config(None, self.paths.root)
        try:
            return read_config(path) if path else None
        except SpoolError as exc:
            note("config_unusable", message=exc.message)
            return None

    def _await_accepting(self, job_id: str, before: set[str]) -> JobState | None:
        told, end = False, time.monotonic() + ACCEPT_WAIT_S
        while self._handed_in(job_id):
            if not told:
                note("accepting_later", seconds=ACCEPT_WAIT_S)
                told = True
            if time.monotonic() >= end:
                note("not_accepted_yet", seconds=ACCEPT_WAIT_S)
                return None
            time.sleep(self.poll_s[0])
        for name in sorted(self._rejected(job_id) - before):
            raise self._refusal(name)
        return self.store.state(job_id)

    def _handed_in(self, job_id: str) -> str:
        """Return where the drop is while nobody has decided on it, else ``""``."""
        for folder in (self.paths.drop / job_id, self.paths.accepting(job_id) / "job"):
            if os.path.lexists(folder):
                return str(folder)
        return ""

    def _rejected(self, job_id: str) -> set[str]:
        return {name for name in _names(self.paths.rejected) if name.rstrip("+") == job_id}

    def _refusal(self, name: str) -> Rejected:
        folder = self.paths.rejected / name
        end = time.monotonic() + _REASON_WAIT_S  # reason.json is written after the move
        while not (reason := _reason(folder)) and time.monotonic() < end:
            time.sleep(self.poll_s[0])
        message = f"rejected: {reason.get('message') or 'no reason was written'}"
        return Rejected(message, hint=f"{reason.get('hint', '')} (the drop is in {folder})".strip())

    # Reading

    def ids(self, prefix: str) -> list[str]:
        folders = (self.paths.jobs, self.paths.drop, self.paths.rejected, self.paths.corrupt)
        names = [name.rstrip("+") for folder in folders for name in _names(folder)]
        names += [name[len("accept.") :] for name in _names(self.paths.tmp) if name.startswith("accept.")]
        return [name for name in names if name.startswith(prefix) and is_id(name)]

    def look(self, job_id: str) -> JobState | None:
        for _ in range(2):  # between the two looks a drop may have become a job
            if (self.paths.jobs / job_id).exists():
                return self.store.state(job_id)
            if self._handed_in(job_id):
                return None
        for name in sorted(self._rejected(job_id), reverse=True):
            raise self._refusal(name)
        return self.store.state(job_id)

    def facts(self, job_id: str) -> Facts:
        folder = self.paths.jobs / job_id
        if folder.exists():
            with contextlib.suppress(NotFound):
                return self._facts_of(job_id)
        handed_in = self._handed_in(job_id)
        if handed_in:
            place = "drop" if Path(handed_in).parent == self.paths.drop else "tmp"
            return Facts(job_id, place, handed_in, job=_job_json(Path(handed_in)))
        for place, parent in (("rejected", self.paths.rejected), ("corrupt", self.paths.corrupt)):
            for name in sorted(_names(parent), reverse=True):
                if name.rstrip("+") == job_id:
                    return Facts(job_id, place, str(parent / name), job=_job_json(parent / name), reason=_reason(parent / name))
        return self._facts_of(job_id)

    def _facts_of(self, job_id: str) -> Facts:
        state = self.store.state(job_id)
        return Facts(
            job_id, "jobs", str(self.paths.jobs / job_id), state, jsonio.loads(self.store.job_bytes(job_id), "job.json"),
            self.store.result(job_id), tuple(self.changes(state, 0)), signed_by=signed_by(self.paths.job(job_id)),
        )  # fmt: skip

    def jobs(self, wanted: Wanted) -> tuple[list[JobState], int]:
        narrowed = [(name, value) for name in ("state", "site", "user") if (value := getattr(wanted, name))]
        found = [state for state in self.store.states() if all(str(getattr(state, name)) == value for name, value in narrowed)]
        found.sort(key=lambda state: state.submitted_at, reverse=True)
        return found[: wanted.limit], len(found)

    def changes(self, state: JobState, after: int) -> list[HistoryEntry]:
        if state.revision <= after:
            return []
        return [entry for entry in self.store.history(state) if entry.revision > after]

    def result(self, job_id: str) -> Result | None:
        return self.store.result(job_id)

    # Changing

    def cancel(self, job_id: str) -> JobState:
        return self.store.cancel(job_id, by=self._me)

    def requeue(self, job_id: str, *, force: bool = False) -> JobState:
        return self.store.requeue(job_id, by=self._me, force=force)

    # Files

    def blocks(self, job_id: str, entry: FileEntry) -> Iterator[bytes]:
        try:
            fd = open_beneath(self.paths.jobs / job_id, entry.path, os.O_RDONLY)
        except FileNotFoundError as exc:
            raise NotFound(f"{entry.path} of job {job_id} is gone", hint="retention may have taken it") from exc
        yield from _read(fd, 0)

    def log(self, state: JobState, name: str, offset: int) -> Iterator[bytes]:
        paths = self.paths.job(state.id)
        places = [paths.folder, paths.incoming_of(state.run_id) / "files"] if state.run_id else [paths.folder]
        for folder in places:
            try:
                fd = open_beneath(folder, f"log/{name}", os.O_RDONLY)
            except FileNotFoundError:
                continue
            yield from _read(fd, offset)
            return


def _read(fd: int, offset: int) -> Iterator[bytes]:
    try:
        while block := os.pread(fd, COPY_BYTES, offset):
            offset += len(block)
            yield block
    finally:
        os.close(fd)


def _copy_in(source: Path, target: Path) -> None:
    os.makedirs(target.parent, 0o770, exist_ok=True)
    with open(source, "rb") as file:
        copy_file(file.fileno(), target)


def _login_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _reason(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(SpoolError, OSError):
        return jsonio.loads(read_record(folder / "reason.json", jsonio.MAX_BYTES), "reason.json")
    return {}


def _job_json(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(SpoolError, OSError):
        return jsonio.loads(read_record(folder / "job.json", JOB_LIMIT_BYTES), "job.json")
    return {}
