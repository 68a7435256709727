"""The indexes: keys that sort as they are to be claimed, entries that may be repeated."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from server.spools import new_store
from spool.names import new_id
from spool.queue import make_key, parse_key
from spool.records import MAX_PRIORITY


@given(st.integers(-MAX_PRIORITY, MAX_PRIORITY), st.integers(-MAX_PRIORITY, MAX_PRIORITY), st.integers(1, 10**6))
def test_keys_sort_by_priority_then_time(one: int, two: int, attempt: int) -> None:
    job = new_id()
    first, second = make_key(job, attempt, one), make_key(job, attempt, two)
    entry = parse_key(first, "alice")
    assert entry is not None
    assert (entry.job_id, entry.attempt, entry.user) == (job, attempt, "alice")
    if one != two:
        assert (first < second) == (one > two)


def test_a_later_key_of_the_same_job_is_another_one() -> None:
    """So that a slow remover cannot take a newer entry."""
    job = new_id()
    assert len({make_key(job, 1, 0) for _ in range(1)} | {make_key(job, 2, 0)}) == 2


def test_names_that_are_no_keys() -> None:
    good = make_key(new_id(), 1, 0)
    for name in ("", "x", good + "x", "x" + good, good[:-2], good.upper(), ".tmp", good + "\n", good.replace("-", "_", 1)):
        assert parse_key(name, "alice") is None, name


def test_entries_may_be_repeated(tmp_path: Path) -> None:
    queue = new_store(tmp_path / "spool").queue
    key = make_key(new_id(), 1, 0)
    queue.remove("s", "u", key)
    queue.add("s", "u", key)
    queue.add("s", "u", key)
    assert [entry.key for entry in queue.waiting("s", ["u"])] == [key]
    assert queue.waiting("s", ["v"]) == []
    assert (queue.sites(), queue.users("s")) == (["s"], ["u"])
    queue.remove("s", "u", key)
    queue.remove("s", "u", key)
    queue.remove("s", "u", "")
    assert queue.waiting("s", ["u"]) == []


def test_strangers_in_the_folders_are_ignored(tmp_path: Path) -> None:
    store = new_store(tmp_path / "spool")
    key = make_key(new_id(), 1, 0)
    store.queue.add("s", "u", key)
    (store.paths.queue_of("s", "u") / "note.txt").touch()
    (store.paths.queue / "README").touch()
    (store.paths.queue / "s" / "file").touch()
    assert [entry.key for entry in store.queue.waiting("s", ["u", "file", "absent"])] == [key]
    assert store.queue.users("README") == []
    job = new_id()
    store.queue.add_active("s", "agent", job)
    store.queue.add_active("s", "agent", job)
    (store.paths.active / "s" / "agent" / "x").touch()
    assert store.queue.active("s", "agent") == [job]
    store.queue.remove_active("s", "", job)
    store.queue.remove_active("s", "agent", job)
    store.queue.remove_active("s", "agent", job)
    assert store.queue.active("s", "agent") == []


def test_the_order_over_users(tmp_path: Path) -> None:
    store = new_store(tmp_path / "spool")
    keys = [make_key(new_id(), 1, priority) for priority in (0, 5, 0, -3)]
    for user, key in zip("abab", keys):
        store.queue.add("s", user, key)
    assert [entry.key for entry in store.queue.waiting("s", ["a", "b"])] == [keys[1], keys[0], keys[2], keys[3]]
