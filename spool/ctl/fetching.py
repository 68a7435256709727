"""Putting what a job returned into a person's folder: names checked, links never followed, every byte verified.

Nothing outside the folder can be written: each name is opened beneath it without following links. A file appears whole, by
rename, once its SHA-256 is the one in result.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from spool.ctl.backend import Backend, Progress, Usage
from spool.ctl.messages import say, text
from spool.errors import DigestMismatch, NotFound, SpoolError, from_os_error
from spool.files import COPY_BYTES, parent_beneath, write_all
from spool.manifest import printable
from spool.names import check_names
from spool.records import FileEntry, Result

_ZEROS = bytes(COPY_BYTES)


def fetch(backend: Backend, job_id: str, folder: Path, *, logs: bool, umask: int, progress: Progress) -> int:
    """Put ``out/*`` (and with `logs` ``log/*``, as ``log/NAME``) of the job into `folder`; return how many files.

    The files get the rights that `umask` leaves. Raises `NotFound` where there is no result.
    """
    result = backend.result(job_id)
    if result is None:
        raise NotFound(f"job {job_id} has no result", hint="spoolctl show ID says where it stands")
    targets = targets_of(result, logs=logs)
    if not targets:
        say("nothing_to_fetch")
        return 0
    with _umask(umask):
        _write(backend, job_id, folder, targets, progress)
    say("fetched", count=len(targets), bytes=sum(entry.size for entry in targets.values()), folder=folder)
    return len(targets)


def targets_of(result: Result, *, logs: bool) -> dict[str, FileEntry]:
    """Return name below the folder -> entry; `Usage` where an output and a log would have the same name."""
    found = {entry.path[len("out/") :]: entry for entry in result.files if entry.path.startswith("out/")}
    if logs:
        more = {entry.path: entry for entry in result.files if entry.path.startswith("log/")}
        both = sorted(set(found) & set(more))
        if both:
            raise Usage(f"the job has an output {both[0]!r}", hint="fetch without --logs, and read the logs with spoolctl logs")
        found.update(more)
    check_names(found)
    return found


def _write(backend: Backend, job_id: str, folder: Path, targets: dict[str, FileEntry], progress: Progress) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        for name, entry in targets.items():
            _write_file(folder, name, entry, _counted(backend.blocks(job_id, entry), entry, progress))
    except OSError as exc:
        raise from_os_error(exc, f"writing into {printable(str(folder))}") from exc


def _counted(blocks: Iterator[bytes], entry: FileEntry, progress: Progress) -> Iterator[bytes]:
    done, what = 0, text("fetching", name=entry.path)
    for block in blocks:
        yield block
        done += len(block)
        progress(what, done, entry.size)


def _write_file(folder: Path, name: str, entry: FileEntry, blocks: Iterator[bytes]) -> None:
    with parent_beneath(folder.resolve(), name, make=True) as (parent, last):  # a person may name a link
        temp = f".{secrets.token_hex(8)}.tmp"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent)
        try:
            _fill(fd, entry, blocks)
            os.rename(temp, last, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp, dir_fd=parent)
            raise
        os.fsync(parent)


def _fill(fd: int, entry: FileEntry, blocks: Iterator[bytes]) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        for block in blocks:
            if block != _ZEROS[: len(block)]:  # zeros stay a hole: a sparse file arrives sparse
                write_all(fd, block, size)
            digest.update(block)
            size += len(block)
        os.ftruncate(fd, size)
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise _damaged(entry)
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(entry: FileEntry) -> SpoolError:
    return DigestMismatch(f"{entry.path} is not what result.json lists", hint="fetch it again; if that stays, ask an operator")


@contextlib.contextmanager
def _umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)
