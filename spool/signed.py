"""What a job must name to be worth a signature (docs/format.md, "Signatures"). Nothing is verified here.

MInt asks it at acceptance, so that a submitter hears of a slip at once; the site asks it again, because MInt is not believed.
"""

from __future__ import annotations

from spool.errors import InvalidRecord
from spool.files import read_record
from spool.paths import JobPaths
from spool.records import FileEntry, Job
from spool.signatures import LIMIT_BYTES, key_of

DEFAULT_DAYS = 7
DEFAULT_ATTEMPTS = 3
_HINT = "spoolctl submit --sign KEY names everything that a signed job must name"


def check_complete(job: Job, job_id: str, user: str) -> None:
    """Raise `InvalidRecord` unless job.json itself names all that its signature is to vouch for.

    That is its id, site and command, its user, the instant after which it counts no more, how many attempts there may be, and
    of every input size and SHA-256.
    """
    if job.id != job_id:
        raise InvalidRecord(f"the signed job.json is of job {job.id or '(none)'}, not of {job_id}", hint=_HINT)
    if job.user != user:
        raise InvalidRecord(f"the signed job.json is of user {job.user or '(none)'!r}, the job is {user!r}'s", hint=_HINT)
    for key in ("expires_at", "max_attempts"):
        if not getattr(job, key):
            raise InvalidRecord(f"the signed job.json names no {key}", hint=_HINT)
    fixed_inputs(job)


def fixed_inputs(job: Job) -> tuple[FileEntry, ...]:
    """Return the inputs with size and SHA-256; raise `InvalidRecord` where job.json does not fix them."""
    entries = []
    for item in job.inputs:
        if item.size is None or item.sha256 is None:
            raise InvalidRecord(f"the signed job.json names no size and SHA-256 of {item.path!r}", hint=_HINT)
        entries.append(FileEntry(item.path, item.size, item.sha256))
    return tuple(entries)


def signature_of(paths: JobPaths) -> bytes | None:
    """Return the bytes of job.json.sig, None where there is none; `InvalidRecord` for a link, or more than `LIMIT_BYTES`."""
    try:
        return read_record(paths.signature, LIMIT_BYTES)
    except FileNotFoundError:
        return None


def check_handed_in(signature: bytes | None, job: Job, job_id: str, user: str) -> None:
    """Raise `InvalidRecord` where the signature of a signed job is none, or no site could take it."""
    if signature is not None:
        key_of(signature)
        check_complete(job, job_id, user)


def signed_by(paths: JobPaths) -> str:
    """Return the key that job.json.sig names, unverified, and nothing where there is none that can be read."""
    try:
        signature = signature_of(paths)
        return key_of(signature) if signature is not None else ""
    except (InvalidRecord, OSError):
        return ""
