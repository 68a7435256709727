"""The store against a model of it: any operations in any order, killed anywhere; and many processes claiming at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from server.crashing import KILLED, exit_code, fork, in_child
from server.spools import SITE, USER, new_store, quick_job, result_of
from spool.errors import Conflict, StaleRun
from spool.names import new_id
from spool.paths import SpoolPaths
from spool.records import JobState
from spool.results import accept
from spool.states import FINAL, TRANSITIONS, WITH_SITE, State
from spool.store import Store

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
TIMEOUT_S = 7200 if EXHAUSTIVE else 900
AGENTS = ("a", "b")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # what is killed loses nothing that it has written
CRASH = st.one_of(st.none(), st.none(), st.integers(0, 40))  # before which change the process is killed; mostly it is not

# What an operation makes of a job in each state; where none is named it changes nothing.
AFTER: dict[str, dict[State, State]] = {
    "enqueue": {State.NEW: State.QUEUED},
    "start": {State.CLAIMED: State.RUNNING},
    "returning": dict.fromkeys((State.RUNNING, State.HELD), State.RETURNING),
    "hold": {State.RUNNING: State.HELD},
    "finish": dict.fromkeys((State.RUNNING, State.HELD, State.RETURNING), State.COMPLETED),
    "fail": dict.fromkeys(WITH_SITE, State.FAILED),
    "give_back": {State.CLAIMED: State.QUEUED},
    "cancel": dict.fromkeys((State.NEW, State.QUEUED, State.CLAIMED), State.CANCELED),
    "requeue": dict.fromkeys(FINAL, State.QUEUED),
    "force": dict.fromkeys((*FINAL, *WITH_SITE), State.QUEUED),
}


class Model(RuleBasedStateMachine):
    """`states` says where each job must be. A killed operation has happened or has not; which one, the spool says."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mint-model-", dir=MEMORY))
        self.states: dict[str, State] = {}
        self.runs: dict[str, list[str]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def make(self) -> None:
        self.store = new_store(self.folder / "spool")

    @rule(target=jobs, word=st.sampled_from((State.NEW, State.QUEUED)), priority=st.integers(-2, 2))
    def come(self, word: State, priority: int) -> str:
        made = quick_job(self.store, state=word, priority=priority)
        if word == State.NEW:
            self.store.queue.add_new(made.id)
        self.states[made.id], self.runs[made.id] = word, []
        return made.id

    @rule(agent=st.sampled_from(AGENTS), room=st.integers(1, 3), crash=CRASH)
    def claim(self, agent: str, room: int, crash: int | None) -> None:
        waiting = [key for key, word in self.states.items() if word == State.QUEUED]
        keys = {self.store.state(job_id).queue_key: job_id for job_id in waiting}
        first = {keys[key] for key in sorted(keys)[:room]}
        killed = self._do(lambda store: store.claim(SITE, [USER], agent=agent, room=room), crash)
        got = {job_id for job_id in waiting if self.store.state(job_id).state == State.CLAIMED}
        assert got <= first if killed else got == first, "first come first served within a priority"
        for job_id in got:
            state = self.store.state(job_id)
            assert state.agent == agent
            assert state.run_id not in self.runs[job_id], "a run_id came twice"
            self.states[job_id] = State.CLAIMED
            self.runs[job_id].append(state.run_id)

    @rule(job_id=jobs, name=st.sampled_from(sorted(AFTER)), crash=CRASH, late=st.booleans())
    def change(self, job_id: str, name: str, crash: int | None, late: bool) -> None:
        before = self.store.state(job_id)
        runs = self.runs[job_id]
        run_id = runs[0] if late and runs else before.run_id
        stale = name in ("start", "hold", "returning", "finish", "fail", "give_back") and (not run_id or run_id != before.run_id)
        killed = self._do(lambda store: self._operate(store, name, before, run_id), crash)
        expected = before.state if stale else AFTER[name].get(before.state, before.state)
        found = self.store.state(job_id)
        allowed = {expected, before.state, *self._between(name, before.state)} if killed else {expected}
        assert found.state in allowed, f"{name} made {found.state} of {before.state}"
        again = name in ("requeue", "force") and found.state == State.QUEUED != before.state
        assert found.attempt == before.attempt + again
        self.states[job_id] = found.state

    def _between(self, name: str, before: State) -> set[State]:
        """Where an operation of two writes may have been killed."""
        if name == "finish" and before in (State.RUNNING, State.HELD):
            return {State.RETURNING}
        return {State.FAILED} if name == "force" and before in WITH_SITE else set()

    def _operate(self, store: Store, name: str, state: JobState, run_id: str) -> None:
        calls: dict[str, Callable[[], object]] = {
            "enqueue": lambda: store.enqueue(state.id, by="m"),
            "start": lambda: store.start(state.id, run_id, by="m"),
            "returning": lambda: store.returning(state.id, run_id, by="m"),
            "hold": lambda: store.hold(state.id, run_id, by="m"),
            "finish": lambda: accept(store, replace(result_of(state), run_id=run_id or new_id()), by="m"),
            "fail": lambda: store.fail(state.id, run_id, by="m", reason="lost", message=""),
            "give_back": lambda: store.give_back(state.id, run_id, by="m", why=""),
            "cancel": lambda: store.cancel(state.id, by="m"),
            "requeue": lambda: store.requeue(state.id, by="m"),
            "force": lambda: store.requeue(state.id, by="m", force=True),
        }
        calls[name]()

    def _do(self, work: Callable[[Store], object], crash: int | None) -> bool:
        """Do it; True where it was killed on the way. What it must not do it refuses, and changes nothing."""

        def quietly() -> None:
            with contextlib.suppress(Conflict, StaleRun):
                work(Store(self.store.paths))

        if crash is None:
            quietly()
            return False
        code = in_child(quietly, kill_at=crash)
        assert code in (0, KILLED), f"ended with {code}"
        return code == KILLED

    @invariant()
    def as_the_model_says(self) -> None:
        for job_id, word in self.states.items():
            state = self.store.state(job_id)
            assert state.state == word
            entries_of(self.store, state)
            history_of(self.store, state)
        assert set(self.store.ids()) == set(self.states)


def entries_of(store: Store, state: JobState) -> None:
    """The indexes list the job where they must."""
    paths = store.paths
    if state.state == State.NEW:
        assert state.id in store.queue.new()
    if state.state == State.QUEUED:
        assert (paths.queue_of(state.site, state.user) / state.queue_key).exists()
    if state.state in WITH_SITE:
        assert state.id in store.queue.active(state.site, state.agent)


def history_of(store: Store, state: JobState) -> None:
    """Every change is told once, in order, and is one that the table allows; a crash may have taken the last line."""
    path = store.paths.job(state.id).history
    lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    revisions = [line["revision"] for line in lines]
    assert revisions in (list(range(1, state.revision + 1)), list(range(1, state.revision))), revisions
    for line in lines:
        if line["from"] and line["from"] != line["to"]:
            assert State(line["to"]) in TRANSITIONS[State(line["from"])]
    started = Counter(line["attempt"] for line in lines if line["to"] == "running" and line["from"] == "claimed")
    assert max(started.values(), default=0) <= 1, "started twice in one attempt"


TestModel = pytest.mark.timeout(TIMEOUT_S)(pytest.mark.slow(Model.TestCase))
TestModel.settings = settings(
    max_examples=500 if EXHAUSTIVE else 25, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


# ---- many processes

PROCESSES = 8
JOBS = 10_000 if EXHAUSTIVE else 2_000


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Store]:
    store = new_store(tmp_path / "spool")
    for _ in range(JOBS):
        quick_job(store)
    yield store
    shutil.rmtree(tmp_path / "spool")


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_many_processes_claim_at_once(many: Store, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Each job is one claimer's, and none is left over."""
    gate = os.pipe()

    def claimer(name: str) -> None:
        store = Store(SpoolPaths(many.paths.root))
        os.close(gate[1])
        os.read(gate[0], 1)  # until all are there
        with open(tmp_path / name, "w", encoding="ascii") as file:
            while got := store.claim(SITE, [USER], agent=name, room=20):
                file.writelines(f"{state.id} {state.run_id}\n" for state in got)

    names = [f"agent-{number}" for number in range(PROCESSES)]
    children = [fork(lambda name=name: claimer(name)) for name in names]
    os.close(gate[0])
    os.close(gate[1])
    assert [exit_code(pid, TIMEOUT_S - 100) for pid in children] == [0] * PROCESSES
    told = [line.split() for name in names for line in (tmp_path / name).read_text().splitlines()]
    assert Counter(job_id for job_id, _ in told).most_common(1)[0][1] == 1, "two claimers were given one job"
    assert {job_id for job_id, _ in told} == set(many.ids())
    assert many.queue.waiting(SITE, [USER]) == [], "left over"
    for job_id, run_id in told:
        state = many.state(job_id)
        assert (state.state, state.run_id, state.revision) == (State.CLAIMED, run_id, 2)
    assert sum(len(many.queue.active(SITE, name)) for name in names) == JOBS
    record_property("figures", f"model: {PROCESSES} processes claimed {JOBS} jobs at once, 0 twice, 0 left over")
