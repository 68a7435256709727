"""One ssh connection to a site, shared by everything that goes there.

A master connection is opened on first use (ssh_config(5), ControlMaster); every command and every rsync is a channel of it.
What is private to it lies in a short folder of mode 0700: the control socket, whose path must fit into 104 bytes, and one
script that calls ssh with all its options and is what rsync gets as its remote shell, so that no path of a
configuration goes through rsync's own splitting.

Guarantee: ssh's own failure raises `Unreachable`; what a remote command says is returned. Never raises for the other's fault.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable

from spool import log
from spool.config import Site
from spool.errors import NoSpace, TransferFailed, Unreachable
from spool.files import replace_file
from spool.states import Reason

QUICK_S = 120.0
PERSIST_S = 600
SSH_FAILED = 255
_ALIVE_MISSED = 3  # ssh asks once more, and gives the line up at the time of the next question
# sshd takes 10 sessions a connection by default (sshd_config(5), MaxSessions): some for what takes long, some for what does not.
_LONG_CHANNELS = 4
_QUICK_CHANNELS = 4
_SOCKET_PATH_BYTES = 60
_NAME = "site"

_HINTS = {
    "Host key verification failed": "the site's host key is not the one in known_hosts: ask the site for its fingerprint, then "
    "correct known_hosts; never accept it unseen",
    "Permission denied": "the site does not let MInt's key in: send it the line that `ssh_push.py authorize` prints",
    "Could not resolve hostname": "check HostName in ssh_config and the name service",
    "Connection refused": "nothing listens on that port: check Port in ssh_config, and sshd and the firewall at the site",
    "timed out": "nothing answers: check the address, the firewall and the jump host",
    "Bad configuration option": "correct the ssh_config file",
    "Bad owner or permissions": "make the ssh_config file writable by its owner alone",
}


_NO_SPACE = ("No space left on device", "Disk quota exceeded", "Read-only file system")
NO_SPACE_HINT = "free space or inodes there or here, raise the quota, or remount it writable; it is tried again"


def says_no_space(said: str) -> bool:
    """True where a program says, in the C locale, that a disk is full, out of inodes, over quota or read-only."""
    return any(words in said for words in _NO_SPACE)


Feed = Callable[[IO[bytes]], None]


class Stopped(Exception):
    """The push is ending: everything stays as it is, and the next start carries on."""


class SiteTrouble(TransferFailed):
    """The site answered, and what it was asked to do did not work; `reason` is what the job fails with if that stays so."""

    def __init__(self, message: str, *, hint: str = "", reason: Reason = Reason.TRANSFER) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class Done:
    """A command that has ended: exit code, and what it said (bytes that are not UTF-8 as surrogates)."""

    code: int
    out: str
    err: str


def private_folder() -> Path:
    """Make a folder of mode 0700 for control sockets: below XDG_RUNTIME_DIR where that is short and plain, else in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    plain = re.fullmatch(r"/[\w./-]+", runtime, re.ASCII) and len(runtime) < _SOCKET_PATH_BYTES and os.path.isdir(runtime)
    parent = Path(runtime if plain else "/tmp")
    _remove_leftovers(parent)
    return Path(tempfile.mkdtemp(prefix=f"mint-push-{os.getpid()}-", dir=parent))


def _remove_leftovers(parent: Path) -> None:
    """Remove what a killed push has left. Its master, if it lives, ends by itself when it was idle for `PERSIST_S`."""
    for folder in parent.glob("mint-push-*-*"):
        pid = folder.name.split("-")[2]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and folder.lstat().st_uid == os.geteuid() and not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(folder)


def hint_for(said: str) -> str:
    """Return what to do about ssh's own message."""
    return next((hint for words, hint in _HINTS.items() if words in said), "try it by hand: ssh_push.py check SITE")


class Connection:
    """The connection to one site. Threads share it; `close` ends what is under way with `Stopped`."""

    def __init__(self, site: Site, folder: Path) -> None:
        name = hashlib.sha256(site.name.encode()).hexdigest()[:8]
        self.site = site
        # By job id: base, and since when (monotonic) the site cannot tell how the run there stands; see spool.ssh.site.
        self.blind: dict[str, tuple[str, float]] = {}
        self._socket = folder / name
        self._script = folder / f"{name}.sh"
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._children_lock = threading.Lock()
        self._long = threading.Semaphore(_LONG_CHANNELS)
        self._quick = threading.Semaphore(_QUICK_CHANNELS)
        self._contact_at = -math.inf
        self._failed_at = 0.0
        self._failure = ""
        self._write_script()

    def configure(self, site: Site) -> None:
        """Take a changed configuration: what is under way goes on or fails, what follows goes the new way."""
        if site != self.site:
            self.site = site
            self._write_script()
            self._end_master()

    def _write_script(self) -> None:
        words = shlex.join(["ssh", *self._options(), "-o", "ControlMaster=no", "--", self.site.host])
        remark = "# The first argument is the name that rsync was given; the host is always this one."
        text = ("#!/bin/sh", remark, "shift", f'exec {words} "$@"', "")
        replace_file(self._script, "\n".join(text).encode("utf-8", "surrogateescape"), mode=0o700)

    def _options(self) -> list[str]:
        config = ["-F", str(self.site.ssh_config.absolute())] if self.site.ssh_config else []
        options = (
            "BatchMode=yes", "StrictHostKeyChecking=yes",
            f"ServerAliveInterval={self.site.stall_s // (_ALIVE_MISSED + 1)}", f"ServerAliveCountMax={_ALIVE_MISSED}",
            f"ConnectTimeout={self.site.connect_timeout_s}", f"ControlPath={self._socket}", f"ControlPersist={PERSIST_S}",
            "RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes", "PermitLocalCommand=no", "LogLevel=ERROR",
        )  # fmt: skip
        return ["-T", *config, *(word for option in options for word in ("-o", option))]

    @property
    def contact_at(self) -> float:
        """When the site last answered, by the monotonic clock; minus infinity where it never did."""
        return self._contact_at

    # Commands

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", long: bool = False) -> Done:
        """Run `argv` at the site, each argument quoted; `long` is for what may take hours, all else has `QUICK_S` seconds."""
        with self._channel(self._long if long else self._quick):
            done = self._call([str(self._script), _NAME, shlex.join(argv)], stdin, None if long else QUICK_S)
        if done.code == SSH_FAILED:
            raise self._unreachable(done.err)
        self._contact_at = time.monotonic()
        return done

    def stream(self, argv: Sequence[str], feed: Feed, take: Feed | None = None) -> Done:
        """Run `argv` as `run` does, however long it takes: `feed` writes its input, then `take` reads its output.

        Without `take` the output is returned. What either raises is raised when the command has ended; one that stops reading
        is told by its exit code.
        """
        with self._channel(self._long), tempfile.TemporaryFile() as said:
            process = self._spawn([str(self._script), _NAME, shlex.join(argv)], None, (), "", said)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    feed(process.stdin)
                    process.stdin.close()
                out = b""
                if take is None:
                    out = process.stdout.read()
                else:
                    take(process.stdout)
            except BaseException:
                _signal(process, signal.SIGKILL)
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.stdout.close()
                code = process.wait()
                with self._children_lock:
                    self._children.discard(process)
            said.seek(0)
            err = said.read(65536).decode("utf-8", "replace")
        self._check_open()
        if code == SSH_FAILED or code < 0:
            raise self._unreachable(err)
        self._contact_at = time.monotonic()
        return Done(code, out.decode("utf-8", "surrogateescape"), err)

    def rsync(self, options: Sequence[str], there: str, here: Path, *, stdin: bytes = b"", inherited: Sequence[int] = ()) -> Done:
        """Run rsync in the folder `here`, with `there` as the current folder at the site: remote names are ``site:NAME``.

        The folder is entered by the site's shell, so that no wildcard in its path is expanded by rsync. The exit codes 0, 23
        and 24 (rsync(1)) are returned; `Unreachable` where the line broke, `NoSpace` where a disk is full, else `SiteTrouble`.
        `inherited` descriptors stay open in rsync.
        """
        path = f"cd {shlex.quote(there)} && exec rsync"
        command = ["rsync", "-e", str(self._script), f"--rsync-path={path}", "-s", f"--timeout={self.site.stall_s}", *options]
        with self._channel(self._long):
            done = self._call(command, stdin, None, cwd=here, inherited=inherited, locale="C")
        return self._judge_rsync(done)

    def _judge_rsync(self, done: Done) -> Done:
        # Also with 23: a file that could not even be made is one that did not come, and not the site's fault.
        if done.code and says_no_space(done.err):
            why = f"a disk takes no more, at site {self.site.name} or here: {_one_line(done.err)}"
            raise NoSpace(why, hint=NO_SPACE_HINT)
        if done.code in (0, 23, 24):
            self._contact_at = time.monotonic()
            return done
        said = _one_line(done.err)
        if done.code in (10, 12, 20, 30, 35, SSH_FAILED) or done.code < 0:
            raise self._unreachable(done.err)
        hint = "install rsync at the site" if done.code == 127 else "see the message; ssh_push.py check SITE looks for the cause"
        raise SiteTrouble(f"site {self.site.name}: rsync ended with {done.code}: {said}", hint=hint)

    @contextlib.contextmanager
    def _channel(self, kind: threading.Semaphore) -> Iterator[None]:
        while not kind.acquire(timeout=0.2):
            self._check_open()
        try:
            self._ensure_master()
            yield
        finally:
            kind.release()

    def _call(
        self,
        command: Sequence[str],
        stdin: bytes,
        deadline_s: float | None,
        *,
        cwd: Path | None = None,
        inherited: Sequence[int] = (),
        locale: str = "",
    ) -> Done:
        process = self._spawn(command, cwd, inherited, locale)
        try:
            out, err = process.communicate(stdin, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.communicate()
            return Done(SSH_FAILED, "", f"no answer within {deadline_s:g} s")
        finally:
            with self._children_lock:
                self._children.discard(process)
        self._check_open()
        return Done(process.returncode, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "replace"))

    def _spawn(
        self, command: Sequence[str], cwd: Path | None, inherited: Sequence[int], locale: str,
        said: int | IO[bytes] = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
        if locale:  # messages that are judged by their words; not for commands, which ssh may pass it on to
            environment["LC_ALL"] = locale
        with self._children_lock:
            self._check_open()
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                start_new_session=True, pass_fds=tuple(inherited),
            )  # fmt: skip
            self._children.add(process)
        return process

    # The master

    def _ensure_master(self) -> None:
        asked_at = time.monotonic()
        with self._lock:
            self._check_open()
            if _listens(self._socket):
                return
            if self._failed_at > asked_at:  # another thread has just tried, while this one waited for it
                raise self._unreachable(self._failure)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket)
            self._open_master()

    def _open_master(self) -> None:
        # Its errors go to a file: the master that stays in the background may keep a pipe open, and nobody would see its end.
        with tempfile.TemporaryFile() as said:
            command = ["ssh", *self._options(), "-o", "ControlMaster=yes", "-f", "-N", "--", self.site.host]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
            with self._children_lock:
                self._children.add(process)
            try:
                code = process.wait(self.site.connect_timeout_s + 45)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                code = process.wait()
            finally:
                with self._children_lock:
                    self._children.discard(process)
            said.seek(0)
            words = said.read(65536).decode("utf-8", "replace")
        self._check_open()
        if code != 0:
            self._failed_at, self._failure = time.monotonic(), words or "timed out"
            raise self._unreachable(self._failure)
        self._contact_at = time.monotonic()
        log.info("connected", site=self.site.name, host=self.site.host)

    def _unreachable(self, said: str) -> Unreachable:
        return Unreachable(f"site {self.site.name}: {_one_line(said) or 'the connection broke'}", hint=hint_for(said))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Stopped

    def _end_master(self) -> None:
        if _listens(self._socket):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                command = ["ssh", *self._options(), "-O", "exit", "--", self.site.host]
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)

    def close(self) -> None:
        """End the master and what is under way here. Commands at the site go on."""
        self._closed.set()
        with self._children_lock:
            for process in self._children:
                _signal(process, signal.SIGTERM)
        self._end_master()


class Connections:
    """The connections of one process, one a site, and their private folder."""

    def __init__(self) -> None:
        self._folder = private_folder()
        self._known: dict[str, Connection] = {}
        self._lock = threading.Lock()

    def to(self, site: Site) -> Connection:
        """Return the connection to `site`, as it is configured now."""
        with self._lock:
            if site.name not in self._known:
                self._known[site.name] = Connection(site, self._folder)
            self._known[site.name].configure(site)
            return self._known[site.name]

    def known(self, name: str) -> Connection | None:
        """Return the connection to the site of that name, if there was use for one."""
        return self._known.get(name)

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for connection in self._known.values():
                connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _signal(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def _one_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@")]
    return "; ".join(lines)[-400:]
