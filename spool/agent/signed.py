"""Signed jobs at the site: whose they are is the signature's word, not MInt's (docs/security.md, "Signed jobs").

Nothing that MInt says of a job is believed where signatures are required: site, id, user, inputs and the number of attempts must
be those of the signed bytes. What was started is noted in ``signed.json`` of the control folder, durably and before the command
is, and outlives the job's folder: neither the same run nor an attempt beyond the limit is started again. The latest instant that
was ever seen stands there too, so that a clock set back revives nothing.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.agent.audit import Audit
from spool.agent.config import AgentConfig
from spool.agent.folder import LocalJob
from spool.agent.protocol import JobClient
from spool.errors import InvalidRecord, Refused, SpoolError
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.instants import from_epoch, to_epoch
from spool.locks import file_lock
from spool.records import JOB_LIMIT_BYTES, FileEntry, Job
from spool.signatures import LIMIT_BYTES, key_of, verify
from spool.signed import check_complete, fixed_inputs

_KEY = re.compile(r" with (\S+ key \S+)$")


@dataclass(frozen=True)
class Claim:
    """A job as MInt tells of it: nothing here is believed."""

    id: str
    run_id: str
    attempt: int
    site: str
    user: str
    inputs: Sequence[FileEntry]


class Ledger:
    """What was started of signed jobs, at `path`, for any number of processes of this account."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")

    def check(self, claim: Claim, job: Job) -> None:
        """Raise `Refused` where the job has expired, its run was started before, or its attempts are used up."""
        with file_lock(self._lock, mode=0o600):
            now, jobs = self._read()
            self._write(now, jobs)
            _judge(claim, job, now, jobs)
            if claim.run_id in jobs.get(claim.id, {}).get("runs", ()):
                raise Refused(f"run {claim.run_id} was started here before", hint="somebody replays a signed job")

    def start(self, claim: Claim, job: Job) -> None:
        """Note, durably, that this run is about to be started; raise as `check`. The repeat for the same run changes nothing."""
        with file_lock(self._lock, mode=0o600):
            now, jobs = self._read()
            runs = list(jobs.get(claim.id, {}).get("runs", ()))
            if claim.run_id not in runs:
                _judge(claim, job, now, jobs)
                jobs[claim.id] = {"expires_at": job.expires_at, "attempts": _attempts(claim, jobs), "runs": [*runs, claim.run_id]}
                self._write(now, jobs)

    def _read(self) -> tuple[float, dict[str, Any]]:
        """Return (the latest instant ever seen, what was started), without what has expired by it."""
        try:
            fields = Fields(jsonio.loads(read_record(self.path, jsonio.MAX_BYTES), self.path.name), self.path.name)
            fields.format()
            seen, jobs = to_epoch(fields.string("seen_at")), fields.mapping("jobs")
            now = max(time.time(), seen)
            return now, {key: value for key, value in jobs.items() if to_epoch(value["expires_at"]) > now}
        except FileNotFoundError:
            return time.time(), {}
        except (SpoolError, KeyError, TypeError) as exc:
            hint = "the site's administrator puts it right; without it a replay cannot be told"
            raise Refused(f"{self.path.name} of the site cannot be read", hint=hint) from exc

    def _write(self, now: float, jobs: dict[str, Any]) -> None:
        replace_file(self.path, jsonio.dumps({"format": 1, "seen_at": from_epoch(now), "jobs": jobs}), mode=0o600)


def _attempts(claim: Claim, jobs: dict[str, Any]) -> list[int]:
    return sorted({*jobs.get(claim.id, {}).get("attempts", ()), claim.attempt})


def _judge(claim: Claim, job: Job, now: float, jobs: dict[str, Any]) -> None:
    if to_epoch(job.expires_at) <= now:
        raise Refused(f"the signed job has expired: {job.expires_at}, and here it is {from_epoch(now)}", hint="sign it anew")
    known = jobs.get(claim.id, {})
    if claim.attempt in known.get("attempts", ()):
        raise Refused(f"attempt {claim.attempt} of job {claim.id} was started here before", hint="somebody replays a signed job")
    if max(claim.attempt, len(known.get("runs", ())) + 1) > (job.max_attempts or 1):
        why = f"the {job.max_attempts} attempts of job {claim.id} that were signed are used up"
        raise Refused(why, hint="submit and sign it anew")


class Gatekeeper:
    """What `[signatures]` asks, over one base. Threads and processes may share it; `check` and `start` are safe to repeat."""

    def __init__(self, config: AgentConfig, control: Path) -> None:
        self._config = config
        self._options = config.signatures
        self._ledger = Ledger(control / "signed.json")
        self._audit = Audit(control / "audit.jsonl")
        self._told: set[str] = set()

    @property
    def wanted(self) -> bool:
        """True where signatures are looked at here at all."""
        return self._options["allowed_signers"] is not None

    def check(self, claim: Claim, document: bytes, signature: bytes | None) -> None:
        """Raise `Refused` unless `document`, the bytes of job.json, may run as MInt claims. One line of the audit tells of it."""
        if not self.wanted or (signature is None and not self._options["required"]):
            return
        told: dict[str, Any] = {"job": claim.id, "run": claim.run_id, "attempt": claim.attempt, "user": claim.user}
        told["job_sha256"] = hashlib.sha256(document).hexdigest()
        try:
            key, job = self._judge(claim, document, signature)
            self._ledger.check(claim, job)
        except Refused as exc:
            told["named_key"] = _named(signature)  # of the signature as it came: nothing vouches for it
            self._audit.append("signature", **told, good=False, why=exc.message)
            log.warning("signature_refused", job=claim.id, run=claim.run_id, user=claim.user, why=exc, hint=exc.hint)
            raise
        if claim.run_id not in self._told:  # a download that is tried again is judged again, and told of once
            self._audit.append("signature", **told, good=True, key=key, expires_at=job.expires_at)
            log.info("signature", job=claim.id, run=claim.run_id, user=claim.user, key=key)
            self._told.add(claim.run_id)

    def start(self, claim: Claim, document: bytes, signature: bytes | None) -> None:
        """Judge once more, and note the start before it is made. Raises `Refused`; nothing may be started then."""
        if self.wanted and (signature is not None or self._options["required"]):
            _, job = self._judge(claim, document, signature)
            self._ledger.start(claim, job)

    def _judge(self, claim: Claim, document: bytes, signature: bytes | None) -> tuple[str, Job]:
        """Return (the key, the job as signed). The clock and what was started before are the ledger's."""
        if signature is None:
            raise Refused("the job is not signed, and this site runs signed jobs only", hint="spoolctl submit --sign KEY")
        if len(signature) > LIMIT_BYTES:
            raise Refused(f"the signature has more than {LIMIT_BYTES} bytes", hint="spoolctl submit --sign KEY")
        try:
            said = verify(document, signature, self._options["allowed_signers"], claim.user, self._options["revoked"])
            job = Job.parse(document)
            check_complete(job, claim.id, claim.user)
            inputs = fixed_inputs(job)
        except Refused:
            raise
        except SpoolError as exc:
            raise Refused(f"the signature cannot be accepted: {exc.message}", hint=exc.hint) from exc
        if job.site != self._config.agent["site"] or claim.site != job.site:
            raise Refused(f"the job was signed for site {job.site}", hint="sign it for this site")
        if sorted(inputs, key=_path) != sorted(claim.inputs, key=_path):
            raise Refused("the inputs are not those that were signed", hint="submit it again; who changed them at MInt?")
        found = _KEY.search(said)
        return found[1] if found else said, job


def _path(entry: FileEntry) -> str:
    return entry.path


def _named(signature: bytes | None) -> str:
    if signature is None:
        return "none"
    try:
        return key_of(signature)
    except InvalidRecord:
        return "unreadable"


def check_fetched(keeper: Gatekeeper, client: JobClient, local: LocalJob) -> None:
    """Fetch the signature, and judge the job by it before anything else of it is fetched. Safe to repeat."""
    if not keeper.wanted:
        return
    document, signature = _signed_bytes(local)
    if signature is None:
        signature = client.signature_bytes(local.state.id)
    keeper.check(claim_of(local, client.inputs(local.state)), document, signature)
    if signature is not None:
        replace_file(local.paths.signature, signature, mode=0o600)


def check_start(keeper: Gatekeeper, local: LocalJob) -> None:
    """Judge the job once more, and note that it is started. Safe to repeat for the same run."""
    if keeper.wanted:
        keeper.start(claim_of(local, local.state.inputs), *_signed_bytes(local))


def claim_of(local: LocalJob, inputs: Sequence[FileEntry]) -> Claim:
    """Return what MInt's record says."""
    state = local.state
    return Claim(state.id, state.run_id, state.attempt, state.site, state.user, inputs)


def _signed_bytes(local: LocalJob) -> tuple[bytes, bytes | None]:
    document = read_record(local.paths.job, JOB_LIMIT_BYTES)
    try:
        return document, read_record(local.paths.signature, LIMIT_BYTES)
    except FileNotFoundError:
        return document, None

