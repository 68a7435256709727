"""What a site remembers of signed jobs: no replay, no attempt beyond the limit, no clock set back; what a signed job names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spool.agent import signed
from spool.agent.signed import Claim, Ledger
from spool.errors import InvalidRecord, Refused
from spool.instants import from_epoch
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import Input, Job
from spool.signatures import LIMIT_BYTES, key_of
from spool.signed import check_complete, check_handed_in, signature_of

NOW = 1_800_000_000.0
SHA = "0" * 64


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"s": NOW}

    class Clock:
        @staticmethod
        def time() -> float:
            return now["s"]

    monkeypatch.setattr(signed, "time", Clock)
    return now


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "signed.json")


def a_job(**more: Any) -> Job:
    values: dict[str, Any] = {"expires_at": from_epoch(NOW + 1000), "max_attempts": 2, "id": new_id(), "user": "mint", **more}
    return Job(site="s", command="c", **values)


def a_claim(job: Job, attempt: int = 1) -> Claim:
    return Claim(job.id, new_id(), attempt, job.site, job.user, ())


def test_each_attempt_once_and_no_more_than_were_signed(ledger: Ledger, clock: dict[str, float]) -> None:
    job = a_job()
    first, second, third = a_claim(job), a_claim(job, 2), a_claim(job, 3)
    ledger.check(first, job)
    ledger.check(replace(first, run_id=new_id()), job)  # given back, and claimed anew: it was never started
    ledger.start(first, job)
    ledger.start(first, job)  # a restart between the note and the start
    for replayed in (first, replace(first, run_id=new_id())):
        with pytest.raises(Refused, match="started here before"):
            ledger.check(replayed, job)
    with pytest.raises(Refused, match="started here before"):
        ledger.start(replace(first, run_id=new_id()), job)
    with pytest.raises(Refused, match="started here before"):  # a run that was started, under another attempt's number
        ledger.check(replace(first, attempt=2), job)
    ledger.check(second, job)
    ledger.start(second, job)
    for beyond in (third, replace(third, attempt=99)):
        with pytest.raises(Refused, match="used up"):
            ledger.check(beyond, job)
    with pytest.raises(Refused, match="used up"):
        ledger.start(third, job)
    once = a_job(max_attempts=1)
    with pytest.raises(Refused, match="used up"):
        ledger.check(a_claim(once, 2), once)


def test_it_survives_a_restart_and_forgets_only_what_has_expired(ledger: Ledger, clock: dict[str, float]) -> None:
    job, longer = a_job(), a_job(expires_at=from_epoch(NOW + 9000))
    ledger.start(a_claim(job), job)
    ledger.start(a_claim(longer), longer)
    again = Ledger(ledger.path)
    with pytest.raises(Refused, match="started here before"):
        again.check(a_claim(job), job)
    clock["s"] += 2000
    with pytest.raises(Refused, match="expired"):
        again.check(a_claim(job), job)
    assert list(json.loads(ledger.path.read_bytes())["jobs"]) == [longer.id]


def test_a_clock_set_back_revives_nothing(ledger: Ledger, clock: dict[str, float]) -> None:
    job = a_job()
    clock["s"] += 1000.001
    with pytest.raises(Refused, match="expired"):
        ledger.check(a_claim(job), job)
    clock["s"] = NOW - 86400
    for _ in range(2):
        with pytest.raises(Refused, match="expired"):
            Ledger(ledger.path).check(a_claim(job), job)
        with pytest.raises(Refused, match="expired"):
            Ledger(ledger.path).start(a_claim(job), job)


def test_between_fetch_and_start_a_job_may_expire(ledger: Ledger, clock: dict[str, float]) -> None:
    job = a_job()
    claim = a_claim(job)
    ledger.check(claim, job)
    clock["s"] += 5000
    with pytest.raises(Refused, match="expired"):
        ledger.start(claim, job)


@pytest.mark.parametrize("data", [b"", b"{", b'{"format": 1}', b'{"format": 1, "seen_at": "soon", "jobs": {}}', b"\xff" * 99])
def test_a_record_that_cannot_be_read_refuses_everything(ledger: Ledger, data: bytes) -> None:
    ledger.path.write_bytes(data)
    job = a_job(expires_at="2099-01-01T00:00:00Z")
    with pytest.raises(Refused, match=r"signed.json"):
        ledger.check(a_claim(job), job)
    with pytest.raises(Refused, match=r"signed.json"):
        ledger.start(a_claim(job), job)
    assert ledger.path.read_bytes() == data


def test_what_a_signed_job_must_name() -> None:
    job = a_job(inputs=(Input("a", 1, SHA),))
    check_complete(job, job.id, "mint")
    wrong: dict[str, Any] = {"id": "", "user": "", "expires_at": "", "max_attempts": None, "inputs": (Input("a"),)}
    for key, value in wrong.items():
        with pytest.raises(InvalidRecord):
            check_complete(replace(job, **{key: value}), job.id, "mint")
    with pytest.raises(InvalidRecord, match="eve"):
        check_complete(job, job.id, "eve")


BEGIN, END = b"-----BEGIN SSH SIGNATURE-----\n", b"\n-----END SSH SIGNATURE-----\n"
HOSTILE = [
    b"",
    b"\0" * 100,
    BEGIN,
    "署名".encode(),
    BEGIN + b"U1NIU0lH" + END,
    BEGIN + b"A" * LIMIT_BYTES + END,
    BEGIN + b"U1NIU0lHAAAAAf////8=" + END,
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_signatures(data: bytes) -> None:
    with pytest.raises(InvalidRecord, match=r"job.json.sig"):
        key_of(data)
    job = a_job()
    with pytest.raises(InvalidRecord, match=r"job.json.sig"):
        check_handed_in(data, job, job.id, "mint")


def test_a_signature_that_is_a_link_or_too_large(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    assert signature_of(paths) is None
    paths.signature.symlink_to("/etc/hostname")
    with pytest.raises(InvalidRecord):
        signature_of(paths)
    paths.signature.unlink()
    paths.signature.write_bytes(b"x" * (LIMIT_BYTES + 1))
    with pytest.raises(InvalidRecord):
        signature_of(paths)
