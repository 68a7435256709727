"""Writing and opening: readers see the old bytes or the new, links are never followed, holes stay holes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from components.waiting import wait_until
from server.crashing import each_crash, exit_code, fork, in_child
from spool import copying, files
from spool.errors import InvalidName, InvalidRecord
from spool.manifest import list_files

OLD, NEW = b"a" * 100_000, b"b" * 150_000


# ---- replace


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.replace_file(path, OLD)
    ready, go = os.pipe()

    def write() -> None:
        os.close(ready)
        with contextlib.suppress(BrokenPipeError):  # it has seen enough
            for data in itertools.cycle([NEW, OLD]):
                files.replace_file(path, data)
                os.write(go, b".")

    pid = fork(write)
    os.close(go)
    seen = {OLD: 0, NEW: 0}
    rounds = 0

    def read() -> bool:
        nonlocal rounds
        seen[path.read_bytes()] += 1  # a KeyError is a mixture
        with contextlib.suppress(BlockingIOError):
            rounds += len(os.read(ready, 4096))
        return rounds >= 200 and all(seen.values())

    os.set_blocking(ready, False)
    wait_until(read, 20, f"200 changes, and both seen: {seen}", every_s=0)
    os.close(ready)
    assert exit_code(pid, 20) == 0
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_crash_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    def prepare(step: int) -> Any:
        path.write_bytes(OLD)
        return lambda: files.replace_file(path, NEW)

    seen = []
    for _ in each_crash(prepare):
        seen.append(path.read_bytes())
        assert seen[-1] in (OLD, NEW)
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert seen == sorted(seen), "once the new content is there it stays"


def test_nothing_is_acknowledged_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order write, fsync of the file, rename, fsync of the directory: take one out and this goes red."""
    calls: list[str] = []
    for name in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, name, _noting(name, getattr(os, name), calls))
    files.replace_file(tmp_path / "x", b"data")
    assert calls == ["write", "fsync file", "rename", "fsync folder"]


def _noting(name: str, real: Any, calls: list[str]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        kind = ""
        if name == "fsync":
            kind = " folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else " file"
        calls.append(name + kind)
        return real(*args, **kwargs)

    return noted


@pytest.mark.parametrize("failing", ["fsync", "rename", "write"])
def test_a_failure_leaves_the_old_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "x"
    files.replace_file(path, OLD)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space"):
            files.replace_file(path, NEW)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    (tmp_path / "x").symlink_to(victim)
    files.replace_file(tmp_path / "x", b"new")
    assert victim.read_bytes() == b"keep"
    assert not (tmp_path / "x").is_symlink()


def test_write_new_never_overwrites(tmp_path: Path) -> None:
    files.write_new(tmp_path / "x", b"1")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "x", b"2")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "link", b"2")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_modes_are_narrowed_by_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o007)
    try:
        files.replace_file(tmp_path / "x", b"")
        files.replace_file(tmp_path / "y", b"", mode=0o600)
        files.append_line(tmp_path / "z", b"a\n")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xyz"] == [0o660, 0o600, 0o660]


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:7])))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_pwrite(fd, bytes(data[:7]), at))
    files.write_new(tmp_path / "x", b"0123456789" * 3)
    assert (tmp_path / "x").read_bytes() == b"0123456789" * 3
    with open(tmp_path / "x", "r+b") as file:
        files.write_all(file.fileno(), b"abcdefghij", 5)
    assert (tmp_path / "x").read_bytes() == b"01234abcdefghij" + b"5678901234" + b"56789"


# ---- lines


def test_append_and_last_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert files.last_line(path) == b""
    files.append_line(path, b"one\n")
    assert files.last_line(path) == b"one"
    files.append_line(path, b"two\n")
    assert files.last_line(path) == b"two"


def test_a_torn_tail_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"one\ntw")
    assert files.last_line(path) == b"one"
    files.append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntw\ntwo\n"
    path.write_bytes(b"on")
    assert files.last_line(path) == b""


def test_long_files_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"y" * 200_000 + b"\nlast\n")
    assert files.last_line(path) == b"last"


def test_appending_by_many_at_once_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    def write(who: int) -> None:
        for number in range(200):
            files.append_line(path, b"%d.%d.%s\n" % (who, number, b"x" * 500), durable=False)

    pids = [fork(lambda who=who: write(who)) for who in range(4)]  # type: ignore[misc]
    assert [exit_code(pid, 20) for pid in pids] == [0] * 4
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    assert len(lines) == 800
    assert all(line.endswith(b"x" * 500) for line in lines)


def test_lines_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"a\n")
    (tmp_path / "x").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        files.append_line(tmp_path / "x", b"b\n")
    with pytest.raises(OSError, match="symbolic"):
        files.last_line(tmp_path / "x")
    assert (tmp_path / "victim").read_bytes() == b"a\n"


# ---- reading


def test_read_record_limits_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(b"x" * 100)
    assert files.read_record(path, 100) == b"x" * 100
    with pytest.raises(InvalidRecord, match="larger than 99"):
        files.read_record(path, 99)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "fifo", "folder"):
        assert in_child(lambda name=name: _refused(tmp_path / name), deadline_s=5) == 0, name  # type: ignore[misc]
    with pytest.raises(InvalidRecord):
        files.read_record(Path("/dev/zero"), 100)
    with pytest.raises(FileNotFoundError):
        files.read_record(tmp_path / "absent", 100)


def _refused(path: Path) -> None:
    with pytest.raises(InvalidRecord):
        files.read_record(path, 100)


def test_a_socket_in_place_of_a_record_is_an_invalid_record(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)
        server.bind("job.json")
        with pytest.raises(InvalidRecord):
            files.read_record(tmp_path / "job.json", 100)


# ---- opening beneath a folder


def _tree(folder: Path) -> Path:
    inside = folder / "inside"
    (inside / "real" / "deep").mkdir(parents=True)
    (inside / "real" / "deep" / "a.dat").write_bytes(b"inside")
    outside = folder / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a.dat").write_bytes(b"outside")
    (inside / "folder_link").symlink_to(outside)
    (inside / "real" / "link").symlink_to(outside / "deep")
    (inside / "file_link").symlink_to(outside / "deep" / "a.dat")
    (inside / "self").symlink_to("real/deep/a.dat")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "fifo")
    os.mknod(inside / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return inside


REFUSED = [
    "folder_link/deep/a.dat",
    "real/link/a.dat",
    "file_link",
    "self",
    "loop",
    "loop/x",
    "fifo",
    "null",
    "real",
    "real/deep/a.dat/x",
]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT], ids=["read", "rw", "create"])
def test_nothing_but_real_files_on_real_ways(tmp_path: Path, name: str, flags: int) -> None:
    inside = _tree(tmp_path)

    def refused() -> None:
        with pytest.raises(InvalidName):
            os.close(files.open_beneath(inside, name, flags, make=bool(flags & os.O_CREAT)))

    assert in_child(refused, deadline_s=5) == 0
    assert (tmp_path / "outside" / "deep" / "a.dat").read_bytes() == b"outside"


@pytest.mark.parametrize(
    "name", ["../outside/deep/a.dat", "/etc/passwd", "real/../../outside/deep/a.dat", "", ".", "real//deep/a.dat"]
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    inside = _tree(tmp_path)
    with pytest.raises(InvalidName):
        files.open_beneath(inside, name, os.O_RDONLY)


def test_open_beneath_opens_and_makes(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    with open(files.open_beneath(inside, "real/deep/a.dat", os.O_RDONLY), "rb") as file:
        assert file.read() == b"inside"
    with pytest.raises(FileNotFoundError):
        files.open_beneath(inside, "new/file", os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        files.open_beneath(inside, "new/file", os.O_WRONLY | os.O_CREAT)
    os.close(files.open_beneath(inside, "新/file", os.O_WRONLY | os.O_CREAT, make=True))
    assert (inside / "新" / "file").exists()


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for name in [*REFUSED, "absent/x", "real/deep/a.dat"]:
        with contextlib.suppress(InvalidName, FileNotFoundError):
            os.close(files.open_beneath(inside, name, os.O_RDONLY))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_swap_in_the_middle_never_leads_out(tmp_path: Path, what: str) -> None:
    """One thread swaps the real thing and a link to the outside as fast as it can."""
    inside = _tree(tmp_path)
    name = "real/deep" if what == "folder" else "real/deep/a.dat"
    target = tmp_path / "outside" / ("deep" if what == "folder" else "deep/a.dat")
    real, link = inside / name, tmp_path / "spare"
    link.symlink_to(target)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(real, tmp_path / "aside")
            os.rename(link, real)
            os.rename(real, link)
            os.rename(tmp_path / "aside", real)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = {"inside": 0, "refused": 0}
    try:
        for _ in range(4000):
            try:
                with open(files.open_beneath(inside, "real/deep/a.dat", os.O_RDONLY), "rb") as file:
                    seen[file.read().decode()] += 1  # "outside" is a KeyError
            except (InvalidName, FileNotFoundError):
                seen["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert all(seen.values()), seen


# ---- copying and removing


def test_copy_tree_of_a_hostile_tree(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    (inside / "empty").mkdir()
    odd = [b"line\nbreak", b"\xff\xfe", b"-rf", b" ", "日本語".encode()]
    for name in odd:
        with open(os.path.join(os.fsencode(inside), name), "wb") as file:
            file.write(name)
    assert in_child(lambda: copying.copy_tree(inside, tmp_path / "copy"), deadline_s=5) == 0
    copy = tmp_path / "copy"
    found = {
        os.path.relpath(os.path.join(top, name), os.fsencode(copy))
        for top, _, every in os.walk(os.fsencode(copy))
        for name in every
    }
    assert found == {b"real/deep/a.dat", *odd}
    assert (copy / "empty").is_dir()
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert (copy / "real" / "deep" / "a.dat").stat().st_ino != (inside / "real" / "deep" / "a.dat").stat().st_ino


def test_copy_tree_of_a_link_copies_nothing(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    copying.copy_tree(inside / "folder_link", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


@pytest.mark.parametrize("layout", ["hole-data-hole", "data-hole-data", "hole", "empty", "data"])
def test_copies_keep_their_holes(tmp_path: Path, layout: str) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    size, spots = {
        "hole-data-hole": (64 << 20, [32 << 20]),
        "data-hole-data": (64 << 20, [0, (64 << 20) - 4096]),
        "hole": (64 << 20, []),
        "empty": (0, []),
        "data": (8192, [0, 4096]),
    }[layout]
    with open(source, "wb") as file:
        file.truncate(size)
        for spot in spots:
            os.pwrite(file.fileno(), os.urandom(4096), spot)
    with open(source, "rb") as file:
        copying.copy_file(file.fileno(), target)
    assert target.stat().st_size == size
    assert target.stat().st_blocks * 512 <= 1 << 20
    with open(source, "rb") as one, open(target, "rb") as two:
        while chunk := one.read(1 << 20):
            assert two.read(1 << 20) == chunk


def test_copy_file_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with open(tmp_path / "a", "rb") as file, pytest.raises(FileExistsError):
        copying.copy_file(file.fileno(), tmp_path / "b")


def test_remove_tree_does_not_follow_and_may_repeat(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    files.remove_tree(inside)
    files.remove_tree(inside)
    assert not inside.exists()
    assert (tmp_path / "outside" / "deep" / "a.dat").exists()


def test_sync_tree_syncs_every_file_and_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = _tree(tmp_path)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    files.sync_tree(inside)
    wanted = {path.stat().st_ino for path in (inside, inside / "real", inside / "real/deep", inside / "real/deep/a.dat")}
    assert synced == wanted


# ---- walking


def test_a_walk_opens_nothing_but_folders_and_few_of_them(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    deep = inside
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    met = []
    for place in files.walk(inside):
        met.append(place.path)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
        assert os.path.samestat(os.fstat(place.fd), (inside / place.path).stat())
    assert set(met) == {"", "real", "real/deep", *("/".join("d" * count) for count in range(1, 301))}
    assert met[0] == ""
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_walk_ends_below_names_that_are_too_long(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(6):
        deep = deep / ("x" * 250)
        deep.mkdir()
    assert [len(place.path) for place in files.walk(tmp_path)] == [0, 250, 501, 752, 1003]


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_a_walk_of_what_is_no_folder(tmp_path: Path, kind: str) -> None:
    inside = _tree(tmp_path)
    path = inside / {"file": "real/deep/a.dat", "link": "folder_link", "fifo": "fifo"}[kind]

    def refused() -> None:
        with pytest.raises(NotADirectoryError):
            list(files.walk(path))

    assert in_child(refused, deadline_s=5) == 0


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    inside = _tree(tmp_path)
    (inside / "real" / "deep").chmod(0)

    def look() -> None:
        os.chdir(inside)  # pytest closes the folders above to others
        os.setuid(65534)
        with pytest.raises(PermissionError):
            list(files.walk(Path()))
        denied: list[str] = []
        assert [place.path for place in files.walk(Path(), on_denied=denied.append)] == ["", "real"]
        assert denied == ["real/deep"]
        assert "real/deep: may not be read" in list_files(Path()).odd

    assert in_child(look, deadline_s=5) == 0
