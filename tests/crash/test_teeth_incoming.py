"""Appends, results, entries and tokens where two meet at the worst moment: what was judged before is judged again."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.crashing import exit_code, fork
from server.spools import AGENT, SITE, USER, claimed, new_store, result_of, running
from spool import results
from spool.config import LiveConfig
from spool.errors import Conflict, InvalidRequest, OffsetMismatch, StaleRun
from spool.files import append_line
from spool.incoming import Incoming
from spool.names import new_id
from spool.results import accept
from spool.server.contacts import Contacts
from spool.server.sync import Sync
from spool.server.tokens import TokenFile
from spool.server.wakeups import Wakeups
from spool.ssh import trip
from spool.states import State
from spool.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")


@pytest.fixture
def store(folder: Path) -> Store:
    return new_store(folder / "spool")


def test_a_chunk_into_a_file_that_was_thrown_away_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened before: its bytes would be acknowledged and go nowhere."""
    (folder / "run").mkdir()
    incoming = Incoming(folder / "run" / "incoming")
    incoming.append("out/場.dat", 0, io.BytesIO(b"wrong"), 5)
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if how != fcntl.LOCK_EX:  # of the folder, shared; then the file is opened
            real(fd, how)
            return
        monkeypatch.undo()
        incoming.restart("out/場.dat")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OffsetMismatch) as caught:
        incoming.append("out/場.dat", 5, io.BytesIO(b"more"), 4)
    assert caught.value.offset == 0
    assert incoming.append("out/場.dat", 0, io.BytesIO(b"right"), 5) == 5
    assert incoming.entry("out/場.dat").size == 5


def test_a_body_that_ends_early_counts_for_nothing(folder: Path) -> None:
    """Whoever cut it, the end was a clean one."""
    incoming = Incoming(folder / "incoming")
    with pytest.raises(InvalidRequest):
        incoming.append("out/場.dat", 0, io.BytesIO(b"half"), 8)
    assert incoming.offset("out/場.dat") == 0


def test_a_line_that_another_process_appends_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the file is where it is at the writing, not where it was at the look before."""
    path = folder / "journal.jsonl"
    append_line(path, b"1\n")
    real, looks = os.fstat, 0

    def fstat(fd: int) -> os.stat_result:
        nonlocal looks
        looks += 1
        found = real(fd)
        if looks < 2:  # the first is for what kind of file it is
            return found
        monkeypatch.undo()
        with open(path, "ab") as other:
            other.write(b"2\n")
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    append_line(path, b"3\n")
    assert path.read_bytes() == b"1\n2\n3\n"


@pytest.mark.parametrize("meanwhile", ["requeue", "end"])
def test_a_job_that_changes_while_its_result_is_verified(store: Store, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """The fence is asked again under the lock: a result of the run before is not merged into the next one."""
    state = running(store)
    arriving = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
    arriving.append("out/beam.dat", 0, io.BytesIO(b"1"), 1)
    result = result_of(state, (arriving.entry("out/beam.dat"),))
    real = results._verify

    def verify(*args: Any) -> None:
        real(*args)
        if meanwhile == "requeue":
            store.requeue(state.id, by="t", force=True)
        else:
            store.fail(state.id, state.run_id, by="t", reason="unreachable", message="")

    monkeypatch.setattr(results, "_verify", verify)
    with pytest.raises((StaleRun, Conflict)):
        accept(store, result, by=AGENT)
    now = store.state(state.id)
    assert now.state == (State.QUEUED if meanwhile == "requeue" else State.FAILED)
    assert not store.paths.job(state.id).out.exists()
    assert not store.paths.job(state.id).result.exists()


def test_an_entry_of_a_job_that_was_claimed_again_stays(store: Store) -> None:
    """Whoever found it stale looks once more, under the job's lock: else no sync would ever tell of the job."""
    state = claimed(store)
    store.paths.ini.write_text("[site site-a]\ncommands = *\n")
    sync = Sync(store, LiveConfig(store.paths.ini), Wakeups(0), Contacts(store))
    request: Any = SimpleNamespace(site=SITE, agent=AGENT)
    sync._drop_active(request, state.id)
    assert store.queue.active(SITE, AGENT) == [state.id]
    store.fail(state.id, state.run_id, by="t", reason="lost", message="")
    store.queue.add_active(SITE, AGENT, state.id)
    sync._drop_active(request, state.id)
    assert store.queue.active(SITE, AGENT) == []


def test_an_entry_of_the_push_is_judged(store: Store) -> None:
    made = claimed(store)
    with store.locked(made.id) as state:
        store.hand_over(state, trip.AGENT)
    trip.forget(store, SITE, made.id)
    assert store.queue.active(SITE, trip.AGENT) == [made.id]
    store.queue.add_active(SITE, trip.AGENT, gone := new_id())
    trip.forget(store, SITE, gone)
    assert store.queue.active(SITE, trip.AGENT) == [made.id]


PROCESSES, TOKENS = 4, 15


def test_tokens_made_by_many_at_once_are_all_there(folder: Path) -> None:
    path = folder / "tokens.json"
    gate = os.pipe()

    def add() -> None:
        os.close(gate[1])
        os.read(gate[0], 1)
        for _ in range(TOKENS):
            TokenFile(path).add(USER, ("agent",), ())

    pids = [fork(add) for _ in range(PROCESSES)]
    os.close(gate[0])
    os.close(gate[1])
    assert [exit_code(pid, 60) for pid in pids] == [0] * PROCESSES
    assert len(TokenFile(path).all()) == PROCESSES * TOKENS


def test_tokens_revoked_by_many_at_once_count_no_more(folder: Path) -> None:
    path = folder / "tokens.json"
    made = [TokenFile(path).add(USER, ("agent",), ())[1].id for _ in range(PROCESSES * 5)]
    gate = os.pipe()

    def revoke(number: int) -> None:
        os.close(gate[1])
        os.read(gate[0], 1)
        for token_id in made[number::PROCESSES]:
            TokenFile(path).revoke(token_id)

    pids = [fork(lambda number=number: revoke(number)) for number in range(PROCESSES)]  # type: ignore[misc]
    os.close(gate[0])
    os.close(gate[1])
    assert [exit_code(pid, 60) for pid in pids] == [0] * PROCESSES
    assert [token.id for token in TokenFile(path).all() if token.counts()] == []
