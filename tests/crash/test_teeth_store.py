"""Two at one thing, brought together at the worst moment: each lock of the store, of the drops and of registering is needed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.crashing import each_crash, exit_code, fork
from server.spools import AGENT, SITE, USER, claimed, config, drop, in_state, job_json, new_store, quick_job
from spool.config import LiveConfig
from spool.drops import Drops, first_state
from spool.errors import Busy, Conflict
from spool.names import new_id
from spool.records import Job
from spool.registering import publish_new
from spool.scratch import sweep
from spool.server.contacts import Contacts
from spool.server.upkeep import Upkeep
from spool.staging import Staging
from spool.states import State
from spool.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")


@pytest.fixture
def store(folder: Path) -> Store:
    return new_store(folder / "spool")


class Beside:
    """What another process does meanwhile: it gets half a second, and where it has to wait for a lock, the rest after."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=work, daemon=True)

    def begin(self, *_: object) -> None:
        self._thread.start()
        self._thread.join(0.5)

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def after(real: Callable[..., Any], then: Callable[[], object]) -> Callable[..., Any]:
    """`real`, and then `then`."""

    def both(*args: Any, **keywords: Any) -> Any:
        made = real(*args, **keywords)
        then()
        return made

    return both


def test_a_claimer_between_the_entry_of_a_drop_and_its_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would find an entry without a job, and remove it."""
    name = drop(store)
    got: list[Any] = []
    claimer = Beside(lambda: got.extend(Store(store.paths).claim(SITE, [USER], agent=AGENT, room=1)))
    monkeypatch.setattr(store.queue, "add", after(store.queue.add, claimer.begin))
    assert Drops(store, workers=1).accept(name, config(store.paths.root.parent / "ini"))
    claimer.end()
    assert [state.id for state in got] == [name], "queued, and nobody will claim it"


def test_upkeep_between_the_entry_of_a_registration_and_its_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would find an entry without a job, and remove it: a job that never expires."""
    store.paths.ini.write_text("[site site-a]\ncommands = *\n")
    upkeep = Upkeep(Store(store.paths), LiveConfig(store.paths.ini), Contacts(store))
    looking = Beside(upkeep._expire)
    monkeypatch.setattr(store.queue, "add_new", after(store.queue.add_new, looking.begin))
    data = job_json()
    state = first_state(Job.parse(data), new_id(), USER, (), state=State.NEW, by=USER)
    publish_new(store, state, data)
    looking.end()
    assert store.queue.new() == [state.id]


def test_a_drop_that_another_process_works_on_is_left_to_it(store: Store) -> None:
    name = drop(store)
    with Staging(store.paths, name).held():
        with pytest.raises(Busy):
            Drops(store, workers=1).accept(name, config(store.paths.root.parent / "ini"))
        assert (store.paths.drop / name).is_dir()


def test_a_drop_that_comes_while_its_former_is_cleared_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staging folder's lock goes last: whoever makes a new one finds nothing that is still to be removed."""
    name = drop(store)
    staging = Staging(store.paths, name)
    real = os.unlink

    def unlink(path: Any, **keywords: Any) -> None:
        real(path, **keywords)
        if Path(path).name == "lock":
            monkeypatch.undo()
            with Staging(store.paths, name).held():
                staging.move_in(store.paths.drop / name)

    with staging.held():
        (staging.folder / "owner").write_text("0")
        monkeypatch.setattr(os, "unlink", unlink)
        staging.clear()
    assert (staging.job / "in" / "beam.inp").is_file(), "the new drop is gone"


def test_a_sweep_takes_no_drop(store: Store) -> None:
    staging = Staging(store.paths, drop(store))
    with staging.held():
        staging.move_in(store.paths.drop / staging.job_id)
    assert sweep(store.paths, min_age_s=0) == []
    assert staging.job.is_dir()


def test_a_hand_over_killed_anywhere_is_listed(store: Store) -> None:
    """By the new name or by the former one: whoever looks after the job finds it."""

    def prepare(step: int) -> Callable[[], object]:
        nonlocal job_id
        job_id = claimed(store).id

        def hand_over() -> None:
            with store.locked(job_id) as state:
                store.hand_over(state, "agent-2")

        return hand_over

    job_id = ""
    for _ in each_crash(prepare):
        state = store.state(job_id)
        assert job_id in store.queue.active(SITE, state.agent)


PROCESSES, ROUNDS = 4, 60


def test_changes_of_one_job_by_many_processes_are_all_told(store: Store) -> None:
    """Without the lock two of them read the same revision, and one is overwritten."""
    made = quick_job(store, state=State.NEW)
    gate = os.pipe()

    def change() -> None:
        own = Store(store.paths)
        os.close(gate[1])
        os.read(gate[0], 1)
        for _ in range(ROUNDS):
            with own.locked(made.id) as state:
                own.write(state, state.state, by=str(os.getpid()), why="touched")

    pids = [fork(change) for _ in range(PROCESSES)]
    os.close(gate[0])
    os.close(gate[1])
    assert [exit_code(pid, 60) for pid in pids] == [0] * PROCESSES
    state = store.state(made.id)
    assert state.revision == 1 + PROCESSES * ROUNDS
    told = [json.loads(line)["revision"] for line in store.paths.job(made.id).history.read_bytes().splitlines()]
    assert told[-PROCESSES * ROUNDS :] == list(range(2, state.revision + 1))


def test_a_start_and_a_cancel_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One comes first: a job that was canceled as not started is never told to start."""
    state = claimed(store)
    starts: list[object] = []

    def start() -> None:
        try:
            starts.append(Store(store.paths).start(state.id, state.run_id, by=AGENT))
        except Conflict as exc:
            starts.append(exc)

    starting = Beside(start)
    real = store.state

    def read(job_id: str) -> Any:
        found = real(job_id)
        monkeypatch.undo()
        starting.begin()
        return found

    monkeypatch.setattr(store, "state", read)
    store.cancel(state.id, by="t")
    starting.end()
    assert store.state(state.id).state == State.CANCELED
    assert isinstance(starts[0], Conflict), "canceled as not started, and started"


def test_only_its_own_run_can_be_lost(store: Store) -> None:
    """What an agent no longer lists of an attempt before says nothing of this one."""
    state = in_state(store, State.RUNNING)
    late = (state.agent_order[0] + 1, 0)
    assert store.lose(state.id, new_id(), by=AGENT, order=late, message="").state == State.RUNNING
    assert store.lose(state.id, state.run_id, by=AGENT, order=state.agent_order, message="").state == State.RUNNING
    assert store.lose(state.id, state.run_id, by=AGENT, order=late, message="").state == State.FAILED


def test_what_has_ended_cannot_be_started(store: Store) -> None:
    for word in (State.COMPLETED, State.FAILED):
        state = in_state(store, word)
        with pytest.raises(Conflict):
            store.start(state.id, state.run_id, by=AGENT)
