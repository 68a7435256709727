"""A real sshd on a high loopback port, with its own keys, home and client configuration."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from components import proc
from components.ports import accepts, free_port
from components.process import Process, run
from components.waiting import wait_until

# CI's sshd needs this folder for its privilege separation; an ordinary user's does not.
_PRIVSEP = Path("/run/sshd")


class Sshd:
    """One server. `stop` and `start` keep the port and the keys, so a client sees a host that went away and came back.

    `ssh_config` names it `site`, for `ssh -F`. Everything lies in `folder`, of which `home` is HOME on the far side.
    """

    def __init__(self, name: str = "site", jump: Sshd | None = None, address: str = "127.0.0.1") -> None:
        self.name = name
        self.address = address
        # A short path of its own: a ControlPath must fit into the 108 bytes of a Unix socket's name.
        self.folder = Path(tempfile.mkdtemp(prefix="mint-sshd-"))
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700)
        self.port = free_port()
        self.user = getpass.getuser()
        self.key = self.folder / "id_ed25519"
        self.known_hosts = self.folder / "known_hosts"
        self.authorized_keys = self.folder / "authorized_keys"
        self.ssh_config = self.folder / "ssh_config"
        self._process: Process | None = None
        _make_key(self.key)
        _make_key(self.folder / "host_key")
        host_key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[{address}]:{self.port} {host_key}\n")
        self.authorize()
        self._config = self.folder / "sshd_config"
        self._config.write_text(self._server_config())
        self.ssh_config.write_text(self.client_config(jump))
        self.start()

    def _server_config(self) -> str:
        return f"""\
Port {self.port}
ListenAddress {self.address}
HostKey {self.folder}/host_key
PidFile {self.folder}/sshd.pid
AuthorizedKeysFile {self.authorized_keys}
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
MaxSessions 200
SetEnv HOME={self.home}
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""

    def client_config(self, jump: Sshd | None = None) -> str:
        """The `Host` entry for this server; through `jump` (whose entry comes along) where one is given."""
        entry = f"""\
Host {self.name}
  HostName {self.address}
  Port {self.port}
  User {self.user}
  IdentityFile {self.key}
  IdentitiesOnly yes
  UserKnownHostsFile {self.known_hosts}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
"""
        return entry if jump is None else f"{entry}  ProxyJump {jump.name}\n\n{jump.client_config()}"

    def authorize(self, options: str = "") -> None:
        """Let the client's key in, under `options`, e.g. `restrict,command="…"`; replaces what was allowed before."""
        public = self.key.with_suffix(".pub").read_text()
        self.authorized_keys.write_text(f"{options} {public}".lstrip())

    def start(self) -> None:
        """Listen (again) on the same port; returns when connections are taken."""
        assert self._process is None, "sshd runs already"
        if os.geteuid() == 0:
            _PRIVSEP.mkdir(mode=0o755, exist_ok=True)
        binary = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert binary, "no sshd here: tools/test installs openssh-server"
        process = Process([binary, "-D", "-e", "-f", self._config], log=self.folder / "sshd.log")
        self._process = process
        wait_until(lambda: accepts(self.port, self.address) or not process.running, 10, f"sshd listens on {self.port}")
        assert process.running, process.output()

    def stop(self, cut: bool = True) -> None:
        """No new connections; with `cut`, those that are open end as well. What they had started may go on."""
        if self._process is None:
            return
        connections = self._connections()
        self._process.kill()
        self._process = None
        if cut:
            proc.kill(connections)

    def _connections(self) -> list[int]:
        if self._process is None:
            return []
        # sshd's own processes only: a command that a connection started must see its line go, not a signal.
        return [child.pid for child in proc.descendants(self._process.pid) if child.name.startswith("sshd")]

    def kill_connections(self) -> int:
        """Cut every open connection, while new ones are still taken; returns how many processes served them."""
        connections = self._connections()
        proc.kill(connections)
        return len(connections)

    def freeze(self) -> None:
        """From now on nothing answers, and nothing is closed: what a dropped line looks like. `thaw` ends it."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, how: signal.Signals) -> None:
        if self._process is not None:
            proc.kill([self._process.pid, *self._connections()], how)

    def ssh(self, command: str, *, check: bool = True, deadline_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the far side."""
        return run(["ssh", "-F", self.ssh_config, self.name, command], check=check, deadline_s=deadline_s)

    def close(self) -> None:
        """Stop, end what still works in `home`, and remove the folder. Safe to repeat."""
        self.thaw()
        self.stop(cut=True)
        for tries in range(5):  # what was just killed may still have made a file
            proc.kill(proc.working_in(self.folder))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder, ignore_errors=tries < 4)


def _make_key(path: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path])
