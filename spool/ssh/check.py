"""`ssh_push.py check SITE`: tries what a job would need, one line each: ok or problem, and what to do.

It changes nothing at the site but for a probe file in the base, which it removes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from spool.config import Site
from spool.errors import SpoolError
from spool.gate import GATE_FORMAT, REFUSED
from spool.manifest import printable
from spool.ssh.connection import Connection, Connections, hint_for
from spool.ssh.gated import GatedSite

_MIN_FREE_KB = 1024 * 1024

# Prints KEY=VALUE lines. What the runner and the push call there, and where the jobs will lie.
_PROBE = r"""
base=$1
shift
echo "shell=$(id -un) on $(uname -sr)"
echo "rsync=$(rsync --version 2>/dev/null | head -n 1)"
for tool in setsid sha256sum find sync mv env; do
    command -v "$tool" >/dev/null || echo "lacks=$tool"
done
[ -r /proc/self/stat ] || echo "lacks=/proc"
(umask 077; mkdir -p "$base") 2>/dev/null
probe=$base/.mint-probe.$$
if (umask 077; printf '#!/bin/sh\nexit 0\n' >"$probe" && chmod 700 "$probe") 2>/dev/null; then
    echo "base=writable"
    "$probe" 2>/dev/null || echo "noexec=1"
else
    echo "base=no"
fi
rm -f "$probe"
echo "free_kb=$(df -Pk "$base" 2>/dev/null | awk 'NR == 2 { print $4 }')"
echo "fs=$(df -PT "$base" 2>/dev/null | awk 'NR == 2 { print $2 }')"
for command in "$@"; do
    found=$(command -v -- "$command" 2>/dev/null)
    if [ -n "$found" ] && [ -x "$found" ]; then echo "found=$command"; else echo "missing=$command"; fi
done
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; without `advice` all is well."""

    what: str
    said: str
    advice: str = ""

    def __str__(self) -> str:
        state = "problem" if self.advice else "ok     "
        return f"{state}  {self.what}: {self.said}" + (f"\n         -> {self.advice}" if self.advice else "")


def report(site: Site) -> bool:
    """Print a line for each thing tried; return whether all is well."""
    good = True
    for finding in findings(site):
        print(finding, flush=True)
        good = good and not finding.advice
    return good


def findings(site: Site) -> Iterator[Finding]:
    """Try one thing after the other; what makes the rest pointless ends it."""
    missing = [name for name in ("ssh", "rsync") if not shutil.which(name)]
    if missing:
        yield Finding("programs here", f"no {' '.join(missing)}", "install openssh-client and rsync on this machine")
        return
    yield Finding("programs here", "ssh, rsync")
    connections = Connections()
    try:
        connection = connections.to(site)
        yield _host(site)
        if site.kind == "guarded":
            yield from guarded(site, connection)
            return
        words = connection.run(["printf", "%s", _ODD])
        yield Finding("connection", f"{site.host} answers, its host key is known, the key is let in")
        yield _login_shell(words.out)
        if words.out == _ODD:
            wanted = [site.program] if site.program else [name for name in site.commands if name != "*"]
            said = connection.run(["sh", "-c", _PROBE, "check", site.base, *wanted]).out
            yield from _judge(site, [tuple(line.split("=", 1)) for line in said.splitlines() if "=" in line])
    except SpoolError as exc:
        yield Finding("connection", exc.message, exc.hint)
    finally:
        connections.close()


def guarded(site: Site, connection: Connection) -> Iterator[Finding]:
    """Ask the gate of a guarded site what it is, and whether that key gets anything else."""
    told = GatedSite(connection, site.base, "", "").hello()
    yield Finding("connection", f"{site.host} answers, its host key is known, the key is let in")
    version, name = printable(str(told.get("version", ""))), printable(str(told.get("site")))
    same = told.get("gate") == GATE_FORMAT
    release = f"version {version}" if version else "it answers"
    yield Finding("gate", release, "" if same else "install the same release on both sides")
    yield Finding("site", f"the gate is of site {name}", "" if name == site.name else "[agent] site there and [site] here differ")
    for what, argv in _NOT_FOR_US.items():
        done = connection.run(argv)
        refused = done.code == REFUSED and not done.out
        advice = "" if refused else f"that key can be used for more than jobs: see ssh_push.py authorize {site.name}"
        yield Finding(what, "refused, as it must be" if refused else "not refused", advice)
    commands = [str(word) for word in told.get("commands") or ()]
    for command in (name for name in site.commands if name != "*"):
        here = command in commands
        yield Finding("command", f"{command} {'allowed' if here else 'not allowed'} there", "" if here else "ask the site")
    if not commands:
        yield Finding("command", "the site allows none", "the site adds a [command NAME] to its agent.ini")


_NOT_FOR_US = {
    "a shell": ("sh", "-c", "echo shell"),
    "rsync": ("rsync", "--server", "--sender", "-logDtpre.iLsfxCIvu", ".", "/etc/"),
    "sftp": ("internal-sftp",),
}
_ODD = "a 'b' \"c\" $(d) \\ 入力\n#"


def _host(site: Site) -> Finding:
    config = ["-F", str(site.ssh_config.absolute())] if site.ssh_config else []
    command = ["ssh", *config, "-G", "--", site.host]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        return Finding("ssh_config", done.stderr.strip(), hint_for(done.stderr))
    known = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    way = known.get("proxyjump") or known.get("proxycommand") or "directly"
    return Finding("ssh_config", f"{known.get('user')}@{known.get('hostname')} port {known.get('port')}, {way}")


def _login_shell(said: str) -> Finding:
    if said == _ODD:
        return Finding("login shell", "passes commands on as they are")
    if said.endswith(_ODD):
        noise = said[: -len(_ODD)][:80]
        return Finding("login shell", f"prints {noise!r} by itself", "let .bashrc print only where the shell is interactive")
    return Finding("login shell", f"garbles commands: {said[:80]!r}", "give the account a POSIX login shell: chsh -s /bin/sh")


def _judge(site: Site, said: list[tuple[str, ...]]) -> Iterator[Finding]:
    facts = {pair[0]: pair[-1] for pair in said}
    lacks = [pair[-1] for pair in said if pair[0] == "lacks"]
    yield Finding("login", facts.get("shell", "?"))
    yield Finding("rsync there", facts.get("rsync") or "none", "" if facts.get("rsync") else "install rsync at the site")
    advice = "install util-linux, coreutils and findutils at the site" if lacks else ""
    yield Finding("tools there", f"no {' '.join(lacks)}" if lacks else "all", advice)
    yield from _base(site, facts)
    for kind, command in (pair for pair in said if pair[0] in ("found", "missing")):
        advice = "" if kind == "found" else "install it, or put it on the PATH of a login without terminal (.bashrc)"
        yield Finding("program" if site.program else "command", f"{command} {kind}", advice)


def _base(site: Site, facts: dict[str, str]) -> Iterator[Finding]:
    if facts.get("base") != "writable":
        yield Finding("base", f"{site.base} is not writable", "make the folder there, or name another as base")
        return
    advice = "it is mounted noexec: jobs that bring programs cannot run there; name another base" if "noexec" in facts else ""
    yield Finding("base", f"{site.base} is writable", advice)
    temporary = os.path.normpath(site.base) == "/tmp" or facts.get("fs") == "tmpfs"
    if temporary:
        # A warning only: it is the published default.
        kind = facts.get("fs") or "?"
        yield Finding("base", f"note: the system may empty {site.base} ({kind}) by age; on tmpfs every restart does")
    free_kb = int(facts["free_kb"]) if facts.get("free_kb", "").isdecimal() else 0
    advice = "" if free_kb > _MIN_FREE_KB else "free some space: less than a GiB is left"
    yield Finding("free space", f"{free_kb // 1024} MiB", advice)
