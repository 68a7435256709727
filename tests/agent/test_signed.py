"""Signed jobs, end to end with the real programs: what runs, what does not, and what a broken-into MInt can do: nothing."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Callable

import pytest

from agent.company import SITE, Company
from agent.signing import Signing, make_key_pair
from components.rig import REPO
from components.waiting import wait_until
from spool.names import new_id
from spool.signatures import NAMESPACE, sign

pytestmark = pytest.mark.slow


@pytest.fixture
def signing(company: Company) -> Signing:
    return Signing(company)


def test_a_signed_job_runs_and_an_unsigned_one_does_not(signing: Signing) -> None:
    """By drop and over HTTP: the exact bytes arrive, the key is told of, and a requeue keeps the signature."""
    signing.company.start()
    signed, unsigned = signing.submit("--arg", "解析"), signing.rig.submit(SITE, "mark", "--in", signing.deck)
    ended = signing.rig.wait_state(signed, "completed", "failed", deadline_s=60)
    assert ended["reason"] == "no_outputs", ended  # it ran, and wrote no result.dat
    assert signing.ran(signed)
    assert "signed" in signing.refused(unsigned)["message"]
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", signing.key], capture_output=True, text=True, check=True
    ).stdout.split()[1]  # fmt: skip
    (line,) = signing.audit(signed)
    assert line["good"] is True
    assert line["key"].endswith(fingerprint)
    (other,) = signing.audit(unsigned)
    assert (other["good"], other["named_key"]) == (False, "none")
    for name in ("job.json", "job.json.sig"):
        assert (signing.rig.job(signed) / name).read_bytes() == (signing.company.local(signed) / name).read_bytes()
    shown = signing.rig.spoolctl("show", signed).stdout
    assert f"{fingerprint} (as the signature names it" in shown

    token = signing.keys / "token"
    token.write_text(signing.rig.token("mint", "submitter", "operator"))
    token.chmod(0o600)
    remote = ["tools/spoolctl", "--url", signing.rig.url, "--token", f"@{token}"]
    words = [*remote, "submit", "--site", SITE, "--command", "mark", "--user", "mint"]
    words += ["--in", signing.deck, "--sign", signing.key]
    done = subprocess.run([REPO / words[0], *words[1:]], env=signing.rig.env, capture_output=True, text=True, check=True)
    job_id = done.stdout.split()[-1]
    signing.rig.wait_state(job_id, "completed", deadline_s=60)
    assert signing.ran(job_id)
    words = [*remote[1:], "show", job_id]
    done = subprocess.run([REPO / remote[0], *words], env=signing.rig.env, capture_output=True, text=True, check=True)
    assert fingerprint in done.stdout
    # A requeue is another attempt of the same signature, up to the number that was signed.
    for attempt in (2, 3):
        signing.settle()
        (signing.marks / job_id).unlink()
        assert f"attempt {attempt}" in signing.rig.spoolctl("requeue", job_id).stdout
        signing.rig.wait_state(job_id, "completed", deadline_s=60)
        assert signing.ran(job_id)
    assert "3 attempts" in signing.rig.spoolctl("requeue", job_id, check=False).stderr


Edit = Callable[[dict[str, Any]], Any]


def _record(name: str, **changes: Any) -> Callable[[Signing, str], None]:
    return lambda signing, job_id: signing.edit(job_id, name, lambda value: value.update(changes))


def _drop_key(key: str) -> Callable[[Signing, str], None]:
    return lambda signing, job_id: signing.edit(job_id, "job.json", lambda value: value.pop(key))


def _swap_input(signing: Signing, job_id: str) -> None:
    (signing.rig.job(job_id) / "in" / "deck.inp").write_text("*HEADINX\n")


def _swap_input_and_manifest(signing: Signing, job_id: str) -> None:
    other = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
    (signing.rig.job(job_id) / "in" / "deck.inp").write_text("1\n")
    signing.edit(job_id, "state.json", lambda value: value["inputs"][0].update(size=2, sha256=other))


def _one_more_input(signing: Signing, job_id: str) -> None:
    (signing.rig.job(job_id) / "in" / "more.inp").write_text("1\n")
    more = {"path": "more.inp", "size": 2, "sha256": "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"}
    signing.edit(job_id, "state.json", lambda value: value["inputs"].append(more))


def _one_input_less(signing: Signing, job_id: str) -> None:
    signing.edit(job_id, "state.json", lambda value: value["inputs"].clear())


def _signature_of_another(signing: Signing, job_id: str) -> None:
    other = signing.submit("--arg", "other")
    (signing.rig.job(job_id) / "job.json.sig").write_bytes((signing.rig.job(other) / "job.json.sig").read_bytes())
    (signing.rig.job(other) / "job.json.sig").unlink()


def _no_signature(signing: Signing, job_id: str) -> None:
    (signing.rig.job(job_id) / "job.json.sig").unlink()


def _garbage(signing: Signing, job_id: str) -> None:
    (signing.rig.job(job_id) / "job.json.sig").write_bytes(bytes(range(256)) * 8)


def _huge(signing: Signing, job_id: str) -> None:
    path = signing.rig.job(job_id) / "job.json.sig"
    path.write_bytes(path.read_bytes() + b"\n" * 65536)


def _one_blank_more(signing: Signing, job_id: str) -> None:
    path = signing.rig.job(job_id) / "job.json"
    path.write_bytes(path.read_bytes() + b"\n")


BREAKS: dict[str, Callable[[Signing, str], None]] = {
    **{f"job.json {key}": _record("job.json", **{key: value}) for key, value in {
        "args": ["other"], "command": "sh", "site": "site-b", "user": "eve", "env": {"A": "1"}, "outputs": ["*"],
        "inputs": ["deck.inp"], "expires_at": "2099-01-01T00:00:00Z", "max_attempts": 99, "priority": 1, "wall_time_s": 9,
        "workflow": "w", "labels": {"a": "b"}, "require_all": True, "give_up_after_s": 5, "resources": {"cores": 9},
        "notify_url": "http://eve", "id": "0d9de71c-5a4b-4b0a-8d20-1f4a3a1f9a10", "unknown": "key",
    }.items()},
    **{f"job.json without {key}": _drop_key(key) for key in ("id", "user", "expires_at", "max_attempts", "inputs")},
    "job.json, a newline more": _one_blank_more,
    "state.json attempt": _record("state.json", attempt=4),
    "state.json inputs swapped": _swap_input_and_manifest,
    "state.json inputs more": _one_more_input,
    "state.json inputs less": _one_input_less,
    "in/ swapped": _swap_input,
    "signature of another job": _signature_of_another,
    "no signature": _no_signature,
    "signature is garbage": _garbage,
    "signature is huge": _huge,
}  # fmt: skip
FETCHED = ("in/ swapped",)  # only its bytes tell: they are fetched, found to be others, and thrown away


def test_a_broken_into_mint_runs_nothing(signing: Signing) -> None:
    """Every record of a queued job edited, one job each; then the agent is let loose. A job that nobody touched does run."""
    jobs = {name: signing.submit("--arg", f"n{number}") for number, name in enumerate(BREAKS)}
    honest = signing.submit("--arg", "honest")
    for name, job_id in jobs.items():
        BREAKS[name](signing, job_id)
    signing.company.start(slots=8)
    signing.rig.wait_state(honest, "completed", "failed", deadline_s=120)
    assert signing.ran(honest)
    for name, job_id in jobs.items():
        ended = signing.refused(job_id, fetched=name in FETCHED)
        assert ended["reason"] == ("transfer" if name in FETCHED else "refused_by_site"), (name, ended)
        told = [line["good"] for line in signing.audit(job_id)]
        assert told == [name in FETCHED], (name, told)
    assert len(list(signing.marks.iterdir())) == 1


def test_records_of_another_user_or_site_and_an_old_signature_under_a_new_id(signing: Signing) -> None:
    """What leads another agent to the job, or an old job to this one again."""
    signing.company.start()
    done = signing.submit()
    signing.rig.wait_state(done, "completed", "failed", deadline_s=60)
    signing.settle()
    (signing.marks / done).unlink()
    # An old signed job under a new id: as it is, and with the id put right.
    folders = []
    for right in (False, True):
        job_id = new_id()
        making = signing.rig.root / "making" / job_id
        (making / "in").mkdir(parents=True)
        for name in ("job.json", "job.json.sig", "in/deck.inp"):
            (making / name).write_bytes((signing.rig.job(done) / name).read_bytes())
        folders.append((job_id, making, right))
    rejected, put_right = folders
    rejected[1].rename(signing.rig.spool / "drop" / rejected[0])
    wait_until((signing.rig.spool / "rejected" / rejected[0] / "reason.json").exists, 60, "the old id is rejected")
    value = json.loads((put_right[1] / "job.json").read_bytes())
    (put_right[1] / "job.json").write_text(json.dumps({**value, "id": put_right[0]}))
    put_right[1].rename(signing.rig.spool / "drop" / put_right[0])
    assert "not good" in signing.refused(put_right[0])["message"]
    # The very same attempt again, after its end; then with the job's folder at the site gone, as retention takes it.
    signing.queue_again(done)
    ended = signing.refused_again(done)
    assert "started here before" in ended["message"]
    for path in sorted(signing.company.local(done).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    signing.company.local(done).rmdir()
    signing.queue_again(done)
    assert "started here before" in signing.refused_again(done)["message"]
    # Another user's token: the job of `mint` is told to be eve's, whose agent works here too.
    signing.company.agent.stop() if signing.company.agent else None
    held = signing.submit("--arg", "held")
    store_queue = signing.rig.spool / "queue" / SITE
    (store_queue / "eve").mkdir()
    (entry,) = [path for path in (store_queue / "mint").iterdir() if held in path.name]
    entry.rename(store_queue / "eve" / entry.name)
    signing.edit(held, "state.json", lambda value: value.update(user="eve"))
    (signing.company.folder / "token").unlink()
    signing.trust(("mint", signing.key), ("eve", make_key_pair(signing.keys, "eve")))
    signing.company.start(user="eve")
    assert "'eve'" in signing.refused(held)["message"]


@pytest.mark.parametrize("case", ["expired", "namespace", "revoked", "principal", "unknown key", "signers gone"])
def test_what_a_site_refuses(signing: Signing, case: str) -> None:
    job_id = signing.submit(key=make_key_pair(signing.keys, "other") if case == "unknown key" else None)
    if case == "principal":
        signing.trust(("bob", signing.key))
    elif case == "revoked":
        signing.revoked.write_text(signing.key.with_suffix(".pub").read_text())
    elif case == "signers gone":
        signing.signers.unlink()
    elif case == "namespace":
        path = signing.rig.job(job_id) / "job.json"
        words = ["ssh-keygen", "-Y", "sign", "-f", signing.key, "-n", f"{NAMESPACE}.old"]
        made = subprocess.run(words, input=path.read_bytes(), capture_output=True, check=True)
        path.with_name("job.json.sig").write_bytes(made.stdout)
        signing.trust(("mint", signing.key), options="")
    elif case == "expired":  # signed as such, so that the clock alone speaks against it
        path = signing.rig.job(job_id) / "job.json"
        signing.edit(job_id, "job.json", lambda value: value.update(expires_at="2020-01-01T00:00:00Z"))
        path.with_name("job.json.sig").write_bytes(sign(path.read_bytes(), signing.key))
    signing.company.start()
    ended = signing.refused(job_id)
    assert ended["reason"] == "refused_by_site"
    assert [line["good"] for line in signing.audit(job_id)] == [False]
