"""Results: verified, accepted exactly once, and never mixed with those of another run."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Callable

import pytest

from server.crashing import each_crash
from server.spools import AGENT, claimed, history, in_state, new_store, result_of, running
from spool import results
from spool.errors import Conflict, DigestMismatch, InvalidRequest, StaleRun
from spool.incoming import Incoming
from spool.names import new_id
from spool.records import FileEntry, Job, JobState, Result
from spool.results import Outputs, accept, judge
from spool.runner import RunStatus
from spool.states import State
from spool.store import Store

FILES = {"out/beam.dat": b"1.0", "out/d/場.frd": b"2.0" * 1000, "log/stdout.txt": b"done\n"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "spool")


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def send(store: Store, state: JobState, files: dict[str, bytes] = FILES) -> Result:
    """Bring the files in as the agent does; the result that lists them."""
    incoming = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
    for name, data in files.items():
        here = incoming.offset(name)
        if here < len(data) or not data:
            incoming.append(name, here, io.BytesIO(data[here:]), len(data) - here)
    return result_of(state, tuple(entry(name, data) for name, data in files.items()))


def outcome(store: Store, job_id: str) -> dict[str, bytes]:
    folder = store.paths.job(job_id).folder
    found = [path for part in ("out", "log") for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_accepted_exactly_once(store: Store) -> None:
    state = running(store)
    result = send(store, state)
    ended = accept(store, result, by=AGENT)
    assert (ended.state, ended.exit_code, ended.reason) == (State.COMPLETED, 0, "")
    assert outcome(store, state.id) == FILES
    assert store.result(state.id) == result
    assert not store.paths.job(state.id).incoming.exists()
    assert store.queue.active(state.site, AGENT) == []
    assert accept(store, result, by=AGENT) == ended
    other = result_of(state, (), reason="exit_nonzero", exit_code=3)
    assert accept(store, other, by=AGENT) == ended, "the stored result is the answer"
    assert store.result(state.id) == result
    assert [line["to"] for line in history(store, state.id)].count("completed") == 1


@pytest.mark.parametrize(
    ("reason", "word"),
    [("exit_nonzero", State.FAILED), ("wall_time", State.FAILED), ("canceled", State.CANCELED), ("", State.COMPLETED)],
)
def test_how_it_ends(store: Store, reason: str, word: State) -> None:
    state = running(store)
    ended = accept(store, result_of(state, reason=reason, message="why", exit_code=1), by=AGENT)
    assert (ended.state, ended.reason) == (word, reason if word == State.FAILED else "")
    assert ended.message == "why"


@pytest.mark.parametrize("word", [State.RUNNING, State.HELD, State.RETURNING])
def test_a_result_is_taken_from_every_state_of_a_started_run(store: Store, word: State) -> None:
    state = in_state(store, word)
    assert accept(store, send(store, state), by=AGENT).state == State.COMPLETED
    assert outcome(store, state.id) == FILES


@pytest.mark.parametrize("word", [State.NEW, State.QUEUED, State.EXPIRED])
def test_no_result_without_a_run(store: Store, word: State) -> None:
    state = in_state(store, word)
    with pytest.raises(StaleRun):
        accept(store, Result(state.id, new_id(), 1), by=AGENT)
    assert store.state(state.id) == state


def test_claimed_cannot_complete_but_can_be_refused(store: Store) -> None:
    state = claimed(store)
    with pytest.raises(Conflict):
        accept(store, send(store, state), by=AGENT)
    assert store.state(state.id) == state
    assert store.result(state.id) is None
    assert outcome(store, state.id) == {}
    late = send(store, state)
    shutil.rmtree(store.paths.job(state.id).incoming)
    with pytest.raises(Conflict, match="claimed"):  # not that its files are damaged: a restored spool took none of them
        accept(store, late, by=AGENT)
    ended = accept(store, result_of(state, reason="refused_by_site", message="no", exit_code=None), by=AGENT)
    assert (ended.state, ended.reason) == (State.FAILED, "refused_by_site")


def test_a_stale_run_changes_nothing_and_its_data_stays_aside(store: Store) -> None:
    old = running(store)
    late = send(store, old)
    store.fail(old.id, old.run_id, by="t", reason="unreachable", message="")
    with pytest.raises(Conflict):
        accept(store, late, by=AGENT)
    store.requeue(old.id, by="t")
    with pytest.raises(StaleRun):
        accept(store, late, by=AGENT)
    (new,) = store.claim(old.site, [old.user], agent="b", room=1)
    new = store.start(new.id, new.run_id, by="b")
    with pytest.raises(StaleRun):
        accept(store, late, by=AGENT)
    assert accept(store, send(store, new, {"out/beam.dat": b"new"}), by="b").state == State.COMPLETED
    assert outcome(store, old.id) == {"out/beam.dat": b"new"}
    aside = store.paths.job(old.id).attempt(1) / "incoming" / old.run_id / "files" / "out" / "beam.dat"
    assert aside.read_bytes() == FILES["out/beam.dat"]


def test_the_wrong_attempt(store: Store) -> None:
    state = running(store)
    with pytest.raises(InvalidRequest):
        accept(store, Result(state.id, state.run_id, 2), by=AGENT)


def test_missing_and_damaged_files_are_named_and_thrown_away(store: Store) -> None:
    state = running(store)
    send(store, state)
    incoming = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
    wanted = {**FILES, "out/absent": b"x", "out/beam.dat": b"9.9", "out/d/場.frd": FILES["out/d/場.frd"] + b"more"}
    result = result_of(state, tuple(entry(name, data) for name, data in wanted.items()))
    with pytest.raises(DigestMismatch) as caught:
        accept(store, result, by=AGENT)
    for name in ("out/absent", "out/beam.dat", "out/d/場.frd"):
        assert name in caught.value.message
    assert "log/stdout.txt" not in caught.value.message
    assert incoming.offset("out/beam.dat") == 0, "wrong bytes of full length are thrown away"
    assert incoming.offset("out/d/場.frd") == 3000, "a shorter file is gone on with"
    assert incoming.offset("log/stdout.txt") == 5
    assert store.state(state.id) == state
    send(store, state, wanted)
    assert accept(store, result, by=AGENT).state == State.COMPLETED
    assert outcome(store, state.id) == wanted


def test_what_is_not_listed_is_not_merged(store: Store) -> None:
    state = running(store)
    send(store, state, {**FILES, "log/secret.txt": b"s", "out/d/secret": b"s"})
    assert (
        accept(store, result_of(state, tuple(entry(name, data) for name, data in FILES.items())), by=AGENT).state
        == State.COMPLETED
    )
    assert outcome(store, state.id) == FILES


def test_a_link_in_incoming_is_not_followed(store: Store, tmp_path: Path) -> None:
    state = running(store)
    incoming = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
    incoming.prepare()
    (incoming.files / "out").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (incoming.files / "out" / "x").symlink_to(tmp_path / "secret")
    with pytest.raises(Exception, match="regular file"):
        accept(store, result_of(state, (entry("out/x", b"secret"),)), by=AGENT)
    assert store.state(state.id).state == State.RUNNING


@pytest.mark.slow
@pytest.mark.parametrize("resend", ["repeat", "send everything again", "send one again", "send a tar again"])
def test_a_crash_anywhere_then_the_agent_carries_on(store: Store, resend: str) -> None:
    made: list[tuple[JobState, Result]] = []

    def prepare(step: int) -> Callable[[], object]:
        state = running(store)
        made.append((state, send(store, state)))
        mine = Store.open(store.paths.root)
        return lambda: accept(mine, made[-1][1], by=AGENT)

    for step in each_crash(prepare):
        state, result = made[-1]
        if resend == "send a tar again" and store.state(state.id).state != State.COMPLETED:
            incoming = Incoming(store.paths.job(state.id).incoming_of(state.run_id))
            incoming.put_group((name, io.BytesIO(data), len(data)) for name, data in FILES.items())
        elif resend != "repeat" and store.state(state.id).state != State.COMPLETED:
            send(store, state, FILES if resend == "send everything again" else {"out/beam.dat": FILES["out/beam.dat"]})
        try:
            ended = accept(store, result, by=AGENT)
        except OSError as error:
            raise AssertionError(f"killed at step {step}, the result can never be accepted: {error}") from error
        assert ended.state == State.COMPLETED
        assert outcome(store, state.id) == FILES
        lines = [line["revision"] for line in history(store, state.id)]
        assert len(lines) == len(set(lines))
        assert store.requeue(state.id, by="t").attempt == 2


def test_every_folder_of_the_outputs_is_durable_before_the_state_says_completed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's fsync does not make its name durable (fsync(2)): the folders need their own."""
    state = running(store)
    result = send(store, state)
    synced: set[int] = set()
    real_fsync, real_replace = os.fsync, results.replace_file
    at_result: list[set[int]] = []

    def fsync(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real_fsync(fd)

    def replace(path: Path, data: bytes) -> None:
        at_result.append(set(synced))
        real_replace(path, data)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(results, "replace_file", replace)
    accept(store, result, by=AGENT)
    paths = store.paths.job(state.id)
    assert {path.stat().st_ino for path in (paths.folder, paths.out, paths.out / "d", paths.log)} <= at_result[0]


# ---- how a run is judged

STATE = JobState(new_id(), State.RUNNING, "a", "b", 1, run_id=new_id())
ONE = Outputs(files=(entry("out/a", b""),), found=1)


@pytest.mark.parametrize(
    ("job", "status", "outputs", "reason"),
    [
        (Job("a", "c"), RunStatus("exited", exit_code=0), Outputs(), ""),
        (Job("a", "c"), RunStatus("exited", exit_code=3), Outputs(), "exit_nonzero"),
        (Job("a", "c"), RunStatus("exited", exit_code=137), Outputs(), "signal"),
        (Job("a", "c"), RunStatus("exited", exit_code=255), Outputs(), "exit_nonzero"),
        (Job("a", "c", outputs=("a",)), RunStatus("exited", exit_code=0), Outputs(missing=("a",)), "no_outputs"),
        (Job("a", "c", outputs=("a", "b")), RunStatus("exited", exit_code=0), Outputs(found=1, missing=("b",)), ""),
        (
            Job("a", "c", outputs=("a", "b"), require_all=True),
            RunStatus("exited", exit_code=0),
            Outputs(found=1, missing=("b",)),
            "missing_outputs",
        ),
        (Job("a", "c", outputs=("a",)), RunStatus("exited", exit_code=0), Outputs(found=1, withheld=("a: by the site",)), ""),
        (Job("a", "c", wall_time_s=5), RunStatus("exited", exit_code=143, wall_time=True), ONE, "wall_time"),
        (Job("a", "c"), RunStatus("exited", exit_code=127, spawn_failed=True), Outputs(), "spawn"),
        (Job("a", "c"), RunStatus("exited", exit_code=143, cancel=True), Outputs(), "canceled"),
        (Job("a", "c"), RunStatus("lost", why="reboot"), Outputs(), "lost"),
        (Job("a", "c"), RunStatus("lost", why="other"), Outputs(), "lost"),
        (Job("a", "c"), RunStatus("exited"), Outputs(), "lost"),
        (Job("a", "c"), RunStatus("exited", exit_code=1), ONE, "exit_nonzero"),
    ],
)
def test_the_verdict(job: Job, status: RunStatus, outputs: Outputs, reason: str) -> None:
    result = judge(job, STATE, status, outputs)
    assert result.reason == reason
    assert bool(result.message) == bool(reason)
    assert (result.id, result.run_id, result.attempt) == (STATE.id, STATE.run_id, STATE.attempt)
    assert Result.parse(result.encode()) == result
