"""Signatures: only the user's own key, for exactly these bytes, in this namespace, while it is valid."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spool.errors import ConfigError, Refused
from spool.signatures import NAMESPACE, sign, verify

DOCUMENT = '{"format": 1, "site": "nims-dev", "command": "解析"}\n'.encode()


def key(folder: Path, name: str) -> Path:
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def listed(folder: Path, *entries: tuple[str, Path, str]) -> Path:
    path = folder / "allowed signers"
    lines = [f"{user} {options} {key.with_suffix('.pub').read_text()}" for user, key, options in entries]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    return key(tmp_path, "alice")


def test_the_users_own_key(tmp_path: Path, alice: Path) -> None:
    signers = listed(tmp_path, ("alice", alice, f'namespaces="{NAMESPACE}"'))
    signature = sign(DOCUMENT, alice)
    assert signature.startswith(b"-----BEGIN SSH SIGNATURE-----")
    assert "ED25519" in verify(DOCUMENT, signature, signers, "alice")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice", "alice.pub", "allowed signers"]


@pytest.mark.parametrize(
    ("document", "user", "options"),
    [
        (DOCUMENT + b" ", "alice", ""),
        (DOCUMENT, "bob", ""),
        (DOCUMENT, "alice", 'namespaces="git"'),
        (DOCUMENT, "alice", 'valid-before="20200101"'),
    ],
)
def test_what_is_not_good(tmp_path: Path, alice: Path, document: bytes, user: str, options: str) -> None:
    signers = listed(tmp_path, ("alice", alice, options), ("bob", key(tmp_path, "bob"), ""))
    with pytest.raises(Refused, match=user):
        verify(document, sign(DOCUMENT, alice), signers, user)


def test_another_namespace_and_garbage(tmp_path: Path, alice: Path) -> None:
    signers = listed(tmp_path, ("alice", alice, ""))
    command = ["ssh-keygen", "-Y", "sign", "-f", alice, "-n", "file"]
    other = subprocess.run(command, input=DOCUMENT, capture_output=True, check=True)
    for signature in (other.stdout, b"", b"\0" * 100, sign(DOCUMENT, alice)[:-60], b"x" * 1_000_000):
        with pytest.raises(Refused):
            verify(DOCUMENT, signature, signers, "alice")


def test_a_user_that_looks_like_an_option_or_a_pattern(tmp_path: Path, alice: Path) -> None:
    signers = listed(tmp_path, ("alice", alice, ""))
    for user in ("*", "-Oprint-pubkey", "alice,bob", "a*"):
        with pytest.raises(Refused):
            verify(DOCUMENT, sign(DOCUMENT, alice), signers, user)


def test_what_cannot_be_done_is_said(tmp_path: Path, alice: Path) -> None:
    with pytest.raises(ConfigError, match="allowed signers"):
        verify(DOCUMENT, b"", tmp_path / "absent", "alice")
    with pytest.raises(ConfigError, match="could not be signed"):
        sign(DOCUMENT, tmp_path / "absent")
