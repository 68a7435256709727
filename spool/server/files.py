"""Files over HTTP: inputs out with ranges, results in by appended chunks, many small ones as tar (docs/protocol.md, "Files").

Nothing is read whole into memory: a download is a seeked file handed to the server, an upload is read in blocks from the
request's body. No name of a client is opened except beneath its job, without following links.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import itertools
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from bottle import HTTPResponse

from spool.errors import InvalidName, InvalidRequest, NotFound, OffsetMismatch, TooLarge
from spool.files import open_beneath
from spool.incoming import Incoming
from spool.paths import JobPaths
from spool.records import FileEntry, JobState
from spool.tars import DAMAGED, open_tar

BLOCK_BYTES = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


def download(environ: Mapping[str, Any], paths: JobPaths, folder: str, name: str, entry: FileEntry | None) -> HTTPResponse:
    """Answer GET or HEAD for one file of a job: 200, 206, 304-free, 416; strong ETag where the SHA-256 is known.

    `entry` is the frozen manifest entry; a file that no longer has its size is an error, never a silently short answer.
    (RFC 9110 sections 13.1.5 and 14.)
    """
    try:
        fd = open_beneath(paths.folder / folder if folder else paths.folder, name, os.O_RDONLY)
    except FileNotFoundError as exc:
        raise NotFound(f"no file {folder}/{name} in this job", hint="GET /v1/jobs/ID lists its files") from exc
    file = os.fdopen(fd, "rb")
    size = os.fstat(fd).st_size
    if entry is not None and entry.size != size:
        file.close()
        raise NotFound(f"{folder}/{name} is no longer the file that was accepted", hint="an operator looks into the job folder")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Cache-Control": "no-store"}
    if entry is not None:
        headers["ETag"] = f'"sha256-{entry.sha256}"'
    span, partial = _span(environ, size, headers.get("ETag", ""))
    if span is None:
        file.close()
        return HTTPResponse(b"", 416, {**headers, "Content-Range": f"bytes */{size}"})
    start, end = span
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 206 if partial else 200
    if environ["REQUEST_METHOD"] == "HEAD":
        file.close()
        return HTTPResponse(b"", status, headers)
    return HTTPResponse(_body(file, start), status, headers)


def _body(file: BinaryIO, start: int) -> BinaryIO:
    """Return the file, at `start`: bottle hands it over by "wsgi.file_wrapper" (PEP 3333), waitress ends at the Content-Length.

    Not wrapped here: bottle takes only what has `read` for a file, and all else it iterates, which copies the whole answer into
    buffers, by a thread, for as long as a slow reader takes.
    """
    file.seek(start)
    return file


def _span(environ: Mapping[str, Any], size: int, etag: str) -> tuple[tuple[int, int] | None, bool]:
    """Return ((start, end) in bytes of what is answered, whether that is a part); None where the range cannot be satisfied.

    A range that is malformed, of several parts, or whose If-Range does not hold is ignored, and all is answered with 200.
    """
    match = _RANGE.fullmatch(str(environ.get("HTTP_RANGE", "")))
    if not match or match[0] == "bytes=-" or environ.get("HTTP_IF_RANGE", etag) != etag:
        return (0, size), False
    if not match[1]:
        last = min(size, int(match[2]))
        return ((size - last, size) if last else None), True
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return (0, size), False
    end = min(size, int(match[2]) + 1) if match[2] else size
    return ((start, end) if start < end else None), True


def body_length(environ: Mapping[str, Any], limit: int) -> int:
    """Return the Content-Length of the request; raise where it is missing or beyond `limit` bytes."""
    text = str(environ.get("CONTENT_LENGTH") or "")
    if not text.isascii() or not text.isdigit():
        raise InvalidRequest("a Content-Length is needed", hint="send the body with its length")
    length = int(text)
    if length > limit:
        raise TooLarge(f"the body has {length} bytes, {limit} are taken at a time", hint="send smaller chunks")
    return length


def read_body(environ: Mapping[str, Any], limit: int) -> bytes:
    """Return a small body whole."""
    length = body_length(environ, limit)
    data = environ["wsgi.input"].read(length)
    if len(data) != length:
        raise InvalidRequest(f"the body ended {length - len(data)} bytes early", hint="send it again")
    return bytes(data)


def upload_chunk(environ: Mapping[str, Any], incoming: Incoming, name: str, limit: int) -> HTTPResponse:
    """Answer PATCH: append the body at ``Upload-Offset``, checking ``Content-Digest`` (RFC 9530) where it is sent."""
    length = body_length(environ, limit)
    offset = _offset_header(environ)
    digest = str(environ.get("HTTP_CONTENT_DIGEST", ""))
    match = _DIGEST.search(digest)
    if digest and not match:
        raise InvalidRequest("Content-Digest must hold a sha-256", hint="sha-256=:BASE64:")
    sha256 = _hex(match[1]) if match else ""
    here = incoming.append(name, offset, environ["wsgi.input"], length, sha256=sha256)
    return HTTPResponse(b"", 204, {"Upload-Offset": str(here)})


def upload_state(incoming: Incoming, name: str) -> HTTPResponse:
    """Answer HEAD: how much of `name` is here for good."""
    return HTTPResponse(b"", 200, {"Upload-Offset": str(incoming.offset(name)), "Cache-Control": "no-store"})


def _offset_header(environ: Mapping[str, Any]) -> int:
    text = str(environ.get("HTTP_UPLOAD_OFFSET", ""))
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidRequest("Upload-Offset is missing or no number", hint="send the byte offset of this chunk")
    return int(text)


def _hex(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).hex()
    except binascii.Error as exc:
        raise InvalidRequest("Content-Digest is not base64", hint="sha-256=:BASE64:") from exc


class _Body(io.RawIOBase):
    """A request's body as a file that ends after `left` bytes."""

    def __init__(self, stream: Any, left: int) -> None:
        self._stream = stream
        self._left = left

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = bytes(self._stream.read(self._left if size < 0 else min(size, self._left)))
        self._left -= len(block)
        return block


def upload_tar(environ: Mapping[str, Any], incoming: Incoming, prefix: str, limit: int) -> int:
    """Take a tar apart member by member into `prefix`; return the number of files. Regular files only, names checked.

    Raises `InvalidName` or `InvalidRequest` for anything else in it; then nothing of it counts. Safe to repeat.
    """
    body = _Body(environ["wsgi.input"], body_length(environ, limit))
    try:
        with open_tar(body) as archive:
            return incoming.put_group(_members(archive, prefix))
    except DAMAGED as exc:
        raise InvalidRequest(f"the body is not a tar of plain files: {exc}", hint="send it again, or file by file") from exc


def _members(archive: tarfile.TarFile, prefix: str) -> Iterator[tuple[str, BinaryIO, int]]:
    for member in archive:
        if not member.isreg() or member.sparse is not None:
            raise InvalidName(f"{member.name!r} in the tar is not a plain file", hint="links and devices are not carried")
        stream = archive.extractfile(member)
        if stream is None:
            raise InvalidName(f"{member.name!r} in the tar has no content", hint="send plain files")
        yield f"{prefix}/{member.name}", stream, member.size  # type: ignore[misc]


def download_tar(paths: JobPaths, state: JobState, *, after: str, max_bytes: int) -> Iterator[bytes]:
    """Return the blocks of a tar of the inputs of at most `max_bytes` each whose names sort after `after`, in sorted order.

    What stands against the first one is raised here, while it can still be answered in words; a later one ends the line.
    """
    blocks = _tar(paths, state, after, max_bytes)
    return itertools.chain((next(blocks),), blocks)


def _tar(paths: JobPaths, state: JobState, after: str, max_bytes: int) -> Iterator[bytes]:
    for entry in sorted(state.inputs, key=lambda item: item.path):
        if entry.path > after and entry.size <= max_bytes:
            yield from _tar_member(paths, entry)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _tar_member(paths: JobPaths, entry: FileEntry) -> Iterator[bytes]:
    info = tarfile.TarInfo(entry.path)
    info.size, info.mode = entry.size, stat.S_IRUSR | stat.S_IWUSR
    fd = open_beneath(paths.inputs, entry.path, os.O_RDONLY)
    try:
        if os.fstat(fd).st_size != entry.size:
            raise OffsetMismatch(f"in/{entry.path} changed on disk", offset=0, hint="an operator looks into the job folder")
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
        left = entry.size
        with contextlib.closing(os.fdopen(os.dup(fd), "rb")) as file:
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                left -= len(block)
                yield block
    finally:
        os.close(fd)
    yield bytes(-entry.size % tarfile.BLOCKSIZE)
