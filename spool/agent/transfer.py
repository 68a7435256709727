"""Carrying one job's files: inputs in, results out; each goes on where it was cut (docs/protocol.md, "Files").

A fetched input counts once its size and SHA-256 are those that MInt froze. Constant memory: blocks of 256 KiB in, chunks read
twice (hash, send) out, small files in tars of at most 8 MiB.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable

from spool import log
from spool.agent.book import Book
from spool.agent.protocol import JobClient
from spool.errors import DigestMismatch, OffsetMismatch, SpoolError, TooLarge, TransferFailed, Unreachable
from spool.files import fsync_dir, open_beneath, parent_beneath, write_all
from spool.manifest import hash_fd
from spool.paths import JobPaths
from spool.records import FileEntry
from spool.tars import DAMAGED, open_tar

SMALL_BYTES = 1 << 20
TAR_BYTES = 8 << 20
TAR_FILES = 256
MANY = 4
MIN_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(1 << 18)


def fetch_inputs(client: JobClient, job_id: str, paths: JobPaths, inputs: Sequence[FileEntry]) -> None:
    """Bring every input into `in/`, verified and durable. Safe to repeat: what is here and right is kept."""
    paths.inputs.mkdir(mode=0o700, exist_ok=True)
    part = paths.folder / "in.part"
    part.mkdir(mode=0o700, exist_ok=True)
    left = [entry for entry in sorted(inputs, key=lambda item: item.path) if not _here(paths.inputs, entry)]
    small = {entry.path: entry for entry in left if entry.size <= SMALL_BYTES}
    if len(small) > MANY:
        before = [entry.path for entry in inputs if entry.path < min(small)]  # these are here, or large
        _fetch_tar(client, job_id, paths.inputs, part, small, after=max(before, default=""))
        left = [entry for entry in left if not _here(paths.inputs, entry)]
    for entry in left:
        _fetch_one(client, job_id, paths.inputs, part, entry)
    for folder, _, _ in os.walk(paths.inputs):
        fsync_dir(Path(folder))


def _here(folder: Path, entry: FileEntry) -> bool:
    # Files get their name in in/ only after they were verified, so the size suffices here.
    try:
        fd = open_beneath(folder, entry.path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(fd).st_size == entry.size
    finally:
        os.close(fd)


def _fetch_tar(client: JobClient, job_id: str, target: Path, part: Path, wanted: dict[str, FileEntry], *, after: str) -> None:
    with client.download_tar(job_id, after, SMALL_BYTES) as stream:
        try:
            with open_tar(stream, errors="surrogateescape") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    entry = wanted.get(member.name)
                    if content is None or entry is None or member.size != entry.size:
                        continue  # what was not announced is not taken; it is fetched by itself or fails there
                    _write_part(part, "tar", content.read())
                    try:
                        _place(target, part, "tar", entry)
                    except DigestMismatch as exc:
                        log.warning("damaged_input", job=job_id, file=entry.path, why=exc)  # fetched by itself
        except DAMAGED as exc:
            raise Unreachable(f"the tar of inputs was cut: {exc}", hint="it is tried again") from exc


def _write_part(part: Path, name: str, data: bytes) -> None:
    fd = os.open(part / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def _fetch_one(client: JobClient, job_id: str, target: Path, part: Path, entry: FileEntry) -> None:
    name = entry.sha256
    for last in (False, True):
        _download(client, job_id, part / name, entry)
        try:
            _place(target, part, name, entry)
            return
        except DigestMismatch as exc:
            (part / name).unlink(missing_ok=True)
            log.warning("damaged_input", job=job_id, file=entry.path, why=exc)
            if last:
                raise TransferFailed(f"in/{entry.path} arrived damaged twice", hint="see docs/operations.md, transfer") from exc


def _download(client: JobClient, job_id: str, path: Path, entry: FileEntry) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        offset = os.fstat(fd).st_size
        if offset > entry.size:
            offset = 0
        os.ftruncate(fd, offset)
        while offset < entry.size:
            try:
                offset = _receive(client, job_id, fd, offset, entry)
            except OffsetMismatch:
                offset = 0
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _receive(client: JobClient, job_id: str, fd: int, offset: int, entry: FileEntry) -> int:
    with client.download(job_id, entry.path, offset, entry.sha256) as blocks:
        for block in blocks:
            if block != _ZEROS[: len(block)]:
                write_all(fd, block, offset)
            else:
                os.ftruncate(fd, offset + len(block))  # zeros stay a hole
            offset += len(block)
            if offset > entry.size:
                raise Unreachable(f"in/{entry.path} is longer than announced", hint="it is tried again")
    if offset < entry.size:
        raise Unreachable(f"in/{entry.path} ended {entry.size - offset} bytes early", hint="it goes on from there")
    return offset


def _place(target: Path, part: Path, name: str, entry: FileEntry) -> None:
    """Verify the finished part and give it its name in `in/`."""
    fd = os.open(part / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        digest, size = hash_fd(fd)
        if (digest, size) != (entry.sha256, entry.size):
            raise DigestMismatch(f"in/{entry.path} does not have its SHA-256", hint="it is fetched again")
        os.fsync(fd)
    finally:
        os.close(fd)
    with parent_beneath(target, entry.path, make=True) as (parent, last):
        os.rename(part / name, last, dst_dir_fd=parent)


class Sender:
    """Sends one run's results; the chunk size shrinks where the line or a proxy does not take it.

    `opened` gives the open file of a name in the manifest; none: as it lies there, ``log/...`` below `logs` where that is given
    (the redacted copies). `book` is told before and after.
    """

    def __init__(
        self, client: JobClient, job_id: str, run_id: str, paths: JobPaths, chunk_bytes: int, *, book: Book | None = None,
        logs: Path | None = None, opened: Callable[[str], BinaryIO] | None = None,
    ) -> None:  # fmt: skip
        self._client = client
        self._job_id = job_id
        self._run_id = run_id
        self._paths = paths
        self._chunk_bytes = chunk_bytes
        self._opened = opened or self._as_it_lies
        self._book = book
        self._logs = logs
        self._sent: set[str] = set()
        self._streamed: dict[str, int] = {}

    def forget_sent(self) -> None:
        """Take nothing for sent any more: the server found something wrong."""
        self._sent.clear()

    def send(self, files: Sequence[FileEntry]) -> None:
        """Send every file of the manifest. Safe to repeat: what the server has is not sent again."""
        if self._book:
            self._book.sending(files)
        small = [entry for entry in files if entry.size <= SMALL_BYTES and entry.path.startswith("out/")]
        if len(small) <= MANY:
            small = []
        try:
            for group in _groups([entry for entry in small if entry.path not in self._sent], min(TAR_BYTES, self._chunk_bytes)):
                self._send_tar(group)
                self._note_sent(group)
                self._sent.update(entry.path for entry in group)
        except TooLarge as exc:
            log.info("no_tar", job=self._job_id, why=exc)
        for entry in files:
            if entry.path not in self._sent:
                self.send_file(entry.path, entry.size)
                self._note_sent([entry])

    def stream(self, name: str, size: int) -> None:
        """Send the first `size` bytes of a log that may still grow, as far as they are not there."""
        told = self._streamed.get(name, 0)
        if size <= told:
            return
        if self._book:
            self._book.streaming(name)
        self.send_file(name, size)
        if self._book and not self._client.in_one_piece:
            self._book.streamed(name, told, size)
        self._streamed[name] = size

    def _send_tar(self, group: Sequence[FileEntry]) -> None:
        data = self._tar(group)
        try:
            self._client.upload_tar(self._job_id, self._run_id, data)
        except SpoolError:
            self._note_cut("out.tar", 0, len(data), len(data))
            raise

    def _note_sent(self, entries: Sequence[FileEntry]) -> None:
        if self._book and not self._client.in_one_piece:
            self._book.sent(entries)

    def _note_cut(self, name: str, here: int, at_most: int, size: int) -> None:
        if self._book:
            self._book.cut(name, here, at_most, size)

    def _as_it_lies(self, name: str) -> BinaryIO:
        folder = self._logs if self._logs and name.startswith("log/") else self._paths.folder
        return os.fdopen(open_beneath(folder, name, os.O_RDONLY), "rb", buffering=0)

    def send_file(self, name: str, size: int) -> None:
        """Send `name` up to `size` bytes (a log may still be growing)."""
        offset = self._client.upload_offset(self._job_id, self._run_id, name) if size else 0
        if offset > size:
            return  # not what is announced: the server throws it away when it verifies, and asks again
        with self._opened(name) as file:
            while offset < size or size == 0:
                length = min(self._chunk_bytes, size - offset)
                try:
                    offset = self._chunk(name, file, offset, length)
                except SpoolError:
                    self._note_cut(name, offset, offset + length, size)
                    raise
                if size == 0:
                    return

    def _chunk(self, name: str, file: BinaryIO, offset: int, length: int) -> int:
        try:
            return self._client.upload(self._job_id, self._run_id, name, file, offset, length)
        except OffsetMismatch as exc:
            return exc.offset
        except (TooLarge, Unreachable) as exc:
            smaller = max(MIN_CHUNK_BYTES, self._chunk_bytes // 2)
            fits = isinstance(exc, TooLarge) and smaller < self._chunk_bytes
            self._chunk_bytes = min(self._chunk_bytes, smaller)
            if fits:
                return offset
            raise

    def _tar(self, group: Sequence[FileEntry]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
            for entry in group:
                info = tarfile.TarInfo(entry.path[len("out/") :])
                info.size = entry.size
                with self._opened(entry.path) as file:
                    archive.addfile(info, file)
        return buffer.getvalue()


def _groups(entries: Sequence[FileEntry], limit: int) -> Iterator[list[FileEntry]]:
    group: list[FileEntry] = []
    total = 0
    for entry in entries:
        if group and (total + entry.size > limit or len(group) >= TAR_FILES):
            yield group
            group, total = [], 0
        group.append(entry)
        total += entry.size + 1024
    if group:
        yield group
