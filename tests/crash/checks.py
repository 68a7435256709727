"""What must hold of a spool at any moment, and at the end; and a job driven to its end as its real callers would."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from crash.api import sync, token
from crash.cases import ASKED, Case, result_of, send
from crash.inventory import DECK, FILES, MANIFEST
from crash.operations import Operation, enqueue, put_input, take_in
from server.spools import AGENT, SITE, USER, drop
from spool.records import JobState, Result
from spool.results import accept
from spool.scratch import sweep
from spool.states import FINAL, WITH_SITE, State
from spool.store import Store

BY_HAND = ("submit.", "check.", "spool.json.")  # what only a person removes from tmp/ (docs/format.md, "After a crash")
STEPS = 12  # more than any job needs from its beginning to its end


def places(store: Store, job_id: str) -> list[Path]:
    """Where the job or the drop is, as a whole folder."""
    paths = store.paths
    found = [paths.drop / job_id, paths.accepting(job_id) / "job", paths.jobs / job_id, paths.rejected / job_id]
    return [path for path in found if path.exists()]


def at_any_moment(store: Store, case: Case, before: int, *, twice: bool = False) -> None:
    """Nothing is lost, nothing is there twice, no record is torn, and no index lists too little."""
    paths = store.paths
    found = places(store, case["job"])
    assert before <= len(found) <= (2 if twice else 1), f"the job is at {found}"
    assert os.listdir(paths.corrupt) == []
    assert set(os.listdir(paths.jobs)) <= {case["job"]}
    decks = [folder / "in" / "beam.inp" for folder in found]
    assert {path.read_bytes() for path in decks if path.exists()} <= {DECK}
    if paths.jobs / case["job"] in found:
        job_at_any_moment(store, JobState.parse(paths.job(case["job"]).state.read_bytes()))


def job_at_any_moment(store: Store, state: JobState) -> None:
    record_at_any_moment(store, state)
    if state.state != State.NEW and state.inputs:
        assert (store.paths.job(state.id).inputs / "beam.inp").read_bytes() == DECK
    if state.state == State.COMPLETED:
        came_back(store, state)


def record_at_any_moment(store: Store, state: JobState) -> None:
    """Of any job: its records can be read, its history has no hole, the indexes name it."""
    paths, job = store.paths, store.paths.job(state.id)
    json.loads(job.job.read_bytes())
    if state.state == State.QUEUED:
        assert (paths.queue_of(state.site, state.user) / state.queue_key).exists(), "queued, and nobody will claim it"
    if state.state == State.NEW:
        assert (paths.new / state.id).exists(), "new, and it will never expire"
    if state.state in WITH_SITE:
        assert (paths.active / state.site / state.agent / state.id).exists(), "with its site, and nobody will ask for it"
    revisions = revisions_of(store, state)
    assert revisions in (list(range(1, state.revision + 1)), list(range(1, state.revision))), f"history has {revisions}"
    assert [entry.revision for entry in store.history(state)] == list(range(1, state.revision + 1))
    if job.result.exists():
        Result.parse(job.result.read_bytes())


def came_back(store: Store, state: JobState) -> None:
    """Byte for byte; a requeue that was killed has moved some of it to `attempts/N/` already."""
    job = store.paths.job(state.id)
    found, results = {}, []
    for folder in (job.folder, job.attempt(state.attempt)):
        for path in (*(folder / "out").rglob("*"), *(folder / "log").rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
        if (folder / "result.json").exists():
            results.append(Result.parse((folder / "result.json").read_bytes()))
    assert found == FILES
    assert [(result.run_id, result.files) for result in results] == [(state.run_id, MANIFEST)]


def revisions_of(store: Store, state: JobState) -> list[int]:
    return [int(line["revision"]) for line in lines_of(store, state.id)]


def lines_of(store: Store, job_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.paths.job(job_id).history.read_bytes().splitlines()]


def drive(store: Store, case: Case) -> JobState:
    """Have the job go on, as submitter, server and agent would after a restart, until it has ended."""
    if not places(store, case["job"]):
        drop(store, case["job"], **ASKED)
    for _ in range(STEPS):
        if places(store, case["job"]) != [store.paths.jobs / case["job"]] or store.paths.accepting(case["job"]).exists():
            take_in(store.paths.root, case)
            if (store.paths.rejected / case["job"]).exists():
                (store.paths.rejected / case["job"]).rename(store.paths.root.parent / "seen")
                drop(store, case["job"], **ASKED)
            continue
        state = store.state(case["job"])
        if state.state in FINAL:
            return state
        step(store, case, state)
    raise AssertionError(f"job {case['job']} does not end: {store.state(case['job'])}")


def step(store: Store, case: Case, state: JobState) -> None:
    if state.state == State.NEW:
        put_input(store.paths.root, case)
        enqueue(store.paths.root, case)
    elif state.state == State.QUEUED:
        store.claim(SITE, [USER], agent=AGENT, room=1, order=(1, 3))
    elif state.state == State.CLAIMED:
        assert store.queue.active(SITE, AGENT) == [state.id], "no sync will tell it"
        store.start(state.id, state.run_id, by=AGENT, order=(1, 3))
    elif state.cancel_requested_at:
        accept(store, result_of(state, reason="canceled", files=()), by=AGENT)
    else:
        send(store, {**case, "run": state.run_id})
        accept(store, result_of(state), by=AGENT)


def to_the_end(store: Store, case: Case, operation: Operation) -> None:
    """The job ends as it should, can be had run once more, and leaves nothing behind but what the format names."""
    ended = drive(store, case)
    assert ended.state == operation.final, f"it ended as {ended.state}: {ended.message}"
    at_any_moment(store, case, 1)
    if operation.again:
        store.requeue(case["job"], by="t")
        ended = drive(store, case)
        assert ended.state == State.COMPLETED
        at_any_moment(store, case, 1)
        assert len(lines_of(store, ended.id)) == ended.revision, "the next write completes the history"
    exactly_once(store, ended, operation.claims)
    nothing_left(store, case)


def exactly_once(store: Store, ended: JobState, claims: int) -> None:
    lines = lines_of(store, ended.id)
    lines += [ended.last.encode()] if ended.last and len(lines) < ended.revision else []
    moves = Counter((line["attempt"], line["to"]) for line in lines if line["from"] != line["to"])
    for (attempt, word), count in moves.items():
        assert count <= (claims if word in ("claimed", "queued") else 1), f"attempt {attempt} became {word} {count} times"
    told = Counter((line["attempt"], line["why"]) for line in lines)
    remarks = {(line["attempt"], line["why"]) for line in lines if line["from"] == line["to"]}
    assert all(told[one] == 1 for one in remarks), f"told twice: {remarks}"
    for attempt in range(1, ended.attempt + 1):
        assert sum(moves[attempt, str(word)] for word in FINAL) == 1, f"attempt {attempt} has not exactly one end: {moves}"


def nothing_left(store: Store, case: Case) -> None:
    """The next claimer and the agent's next sync have cleared the indexes, a sweep and a look at the drop tmp/."""
    assert store.claim(SITE, [USER], agent=AGENT, room=1) == [], "claimed although it has ended"
    assert store.queue.waiting(SITE, [USER]) == []
    case = {**case, "token": case.get("token") or token(store)}
    sync(store.paths.root, case)
    assert store.queue.active(SITE, AGENT) == []
    sweep(store.paths, min_age_s=0)
    left = [name for name in os.listdir(store.paths.tmp) if not name.startswith(BY_HAND)]
    assert left == []
    assert [name for name in os.listdir(store.paths.drop) if not name.startswith(".taken.")] == []
    assert list(store.ids()) == [case["job"]], "something else counts as a job"
