"""Locks: one holder among all threads of all processes, and a lock file that is there for ever."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from components.waiting import wait_until
from server.crashing import exit_code, fork
from spool.errors import Busy
from spool.locks import JobLocks, file_lock
from spool.names import new_id

ID = "0d9de71c-5a4b-4b0a-8d20-1f4a3a1f9aff"


def count_up(counter: Path, rounds: int) -> None:
    """What goes wrong as soon as two do it at once."""
    for _ in range(rounds):
        number = int(counter.read_text())
        os.sched_yield()
        counter.write_text(str(number + 1))


def test_processes_and_threads_exclude_one_another(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    counter = tmp_path / "counter"
    counter.write_text("0")

    def work(locks: JobLocks) -> None:
        for _ in range(50):
            with locks.hold(ID):
                count_up(counter, 1)

    def process() -> None:
        locks = JobLocks(tmp_path / "locks")
        threads = [threading.Thread(target=work, args=(locks,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    pids = [fork(process) for _ in range(2)]
    assert [exit_code(pid, 30) for pid in pids] == [0, 0]
    assert int(counter.read_text()) == 2 * 3 * 50


def test_the_file_survives_with_its_inode_and_mode(tmp_path: Path) -> None:
    """Releases of filelock that unlink on release would let two hold one lock; pyproject.toml excludes them."""
    before = os.umask(0o007)
    try:
        locks = JobLocks(tmp_path)
        inodes = set()
        for _ in range(3):
            with locks.hold(ID):
                inodes.add((tmp_path / "ff").stat().st_ino)
            inodes.add((tmp_path / "ff").stat().st_ino)
    finally:
        os.umask(before)
    assert len(inodes) == 1
    assert stat.S_IMODE((tmp_path / "ff").stat().st_mode) == 0o660
    assert os.listdir(tmp_path) == ["ff"]


def test_a_killed_holder_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    sign = tmp_path / "held"

    def hold_for_ever() -> None:
        with file_lock(path):
            sign.touch()
            signal.pause()

    pid = fork(hold_for_ever)
    wait_until(sign.exists, 10, "the child holds the lock")
    with pytest.raises(Busy) as caught, file_lock(path, timeout_s=0.05):
        pass
    assert "fuser" in caught.value.hint
    assert caught.value.transient
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid, 10) == -signal.SIGKILL
    with file_lock(path, timeout_s=1):
        pass


def test_busy_between_threads(tmp_path: Path) -> None:
    locks = JobLocks(tmp_path)
    seen: list[type[BaseException]] = []

    def second() -> None:
        try:
            with locks.hold(ID, timeout_s=0.05):
                pass
        except Busy as error:
            seen.append(type(error))

    with locks.hold(ID):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert seen == [Busy]


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    locks = JobLocks(tmp_path)
    with pytest.raises(ZeroDivisionError), locks.hold(ID):
        raise ZeroDivisionError
    with locks.hold(ID, timeout_s=0.1):
        pass


def test_never_two_at_once_in_one_thread(tmp_path: Path) -> None:
    locks = JobLocks(tmp_path)
    with locks.hold(ID), pytest.raises(RuntimeError), locks.hold(new_id()):
        pass
    with locks.hold(ID, timeout_s=0.1):
        pass


def test_jobs_of_other_bytes_do_not_wait(tmp_path: Path) -> None:
    first, second = JobLocks(tmp_path), JobLocks(tmp_path)
    with first.hold(ID), second.hold(ID[:-2] + "00", timeout_s=0):
        pass
    with first.hold(ID), pytest.raises(Busy), second.hold(ID, timeout_s=0):
        pass
