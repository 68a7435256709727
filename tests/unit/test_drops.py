"""Drops: what is taken in, what is rejected and why, and that no byte is lost whoever is killed when."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from components.rig import REPO
from components.waiting import stays, wait_until
from server.crashing import each_crash, exit_code, fork, in_child
from server.spools import DECK, SITE, USER, config, drop, job_json, new_store
from spool.config import SpoolConfig
from spool.drops import Drops, may_accept
from spool.errors import Busy
from spool.files import remove_tree
from spool.names import new_id
from spool.records import FileEntry
from spool.staging import Staging
from spool.states import State
from spool.store import Store

QUIET = 0.3
NOBODY = 65534


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that other uids may enter: those of pytest are closed, again by each run that starts beside this one."""
    folder = Path(tempfile.mkdtemp(prefix="mint-drops-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # shutil.rmtree recurses, and trees here are very deep


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "spool")


@pytest.fixture
def settings(tmp_path: Path) -> SpoolConfig:
    sites: dict[str, Any] = {
        SITE: {"commands": "ccx"},
        "closed": {"commands": "*", "users": "carol"},
        "off": {"commands": "*", "enabled": "no"},
    }
    return config(tmp_path / "ini", sites, drop_quiet_s=QUIET)


def rejected(store: Store, name: str) -> dict[str, Any]:
    return dict(json.loads((store.paths.rejected / name / "reason.json").read_bytes()))


def until_judged(store: Store, settings: SpoolConfig, name: str) -> str:
    """Scan as the server does until the drop is accepted or rejected; the word for where it went."""
    drops = Drops(store)

    def gone() -> str:
        drops.scan(settings)
        if (store.paths.jobs / name).exists():
            return "accepted"
        return "rejected" if (store.paths.rejected / name / "reason.json").exists() else ""

    try:
        return wait_until(gone, 4, f"drop {name!r} is judged")
    finally:
        drops.close()


# ---- accepted


def test_a_renamed_drop(store: Store, settings: SpoolConfig) -> None:
    name = drop(
        store, files={"beam.inp": DECK, "mesh/格子.inp": b"1"}, inputs=["beam.inp", "mesh/格子.inp"], labels={"a": "b"}, x_later=1
    )
    state = Drops(store).accept(name, settings)
    assert state is not None
    assert (state.id, state.state, state.site, state.user, state.revision, state.attempt) == (
        name,
        State.QUEUED,
        SITE,
        USER,
        1,
        1,
    )
    assert state.inputs == (FileEntry("beam.inp", len(DECK), _sha(DECK)), FileEntry("mesh/格子.inp", 1, _sha(b"1")))
    assert store.state(name) == state
    assert [entry.job_id for entry in store.queue.waiting(SITE, [USER])] == [name]
    assert (store.paths.jobs / name / "in" / "mesh" / "格子.inp").read_bytes() == b"1"
    assert os.listdir(store.paths.drop) == os.listdir(store.paths.tmp) == os.listdir(store.paths.rejected) == []
    assert json.loads(store.job_bytes(name))["x_later"] == 1


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_written_in_place_with_job_json_last(store: Store, settings: SpoolConfig) -> None:
    name = new_id()
    folder = store.paths.drop / name
    drops = Drops(store)

    def look() -> None:
        for _ in range(3):
            drops.scan(settings)
        drops.close()

    folder.mkdir()
    look()
    (folder / "in").mkdir()
    (folder / "in" / "beam.inp").write_bytes(DECK[:5])
    drops = Drops(store)
    look()
    assert not (store.paths.jobs / name).exists()
    (folder / "in" / "beam.inp").write_bytes(DECK)
    (folder / "job.json").write_bytes(job_json())
    assert until_judged(store, settings, name) == "accepted"


def test_a_job_without_inputs_needs_no_folder_for_them(store: Store, settings: SpoolConfig) -> None:
    name = drop(store, files={}, inputs=[])
    (store.paths.drop / name / "in").rmdir()
    assert until_judged(store, settings, name) == "accepted"


def test_one_still_being_written_is_left_alone_until_it_is_quiet(store: Store, settings: SpoolConfig) -> None:
    name = new_id()
    folder = store.paths.drop / name
    (folder / "in").mkdir(parents=True)
    drops = Drops(store)
    written = iter(range(10**6))

    def grows() -> bool:
        with open(folder / "in" / "beam.inp", "ab") as file:
            file.write(b"%d\n" % next(written))
        drops.scan(settings)
        return not list(store.paths.rejected.iterdir())

    stays(grows, QUIET * 4, "the drop is not rejected while it grows")

    def given_up() -> bool:
        drops.scan(settings)
        return (store.paths.rejected / name / "reason.json").exists()

    wait_until(given_up, 5, "the drop is rejected once it is quiet")
    drops.close()
    assert rejected(store, name)["code"] == "invalid_record"
    assert (store.paths.rejected / name / "in" / "beam.inp").stat().st_size > 0


def test_the_same_bytes_again_are_a_success(store: Store, settings: SpoolConfig) -> None:
    name = drop(store)
    first = Drops(store).accept(name, settings)
    drop(store, name)
    assert Drops(store).accept(name, settings) == first
    assert os.listdir(store.paths.drop) == os.listdir(store.paths.rejected) == os.listdir(store.paths.tmp) == []
    assert len(store.queue.waiting(SITE, [USER])) == 1


@pytest.mark.parametrize("other", [{"files": {"beam.inp": b"other"}}, {"priority": 3}])
def test_other_bytes_under_a_taken_id_are_rejected(store: Store, settings: SpoolConfig, other: dict[str, Any]) -> None:
    name = drop(store)
    first = Drops(store).accept(name, settings)
    drop(store, name, **other)
    assert Drops(store).accept(name, settings) is None
    assert rejected(store, name)["code"] == "duplicate"
    assert store.state(name) == first
    assert (store.paths.jobs / name / "in" / "beam.inp").read_bytes() == DECK
    drop(store, name, files={"beam.inp": b"third"})
    Drops(store).accept(name, settings)
    assert len(os.listdir(store.paths.rejected)) == 2, "an earlier rejected drop must not be overwritten"


# ---- rejected


def change(**more: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "job.json").write_bytes(job_json(**more))


def replace_by(relative: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        path = folder / relative
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return act


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: os.symlink(target, path)


def bind(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def very_deep(folder: Path) -> None:
    fd = os.open(folder / "in", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown site": (change(site="elsewhere"), "unknown_site"),
    "site disabled": (change(site="off"), "not_allowed"),
    "user not allowed": (change(site="closed"), "not_allowed"),
    "command not allowed": (change(command="rm"), "command_not_allowed"),
    "another format": (change(format=7), "unknown_format"),
    "another id": (change(id=new_id()), "invalid_name"),
    "bad id": (change(id="1"), "invalid_name"),
    "expired": (change(expires_at="2001-01-01T00:00:00Z"), "invalid_record"),
    "expiry beyond the calendar": (change(expires_at="9999-12-31T23:59:59-01:00"), "invalid_record"),
    "input outside": (change(inputs=["../../../spool.json"]), "invalid_name"),
    "input absolute": (change(inputs=["/etc/passwd"]), "invalid_name"),
    "pattern outside": (change(outputs=["../*"]), "invalid_name"),
    "other digest": (change(inputs=[{"path": "beam.inp", "size": len(DECK), "sha256": "0" * 64}]), "missing_inputs"),
    "other size": (change(inputs=[{"path": "beam.inp", "size": 1, "sha256": _sha(DECK)}]), "missing_inputs"),
    "malformed": (lambda folder: (folder / "job.json").write_bytes(b'{"site": "site-a",}'), "invalid_record"),
    "not an object": (lambda folder: (folder / "job.json").write_bytes(b"[]"), "invalid_record"),
    "too large": (lambda folder: (folder / "job.json").write_bytes(b" " * (5 << 20)), "invalid_record"),
    "no job.json": (lambda folder: (folder / "job.json").unlink(), "invalid_record"),
    "missing input": (lambda folder: (folder / "in" / "beam.inp").unlink(), "missing_inputs"),
    "no in": (lambda folder: shutil.rmtree(folder / "in"), "missing_inputs"),
    "extra file": (lambda folder: (folder / "in" / "extra").touch(), "missing_inputs"),
    "input is a folder": (replace_by("in/beam.inp", Path.mkdir), "missing_inputs"),
    "input is a link": (replace_by("in/beam.inp", link_to("/etc/passwd")), "invalid_name"),
    "input is a fifo": (replace_by("in/beam.inp", os.mkfifo), "invalid_name"),
    "input is a socket": (replace_by("in/beam.inp", bind), "invalid_name"),
    "a link beside the inputs": (lambda folder: (folder / "in" / "l").symlink_to("/"), "invalid_name"),
    "newline in a name": (lambda folder: (folder / "in" / "a\nb").touch(), "invalid_name"),
    "undecodable name": (lambda folder: Path(f"{folder}/in/\udcff").touch(), "invalid_name"),
    "option as a name": (lambda folder: (folder / "in" / "-rf").touch(), "invalid_name"),
    "deep tree": (very_deep, "invalid_name"),
    "job.json is a link": (replace_by("job.json", link_to("/etc/passwd")), "invalid_record"),
    "job.json is a fifo": (replace_by("job.json", os.mkfifo), "invalid_record"),
    "job.json is a folder": (replace_by("job.json", Path.mkdir), "invalid_record"),
    "job.json is a socket": (replace_by("job.json", bind), "invalid_record"),
    "in is a link": (replace_by("in", link_to("/etc")), ""),
    "in is a fifo": (replace_by("in", os.mkfifo), ""),
    "in is a file": (replace_by("in", Path.touch), ""),
    "in is a link to the inputs": (
        lambda folder: (folder / "in").rename(folder / "real").parent.joinpath("in").symlink_to("real"),
        "",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_accepted_is_rejected_with_a_reason(store: Store, settings: SpoolConfig, case: str) -> None:
    act, code = HOSTILE[case]
    name = drop(store)
    act(store.paths.drop / name)

    def work() -> None:
        assert until_judged(store, settings, name) == "rejected"

    assert in_child(work, deadline_s=8) == 0
    reason = rejected(store, name)
    assert reason["id"] == name
    assert reason["at"].endswith("Z")
    assert reason["message"]
    assert reason["hint"]
    if code:
        assert reason["code"] == code
    assert not (store.paths.jobs / name).exists()
    assert store.queue.waiting(SITE, [USER]) == []
    assert os.path.lexists(store.paths.rejected / name / "job.json") or case == "no job.json"


@pytest.mark.parametrize("kind", ["link", "file", "fifo", "socket"])
@pytest.mark.parametrize("named", ["uuid", "other"])
def test_what_is_no_folder_is_rejected(store: Store, settings: SpoolConfig, tmp_path: Path, kind: str, named: str) -> None:
    name = new_id() if named == "uuid" else "some thing"
    path = store.paths.drop / name
    if kind == "link":
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "job.json").write_bytes(job_json(inputs=[]))
        (outside / "in").mkdir()
        path.symlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        bind(path)
    else:
        path.write_bytes(b"keep me")

    def work() -> None:
        assert until_judged(store, settings, name) == "rejected"

    assert in_child(work, deadline_s=8) == 0
    assert rejected(store, name)["code"] == "invalid_name"
    kept = store.paths.rejected / name / "drop"
    assert os.path.lexists(kept)
    if kind == "file":
        assert kept.read_bytes() == b"keep me"
    if kind == "link":
        assert (tmp_path / "outside" / "job.json").exists()


@pytest.mark.parametrize("name", ["my job", "入力", "0D9DE71C-5A4B-4B0A-8D20-1F4A3A1F9A10", "a\nb", "\udcffx", "%s", "-rf"])
def test_a_folder_whose_name_is_no_uuid(store: Store, settings: SpoolConfig, name: str) -> None:
    drop(store, name)
    assert until_judged(store, settings, name) == "rejected"
    reason = rejected(store, name)
    assert reason["code"] == "invalid_name"
    assert "uuidgen" in reason["hint"]
    assert (store.paths.rejected / name / "in" / "beam.inp").read_bytes() == DECK


def test_a_long_japanese_name_can_be_rejected_twice(store: Store, settings: SpoolConfig) -> None:
    name = "あ" * 85
    for count in (1, 2):
        (store.paths.drop / name).mkdir()
        drops = Drops(store)

        def both(drops: Drops = drops, count: int = count) -> bool:
            drops.scan(settings)
            return len(list(store.paths.rejected.iterdir())) == count

        wait_until(both, 4, "it is rejected")
        drops.close()


def test_hidden_folders_are_not_looked_at(store: Store, settings: SpoolConfig) -> None:
    (store.paths.drop / ".rsync-temp").mkdir()
    drops = Drops(store)
    assert drops.scan(settings) == 0
    drops.close()


def test_one_bad_drop_does_not_hold_up_the_others(store: Store, settings: SpoolConfig) -> None:
    for _ in range(6):
        os.mkfifo(store.paths.drop / new_id())
        os.mkfifo(store.paths.drop / drop(store) / "in" / "fifo")
    name = drop(store)

    def work() -> None:
        assert until_judged(store, settings, name) == "accepted"

    assert in_child(work, deadline_s=8) == 0


def test_what_waits_does_not_spin_or_flood_the_log(store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or another process that hashes 64 GiB: the server scans 20 times a second, all the while."""
    drop(store)
    tries: list[str] = []

    def busy(self: Drops, name: str, config: SpoolConfig) -> None:
        tries.append(name)
        raise Busy("another process has it")

    monkeypatch.setattr(Drops, "accept", busy)
    drops = Drops(store)

    def scan() -> bool:
        drops.scan(settings)
        return len(tries) < 4

    stays(scan, 1.0, "it is tried again after a while only", every_s=0.02)
    drops.close()
    assert tries


def test_a_full_disk_is_told_once_and_waits(
    store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spool.drops.REJUDGE_S", 0.01)
    name = drop(store)
    tries: list[str] = []

    def full(self: Drops, name: str, config: SpoolConfig) -> None:
        tries.append(name)
        raise OSError(28, "No space left on device", f"/spool/.state.json.{len(tries)}.tmp")

    monkeypatch.setattr(Drops, "accept", full)
    drops = Drops(store)
    wait_until(lambda: drops.scan(settings) >= 0 and len(tries) > 5, 4, "it is tried several times")
    drops.close()
    assert len([record for record in caplog.records if name in record.getMessage()]) == 1


def test_what_nobody_foresaw_is_logged_and_stops_nothing(
    store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = drop(store)
    real = Drops.accept

    def accept(self: Drops, name: str, config: SpoolConfig) -> Any:
        if name == bad:
            raise RecursionError("unforeseen")
        return real(self, name, config)

    monkeypatch.setattr(Drops, "accept", accept)
    assert until_judged(store, settings, drop(store)) == "accepted"
    assert "unforeseen" in caplog.text
    assert (store.paths.drop / bad).exists()


def test_with_too_little_room_the_drops_stay_where_they_are(
    store: Store, settings: SpoolConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = config(tmp_path / "full", min_free="100000T")
    names = [drop(store), drop(store)]
    (store.paths.drop / names[0] / "job.json").unlink()
    drops = Drops(store)
    for _ in range(5):
        assert drops.scan(full) == 0
    assert drops.accept(names[1], full) is None
    assert sorted(os.listdir(store.paths.drop)) == sorted(names)
    assert os.listdir(store.paths.tmp) == os.listdir(store.paths.rejected) == []
    assert caplog.text.count("event=drops_wait") == 1

    def taken() -> bool:
        drops.scan(settings)
        return (store.paths.jobs / names[1]).exists()

    wait_until(taken, 4, "it recovers by itself")
    drops.close()


# ---- whose job it is


def test_a_drop_of_our_own_uid_counts_with_its_user(store: Store, settings: SpoolConfig) -> None:
    state = Drops(store).accept(drop(store, user="carol"), settings)
    assert state is not None
    assert state.user == "carol"
    without = Drops(store).accept(drop(store, user=None), settings)
    assert without is not None
    assert without.user == "root"


def handed_in_by(store: Store, uid: int, **keys: Any) -> str:
    name = drop(store, **keys)
    for path in [store.paths.drop / name, *(store.paths.drop / name).rglob("*")]:
        os.chown(path, uid, -1)
    return name


def test_another_uid_is_taken_for_who_it_is(store: Store, settings: SpoolConfig) -> None:
    name = handed_in_by(store, NOBODY, user="boss")
    state = Drops(store).accept(name, settings)
    assert state is not None
    assert state.user == "nobody"
    folder = store.paths.jobs / name
    assert {path.stat().st_uid for path in [folder, *folder.rglob("*")]} == {0}, "its submitter must not be able to change it"
    assert not (store.paths.drop / name).exists()


def test_a_single_file_of_another_uid_is_enough_for_a_copy(store: Store, settings: SpoolConfig) -> None:
    name = drop(store)
    path = store.paths.drop / name / "in" / "beam.inp"
    os.chown(path, NOBODY, -1)
    with open(path, "r+b") as held_open:
        state = Drops(store).accept(name, settings)
        held_open.write(b"changed after hashing")
    assert state is not None
    assert (store.paths.jobs / name / "in" / "beam.inp").read_bytes() == DECK


def test_trusted_uids_may_name_the_user(store: Store, tmp_path: Path) -> None:
    trusting = config(tmp_path / "trusting", trusted_uids=str(NOBODY))
    state = Drops(store).accept(handed_in_by(store, NOBODY, user="boss"), trusting)
    assert state is not None
    assert state.user == "boss"


def test_a_uid_without_a_name(store: Store, settings: SpoolConfig, tmp_path: Path) -> None:
    name = handed_in_by(store, 54321, user="boss")
    assert until_judged(store, settings, name) == "rejected"
    assert "54321" in rejected(store, name)["message"]
    state = Drops(store).accept(handed_in_by(store, 54321, user="boss"), config(tmp_path / "t", trusted_uids="54321"))
    assert state is not None
    assert state.user == "boss"


def test_a_forged_owner_file_in_the_drop_is_nothing(store: Store, settings: SpoolConfig) -> None:
    name = handed_in_by(store, NOBODY, user="boss")
    (store.paths.drop / name / "owner").write_text("0")
    (store.paths.drop / "owner").write_text("0")
    state = Drops(store).accept(name, settings)
    assert state is None or state.user == "nobody"


def test_litter_beside_the_drops_stops_nobody(store: Store, settings: SpoolConfig) -> None:
    (store.paths.drop / "owner").write_text("no number")
    assert until_judged(store, settings, drop(store)) == "accepted"


AS_ANOTHER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import encodings.utf_8_sig, encodings.idna, pathlib, time
from spool.config import read_config
from spool.drops import Drops, may_accept
from spool.store import Store
os.umask(0o007)
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
store = Store.open(pathlib.Path(sys.argv[2]))
if not may_accept(store.paths):
    sys.exit(3)
drops = Drops(store)
config = read_config(pathlib.Path(sys.argv[4]))
end = time.monotonic() + float(sys.argv[5])
while time.monotonic() < end and os.listdir(store.paths.drop):
    drops.scan(config)
    drops._pool.submit(lambda: None).result()
drops.close()
"""


def as_another(store: Store, uid: int, ini: Path, for_s: float = 3) -> int:
    """Scan as `uid` for `for_s`; the exit code."""
    ini.chmod(0o644)
    argv = [sys.executable, "-c", AS_ANOTHER, str(REPO), str(store.paths.root), str(uid), str(ini), str(for_s)]
    return subprocess.run(argv, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode


def test_only_the_owner_of_the_spool_accepts(store: Store, settings: SpoolConfig) -> None:
    assert may_accept(store.paths)
    name = drop(store)
    os.chown(store.paths.root, NOBODY, NOBODY)
    store.paths.root.chmod(0o777)
    store.paths.spool_json.chmod(0o644)
    assert settings.source is not None
    assert as_another(store, NOBODY, settings.source) == 3
    assert (store.paths.drop / name).exists()


def give_the_spool_to(store: Store, uid: int) -> None:
    for path in [store.paths.root, *store.paths.root.rglob("*")]:
        os.chown(path, uid, uid, follow_symlinks=False)


def test_a_server_without_root_takes_what_its_group_may_read(store: Store, settings: SpoolConfig) -> None:
    name = drop(store, user="boss")
    give_the_spool_to(store, NOBODY)
    folder = store.paths.drop / name
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 1, NOBODY)  # daemon's, readable by the group
        path.chmod(0o750 if path.is_dir() else 0o640)
    assert settings.source is not None
    assert as_another(store, NOBODY, settings.source) == 0
    state = store.state(name)
    assert (state.state, state.user) == (State.QUEUED, "daemon")
    assert {path.stat().st_uid for path in (store.paths.jobs / name).rglob("*")} == {NOBODY}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["job.json", "in", "in/beam.inp", "."])
def test_what_the_server_may_not_read_is_rejected_not_ignored(store: Store, settings: SpoolConfig, what: str) -> None:
    name = drop(store)
    give_the_spool_to(store, NOBODY)
    folder = store.paths.drop / name
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 1, 1)
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / what).chmod(0o700)
    assert settings.source is not None
    assert as_another(store, NOBODY, settings.source) == 0
    assert [path.name for path in store.paths.rejected.iterdir()] == [name]
    assert rejected(store, name)["hint"]


def test_what_cannot_be_moved_is_copied_to_rejected_and_hidden(store: Store, settings: SpoolConfig) -> None:
    name = drop(store, command="rm")
    give_the_spool_to(store, NOBODY)
    folder = store.paths.drop / name
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 1, 1)
        path.chmod(0o755 if path.is_dir() else 0o644)
    (store.paths.drop / f".taken.{name}").mkdir()  # of an earlier time
    assert settings.source is not None
    assert as_another(store, NOBODY, settings.source, 1) == 0
    assert rejected(store, name)["code"] == "command_not_allowed"
    assert (store.paths.rejected / name / "in" / "beam.inp").read_bytes() == DECK
    assert sorted(os.listdir(store.paths.drop)) == [f".taken.{name}", f".taken.{name}+"]


@pytest.mark.parametrize("where", ["beside", "history.jsonl"])
def test_odd_things_outside_of_in_do_not_loop(store: Store, settings: SpoolConfig, where: str) -> None:
    name = drop(store)
    if where == "beside":
        (store.paths.drop / name / "user" / "in").mkdir(parents=True)
        very_deep(store.paths.drop / name / "user")
    else:
        (store.paths.drop / name / where).mkdir()
    assert until_judged(store, settings, name) == "rejected"
    assert not os.listdir(store.paths.tmp)


# ---- crashes


def test_a_lock_on_a_folder_that_is_gone_is_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """B opens the lock file, A removes it with its folder and lets go, B gets the lock: on nothing."""
    staging = Staging(store.paths, new_id())
    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        with staging.held():
            staging.clear()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Busy), staging.held():
        pass
    with staging.held(), pytest.raises(Busy), staging.held():
        pass


def test_an_original_left_by_a_crash_is_not_in_the_way(store: Store, settings: SpoolConfig) -> None:
    name = handed_in_by(store, NOBODY)
    (store.paths.accepting(name) / "original" / "in").mkdir(parents=True)
    assert until_judged(store, settings, name) == "accepted"


@pytest.mark.parametrize("owner", [0, NOBODY], ids=["renamed", "copied"])
@pytest.mark.slow
def test_an_accept_killed_anywhere_is_carried_on(store: Store, settings: SpoolConfig, owner: int) -> None:
    names: list[str] = []

    def prepare(step: int) -> Callable[[], object]:
        names.append(handed_in_by(store, owner))
        mine = Drops(Store.open(store.paths.root))
        return lambda: mine.accept(names[-1], settings)

    user = USER if owner == 0 else "nobody"
    for _ in each_crash(prepare):
        name = names[-1]
        folders = [store.paths.drop / name, store.paths.accepting(name) / "job", store.paths.jobs / name]
        kept = [folder for folder in folders if (folder / "in" / "beam.inp").exists()]
        assert kept, "the bytes are gone"
        assert all((folder / "in" / "beam.inp").read_bytes() == DECK for folder in kept)
        if (store.paths.jobs / name).exists():
            assert name in [entry.job_id for entry in store.queue.waiting(SITE, [user])], "published and not in the queue"
        assert until_judged(store, settings, name) == "accepted"
        drops = Drops(store)

        def done(drops: Drops = drops) -> bool:
            drops.scan(settings)
            return not os.listdir(store.paths.drop) and not os.listdir(store.paths.tmp)

        wait_until(done, 4, "what a crash left behind is cleaned up")
        drops.close()
        assert (store.state(name).state, store.state(name).user) == (State.QUEUED, user)
        assert [state.id for state in store.claim(SITE, [user], agent="a", room=9)] == [name]
        assert not list(store.paths.rejected.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_rejection_killed_anywhere_loses_nothing(store: Store, settings: SpoolConfig, tmp_path: Path, kind: str) -> None:
    names: list[str] = []
    at_once = config(tmp_path / "at_once", drop_quiet_s="0.05")

    def prepare(step: int) -> Callable[[], object]:
        names.append(f"wrong {step}")
        (store.paths.drop / names[-1]).write_bytes(b"keep") if kind == "file" else drop(store, names[-1])
        drops = Drops(store)

        def work() -> None:
            def gone() -> bool:
                drops.accept(names[-1], at_once)
                return not os.path.lexists(store.paths.drop / names[-1])

            wait_until(gone, 3, "rejected")

        return work

    for _ in each_crash(prepare):
        found = [path for path in store.paths.root.rglob("*") if path.is_file() and path.read_bytes() in (b"keep", DECK)]
        wanted = len(names)
        assert len(found) == wanted, "bytes were lost"


def test_8_processes_scan_one_drop_folder(store: Store, settings: SpoolConfig) -> None:
    names = {drop(store) if number % 2 else handed_in_by(store, NOBODY) for number in range(24)}

    def work() -> None:
        drops = Drops(Store.open(store.paths.root), workers=2)

        def empty() -> bool:
            drops.scan(settings)
            return set(os.listdir(store.paths.jobs)) >= names

        wait_until(empty, 25, "all are in jobs/")
        drops.close()

    pids = [fork(work) for _ in range(8)]
    assert [exit_code(pid, 30) for pid in pids] == [0] * 8
    assert set(os.listdir(store.paths.jobs)) == names
    assert not os.listdir(store.paths.rejected)
    assert {state.state for state in store.states()} == {State.QUEUED}
    drops = Drops(store)

    def clean() -> bool:
        drops.scan(settings)
        return not os.listdir(store.paths.drop) and not [
            name for name in os.listdir(store.paths.tmp) if name.startswith("accept.")
        ]

    wait_until(clean, 5, "nothing is left in drop/ and tmp/")
    drops.close()


def test_everything_is_synced_before_it_is_published(
    store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = drop(store, files={"d/beam.inp": DECK}, inputs=["d/beam.inp"])
    synced: set[int] = set()
    at_rename: list[set[int]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real_fsync(fd)

    def rename(source: Any, target: Any, **more: Any) -> None:
        if Path(target) == store.paths.jobs / name:
            at_rename.append(set(synced))
        real_rename(source, target, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    Drops(store).accept(name, settings)
    folder = store.paths.jobs / name
    inodes = {path.stat().st_ino for path in [folder, *folder.rglob("*")] if stat.S_IFMT(path.stat().st_mode) != stat.S_IFIFO}
    assert inodes <= at_rename[0]
    assert store.paths.jobs.stat().st_ino in synced
    assert threading.active_count() < 50
    remove_tree(folder)


FOREIGN = ("state.json", "history.jsonl", "result.json", "out", "log", "run", "work", "incoming", "attempts")


@pytest.mark.parametrize("name", FOREIGN)
def test_records_and_results_of_another_job_are_not_taken_along(store: Store, settings: SpoolConfig, name: str) -> None:
    """`cp -a` of a job's folder is the natural way to run it again; its old results must not become the new ones."""
    job = drop(store)
    (store.paths.drop / job / name).mkdir()
    assert until_judged(store, settings, job) == "rejected"
    assert name in rejected(store, job)["message"]
