"""`ssh_push.py authorize SITE`: the line by which a site lets MInt's key in.

An open site needs a shell for that key and nothing else: `restrict` (sshd(8)) takes away the terminal and every forwarding.
A guarded one needs no shell either: whatever that key asks for, the site's gate is run.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from spool.config import Site
from spool.errors import ConfigError

_SENTENCE = (
    "# Append the next line to ~/.ssh/authorized_keys (mode 0600) of the account that shall run the jobs; "
    "it gives MInt a shell there, without terminal and forwarding.\n"
    "# 次の行を、ジョブを実行するアカウントの ~/.ssh/authorized_keys (モード0600) に追記してください。"
    "MIntにシェルを許しますが、端末と転送は許しません。"
)
_GUARDED = (
    "# Append the next line to ~/.ssh/authorized_keys of the account that shall run the jobs (the file and ~/.ssh owned by root, "
    "if you can), and correct the paths in command=; whatever MInt asks for, this one command is run.\n"
    "# 次の行を、ジョブを実行するアカウントの ~/.ssh/authorized_keys に追記し、command= のパスを直してください。"
    "MIntが何を求めても、このコマンドだけが実行されます。"
)
GATE = "/opt/mint-spool/.venv/bin/python -Es /opt/mint-spool/spool_agent.py gate --config /etc/mint-spool/agent.ini"


def line(site: Site, source: str = "", gate: str = "") -> str:
    """Return lines for authorized_keys: comments that say what to do, then the key. `source` are patterns of MInt's addresses,
    `gate` is the forced command of a guarded site.
    """
    if not re.fullmatch(r"[\w.:*?!,/-]*", source, re.ASCII):
        raise ConfigError(f"--from {source!r} is not a list of addresses", hint="such as 192.0.2.0/24,!192.0.2.9")
    options = "restrict" + (f',from="{source}"' if source else "")
    if site.kind != "guarded":
        if gate:
            raise ConfigError(f"site {site.name} has no gate", hint=f"[site {site.name}] kind = guarded")
        return f"{_SENTENCE}\n{options} {public_key(site)}"
    if any(char in '"\\' or not char.isprintable() for char in gate):
        raise ConfigError(f"--gate {gate!r} cannot stand in authorized_keys", hint='no ", no backslash')
    return f'{_GUARDED}\n{options},command="{gate or GATE}" {public_key(site)}'


def public_key(site: Site) -> str:
    """Return the public half of the key that ssh would use for the site: the first IdentityFile that exists."""
    files = identity_files(site)
    for path in files:
        for known in (Path(f"{path}.pub"), path):
            if known.exists():
                return _public_half(known)
    raise ConfigError(
        f"none of the keys for site {site.name} exists: {', '.join(map(str, files)) or 'no IdentityFile'}",
        hint='make one without passphrase: ssh-keygen -t ed25519 -N "" -f FILE, and name it as IdentityFile in ssh_config',
    )


def identity_files(site: Site) -> list[Path]:
    """Return the key files that ssh tries for the site, in its order."""
    config = ["-F", str(site.ssh_config.absolute())] if site.ssh_config else []
    done = _run(["ssh", *config, "-G", "--", site.host])
    if done.returncode != 0:
        raise ConfigError(f"ssh cannot read its configuration: {done.stderr.strip()}", hint="correct the ssh_config file")
    names = (text.partition(" ")[2] for text in done.stdout.splitlines() if text.startswith("identityfile "))
    return [Path(name.strip('"')).expanduser() for name in names]


def _public_half(path: Path) -> str:
    if path.suffix == ".pub":
        return path.read_text(encoding="utf-8").strip()
    done = _run(["ssh-keygen", "-y", "-P", "", "-f", str(path)])
    if done.returncode != 0:
        why = done.stderr.strip()
        raise ConfigError(f"{path} cannot be read as a key without passphrase: {why}", hint="make it readable, mode 0600")
    return done.stdout.strip()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError as exc:
        raise ConfigError(f"{command[0]} is not installed here", hint="install openssh-client") from exc
