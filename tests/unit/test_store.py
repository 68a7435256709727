"""Every change of state: what is allowed where, what a crash leaves, and that a job is claimed once and never lost."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest

from server.crashing import each_crash, exit_code, fork, in_child
from server.spools import AGENT, DECK, SITE, USER, claimed, history, in_state, new_store, queued, quick_job, result_of, running
from spool import creation, jsonio
from spool.creation import open_spool
from spool.errors import ConfigError, Conflict, InvalidRecord, NotFound, SpoolError, StaleRun, UnknownFormat
from spool.names import new_id
from spool.records import JobState
from spool.results import accept
from spool.states import FINAL, State
from spool.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "spool")


def waiting(store: Store, user: str = USER) -> list[str]:
    return [entry.job_id for entry in store.queue.waiting(SITE, [user])]


# ---- every operation in every state

C, S, SAME = Conflict, StaleRun, "same"
Outcome = Any
TABLE: dict[str, dict[State, Outcome]] = {
    "enqueue": {**dict.fromkeys(State, SAME), State.NEW: State.QUEUED},
    "start": {
        **dict.fromkeys(State, C),
        State.NEW: S,
        State.QUEUED: S,
        State.CLAIMED: State.RUNNING,
        State.RUNNING: SAME,
        State.CANCELED: S,
        State.EXPIRED: S,
    },
    "returning": {
        **dict.fromkeys(State, SAME),
        State.NEW: S,
        State.QUEUED: S,
        State.RUNNING: State.RETURNING,
        State.HELD: State.RETURNING,
        State.CANCELED: S,
        State.EXPIRED: S,
    },
    "hold": {
        **dict.fromkeys(State, SAME),
        State.NEW: S,
        State.QUEUED: S,
        State.RUNNING: State.HELD,
        State.CANCELED: S,
        State.EXPIRED: S,
    },
    "fail": {
        **dict.fromkeys(State, State.FAILED),
        State.NEW: S,
        State.QUEUED: S,
        State.COMPLETED: SAME,
        State.FAILED: SAME,
        State.CANCELED: S,
        State.EXPIRED: S,
    },
    "give_back": {**dict.fromkeys(State, SAME), State.CLAIMED: State.QUEUED},
    "cancel": {
        State.NEW: State.CANCELED,
        State.QUEUED: State.CANCELED,
        State.CLAIMED: State.CANCELED,
        State.RUNNING: "asked",
        State.HELD: "asked",
        State.RETURNING: "asked",
        State.COMPLETED: C,
        State.FAILED: C,
        State.CANCELED: SAME,
        State.EXPIRED: C,
    },
    "requeue": {**dict.fromkeys(State, C), **dict.fromkeys(FINAL, State.QUEUED)},
    "expire": dict.fromkeys(State, SAME),
    "claim": {**dict.fromkeys(State, SAME), State.QUEUED: State.CLAIMED},
}


def operate(store: Store, operation: str, state: JobState) -> Callable[[], object]:
    run = state.run_id or new_id()
    calls: dict[str, Callable[[], object]] = {
        "enqueue": lambda: store.enqueue(state.id, by="t"),
        "start": lambda: store.start(state.id, run, by="t"),
        "returning": lambda: store.returning(state.id, run, by="t"),
        "hold": lambda: store.hold(state.id, run, by="t"),
        "fail": lambda: store.fail(state.id, run, by="t", reason="lost", message="gone"),
        "give_back": lambda: store.give_back(state.id, run, by="t", why="silent"),
        "cancel": lambda: store.cancel(state.id, by="t"),
        "requeue": lambda: store.requeue(state.id, by="t"),
        "expire": lambda: store.expire(state.id),
        "claim": lambda: store.claim(SITE, [USER], agent="agent-2", room=9),
    }
    return calls[operation]


@pytest.mark.parametrize("operation", TABLE)
@pytest.mark.parametrize("word", list(State))
def test_every_operation_in_every_state(store: Store, operation: str, word: State) -> None:
    before = in_state(store, word)
    assert before.state == word
    outcome = TABLE[operation][word]
    work = operate(store, operation, before)
    if outcome in (C, S):
        with pytest.raises(outcome) as caught:
            work()
        assert caught.value.hint
    else:
        work()
    after = store.state(before.id)
    if outcome in (C, S, SAME):
        assert after == before
    elif outcome == "asked":
        assert (after.state, bool(after.cancel_requested_at), after.cancel_requested_by) == (word, True, "t")
    else:
        assert after.state == outcome
        assert after.revision > before.revision
    check_indexes(store, after)
    if outcome not in (C, S) and operation != "requeue":
        again = store.state(before.id)
        work()
        assert store.state(before.id) == again, "not safe to repeat"


def check_indexes(store: Store, state: JobState) -> None:
    """The indexes may list too much, never too little."""
    if state.state == State.QUEUED:
        assert state.queue_key in [entry.key for entry in store.queue.waiting(state.site, [state.user])]
    if state.agent and state.state not in FINAL:
        assert state.id in store.queue.active(state.site, state.agent)


@pytest.mark.parametrize("word", [State.CLAIMED, State.RUNNING, State.HELD, State.RETURNING])
def test_another_run_changes_nothing(store: Store, word: State) -> None:
    before = in_state(store, word)
    for run in (new_id(), "", "x"):
        for work in (store.start, store.returning):
            with pytest.raises(StaleRun):
                work(before.id, run, by="t")
        with pytest.raises(StaleRun):
            store.fail(before.id, run, by="t", reason="lost", message="")
        store.give_back(before.id, run, by="t", why="")
    assert store.state(before.id) == before


# ---- claiming


def test_the_order_of_claims(store: Store) -> None:
    jobs = [quick_job(store, priority=priority) for priority in (0, 7, 0, -1)]
    assert [state.id for state in store.claim(SITE, [USER], agent="a", room=2)] == [jobs[1].id, jobs[0].id]
    assert [state.id for state in store.claim(SITE, [USER], agent="a", room=9)] == [jobs[2].id, jobs[3].id]
    assert store.claim(SITE, [USER], agent="a", room=9) == []


def test_room_sites_and_users(store: Store) -> None:
    job = quick_job(store)
    assert store.claim(SITE, [USER], agent="a", room=0) == []
    assert store.claim(SITE, [USER], agent="a", room=-1) == []
    assert store.claim("other", [USER], agent="a", room=1) == []
    assert store.claim(SITE, ["bob"], agent="a", room=1) == []
    assert store.claim(SITE, [], agent="a", room=1) == []
    (state,) = store.claim(SITE, ["bob", USER], agent="a", room=1)
    assert (state.id, state.agent, state.attempt, state.state) == (job.id, "a", 1, State.CLAIMED)
    assert state.run_id
    assert state.claimed_at


def test_each_claim_has_a_fresh_run(store: Store) -> None:
    first = claimed(store)
    store.give_back(first.id, first.run_id, by="t", why="silent")
    (second,) = store.claim(SITE, [USER], agent="b", room=1)
    assert second.run_id not in ("", first.run_id)
    with pytest.raises(StaleRun):
        store.start(first.id, first.run_id, by=AGENT)
    assert store.start(first.id, second.run_id, by="b").state == State.RUNNING


@pytest.mark.slow
def test_400_jobs_and_8_processes(store: Store) -> None:
    jobs = {quick_job(store).id for _ in range(400)}
    out = store.paths.root.parent / "claimed"
    out.mkdir()

    def claim(who: int) -> None:
        mine = Store.open(store.paths.root)
        found: list[str] = []
        while got := mine.claim(SITE, [USER], agent=f"agent-{who}", room=3):
            found += [state.id for state in got]
        (out / str(who)).write_text("\n".join(found))

    pids = [fork(lambda who=who: claim(who)) for who in range(8)]  # type: ignore[misc]
    assert [exit_code(pid, 100) for pid in pids] == [0] * 8
    counted = Counter(job for path in out.iterdir() for job in path.read_text().split())
    assert set(counted) == jobs
    assert set(counted.values()) == {1}
    assert waiting(store) == []
    runs = Counter(state.run_id for state in store.states())
    assert len(runs) == 400
    assert all(store.state(job).state == State.CLAIMED for job in jobs)


def test_stale_entries_are_removed_on_the_way(store: Store) -> None:
    canceled, good = quick_job(store), quick_job(store)
    key = canceled.queue_key
    store.cancel(canceled.id, by="t")
    store.queue.add(SITE, USER, key)  # as a crash between state and index leaves it
    store.queue.add(SITE, USER, key.replace(canceled.id, new_id()))  # of a job that is gone
    assert [state.id for state in store.claim(SITE, [USER], agent="a", room=9)] == [good.id]
    assert waiting(store) == []


def test_an_entry_of_an_earlier_time_does_not_claim(store: Store) -> None:
    """The KEY names the attempt and the time: only the entry that the state names counts."""
    first = claimed(store)
    old_key = first.last.at if first.last else ""
    assert old_key
    store.give_back(first.id, first.run_id, by="t", why="silent")
    state = store.state(first.id)
    stale = state.queue_key.replace(f"{state.id}.1", f"{state.id}.7")
    store.queue.add(SITE, USER, stale)
    store.queue.remove(SITE, USER, state.queue_key)
    assert store.claim(SITE, [USER], agent="a", room=1) == []


def test_expired_jobs_are_not_claimed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = quick_job(store, expires_at="2000-01-01T00:00:00Z")
    assert store.claim(SITE, [USER], agent="a", room=1) == []
    state = store.state(job.id)
    assert (state.state, state.queue_key) == (State.EXPIRED, "")
    assert "2000" in (state.last.why if state.last else "")
    assert waiting(store) == []
    new = quick_job(store, state=State.NEW, expires_at="2000-01-01T00:00:00Z")
    assert store.expire(new.id).state == State.EXPIRED
    later = quick_job(store, expires_at="2999-01-01T00:00:00Z")
    assert store.expire(later.id).state == State.QUEUED


# ---- crashes


def test_a_claim_killed_anywhere_loses_nothing(store: Store) -> None:
    jobs: list[str] = []

    def prepare(step: int) -> Callable[[], object]:
        jobs.append(quick_job(store).id)
        mine = Store.open(store.paths.root)
        return lambda: mine.claim(SITE, [USER], agent=AGENT, room=1)

    for _ in each_crash(prepare):
        state = store.state(jobs[-1])
        check_indexes(store, state)
        if state.state == State.QUEUED:
            (state,) = store.claim(SITE, [USER], agent=AGENT, room=1)
        assert state.state == State.CLAIMED
        assert state.id in store.queue.active(SITE, AGENT)
        assert store.start(state.id, state.run_id, by=AGENT).state == State.RUNNING
        whole_history(store, state.id)
        assert store.claim(SITE, [USER], agent=AGENT, room=1) == []
    assert len({store.state(job).run_id for job in jobs}) == len(jobs)


def test_an_enqueue_killed_anywhere_can_be_repeated(store: Store) -> None:
    jobs: list[str] = []

    def prepare(step: int) -> Callable[[], object]:
        jobs.append(quick_job(store, state=State.NEW).id)
        mine = Store.open(store.paths.root)
        return lambda: mine.enqueue(jobs[-1], by="t")

    for _ in each_crash(prepare):
        check_indexes(store, store.state(jobs[-1]))
        store.enqueue(jobs[-1], by="t")
        assert [state.id for state in store.claim(SITE, [USER], agent=AGENT, room=9)] == [jobs[-1]]
        whole_history(store, jobs[-1])


def test_a_give_back_killed_anywhere_keeps_the_job(store: Store) -> None:
    jobs: list[JobState] = []

    def prepare(step: int) -> Callable[[], object]:
        jobs.append(claimed(store))
        mine = Store.open(store.paths.root)
        return lambda: mine.give_back(jobs[-1].id, jobs[-1].run_id, by="t", why="silent")

    for _ in each_crash(prepare):
        check_indexes(store, store.state(jobs[-1].id))
        store.give_back(jobs[-1].id, jobs[-1].run_id, by="t", why="silent")
        (state,) = store.claim(SITE, [USER], agent="agent-2", room=9)
        assert state.id == jobs[-1].id
        assert state.id in store.queue.active(SITE, "agent-2")
        whole_history(store, state.id)


def test_a_requeue_killed_anywhere_can_be_repeated(store: Store) -> None:
    jobs: list[str] = []

    def prepare(step: int) -> Callable[[], object]:
        state = running(store)
        folder = store.paths.job(state.id).folder
        for name in ("out", "log", "work", "run"):
            (folder / name).mkdir()
            (folder / name / "x").write_text(name)
        accept(store, result_of(state), by=AGENT)
        jobs.append(state.id)
        mine = Store.open(store.paths.root)
        return lambda: mine.requeue(state.id, by="t")

    for _ in each_crash(prepare):
        state = store.state(jobs[-1])
        check_indexes(store, state)
        if state.state == State.COMPLETED:
            state = store.requeue(state.id, by="t")
        paths = store.paths.job(state.id)
        assert (state.state, state.attempt, state.run_id) == (State.QUEUED, 2, "")
        assert {path.name for path in paths.attempt(1).iterdir()} == {"out", "log", "work", "run", "result.json"}
        assert (paths.attempt(1) / "out" / "x").read_text() == "out"
        assert not paths.out.exists()
        whole_history(store, state.id)
        assert len(store.claim(SITE, [USER], agent=AGENT, room=9)) == 1


@pytest.mark.parametrize("operation", ["cancel", "fail", "start"])
def test_other_changes_killed_anywhere(store: Store, operation: str) -> None:
    jobs: list[JobState] = []

    def prepare(step: int) -> Callable[[], object]:
        jobs.append(claimed(store))
        return operate(Store.open(store.paths.root), operation, jobs[-1])

    for _ in each_crash(prepare):
        check_indexes(store, store.state(jobs[-1].id))
        operate(store, operation, jobs[-1])()
        assert store.state(jobs[-1].id).state != State.CLAIMED
        whole_history(store, jobs[-1].id)


def whole_history(store: Store, job_id: str) -> None:
    """After the next change every revision stands in history.jsonl, in order and once."""
    with store.locked(job_id) as state:
        store.write(state, state.state, by="t", why="remark")
    found = [line["revision"] for line in history(store, job_id)]
    assert found == sorted(set(found))
    last = store.state(job_id).revision
    assert found[-1] == last
    # The quick jobs of these tests have no line for their first revision but the one the first change completes.
    assert found == list(range(found[0], last + 1))


# ---- history


def test_history_heals_when_the_last_line_was_lost(store: Store) -> None:
    job = claimed(store)
    path = store.paths.job(job.id).history
    whole = path.read_bytes()
    for damaged in (whole[: whole.rstrip(b"\n").rfind(b"\n") + 1], whole[:-1], whole[:-20], b"", b"x"):
        path.write_bytes(damaged)
        whole_history_after_a_change(store, job.id)
    path.unlink()
    whole_history_after_a_change(store, job.id)


def whole_history_after_a_change(store: Store, job_id: str) -> None:
    with store.locked(job_id) as state:
        store.write(state, state.state, by="t", why="remark")
    tail = [line["revision"] for line in history(store, job_id)][-2:]
    now = store.state(job_id).revision
    assert tail == [now - 1, now]


def test_history_tells_who_and_why(store: Store) -> None:
    state = queued(store)
    (state,) = store.claim(SITE, [state.user], agent=AGENT, room=1)
    store.start(state.id, state.run_id, by=AGENT)
    accept(store, result_of(state), by=AGENT)
    lines = history(store, state.id)
    assert [(line["from"], line["to"]) for line in lines] == [
        ("", "queued"),
        ("queued", "claimed"),
        ("claimed", "running"),
        ("running", "returning"),
        ("returning", "completed"),
    ]
    assert {line["by"] for line in lines[1:]} == {AGENT}
    assert {line["run_id"] for line in lines[1:]} == {state.run_id}
    journal = [json.loads(line) for path in store.paths.journal.iterdir() for line in path.read_bytes().splitlines()]
    assert [(line["from"], line["to"]) for line in journal] == [(line["from"], line["to"]) for line in lines]


def test_a_journal_that_cannot_be_written_stops_nothing(store: Store) -> None:
    store.paths.journal.rmdir()
    store.paths.journal.write_bytes(b"")
    assert running(store).state == State.RUNNING


def test_a_very_long_message_does_not_break_the_history(store: Store) -> None:
    state = running(store)
    store.fail(state.id, state.run_id, by=AGENT, reason="lost", message="x" * 200_000)
    store.requeue(state.id, by="t")
    assert [line["revision"] for line in history(store, state.id)] == sorted(
        {line["revision"] for line in history(store, state.id)}
    )


# ---- requeue


@pytest.mark.parametrize("word", sorted(FINAL))
def test_requeue_makes_a_new_attempt_and_fences_the_old(store: Store, word: State) -> None:
    before = in_state(store, word)
    state = store.requeue(before.id, by="boss")
    assert (state.state, state.attempt, state.run_id, state.agent, state.reason) == (State.QUEUED, before.attempt + 1, "", "", "")
    assert (state.exit_code, state.cancel_requested_at, state.ended_at) == (None, "", "")
    (again,) = store.claim(SITE, [USER], agent="b", room=1)
    store.start(again.id, again.run_id, by="b")
    if before.run_id:
        with pytest.raises(StaleRun):
            accept(store, result_of(before), by=AGENT)
        with pytest.raises(StaleRun):
            store.fail(before.id, before.run_id, by=AGENT, reason="lost", message="")
    assert store.state(before.id).state == State.RUNNING


# ---- damaged records


def damaged(state: JobState) -> dict[str, Callable[[Path], object]]:
    def edit(**keys: Any) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(jsonio.dumps({**json.loads(state.encode()), **keys}))

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to("/etc/passwd")

    return {
        "empty": lambda path: path.write_bytes(b""),
        "half": lambda path: path.write_bytes(path.read_bytes()[:50]),
        "binary": lambda path: path.write_bytes(os.urandom(64)),
        "missing": lambda path: path.unlink(),
        "folder": folder,
        "link": link,
        "state word": edit(state="done"),
        "other id": edit(id=new_id()),
        "no id": edit(id="x"),
        "user": edit(user="a b"),
        "site": edit(site=".."),
        "input name": edit(inputs=[{"path": "../x", "size": 1, "sha256": "a" * 64}]),
        "format": edit(format=99),
        "expiry": edit(expires_at="tomorrow"),
    }


@pytest.mark.parametrize("kind", damaged(JobState(new_id(), State.NEW, "a", "b", 1)))
def test_a_damaged_record_never_stops_the_others(store: Store, kind: str) -> None:
    bad, good = quick_job(store, priority=9), quick_job(store)
    damaged(bad)[kind](store.paths.job(bad.id).state)
    assert [state.id for state in store.claim(SITE, [USER], agent="a", room=9)] == [good.id]
    assert good.id in [state.id for state in store.states()]


@pytest.mark.parametrize(
    "kind", [kind for kind in damaged(JobState(new_id(), State.NEW, "a", "b", 1)) if kind not in ("format", "expiry")]
)
def test_a_damaged_job_goes_to_corrupt_with_a_reason(store: Store, kind: str) -> None:
    bad = quick_job(store)
    damaged(bad)[kind](store.paths.job(bad.id).state)
    assert list(store.states()) == []
    assert not store.paths.job(bad.id).folder.exists()
    reason = json.loads((store.paths.corrupt / bad.id / "reason.json").read_bytes())
    assert reason["id"] == bad.id
    assert reason["why"]
    assert reason["hint"]
    assert (store.paths.corrupt / bad.id / "job.json").exists()
    with pytest.raises(NotFound):
        store.state(bad.id)


def test_a_job_of_a_newer_format_is_left_where_it_is(store: Store) -> None:
    bad = quick_job(store)
    damaged(bad)["format"](store.paths.job(bad.id).state)
    with pytest.raises(UnknownFormat):
        store.state(bad.id)
    assert store.paths.job(bad.id).folder.exists()


def test_corrupt_twice_keeps_both(store: Store) -> None:
    first = quick_job(store)
    store.paths.job(first.id).state.write_bytes(b"1")
    assert list(store.states()) == []
    (store.paths.corrupt / first.id).rename(store.paths.jobs / first.id)
    assert list(store.states()) == []
    folder = quick_job(store)
    store.paths.job(folder.id).folder.rename(store.paths.jobs / first.id)  # someone copied a folder
    assert list(store.states()) == []
    assert len(os.listdir(store.paths.corrupt)) == 2


def test_what_is_not_there(store: Store) -> None:
    for work in (store.state, store.job, store.job_bytes):
        with pytest.raises(NotFound):
            work(new_id())
        with pytest.raises(SpoolError):
            work("../../etc")
    assert store.result(new_id()) is None


# ---- the spool


def test_a_foreign_format_is_refused_and_untouched(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    (root / "spool.json").write_text('{"format": 2, "id": "x", "epoch": "y", "shape": "other"}')
    (root / "stuff").mkdir()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])
    for create in (True, False):
        with pytest.raises(UnknownFormat) as caught:
            open_spool(root, create=create)
        assert "nothing was changed" in caught.value.hint
    assert sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")]) == before


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": "1", "id": "a", "epoch": "b"}'])
def test_a_broken_identity_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "spool.json").write_bytes(data)
    with pytest.raises(InvalidRecord):
        open_spool(tmp_path, create=True)


def test_no_spool_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_spool(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        open_spool(tmp_path / "other", create=True)
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        open_spool(tmp_path / "file", create=True)


@pytest.mark.slow
def test_creation_killed_anywhere_can_be_repeated(tmp_path: Path) -> None:
    roots: list[Path] = []

    def prepare(step: int) -> Callable[[], object]:
        roots.append(tmp_path / str(step))
        return lambda: open_spool(roots[-1], create=True)

    # Making 256 lock files one by one is nothing that a test need be killed in 256 times.
    for step in [*range(20), 275, 276, 277, 278, 279, 280, 281, 282, 283, 284]:
        work = prepare(step)
        in_child(work, kill_at=step)
        paths = open_spool(roots[-1], create=True)
        assert len(os.listdir(paths.locks)) == 256
        assert creation.identity(paths)[0]


def test_creation_raced_by_8_processes(tmp_path: Path) -> None:
    for number in range(6):
        root = tmp_path / str(number)

        def create(root: Path = root) -> None:
            paths = open_spool(root, create=True)
            (paths.root.parent / f"{root.name}.{os.getpid()}").write_text(" ".join(creation.identity(paths)))

        pids = [fork(create) for _ in range(8)]
        assert [exit_code(pid, 30) for pid in pids] == [0] * 8
        seen = {path.read_text() for path in tmp_path.glob(f"{number}.*")}
        assert seen == {" ".join(creation.identity(open_spool(root)))}


def test_a_creator_that_comes_second_opens_what_the_first_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one finishes between this one's look for spool.json and its listing of the folder."""
    root, real, made = tmp_path / "spool", os.makedirs, []

    def late(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(os, "makedirs", real)
        made.append(creation.identity(open_spool(root, create=True)))
        real(*args, **kwargs)

    monkeypatch.setattr(os, "makedirs", late)
    assert creation.identity(open_spool(root, create=True)) == made[0]


def test_the_modes_of_a_spool(tmp_path: Path) -> None:
    store = new_store(tmp_path / "spool")
    assert oct(store.paths.jobs.stat().st_mode)[-4:] == "2770"
    assert oct((store.paths.locks / "00").stat().st_mode)[-3:] == "660"
    assert DECK
