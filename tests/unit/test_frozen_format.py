"""A spool as this release wrote it on 2026-11-23: whatever comes later must load it, for ever. Never regenerate it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from server.spools import history, new_store, result_of
from spool.results import accept
from spool.states import State
from spool.store import Store

FROZEN = Path(__file__).resolve().parents[1] / "data" / "format-1"
# SHA-256 over the names and bytes of all the files: an edit of the sample is seen.
FINGERPRINT = "6fe3797549f086f3875d08afde4894dbca86bbae146c16142d857efbf628840d"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy, with the folders that git does not keep."""
    made = new_store(tmp_path / "spool")
    made.paths.spool_json.unlink()
    shutil.copytree(FROZEN, made.paths.root, dirs_exist_ok=True)
    return Store.open(made.paths.root)


def fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in FROZEN.rglob("*") if path.is_file()):
        digest.update(b"%s\0%d\0" % (str(path.relative_to(FROZEN)).encode(), path.stat().st_size) + path.read_bytes())
    return digest.hexdigest()


def by_state(store: Store) -> dict[State, str]:
    return {state.state: state.id for state in store.states()}


def test_the_sample_is_untouched() -> None:
    assert fingerprint() == FINGERPRINT


def test_every_job_loads_and_is_written_again_unchanged(store: Store) -> None:
    assert set(by_state(store)) == set(State)
    for state in store.states():
        written = json.loads(store.paths.job(state.id).state.read_bytes())
        again = json.loads(state.encode())
        assert again == written
        assert store.job(state.id).site == state.site
        assert [line["revision"] for line in history(store, state.id)][-1] == state.revision
    assert not list(store.paths.corrupt.iterdir())


def test_a_finished_job_has_its_result_and_its_later_keys(store: Store) -> None:
    job_id = by_state(store)[State.COMPLETED]
    state, result, job = store.state(job_id), store.result(job_id), store.job(job_id)
    assert result is not None
    assert [entry.path for entry in result.files] == ["out/beam.dat", "log/stdout.txt"]
    assert result.missing == ("*.frd",)
    assert [entry.path for entry in state.inputs] == ["beam.inp", "入力/格子.inp"]
    assert state.extra == {"x_later": {"kept": True}}
    assert job.extra == {"x_later": {"kept": True}}
    assert (job.args, job.labels) == (("-i", "beam"), {"名": "梁"})
    for entry in result.files:
        data = (store.paths.job(job_id).folder / entry.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)


def test_work_goes_on_where_it_was(store: Store) -> None:
    jobs = by_state(store)
    (state,) = store.claim("site-a", ["alice"], agent="agent-1", room=9)
    assert state.id == jobs[State.QUEUED]
    for word in (State.CLAIMED, State.RUNNING, State.HELD, State.RETURNING):
        assert jobs[word] in store.queue.active("site-a", "agent-1")
    running = store.state(jobs[State.RUNNING])
    assert accept(store, result_of(running), by="agent-1").state == State.COMPLETED
    assert store.enqueue(jobs[State.NEW], by="t").state == State.QUEUED
    for word in (State.FAILED, State.CANCELED, State.EXPIRED):
        assert store.requeue(jobs[word], by="t").attempt == 2
