"""The states between two steps, set up by hand, and what the push makes of them; and its smaller parts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from components.rig import write_ini
from components.waiting import wait_until
from spool.config import Site, read_config
from spool.errors import ConfigError, Unreachable
from spool.heads import Heads
from spool.manifest import hash_file
from spool.records import Job
from spool.ssh import solver_log, transfer
from spool.ssh.command import argv_of
from spool.ssh.connection import Connections, Stopped, private_folder
from spool.ssh.site import AtSite, FolderGone
from spool.ssh.trip import AGENT, Trip
from ssh_push import bring_back, carry, send, watch

from .conftest import Pushed, lines


def site_of(push: Pushed, **changes: object) -> Site:
    path = write_ini(push.rig.root / "parts.ini", {"server": {}, "site site": push.options})
    return replace(read_config(path).sites["site"], **changes)  # type: ignore[arg-type]


@pytest.fixture
def trip_of(push: Pushed) -> Iterator[Callable[..., Trip]]:
    """`trip_of(job_id, **site_options)`: the job, claimed for the push, which itself does not run."""

    def make(job_id: str, **changes: object) -> Trip:
        site, store = site_of(push, **changes), push.store()
        [state] = store.claim("site", ["mint"], agent=AGENT, room=1)
        assert state.id == job_id
        return Trip.of(store, site, connections.to(site), state, threading.Event(), Heads(store.paths))

    connections = Connections()
    yield make
    connections.close()


def taken_in(push: Pushed, script: str, **more: object) -> str:
    """A job that is accepted and waits: claimed by nobody, because the push looks for another's only."""
    push.once()
    job_id = push.sh(script, **more)
    push.once("11111111-1111-4111-8111-111111111111")
    assert push.rig.state(job_id)["state"] == "queued"
    return job_id


def test_a_base_with_a_newline(push: Pushed, trip_of: Callable[..., Trip], odd_dir: Path) -> None:
    job_id = taken_in(push, "cat a; echo x >'o ut.dat'", inputs={"a": b"in"}, outputs=["o ut.dat"])
    carry(trip_of(job_id, base=str(odd_dir)), "spool")
    assert push.rig.state(job_id)["state"] == "completed"
    assert (push.out(job_id), push.log(job_id)) == ({"o ut.dat": b"x\n"}, "in")
    assert (odd_dir / job_id / "delivered").read_text() == "spool\n"
    assert not list(odd_dir.parent.rglob("pwned"))


def test_permission_was_given_and_the_push_was_killed(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    job_id = taken_in(push, f"echo started >>{push.sshd.home}/counter")
    trip = trip_of(job_id)
    send(trip)
    trip.there.prepare()
    trip.store.start(job_id, trip.there.run_id, by=AGENT)
    push.start()
    assert push.ended(job_id)["state"] == "completed"
    assert lines(push.sshd.home / "counter") == ["started"]


def test_killed_between_the_move_of_results_and_the_final_state(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    job_id = taken_in(push, "echo x >a.dat; mkdir d; echo y >d/b.dat", outputs=["**"])
    trip = trip_of(job_id)
    send(trip)
    trip.there.prepare()
    trip.store.start(job_id, trip.there.run_id, by=AGENT)
    watch(trip)
    trip.store.returning(job_id, trip.there.run_id, by=AGENT, exit_code=0)
    (trip.paths.out / "d").mkdir(parents=True)
    (trip.paths.out / "a.dat").write_text("x\n")
    push.start()
    assert push.ended(job_id)["state"] == "completed"
    assert push.out(job_id) == {"a.dat": b"x\n", "d/b.dat": b"y\n"}


def test_a_damaged_input_that_looks_the_same_is_sent_again(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    job_id = taken_in(push, "cat a", inputs={"a": b"right"})
    trip = trip_of(job_id)
    there = Path(trip.there.folder) / "in" / "a"
    there.parent.mkdir(parents=True)
    (there.parent.parent / "run_id").write_text(trip.there.run_id + "\n")
    there.write_bytes(b"wrong")
    stamp = (trip.paths.inputs / "a").stat().st_mtime_ns
    os.utime(there, ns=(stamp, stamp))
    carry(trip, "spool")
    assert push.log(job_id) == "right"


def test_results_that_arrived_damaged_are_fetched_again(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    job_id = taken_in(push, "echo log; echo good >a.dat", outputs=["a.dat"])
    trip = trip_of(job_id)
    send(trip)
    trip.there.prepare()
    trip.store.start(job_id, trip.there.run_id, by=AGENT)
    status = watch(trip)
    source = Path(trip.there.folder) / "work" / "a.dat"
    for name, text in (("out/a.dat", "evil\n"), ("log/stdout.txt", "longer than what is there\n"), ("out/.a.dat.XyZ", "left")):
        path = trip.incoming / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(source.stat().st_mtime_ns,) * 2)
    bring_back(trip, status)
    assert (push.out(job_id), push.log(job_id)) == ({"a.dat": b"good\n"}, "log\n")


def test_what_arrives_as_a_link_is_not_followed(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "out" / "d").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (files / "out" / "a").symlink_to(tmp_path / "secret")
    (files / "out" / "b").symlink_to(tmp_path)
    (files / "out" / "d" / "c").write_text("c")
    entries, absent = transfer.arrived(files, {"out/a": "0" * 64, "out/b/secret": "0" * 64, "out/d/c": "1" * 64})
    assert ([entry.path for entry in entries], absent) == (["out/d/c"], ["out/a", "out/b/secret"])
    transfer.purge(files, {"out/a", "out/d/c"})
    assert [path.name for path in sorted(files.rglob("*"))] == ["out", "d", "c"]
    assert (tmp_path / "secret").read_text() == "s"


def test_an_rsync_that_outlives_the_push_keeps_the_fetch_lock(tmp_path: Path) -> None:
    def busy(seconds: float) -> None:
        raise Stopped

    (tmp_path / "incoming").mkdir()
    run_folder = tmp_path / "incoming" / "run"
    with transfer.fetch_lock(run_folder, busy) as lock:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with pytest.raises(Stopped), transfer.fetch_lock(run_folder, busy):
            raise AssertionError("two at a time")
    finally:
        orphan.kill()
        orphan.wait()
    with transfer.fetch_lock(run_folder, busy):
        assert (run_folder / "files").is_dir()


def test_somebody_elses_folder_is_set_aside_whole(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    job_id = taken_in(push, "ls -a", inputs={"a": b"x"})
    trip = trip_of(job_id)
    folder = Path(trip.there.folder)
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "old").touch()
    (folder / ".hidden").touch()
    (folder / "run_id").write_text("../../x\n")
    carry(trip, "spool")
    assert push.log(job_id).split() == [".", "..", "a"]
    [aside] = (folder / "attempts").iterdir()
    assert aside.name.startswith("unknown.")
    assert sorted(path.name for path in aside.iterdir()) == [".hidden", "run_id", "work"]


def test_a_folder_of_another_run_is_gone_for_this_one(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    trip = trip_of(taken_in(push, "exit 0"))
    send(trip)
    other = AtSite(trip.there.connection, trip.there.base, trip.there.job_id, "22222222-2222-4222-8222-222222222222")
    with pytest.raises(FolderGone):
        other.status()
    other.delivered("spool", 0)
    assert trip.there.status().word == "new"


def test_the_runner_is_sent_again_when_it_was_cleaned_away(push: Pushed, trip_of: Callable[..., Trip]) -> None:
    trip = trip_of(taken_in(push, "exit 0"))
    send(trip)
    [script] = (push.base / ".mint-spool").glob("runner-*.sh")
    script.unlink()
    assert trip.there.status().word == "new"
    assert script.exists()
    script.chmod(0o700)
    script.write_text("echo damaged")
    trip.there.enter()
    assert hash_file(script.parent, script.name).size > 1000


def test_the_base_of_a_run_does_not_change_with_the_ini(push: Pushed) -> None:
    push.start()
    job_id = push.sh("while ! [ -e go ]; do sleep 0.05; done")
    wait_until((push.there(job_id) / "work").exists, 20, "the command runs")
    push.rig.wait_state(job_id, "running")
    moved = {**push.options, "base": push.sshd.home / "new"}
    write_ini(push.rig.root / "push.ini", {"server": {"spool": push.rig.spool}, "site site": moved})
    other = push.sh("exit 0")
    assert push.ended(other)["state"] == "completed"
    assert (push.sshd.home / "new" / other).exists()
    (push.there(job_id) / "work" / "go").touch()
    assert push.ended(job_id)["state"] == "completed"


@pytest.mark.slow
def test_ten_sessions_a_connection_are_enough(push: Pushed) -> None:
    """What sshd allows by default; more channels at a time would be refused."""
    push.sshd.stop()
    config = push.sshd.folder / "sshd_config"
    config.write_text(config.read_text().replace("MaxSessions 200", "MaxSessions 10"))
    push.sshd.start()
    push.options["slots"] = "30"
    process = push.start()
    jobs = [push.sh("sleep 1; echo x >a.dat", outputs=["a.dat"]) for _ in range(30)]
    for job_id in jobs:
        assert push.ended(job_id)["state"] == "completed"
    assert "event=trouble" not in process.output()
    assert (push.sshd.folder / "sshd.log").read_text().count("Accepted publickey") == 1


def test_what_a_killed_push_left_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # short, as a socket's path must be
        folder = Path(name)
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        old, live = folder / "mint-push-99999999-abc", folder / f"mint-push-{os.getpid()}-abc"
        old.mkdir()
        live.mkdir()
        made = private_folder()
        assert (old.exists(), live.exists(), made.parent, made.stat().st_mode & 0o777) == (False, True, folder, 0o700)


def test_threads_share_one_failed_try(push: Pushed) -> None:
    """A hundred jobs of a dead site wait for one connection attempt, not for one each."""
    push.sshd.stop()
    connections = Connections()
    connection = connections.to(site_of(push))
    met: list[str] = []

    def ask() -> None:
        try:
            connection.run(["true"])
        except Unreachable as exc:
            met.append(exc.message)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connections.close()
    assert len(met) == 20
    assert all("Connection refused" in message for message in met)


@pytest.mark.parametrize(
    ("names", "others", "patterns", "wanted", "missing", "kept"),
    [
        (["a.dat", "b.txt"], [], ["*.dat", "*.frd"], ["a.dat"], ["*.frd"], 0),
        (["a", "d/b"], ["link"], ["**"], ["a", "d/b"], [], 1),
        (["-x.dat"], [], ["*.dat"], [], [], 1),
        (["x" * 1023], [], ["**"], [], [], 1),
        (["a"], ["link"], ["a"], ["a"], [], 0),
    ],
)
def test_what_comes_back(
    names: list[str], others: list[str], patterns: list[str], wanted: list[str], missing: list[str], kept: int
) -> None:
    chosen = transfer.choose(dict.fromkeys(names, "0" * 64), others, patterns)
    assert (list(chosen.wanted), list(chosen.missing), len(chosen.not_carried)) == (wanted, missing, kept)


def test_formats_of_the_solver_log(push: Pushed) -> None:
    for good in ("", "{at} {reason} 100%", "{{{id}}}"):
        solver_log.check_format(site_of(push, solver_log_format=good))
    for bad in ("{", "{nope}", "{id.x}", "{id!r}", "{at:>9}", "{}", "{0}"):
        with pytest.raises(ConfigError):
            solver_log.check_format(site_of(push, solver_log_format=bad))


def test_command_lines(push: Pushed) -> None:
    job = Job(site="site", command="ccx", args=("-i", "x"))
    assert argv_of(job, site_of(push)) == ["ccx", "-i", "x"]
    assert argv_of(job, site_of(push, program="/opt/c.sh")) == ["/opt/c.sh", "ccx", "-i", "x"]

