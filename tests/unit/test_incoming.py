"""Chunks on their way in: repeated, damaged, raced and cut off, and what counts in the end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.crashing import each_crash
from spool.errors import DigestMismatch, InvalidName, InvalidRequest, OffsetMismatch
from spool.incoming import Digests, Incoming

DATA = bytes(range(256)) * 40


@pytest.fixture
def incoming(tmp_path: Path) -> Incoming:
    return Incoming(tmp_path / "incoming" / "run")


def put(incoming: Incoming, name: str, offset: int, data: bytes, **more: Any) -> int:
    return incoming.append(name, offset, io.BytesIO(data), more.pop("length", len(data)), **more)


def content(incoming: Incoming, name: str) -> bytes:
    return (incoming.files / name).read_bytes()


def test_append_resume_and_entry(incoming: Incoming) -> None:
    assert incoming.offset("out/a") == 0
    assert put(incoming, "out/a", 0, DATA[:1000]) == 1000
    again = Incoming(incoming.files.parent)  # another process
    assert again.offset("out/a") == 1000
    assert put(again, "out/a", 1000, DATA[1000:]) == len(DATA)
    entry = again.entry("out/a")
    assert (entry.size, entry.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert content(incoming, "out/a") == DATA


def test_a_wrong_offset_is_told_the_true_one(incoming: Incoming) -> None:
    put(incoming, "a", 0, DATA[:1000])
    for offset in (0, 999, 1001, 10**15):
        with pytest.raises(OffsetMismatch) as caught:
            put(incoming, "a", offset, DATA[:1000])
        assert caught.value.offset == 1000
    assert content(incoming, "a") == DATA[:1000]
    with pytest.raises(OffsetMismatch) as caught:
        put(incoming, "new", 5, b"x")
    assert caught.value.offset == 0


def test_an_empty_file_is_a_file(incoming: Incoming) -> None:
    assert put(incoming, "out/empty", 0, b"") == 0
    assert incoming.entry("out/empty").size == 0
    assert put(incoming, "out/empty", 0, b"") == 0
    with pytest.raises(FileNotFoundError):
        incoming.entry("out/absent")


@pytest.mark.parametrize("more", [{"length": len(DATA) + 1}, {"sha256": "0" * 64}], ids=["short body", "wrong digest"])
def test_a_damaged_chunk_does_not_count(incoming: Incoming, more: dict[str, Any]) -> None:
    put(incoming, "a", 0, b"good")
    with pytest.raises((InvalidRequest, DigestMismatch)):
        put(incoming, "a", 4, DATA, **more)
    assert incoming.offset("a") == 4
    assert content(incoming, "a") == b"good"
    assert put(incoming, "a", 4, DATA, sha256=hashlib.sha256(DATA).hexdigest()) == 4 + len(DATA)
    assert incoming.entry("a").sha256 == hashlib.sha256(b"good" + DATA).hexdigest()


def test_the_connection_breaks_in_the_middle(incoming: Incoming) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            block = super().read(100)
            if not block:
                raise ConnectionResetError
            return block

    with pytest.raises(ConnectionResetError):
        incoming.append("a", 0, Breaking(DATA[:500]), 1000)
    assert incoming.offset("a") == 0
    assert put(incoming, "a", 0, DATA) == len(DATA)


def test_restart(incoming: Incoming) -> None:
    put(incoming, "out/a", 0, DATA)
    incoming.restart("out/a")
    incoming.restart("out/a")
    incoming.restart("absent/b")
    assert incoming.offset("out/a") == 0
    put(incoming, "out/a", 0, b"new")
    assert incoming.entry("out/a").sha256 == hashlib.sha256(b"new").hexdigest()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "-x", "a\nb", "a//b"])
def test_hostile_names(incoming: Incoming, name: str) -> None:
    incoming.prepare()
    before = sorted(incoming.files.parent.parent.rglob("*"))
    for work in (lambda: put(incoming, name, 0, b"x"), lambda: incoming.offset(name), lambda: group(incoming, {name: b"x"})):
        with pytest.raises(InvalidName):
            work()  # type: ignore[no-untyped-call]
    assert sorted(incoming.files.parent.parent.rglob("*")) == before


def test_links_in_the_way(incoming: Incoming, tmp_path: Path) -> None:
    incoming.prepare()
    (tmp_path / "victim").write_bytes(b"keep")
    (incoming.files / "a").symlink_to(tmp_path / "victim")
    (incoming.files / "d").symlink_to(tmp_path)
    for name in ("a", "d/victim"):
        with pytest.raises(InvalidName):
            put(incoming, name, 0, b"overwritten")
    assert (tmp_path / "victim").read_bytes() == b"keep"


def test_the_same_chunk_by_8_threads_counts_once(incoming: Incoming) -> None:
    digests = Digests()
    barrier = threading.Barrier(8)
    results: list[str] = []

    def send() -> None:
        mine = Incoming(incoming.files.parent, digests)
        barrier.wait()
        try:
            results.append(str(put(mine, "a", 0, DATA)))
        except OffsetMismatch as error:
            results.append(f"mismatch {error.offset}")

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(len(DATA))] + [f"mismatch {len(DATA)}"] * 7
    assert content(incoming, "a") == DATA
    assert Incoming(incoming.files.parent, digests).entry("a").sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_crash_anywhere_is_cut_back_to_the_record(tmp_path: Path) -> None:
    made: list[Incoming] = []

    def prepare(step: int) -> Callable[[], object]:
        made.append(Incoming(tmp_path / str(step) / "run"))
        (tmp_path / str(step)).mkdir()
        put(made[-1], "out/a", 0, DATA[:1000])
        mine = Incoming(made[-1].files.parent)
        return lambda: put(mine, "out/a", 1000, DATA[1000:])

    for _ in each_crash(prepare):
        again = Incoming(made[-1].files.parent)
        here = again.offset("out/a")
        assert here in (1000, len(DATA))
        if here == 1000:
            put(again, "out/a", 1000, DATA[1000:])
        assert content(again, "out/a") == DATA
        assert Incoming(made[-1].files.parent).entry("out/a").sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_crash_anywhere_in_the_first_chunk(tmp_path: Path) -> None:
    made: list[Incoming] = []

    def prepare(step: int) -> Callable[[], object]:
        made.append(Incoming(tmp_path / str(step) / "run"))
        (tmp_path / str(step)).mkdir()
        return lambda: put(made[-1], "out/a", 0, DATA)

    for _ in each_crash(prepare):
        again = Incoming(made[-1].files.parent)
        here = again.offset("out/a")
        assert here in (0, len(DATA)), "a part of a chunk counts as if it had been acknowledged"
        put(again, "out/a", here, DATA[here:])
        assert content(again, "out/a") == DATA


def test_a_crash_while_appending_to_what_came_in_a_group(tmp_path: Path) -> None:
    made: list[Incoming] = []

    def prepare(step: int) -> Callable[[], object]:
        made.append(Incoming(tmp_path / str(step) / "run"))
        (tmp_path / str(step)).mkdir()
        group(made[-1], {"a": DATA[:1000]})
        return lambda: put(Incoming(made[-1].files.parent), "a", 1000, DATA[1000:])

    for _ in each_crash(prepare):
        assert Incoming(made[-1].files.parent).offset("a") in (1000, len(DATA)), "bytes count that were never acknowledged"


def test_a_full_disk_at_the_record_does_not_count(incoming: Incoming, monkeypatch: pytest.MonkeyPatch) -> None:
    group(incoming, {"a": b"12"})
    with monkeypatch.context() as patch:
        patch.setattr("spool.incoming._write_offset", _no_space)
        with pytest.raises(OSError, match="No space"):
            put(incoming, "a", 2, b"3456")
    assert incoming.offset("a") == 2


def _no_space(*args: Any) -> None:
    raise OSError(28, "No space left on device")


# ---- groups


def group(incoming: Incoming, members: dict[str, bytes]) -> int:
    def each() -> Iterator[tuple[str, BinaryIO, int]]:
        for name, data in members.items():
            yield name, io.BytesIO(data), len(data)

    return incoming.put_group(each())


def litter(incoming: Incoming) -> list[str]:
    return sorted(set(os.listdir(incoming.files.parent)) - {"files", "offsets", "lock"})


def test_a_group(incoming: Incoming) -> None:
    assert group(incoming, {"out/a": b"a", "out/日本/b": b"bb", "log/e": b""}) == 3
    assert [incoming.offset(name) for name in ("out/a", "out/日本/b", "log/e")] == [1, 2, 0]
    assert incoming.entry("out/日本/b").sha256 == hashlib.sha256(b"bb").hexdigest()
    assert group(incoming, {"out/a": b"other"}) == 1
    assert content(incoming, "out/a") == b"other"
    assert incoming.entry("out/a").sha256 == hashlib.sha256(b"other").hexdigest()
    assert litter(incoming) == []


def test_a_group_replaces_what_was_begun_in_chunks(incoming: Incoming) -> None:
    put(incoming, "a", 0, DATA)
    group(incoming, {"a": b"whole"})
    assert incoming.offset("a") == 5
    assert put(incoming, "a", 5, b"!") == 6
    assert content(incoming, "a") == b"whole!"


def breaking(good: dict[str, bytes], last: tuple[str, bytes, int]) -> Iterator[tuple[str, BinaryIO, int]]:
    for name, data in good.items():
        yield name, io.BytesIO(data), len(data)
    yield last[0], io.BytesIO(last[1]), last[2]


@pytest.mark.parametrize("last", [("b", b"short", 100), ("../b", b"x", 1), ("-b", b"x", 1), ("a/b", b"x", 1), ("a", b"twice", 5)])
def test_of_a_group_that_breaks_nothing_counts(incoming: Incoming, last: tuple[str, bytes, int]) -> None:
    with pytest.raises((InvalidRequest, InvalidName)):
        incoming.put_group(breaking({"a": b"good"}, last))
    assert litter(incoming) == []
    with pytest.raises(FileNotFoundError):
        incoming.entry("a")


def test_a_group_that_breaks_does_not_vouch_for_the_old_bytes(incoming: Incoming) -> None:
    """The digest cache must speak of what is on the disk, not of what was announced: results are verified by it."""
    put(incoming, "a", 0, b"WRONG")
    with pytest.raises(InvalidRequest):
        incoming.put_group(breaking({"a": b"right"}, ("b", b"short", 100)))
    assert content(incoming, "a") == b"WRONG"
    assert incoming.entry("a").sha256 == hashlib.sha256(b"WRONG").hexdigest()


def test_a_group_killed_anywhere_leaves_whole_files(tmp_path: Path) -> None:
    made: list[Incoming] = []

    def prepare(step: int) -> Callable[[], object]:
        (tmp_path / str(step)).mkdir()
        made.append(Incoming(tmp_path / str(step) / "run"))
        return lambda: group(made[-1], {"out/a": DATA, "out/b": DATA[:99]})

    for _ in each_crash(prepare):
        again = Incoming(made[-1].files.parent)
        for name, data in (("out/a", DATA), ("out/b", DATA[:99])):
            with contextlib.suppress(FileNotFoundError):
                assert content(again, name) == data
        group(again, {"out/a": DATA, "out/b": DATA[:99]})
        assert content(again, "out/a") == DATA


# ---- sparse files and digests


def test_zeros_stay_a_hole(incoming: Incoming) -> None:
    size = 32 << 20
    data = b"start" + bytes(size - 10) + b"end!!"
    assert put(incoming, "a", 0, data) == size
    info = (incoming.files / "a").stat()
    assert info.st_size == size
    assert info.st_blocks * 512 < 4 << 20
    assert content(incoming, "a") == data
    assert Incoming(incoming.files.parent).entry("a").sha256 == hashlib.sha256(data).hexdigest()


def test_zeros_over_a_torn_chunk_are_zeros(incoming: Incoming) -> None:
    """A hole is skipped over; what a crash left there must not shine through."""
    put(incoming, "a", 0, b"x")
    with open(incoming.files / "a", "ab") as file:
        file.write(b"left by a crash")
    put(incoming, "a", 1, bytes(15))
    assert content(incoming, "a") == b"x" + bytes(15)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["append", "bad", "group", "restart", "torn"]), st.binary(max_size=9)), max_size=8))
def test_the_digest_cache_says_what_the_disk_says(tmp_path: Path, steps: list[tuple[str, bytes]]) -> None:
    folder = tmp_path / os.urandom(8).hex() / "run"
    folder.parent.mkdir()
    cached, model = Incoming(folder, Digests()), b""
    for kind, data in steps:
        if kind == "append":
            put(cached, "a", len(model), data)
            model += data
        elif kind == "bad":
            with pytest.raises(DigestMismatch):
                put(cached, "a", len(model), data, sha256="0" * 64)
        elif kind == "group":
            group(cached, {"a": data})
            model = data
        elif kind == "torn":
            with pytest.raises(InvalidRequest):
                put(cached, "a", len(model), data, length=len(data) + 1)
        else:
            cached.restart("a")
            model = b""
    with contextlib.suppress(FileNotFoundError):
        assert cached.entry("a") == Incoming(folder).entry("a")
        assert cached.entry("a").sha256 == hashlib.sha256(model).hexdigest()
    assert cached.offset("a") == len(model)


def test_two_processes_with_a_cache_each_agree_with_the_disk(incoming: Incoming) -> None:
    """Two servers on one spool: the other one started the file afresh and sent other bytes of the same length."""
    one, two = Incoming(incoming.files.parent, Digests()), Incoming(incoming.files.parent, Digests())
    put(one, "a", 0, b"first")
    two.restart("a")
    put(two, "a", 0, b"other")
    assert one.entry("a").sha256 == hashlib.sha256(b"other").hexdigest()
