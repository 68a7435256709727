"""The wall of `run_as`: a job's command runs under an account of its own, and can write its `work/` and nothing else of ours.

The agent is root then. An account belongs to one job at a time (``accounts/UID`` in the control folder names it): two commands of
one account could read, stop and trace each other. Before the start `work/` becomes the account's, and the two folders above it
may be passed through, not listed; everything else in them is root's, mode 0600 and 0700. Standard output and error are open
before the account is taken on. At the end every process of the account is ended before anything is measured, and the way to
`work/` is closed again: so that what the account leaves cannot change it, nor the account's next job read it.

Wrappers need none of this: they are words before the command's own (`spool.agent.policy`).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spool import log
from spool.agent.config import Command
from spool.agent.folder import Base, LocalJob
from spool.agent.policy import PATH
from spool.errors import Busy, Refused, SpoolError
from spool.files import read_record, replace_file
from spool.locks import file_lock
from spool.paths import JobPaths
from spool.states import FINAL

END_S = 10.0
LOOK_S = 0.05
_lock = threading.Lock()


class Account(NamedTuple):
    """Whom a command runs as; neither number is 0."""

    uid: int
    gid: int


class InUse(Busy):
    """Every account of the command has another job; it is asked again soon."""

    retry_after_s = 5


def find_account(text: str) -> Account:
    """Return the account of that name or ``UID:GID``; raise `ValueError` saying why it cannot be used."""
    try:
        if ":" in text:
            account = Account(*map(int, text.split(":")))
        else:
            entry = pwd.getpwnam(text)
            account = Account(entry.pw_uid, entry.pw_gid)
    except KeyError as exc:
        raise ValueError(f"there is no account {text!r}") from exc
    if os.geteuid() != 0:
        raise ValueError("run_as needs an agent that runs as root")
    if not account.uid or not account.gid:
        raise ValueError(f"the account {text!r} is root's, or of root's group")
    if shutil.which("setpriv", path=_tools()) is None:
        raise ValueError("setpriv is missing: install util-linux")
    return account


def _tools() -> str:
    return f"{PATH}:/usr/sbin:/sbin"


def words(account: Account) -> tuple[str, ...]:
    """Return the argv that has a command run as `account`: no other group, no capability, none to be gained."""
    return (
        shutil.which("setpriv", path=_tools()) or "setpriv",
        f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--no-new-privs",
        "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--",
    )  # fmt: skip


def take(command: Command, local: LocalJob) -> tuple[str, ...]:
    """Give the job an account of its command's, and return the words that come before its argv; none without `run_as`.

    Safe to repeat: the account stays the job's until `seal`. Raises `InUse` where all are taken, `Refused` where they cannot be
    used at all.
    """
    if not command.run_as:
        return ()
    try:
        accounts = [find_account(text) for text in command.run_as.split()]
    except ValueError as exc:
        log.error("run_as_unusable", job=local.state.id, command=command.name, why=exc, hint="correct run_as in agent.ini")
        raise Refused(f"{command.name!r} cannot be run at this site as it is set up", hint="the site's administrator") from exc
    with _alone(local):
        held = _held_by(local)
        account = held if held in accounts else next((item for item in accounts if _take_one(local, item)), None)
    if account is None:
        raise InUse(f"every account of {command.name!r} is in use", hint="it waits; run_as takes as many as there are slots")
    return words(account)


@contextlib.contextmanager
def _alone(local: LocalJob) -> Iterator[None]:
    """Let nobody else take an account meanwhile: no thread of an agent, no session of a gate."""
    with _lock, file_lock(_folder_of(local).with_name("accounts.lock"), mode=0o600):
        yield


def _folder_of(local: LocalJob) -> Path:
    return Base(local.paths.folder.parent).control / "accounts"


def _held_by(local: LocalJob) -> Account | None:
    """Return the account that this run of the job holds."""
    folder = _folder_of(local)
    for name in os.listdir(folder) if folder.is_dir() else ():
        job, run, gid = _holder(folder / name)
        if re.fullmatch("[1-9][0-9]*", name) and gid and (job, run) == (local.state.id, local.state.run_id):
            return Account(int(name), gid)
    return None


def _holder(path: Path) -> tuple[str, str, int]:
    """Return (job, run, gid) as an account's file names them; empty where there is none."""
    try:
        text = read_record(path, 200).decode("ascii", "replace")
    except FileNotFoundError:
        return "", "", 0
    found = re.fullmatch(r"(\S+) (\S+) ([0-9]+)\n", text)
    return (found[1], found[2], int(found[3])) if found else ("unreadable", "", 0)


def _take_one(local: LocalJob, account: Account) -> bool:
    folder, state = _folder_of(local), local.state
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / str(account.uid)
    job, run, _ = _holder(path)
    if job:
        if not (job == state.id and run != state.run_id) and not _has_ended(local.paths.folder.parent / job):
            return False
        end_processes(account)  # a former run's, whose agent was killed before it could
    elif any(_processes(account.uid)):
        # Not ours: nothing that some person runs is ended here.
        log.warning("account_in_use", uid=account.uid, hint="run_as needs an account that nobody else uses: ps -u UID shows who")
        return False
    replace_file(path, f"{state.id} {state.run_id} {account.gid}\n".encode(), mode=0o600)
    return True


def _has_ended(folder: Path) -> bool:
    job = LocalJob(folder)
    try:
        job.load()
    except FileNotFoundError:
        return True
    except (SpoolError, OSError):
        return False  # cannot be told; the operator sees it at each start of the agent
    return job.state.state in FINAL


def open_way(command: Command, local: LocalJob) -> None:
    """Make `work/` the account's own and let it be reached, just before the start. Safe to repeat until then."""
    if not command.run_as:
        return
    account = _held_by(local)
    if account is None:
        raise Busy(f"{local.paths.folder} has no account", hint="somebody has emptied accounts/ in the control folder")
    give(local.paths, account)


def give(paths: JobPaths, account: Account) -> None:
    """Make `work/` the account's and let it pass through the two folders above; nothing of theirs runs yet."""
    for _, _, names, fd in os.fwalk(paths.work):
        os.chown(fd, *account)
        for name in names:
            os.chown(name, *account, dir_fd=fd, follow_symlinks=False)
    for way in (paths.folder.parent, paths.folder):
        mode = stat.S_IMODE(os.stat(way).st_mode)
        if not mode & stat.S_IXOTH:
            os.chmod(way, mode | stat.S_IXGRP | stat.S_IXOTH)


def seal(local: LocalJob) -> None:
    """End every process of the job's account, close the way to `work/`, and give the account back. Safe to repeat.

    Nothing where the job holds no account. `Busy` where a process does not end: nothing may be measured before.
    """
    account = _held_by(local) if os.geteuid() == 0 else None
    if account is None:
        return
    end_processes(account)
    _remove_links_to_others(local, account)
    with contextlib.suppress(FileNotFoundError):
        os.chmod(local.paths.folder, 0o700)
    (_folder_of(local) / str(account.uid)).unlink()


def _remove_links_to_others(local: LocalJob, account: Account) -> None:
    """Remove hard links to files that are not the account's: root, who collects, would read for it what it may not.

    Where ``fs.protected_hardlinks`` is 0 (proc_sys_fs(5)) anybody may link to any file of the same file system.
    """
    words = ("-xdev", "-type", "f", "-links", "+1", "!", "-uid", str(account.uid), "-print", "-delete")
    found = subprocess.run(["find", str(local.paths.work), *words], env={"PATH": PATH}, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout  # fmt: skip
    if found:
        log.warning("links_removed", job=local.state.id, files=found.count(b"\n"), why="hard links to files of others in work/",
                    hint="the command made them: set fs.protected_hardlinks = 1")  # fmt: skip


def strip_set_id(work: Path) -> None:
    """Take the set-user-id and set-group-id bits off what a command left, lest a copy of it carries them on."""
    subprocess.run(
        ["find", str(work), "-xdev", "-type", "f", "-perm", "/6000", "-execdir", "chmod", "ug-s", "{}", "+"],
        env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip


# Whoever this shell is, it ends nothing but what belongs to the account: the words `kill -1` would be the machine's end for root.
_END = 'wanted=$1; [ "$wanted" -gt 0 ] && [ "$(id -u)" = "$wanted" ] && [ "$(id -ru)" = "$wanted" ] && kill -s KILL -- -1'


def end_processes(account: Account) -> None:
    """KILL every process of `account` until none is left; `Busy` after 10 s.

    kill(2) to -1 as the account itself reaches all of them at one instant, which no fork can outrun. `ValueError` for root.
    """
    if account.uid <= 0 or account.gid <= 0 or account.uid == os.geteuid():
        raise ValueError(f"{account} is no account of a job's own")
    deadline = time.monotonic() + END_S
    while left := list(_processes(account.uid)):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["/bin/sh", "-c", _END, "end", str(account.uid)], user=account.uid, group=account.gid, extra_groups=[], cwd="/",
                env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                timeout=END_S,
            )  # fmt: skip
        for pid in _processes(account.uid):  # one by one, where a shell knows no `--`
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            raise Busy(f"processes of uid {account.uid} do not end: {left}", hint="look at them with ps; it is tried again")
        time.sleep(LOOK_S)


def _processes(uid: int) -> Iterator[int]:
    """Yield the living processes that any of the four user ids of proc(5) ties to `uid`."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{name}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        fields = dict(line.partition(":")[::2] for line in text.splitlines())
        if str(uid) in fields.get("Uid", "").split() and fields.get("State", "").strip()[:1] not in ("Z", "X"):
            yield int(name)
