"""The push's order of doing things, and what it has done at the site: its scripts run here, without a line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import ssh_push
from components import proc
from components.waiting import wait_until
from crash.stubs import Stubs
from server.spools import SITE, USER, new_store, quick_job
from spool.heads import Heads
from spool.names import new_id
from spool.records import JobState
from spool.runner import RunStatus, write_run
from spool.ssh import transfer
from spool.ssh.connection import Done, SiteTrouble
from spool.ssh.site import AtSite, CannotTell
from spool.ssh.trip import AGENT, Trip
from spool.states import State
from spool.store import Store


class Here:
    """A connection to this machine."""

    def __init__(self) -> None:
        self.site = SimpleNamespace(name="こちら")
        self.path = os.environ["PATH"]
        self.inherited: list[Sequence[int]] = []
        self.blind: dict[str, tuple[str, float]] = {}

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", long: bool = False) -> Done:
        env = {**os.environ, "PATH": self.path}
        done = subprocess.run(argv, input=stdin, capture_output=True, env=env, check=False, timeout=60)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def rsync(self, options: Any, there: str, here: Path, *, stdin: bytes = b"", inherited: Sequence[int] = ()) -> Done:
        self.inherited.append(inherited)
        return Done(0, "", "")


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def run_of(here: Here, tmp_path: Path) -> Iterator[Any]:
    """`run_of(run_id)`: a run of one job; whatever runs is ended afterwards."""
    job_id = new_id()
    made: list[AtSite] = []

    def make(run_id: str = "") -> AtSite:
        connection: Any = here
        made.append(AtSite(connection, str(tmp_path / "base"), job_id, run_id or new_id()))
        return made[-1]

    yield make
    for one in made:
        if (Path(one.folder) / "run").is_dir():
            here.run(["sh", str(Path(one._runner)), "cancel", one.folder])


def begun(there: AtSite, script: str) -> Path:
    """The folder, its command running."""
    there.enter()
    folder = Path(there.folder)
    write_run(folder, ["/bin/sh", "-c", script], {}, grace_s=1)
    there.prepare()
    assert there.start().word in ("starting", "running", "exited")
    return folder


# ---- at the site


@pytest.mark.slow
def test_a_new_run_stops_the_former_command(run_of: Any) -> None:
    """Two commands of one job would write at once."""
    former = run_of()
    folder = begun(former, "echo $$ >pid; exec sleep 300")
    wait_until((folder / "work" / "pid").exists, 30, "the command runs")
    pid = int((folder / "work" / "pid").read_text() or 0)
    run_of().enter([former.run_id])
    assert not proc.alive(pid)
    assert not (folder / "work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cut", range(1, 8))
def test_entering_cut_anywhere_is_made_good(run_of: Any, here: Here, tmp_path: Path, cut: int) -> None:
    """Until all of the former run is out of the way, the folder is not the new run's."""
    former = run_of()
    folder = begun(former, "echo old >old.dat")
    wait_until((folder / "run" / "exit").exists, 30, "the command has ended")
    there = run_of()
    stubs = Stubs(tmp_path / "bin", "mv", fails_at=cut)
    here.path = stubs.path
    with contextlib.suppress(SiteTrouble):  # with few moves to make none fails
        there.enter([former.run_id])
    here.path = os.environ["PATH"]
    there.enter([former.run_id])
    assert not (folder / "work").exists()
    assert there.status().word == "new"
    assert len(list(folder.glob("attempts/*/work/old.dat"))) == 1


def test_the_run_id_is_synced_before_it_counts_and_its_name_after(run_of: Any, here: Here, tmp_path: Path) -> None:
    there = run_of()
    there.install_runner()
    stubs = Stubs(tmp_path / "bin", "mv", "sync")
    here.path = stubs.path
    there.enter()
    calls = stubs.calls()
    moved = next(number for number, words in enumerate(calls) if words[0] == "mv" and words[-1].endswith("/run_id"))
    assert ["sync", calls[moved][1]] in calls[:moved]
    assert ["sync", there.folder] in calls[moved + 1 :]


@pytest.mark.parametrize("keep_days", [0, 3])
def test_a_run_that_is_over_marks_no_other_runs_folder(run_of: Any, keep_days: int) -> None:
    """It would be cleaned away under the next attempt."""
    former, now = run_of(), run_of()
    former.enter()
    now.enter()
    former.delivered(new_id(), keep_days)
    assert (Path(now.folder) / "run_id").read_text().strip() == now.run_id
    assert not (Path(now.folder) / "delivered").exists()


def test_one_folder_that_cannot_be_read_keeps_no_other_job_away(run_of: Any, here: Here, tmp_path: Path) -> None:
    """Only where the base itself cannot be seen, nothing new goes there: it might be the bare mount point."""
    there, connection = run_of(), cast("Any", here)
    there.enter()
    other = AtSite(connection, str(tmp_path / "base"), new_id(), new_id())
    run_id = Path(there.folder) / "run_id"
    run_id.unlink()
    (run_id / "x").mkdir(parents=True)
    with pytest.raises(CannotTell, match="cannot be read"):
        there.status()
    assert other.enter() == ""
    os.rename(tmp_path / "base" / ".mint-spool", tmp_path / "elsewhere")
    with pytest.raises(CannotTell, match="gone or on another disk"):
        there.status()
    os.rename(tmp_path / "elsewhere", tmp_path / "base" / ".mint-spool")
    with pytest.raises(CannotTell, match="nothing new goes to"):
        other.enter()


def test_a_damaged_runner_is_sent_again(run_of: Any) -> None:
    there = run_of()
    there.enter()
    runner = Path(there._runner)
    good = runner.read_bytes()
    runner.chmod(0o700)
    runner.write_bytes(good[:1000])
    there.enter()
    assert runner.read_bytes() == good


# ---- at MInt


class Site(AtSite):
    """What `carry` asks of a site: it notes what the store says then."""

    def __init__(self, store: Store, state: JobState) -> None:
        self.store, self.job_id, self.run_id = store, state.id, state.run_id
        self.folder, self.base, self.disk = "/nowhere", "/", ""
        self.connection = cast(Any, Here())
        self.at_start = ""
        self.word = "new"

    def prepare(self) -> None:
        pass

    def status(self) -> RunStatus:
        return RunStatus(self.word)

    def start(self) -> RunStatus:
        self.at_start = str(self.store.state(self.job_id).state)
        self.word = "exited"
        return RunStatus("exited", exit_code=0, started_at=1, finished_at=2)

    def sums(self, folder: str) -> tuple[dict[str, str], list[str]]:
        digest = hashlib.sha256(b"1").hexdigest()
        return ({"場.dat": digest} if folder == "work" else {"stdout.txt": digest}), []

    def delivered(self, spool_id: str, keep_days: int) -> None:
        pass

    def forget_blindness(self) -> None:
        pass


@pytest.fixture
def trip(folder: Path) -> Trip:
    store = new_store(folder / "spool")
    made = quick_job(store, outputs=("*.dat",))
    (state,) = store.claim(SITE, [USER], agent=AGENT, room=1)
    there: Any = Site(store, state)
    site: Any = SimpleNamespace(name=SITE, keep_days=3, kind="open")
    return Trip(store, store.job(made.id), site, there, threading.Event(), Heads(store.paths))


def arrive(trip: Trip) -> None:
    for name in ("out/場.dat", "log/stdout.txt"):
        path = trip.incoming / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")


def test_a_run_keeps_its_base(trip: Trip) -> None:
    """Where spool.ini names another one now, a new push still finds the job by its folder."""
    state = trip.store.state(trip.there.job_id)
    connection: Any = Here()
    found = []
    for base in ("/one", "/two"):
        site: Any = SimpleNamespace(name=SITE, base=base, keep_days=3, kind="open")
        found.append(Trip.of(trip.store, site, connection, state, threading.Event(), trip.heads).there.base)
    assert found == ["/one", "/one"]


def test_permission_is_durable_before_the_site_is_told_to_start(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crash between the two would start it once more, at another site or in a folder that was cleaned."""
    monkeypatch.setattr(ssh_push, "send", lambda trip: True)
    monkeypatch.setattr(transfer, "fetch_outputs", lambda *args, **more: arrive(trip))
    monkeypatch.setattr(transfer, "fetch_logs", lambda *args, **more: None)
    ssh_push.carry(trip, "x")
    site: Any = trip.there
    assert site.at_start == "running"
    assert trip.store.state(site.job_id).state == State.COMPLETED


def test_results_are_synced_before_they_are_judged(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    """rsync(1) does not; what has been judged is acknowledged next."""
    monkeypatch.setattr(transfer, "fetch_outputs", lambda *args, **more: arrive(trip))
    monkeypatch.setattr(transfer, "fetch_logs", lambda *args, **more: None)
    synced: set[int] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    status = RunStatus("exited", exit_code=0, started_at=1, finished_at=2)
    with ExitStack() as stack:
        lock = stack.enter_context(transfer.fetch_lock(trip.incoming, trip.pause))
        outputs, logs, absent = ssh_push.fetch(trip, status, lock, again=False, last=False)
    assert (len(outputs.files), len(logs), absent) == (1, 1, [])
    files = trip.incoming / "files"
    assert {path.stat().st_ino for path in (files, *files.rglob("*"))} <= synced


def test_rsync_keeps_the_fetch_lock(trip: Trip) -> None:
    """One that outlives a killed push goes on writing: nobody else may, until it has ended."""
    with transfer.fetch_lock(trip.incoming, trip.pause) as lock:
        transfer.fetch_outputs(trip.there, trip.incoming, ["場.dat"], lock, checksum=False)
        transfer.fetch_logs(trip.there, trip.incoming, lock, append=True)
    connection: Any = trip.there.connection
    assert connection.inherited == [(lock,), (lock,)]
