"""Signed jobs: a signature of the submitter's own ssh key over the exact bytes of ``job.json`` (docs/format.md, "Signatures").

`ssh-keygen -Y` does the work (ssh-keygen(1), SSHSIG in OpenSSH's PROTOCOL.sshsig): keys in files, agents and hardware tokens work
as they do for ssh, and a site lists whom it trusts in the known form of `allowed_signers`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from spool.errors import ConfigError, InvalidRecord, Refused, SpoolError

NAMESPACE = "mint-spool-job"  # a signature made for git, or for a file, is none for a job
LIMIT_BYTES = 64 * 1024
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_TIMEOUT_S = 120  # a person may have to touch a token, or to type a passphrase
_ENV_KEPT = ("HOME", "PATH", "SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "WAYLAND_DISPLAY", "TERM")


def sign(document: bytes, key: Path) -> bytes:
    """Return the signature of `document` by the private key in `key`, or by the agent's key whose public half is there.

    Raises `ConfigError` where that cannot be, with the words of ssh-keygen.
    """
    with tempfile.TemporaryDirectory(prefix="mint-sign-") as folder:
        path = Path(folder) / "job.json"
        path.write_bytes(document)
        done = _keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)])
        if done.returncode:
            hint = "name the file of an ssh key (ssh-keygen -t ed25519 makes one), without @"
            raise ConfigError(f"the job could not be signed with {key}: {_said(done)}", hint=hint)
        return path.with_name("job.json.sig").read_bytes()


def verify(document: bytes, signature: bytes, signers: Path, user: str, revoked: Path | None = None) -> str:
    """Return what ssh-keygen says of a good signature of `document` by `user` (an entry of `signers`): kind and fingerprint.

    `revoked` lists keys that do not count any more (a KRL, or public keys one a line). Raises `Refused` where it is none: another
    document, key, user, namespace, or a key that is not valid (any more); `ConfigError` where a file of the site is missing.
    """
    if not signers.is_file():
        raise ConfigError(f"the file of allowed signers {signers} is not there", hint="see ssh-keygen(1), ALLOWED SIGNERS")
    if revoked is not None and not revoked.is_file():
        raise ConfigError(f"the file of revoked keys {revoked} is not there", hint="an empty file revokes none: ssh-keygen(1)")
    with tempfile.TemporaryDirectory(prefix="mint-verify-") as folder:
        path = Path(folder) / "job.json.sig"
        path.write_bytes(signature[:LIMIT_BYTES])
        words = ["-Y", "verify", "-f", str(signers), "-I", user, "-n", NAMESPACE, "-s", str(path)]
        done = _keygen([*words, *(["-r", str(revoked)] if revoked else [])], document)
    if done.returncode:
        raise Refused(f"the signature of user {user!r} is not good here: {_said(done)}",
                      hint="signed by that user's own key, which the site's administrator has listed?")  # fmt: skip
    return done.stdout.decode("utf-8", "replace").strip()


def key_of(signature: bytes) -> str:
    """Return the kind and fingerprint of the key that `signature` names, such as ``ssh-ed25519 SHA256:…``. Nothing is verified.

    Raises `InvalidRecord` where it is no ssh signature at all, or is larger than `LIMIT_BYTES`.
    """
    try:
        if len(signature) > LIMIT_BYTES or not signature.startswith(_BEGIN) or not signature.rstrip().endswith(_END):
            raise ValueError
        blob = base64.b64decode(b"".join(signature.rstrip()[len(_BEGIN) : -len(_END)].split()), validate=True)
        magic, key = blob[:10], _text(blob[10:])
        kind = _text(key).decode("ascii")
        if magic != b"SSHSIG\0\0\0\1" or not kind.isprintable():
            raise ValueError
    except (ValueError, binascii.Error) as exc:
        raise InvalidRecord("job.json.sig is no ssh signature", hint="spoolctl submit --sign KEY, or ssh-keygen -Y sign") from exc
    return f"{kind} SHA256:{base64.b64encode(hashlib.sha256(key).digest()).decode('ascii').rstrip('=')}"


def _text(blob: bytes) -> bytes:
    """Return the first string of an ssh blob (RFC 4251, section 5)."""
    length = int.from_bytes(blob[:4], "big")
    if not 0 < length <= len(blob) - 4:
        raise ValueError
    return blob[4 : 4 + length]


def _keygen(words: list[str], document: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {name: os.environ[name] for name in _ENV_KEPT if name in os.environ}
    try:
        command = ["ssh-keygen", *words]
        return subprocess.run(command, input=document, capture_output=True, env=env, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as exc:
        raise ConfigError("ssh-keygen is not there", hint="install openssh-client (Debian) or openssh (Rocky)") from exc
    except subprocess.TimeoutExpired as exc:
        raise SpoolError(f"ssh-keygen did not end within {_TIMEOUT_S} s", hint="does the key wait for a touch?") from exc


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
    return text.splitlines()[-1] if text else f"ssh-keygen ended with {done.returncode}"
