"""`spoolctl submit --sign`: keys in files, with passphrases and in agents; what MInt keeps, and what it does not take."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.signing import make_key_pair
from components.waiting import wait_until
from ctl.conftest import Ctl
from spool.instants import to_epoch
from spool.names import new_id
from spool.records import Job
from spool.signatures import LIMIT_BYTES, NAMESPACE, verify
from spool.signed import check_complete

SUBMIT = ("submit", "--site", "s", "--command", "c", "--user", "mint", "--in", "a.inp")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key_pair(tmp_path, "key")


def check(ctl: Ctl, job_id: str, key: Path) -> Job:
    """The job in the spool: its bytes are signed by `key`, and name everything."""
    folder = ctl.store.paths.job(job_id)
    signers = key.with_name("signers")
    signers.write_text(f'mint namespaces="{NAMESPACE}" {key.with_suffix(".pub").read_text()}')
    verify(folder.job.read_bytes(), folder.signature.read_bytes(), signers, "mint")
    job = ctl.store.job(job_id)
    check_complete(job, job_id, "mint")
    return job


def test_by_folder_and_over_http_the_same_bytes(ctl: Ctl, key: Path) -> None:
    first = check(ctl, ctl(*SUBMIT, "--sign", key, "--arg", "x").stdout.split()[-1], key)
    assert (first.args, first.max_attempts, first.inputs[0].size) == (("x",), 3, 6)
    ctl.serve()
    remote = ctl.remote("submitter", "operator")
    job_id = new_id()
    words = [*remote, *SUBMIT, "--sign", key, "--id", job_id, "--max-attempts", "1", "--expires-at", "2099-01-01T00:00:00Z"]
    for _ in range(2):  # safe to repeat
        assert ctl(*words, spool=False).stdout.split()[-1] == job_id
    job = check(ctl, job_id, key)
    assert (job.max_attempts, job.expires_at) == (1, "2099-01-01T00:00:00Z")
    assert ctl.store.state(job_id).state == "queued"
    shown = json.loads(ctl(*remote, "show", job_id, "--json", spool=False).stdout)
    assert shown["signed_by"].startswith("ssh-ed25519 SHA256:")
    eve = ctl.remote("submitter", user="eve")
    refused = ctl(*eve, *SUBMIT, "--sign", key, code=1, spool=False)
    assert "'mint'" in refused.stderr
    assert "'eve'" in refused.stderr
    assert "--user eve" in refused.stderr
    assert "--id" not in refused.stderr, "the same command would be refused again"
    left = json.loads(ctl("ls", "--user", "eve", "--json").stdout)["jobs"]
    assert [job["state"] for job in left] == ["canceled"], "nothing of it is left to wait"


def test_expiry_is_there_without_being_asked_for(ctl: Ctl, key: Path) -> None:
    job_id = ctl(*SUBMIT, "--sign", key).stdout.split()[-1]
    job = ctl.store.job(job_id)
    days = (to_epoch(job.expires_at) - ctl.store.paths.job(job_id).job.stat().st_mtime) / 86400
    assert 7 <= days <= 8
    unsigned = ctl.store.job(ctl(*SUBMIT).stdout.split()[-1])
    assert (unsigned.expires_at, unsigned.max_attempts, unsigned.inputs[0].sha256) == ("", None, None)


def test_a_key_with_a_passphrase_and_one_in_an_agent(ctl: Ctl, tmp_path: Path) -> None:
    locked = make_key_pair(tmp_path, "locked", "-N", "open sesame")
    ask = tmp_path / "askpass"
    ask.write_text("#!/bin/sh\necho open sesame\n")
    ask.chmod(0o700)
    asked = {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    check(ctl, ctl(*SUBMIT, "--sign", locked, env=asked).stdout.split()[-1], locked)
    failed = ctl(*SUBMIT, "--sign", locked, code=78, env={"SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force"})
    assert "could not be signed" in failed.stderr
    assert list(ctl.store.paths.tmp.iterdir()) == []

    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(socket.exists, 30, "the ssh agent listens")
        held = make_key_pair(tmp_path, "held")
        env = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", held], env=env, check=True)
        held.unlink()  # the agent alone has it now
        job_id = ctl(*SUBMIT, "--sign", held.with_suffix(".pub"), env={"SSH_AUTH_SOCK": str(socket)}).stdout.split()[-1]
        check(ctl, job_id, held)
    finally:
        agent.kill()
        agent.wait()


def _signed_drop(ctl: Ctl, key: Path) -> tuple[str, Path, bytes]:
    """A signed job as a folder that is not handed in yet, its job.json as no program writes it: id, folder, signature."""
    job_id = new_id()
    making = ctl.rig.root / "making" / job_id
    (making / "in").mkdir(parents=True)
    (making / "in" / "a.inp").write_text("input\n")
    sha256 = subprocess.run(
        ["sha256sum", making / "in" / "a.inp"], capture_output=True, text=True, check=True
    ).stdout.split()[0]  # fmt: skip
    value: dict[str, Any] = {
        "id": job_id, "command": "c", "site": "s", "user": "mint", "labels": {"名": "前"}, "max_attempts": 2,
        "expires_at": "2099-01-01T00:00:00Z", "inputs": [{"sha256": sha256, "size": 6, "path": "a.inp"}],
    }  # fmt: skip
    (making / "job.json").write_text(json.dumps(value, indent=7, ensure_ascii=False) + "  \n\n", encoding="utf-8")
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", key, making / "job.json"], check=True)
    return job_id, making, (making / "job.json.sig").read_bytes()


def test_a_drop_keeps_the_very_bytes_also_where_job_json_comes_last(ctl: Ctl, key: Path) -> None:
    job_id, making, signature = _signed_drop(ctl, key)
    document = (making / "job.json").read_bytes()
    ctl.serve()
    place = ctl.store.paths.drop / job_id  # in place: job.json last, the signature before it
    place.mkdir()
    (making / "in").rename(place / "in")
    (place / "job.json.sig").write_bytes(signature)
    (place / "job.json").write_bytes(document)
    ctl.rig.wait_state(job_id, "queued", deadline_s=60)
    folder = ctl.store.paths.job(job_id)
    assert (folder.job.read_bytes(), folder.signature.read_bytes()) == (document, signature)
    ctl("cancel", job_id)
    ctl("requeue", job_id)
    assert (folder.job.read_bytes(), folder.signature.read_bytes()) == (document, signature)
    ctl("cancel", job_id)
    assert "2 attempts" in ctl("requeue", job_id, code=1).stderr


KINDS = ("garbage", "huge", "link", "folder", "fifo", "user", "unfixed")


def test_drops_that_no_site_could_take_are_rejected_with_the_reason(ctl: Ctl, key: Path) -> None:
    dropped = {}
    for kind in KINDS:
        job_id, making, signature = _signed_drop(ctl, key)
        path = making / "job.json.sig"
        path.unlink()
        if kind == "garbage":
            path.write_bytes(os.urandom(3000))
        elif kind == "huge":
            path.write_bytes(signature + b"\n" * LIMIT_BYTES)
        elif kind == "link":
            path.symlink_to(key)
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(signature)
            value = json.loads((making / "job.json").read_bytes())
            value.update({"user": ""} if kind == "user" else {"inputs": ["a.inp"]})
            (making / "job.json").write_text(json.dumps(value))
        making.rename(ctl.store.paths.drop / job_id)
        dropped[kind] = job_id
    (ctl.rig.spool / "spool.ini").unlink()
    ctl.rig.start_server({"s": {"commands": "c"}}, drop_quiet_s="0.2")
    for kind, job_id in dropped.items():
        rejected = ctl.store.paths.rejected / job_id / "reason.json"
        wait_until(rejected.exists, 60, f"the drop {kind} is rejected")
        assert "sig" in rejected.read_text(), kind
    assert list(ctl.store.paths.jobs.iterdir()) == []
