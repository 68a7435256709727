"""A spool worked on through its server: /v1 over https (docs/protocol.md).

A job is registered, its inputs are uploaded in chunks that may be repeated, then it is enqueued. The size and SHA-256 of
every input are fixed in job.json first, so what is enqueued is what was meant, and submitting again with the same id goes on.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from spool import jsonio
from spool.ctl.backend import Backend, Facts, Progress, Wanted
from spool.ctl.http import TRIES, Api
from spool.ctl.messages import note, text
from spool.ctl.submission import fixed
from spool.errors import Conflict, NotFound, OffsetMismatch, SpoolError, TooLarge, Unreachable
from spool.records import FileEntry, HistoryEntry, Job, JobState, Result
from spool.states import State

CHUNK_BYTES = 16 * 1024 * 1024
SMALLEST_CHUNK_BYTES = 1024 * 1024
BLOCK_BYTES = 1 << 18
ENQUEUE_TIMEOUT_S = 3600.0


class RemoteBackend(Backend):
    """The spool behind `api`."""

    poll_s = (0.2, 2.0)

    def __init__(self, api: Api, options: tuple[str, ...]) -> None:
        self._api = api
        self.options = options

    # Submitting

    def submit(
        self, job: Job, sources: Mapping[str, Path], progress: Progress, *, document: bytes = b"", signature: bytes | None = None
    ) -> JobState | None:
        """Register, sign, upload, enqueue. Safe to repeat with the same id and files: it goes on where it stopped."""
        if signature is None:
            document = fixed(job, sources, progress).encode()
        state = self._state("POST", "/v1/jobs", data=document)
        if state.state != State.NEW:
            return state
        if signature is not None and state.user != job.user:
            self.cancel(job.id)  # its bytes are signed and name another user: nothing can make it run
            why = f"the token is of user {state.user!r}, the job was signed as of user {job.user!r}"
            raise Conflict(why, hint=f"submit it with --user {state.user}: the job was canceled")
        try:
            if signature is not None:
                self._state("POST", f"/v1/jobs/{job.id}/files/job.json.sig", data=signature)
            for name, source in sources.items():
                self._upload(job.id, name, source, progress)
        except (SpoolError, OSError, KeyboardInterrupt):
            note("upload_resume", id=job.id)
            raise
        return self._state("POST", f"/v1/jobs/{job.id}/enqueue", read_timeout_s=ENQUEUE_TIMEOUT_S)

    def _upload(self, job_id: str, name: str, source: Path, progress: Progress) -> None:
        path, chunk, failures = f"/v1/jobs/{job_id}/files/in/{quote(name)}", CHUNK_BYTES, 0
        with open(source, "rb") as file:
            size, offset = os.fstat(file.fileno()).st_size, self._api.retried(lambda: self._offset(path), name)
            complete = offset == size and size > 0
            while not complete:
                data = os.pread(file.fileno(), min(chunk, size - offset), offset)
                if offset > size or (not data and size):
                    raise Conflict(f"{source} changed while it was sent", hint="submit it as a new job")
                try:
                    offset, failures = self._append(path, offset, data), 0
                except SpoolError as exc:
                    chunk = max(SMALLEST_CHUNK_BYTES, chunk // 2)
                    failures += 1
                    offset = self._after_failure(path, name, offset, exc, failures)
                    continue
                complete = offset >= size
                progress(text("sending", name=name), offset, size)

    def _after_failure(self, path: str, name: str, offset: int, why: SpoolError, failures: int) -> int:
        """Return the offset to go on from; raise `why` where trying again makes no sense."""
        if failures >= TRIES or not (why.transient or isinstance(why, (OffsetMismatch, TooLarge))):
            raise why
        if isinstance(why, OffsetMismatch):
            return why.offset
        if isinstance(why, TooLarge):
            return offset
        self._api.pause(failures - 1, why, name)
        return self._api.retried(lambda: self._offset(path), name)

    def _offset(self, path: str) -> int:
        return self._offset_in(self._api.request("HEAD", path))

    def _append(self, path: str, offset: int, data: bytes) -> int:
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")
        headers = {
            "Upload-Offset": str(offset),
            "Content-Digest": f"sha-256=:{digest}:",
            "Content-Type": "application/octet-stream",
        }
        return self._offset_in(self._api.request("PATCH", path, headers=headers, data=data))

    def _offset_in(self, answer: requests.Response) -> int:
        text = answer.headers.get("Upload-Offset", "")
        if not (text.isascii() and text.isdigit()):
            raise self._api.no_answer(answer)
        return int(text)

    # Reading

    def _state(self, method: str, path: str, **more: Any) -> JobState:
        return _parse_state(self._api.json(method, path, **more))

    def ids(self, prefix: str) -> list[str]:
        states, _ = self.jobs(Wanted(limit=10**9))
        return [state.id for state in states if state.id.startswith(prefix)]

    def look(self, job_id: str) -> JobState | None:
        return self.facts(job_id).state

    def facts(self, job_id: str) -> Facts:
        value = self._api.json("GET", f"/v1/jobs/{job_id}")
        if not isinstance(value.get("state"), dict) or not isinstance(value.get("job"), dict):
            raise Unreachable(f"the answer about job {job_id} is not one of this API", hint="compare the releases of both sides")
        result = value.get("result")
        state = _parse_state(value["state"])
        return Facts(
            job_id, "jobs", "", state, value["job"], Result.parse(jsonio.dumps(result)) if isinstance(result, dict) else None,
            _parse_history(value.get("history"), state), signed_by=str(value.get("signed_by") or ""),
        )  # fmt: skip

    def jobs(self, wanted: Wanted) -> tuple[list[JobState], int]:
        params = {name: str(value) for name, value in vars(wanted).items() if value}
        value = self._api.json("GET", "/v1/jobs", params=params)
        found = [_parse_state(item) for item in value.get("jobs", []) if isinstance(item, dict)]
        return found, int(value.get("total", len(found)))

    def changes(self, state: JobState, after: int) -> list[HistoryEntry]:
        if state.revision <= after:
            return []
        return [entry for entry in self.facts(state.id).history if entry.revision > after]

    def result(self, job_id: str) -> Result | None:
        return self.facts(job_id).result

    # Changing

    def cancel(self, job_id: str) -> JobState:
        return self._state("POST", f"/v1/jobs/{job_id}/cancel")

    def requeue(self, job_id: str, *, force: bool = False) -> JobState:
        return self._state("POST", f"/v1/jobs/{job_id}/requeue{'?force=1' if force else ''}")

    # Files

    def blocks(self, job_id: str, entry: FileEntry) -> Iterator[bytes]:
        """Yield one file, going on with a Range after a cut; ends only when all of its bytes are here."""
        path, offset, failures = f"/v1/jobs/{job_id}/files/{quote(entry.path)}", 0, 0
        while offset < entry.size:
            try:
                for block in self._from(path, offset, f'"sha256-{entry.sha256}"'):
                    offset, failures = offset + len(block), 0
                    yield block
                if offset < entry.size:
                    raise Unreachable(f"{entry.path} was cut off after {offset} bytes", hint="it is tried again")
            except SpoolError as exc:
                failures += 1
                if not exc.transient or failures >= TRIES:
                    raise
                self._api.pause(failures - 1, exc, entry.path)

    def log(self, state: JobState, name: str, offset: int) -> Iterator[bytes]:
        try:
            yield from self._from(f"/v1/jobs/{state.id}/files/log/{quote(name)}", offset, "")
        except NotFound:  # nothing of it has arrived yet
            return

    def _from(self, path: str, offset: int, etag: str) -> Iterator[bytes]:
        """Yield what the file holds from `offset` on, in one request."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-"} if offset else {"Accept-Encoding": "identity"}
        if offset and etag:
            headers["If-Range"] = etag
        with self._api.request("GET", path, headers=headers, stream=True) as answer:
            if answer.status_code == 416:
                return
            if answer.headers.get("Content-Type") != "application/octet-stream" or answer.status_code not in (200, 206):
                raise self._api.no_answer(answer)
            if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise self._api.no_answer(answer)
            skip = offset if answer.status_code == 200 else 0
            try:
                for block in answer.iter_content(BLOCK_BYTES):
                    yield from filter(None, (block[skip:],))
                    skip = max(0, skip - len(block))
            except requests.RequestException as exc:
                raise Unreachable(f"{path} was cut off", hint="it is tried again") from exc


def _parse_state(value: Mapping[str, Any]) -> JobState:
    try:
        return JobState.parse(jsonio.dumps(value))
    except SpoolError as exc:
        raise Unreachable(f"the answer is not one of this API: {exc.message}", hint="compare the releases of both sides") from exc


def _parse_history(lines: Any, state: JobState) -> tuple[HistoryEntry, ...]:
    """Return the history of the answer; a server that tells none is known to have at least the last change."""
    if not isinstance(lines, list):
        return (state.last,) if state.last is not None else ()
    return tuple(HistoryEntry.parse(line) for line in lines if isinstance(line, dict))
