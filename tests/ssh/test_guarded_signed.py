"""A guarded site that runs signed jobs only: a broken-into MInt that speaks the gate's words gets nothing stored, nothing run."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.rig import Rig
from components.sshd import Sshd
from spool import gate
from spool.names import new_id
from spool.signatures import NAMESPACE

from .guarded import Guarded, Run

NOTHING: Mapping[str, Any] = {}
LATER = "2999-01-01T00:00:00Z"


class Signed(Run):
    """A run whose job.json is signed as `ssh-keygen -Y sign` does it; `document` are the bytes that go to the gate."""

    def __init__(self, site: Guarded, key: Path, *, namespace: str = NAMESPACE, job: Mapping[str, Any] = NOTHING) -> None:
        super().__init__(site, "cat deck.inp; echo ran >ran.dat", {"deck.inp": b"*HEADING\n"})
        inputs = json.loads(super().request())["inputs"]
        self.job.update({"id": self.id, "user": "mint", "expires_at": LATER, "max_attempts": 2, "inputs": inputs, **job})
        self.document = json.dumps(self.job, ensure_ascii=False).encode()
        path = key.parent / f"{new_id()}.json"
        path.write_bytes(self.document)
        subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", namespace, path], check=True, capture_output=True)
        self.signature = path.with_name(f"{path.name}.sig").read_bytes()

    def request(self, **changes: Any) -> bytes:
        value = json.loads(super().request())
        value.update({"job": _text(self.document), "signature": _text(self.signature), **changes})
        return json.dumps(value).encode() + b"\n"

    def edited(self, **keys: Any) -> str:
        """job.json with other values, as it is sent."""
        return _text(json.dumps({**self.job, **keys}, ensure_ascii=False).encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_key(folder: Path, name: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder / name


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    made = Guarded(rig, sshd)
    public = make_key(tmp_path, "mint").with_suffix(".pub").read_text()
    (tmp_path / "signers").write_text(f'mint namespaces="{NAMESPACE}" {public}')
    made.law(signatures={"required": "yes", "allowed_signers": tmp_path / "signers"})
    yield made
    rig.close()


@pytest.fixture
def key(site: Guarded, tmp_path: Path) -> Path:
    """The submitter's, whom the site trusts."""
    return tmp_path / "mint"


@pytest.mark.slow
def test_what_is_not_as_it_was_signed_is_refused(site: Guarded, key: Path, tmp_path: Path) -> None:
    stranger = make_key(tmp_path, "stranger")
    run, other = Signed(site, key), Signed(site, key)
    [entry] = json.loads(run.request())["inputs"]
    swapped = {**entry, "sha256": "0" * 64}
    ways: dict[str, tuple[Signed, dict[str, Any]]] = {
        "unsigned": (run, {"signature": ""}),
        "garbage": (run, {"signature": _text(b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n")}),
        "another job's signature": (run, {"signature": _text(other.signature)}),
        "another job under this id": (run, {"job": _text(other.document), "signature": _text(other.signature)}),
        "one blank more": (run, {"job": _text(run.document + b" ")}),
        "other arguments": (run, {"job": run.edited(args=["id"])}),
        "another expiry": (run, {"job": run.edited(expires_at="2998-01-01T00:00:00Z")}),
        "more attempts": (run, {"job": run.edited(max_attempts=9)}),
        "another user, in both": (run, {"job": run.edited(user="alice"), "user": "alice"}),
        "another user's record": (run, {"user": "alice"}),
        "an attempt beyond the limit": (run, {"attempt": 3}),
        "another input": (run, {"inputs": [swapped]}),
        "another input, in both": (run, {"inputs": [swapped], "job": run.edited(inputs=[swapped])}),
        "one input more": (run, {"inputs": [entry, {**entry, "path": "more.inp"}]}),
        "no input": (run, {"inputs": []}),
        "a stranger's key": (Signed(site, stranger), {}),
        "signed for something else": (Signed(site, key, namespace="file"), {}),
        "expired": (Signed(site, key, job={"expires_at": "2020-01-01T00:00:00Z"}), {}),
        "another site's": (Signed(site, key, job={"site": "elsewhere"}), {}),
    }
    for what, (asked, changes) in ways.items():
        assert asked.refused("enter", asked.request(**changes)) == "refused_by_site", what
        assert not asked.folder.exists(), what
        assert [entry for entry in site.audit(asked.id) if entry["event"] in ("receipt", "start")] == [], what
    assert {path.name for path in site.base.iterdir()} == {site.control.name}, "nothing is stored"
    assert run.refused("start") == run.refused("prepare") == "lost"
    told = [entry["good"] for entry in site.audit() if entry["event"] == "signature"]
    assert told == [False] * len(told)
    assert len(told) == len(ways) - 4, "but what is no request of this very job in itself"


@pytest.mark.slow
def test_a_good_one_runs_and_no_replay_of_it_does(site: Guarded, key: Path) -> None:
    run = Signed(site, key)
    result = run.to_end()
    assert "out/ran.dat" in [entry["path"] for entry in result["files"]]
    assert run.get("log/stdout.txt").stdout == b"*HEADING\n"
    assert (run.folder / "job.json").read_bytes() == run.document
    assert site.events(run.id)[:3] == ["signature", "receipt", "start"]
    assert site.audit(run.id)[0]["good"] is True
    run.over("completed")

    def replayed(what: str, attempt: int = 1, **earlier: Any) -> None:
        done = run.ask("enter", run.request(attempt=attempt, **earlier))
        assert (done.returncode, done.stdout) == (gate.REFUSED, b""), what
        assert b"refused_by_site" in done.stderr, what
        assert not (run.folder / "work").exists() or (run.folder / "run" / "started").exists(), what

    first = run.run_id
    run.run_id = new_id()
    replayed("the same attempt as another run", earlier=[first])
    shutil.rmtree(run.folder)
    run.run_id = first
    replayed("the same run, once its folder is gone")
    run.run_id = new_id()
    replayed("the same attempt, once its folder is gone")
    run.run_id = second = new_id()
    run.good("enter", run.request(attempt=2, earlier=[first]))
    run.good("put", json.dumps({"files": [{"path": "deck.inp", "offset": 0}]}).encode() + b"\n*HEADING\n")
    run.good("prepare")
    run.good("start")
    run.wait_exited()
    run.run_id = new_id()
    replayed("a third attempt of two", attempt=3, earlier=[first, second])
    replayed("the second once more", attempt=2, earlier=[first, second])
    assert site.events(run.id).count("start") == 2


@pytest.mark.slow
def test_a_signature_that_no_longer_counts_at_the_start(site: Guarded, key: Path, tmp_path: Path) -> None:
    """The key is taken from the list between the inputs and the start."""
    run = Signed(site, key)
    run.to_start()
    (tmp_path / "signers").write_text("")
    assert run.refused("start") == "refused_by_site"
    assert run.good("status")["status"]["word"] == "canceled"
    assert not (run.folder / "run" / "started").exists() or not (run.work / "ran.dat").exists()
    assert "start" not in site.events(run.id)


@pytest.mark.slow
def test_from_the_submitters_key_to_the_result(site: Guarded, key: Path, tmp_path: Path) -> None:
    site.start()
    deck = tmp_path / "deck.inp"
    deck.write_text("*HEADING\n")
    words = ["--in", deck, "--out", "*.dat", "--arg", "cp deck.inp a.dat"]
    signed = site.rig.submit("site", "sh", *words, "--sign", key)
    unsigned = site.rig.submit("site", "sh", *words)
    assert site.ended(signed)["state"] == "completed"
    assert site.out(signed) == {"a.dat": b"*HEADING\n"}
    state = site.ended(unsigned)
    assert (state["state"], state["reason"]) == ("failed", "refused_by_site"), state
    assert "not signed" in state["message"]
    assert not site.there(unsigned).exists()
