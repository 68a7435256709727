"""check --repair: each damage is found, put right and not found again; what cannot be told stays."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.damages import (
    DAMAGES,
    FILES,
    accepting,
    codes,
    examine,
    finished,
    journal_of,
    old,
    requeue_half,
    results_half,
    results_here,
    rewrite,
    taken,
    to_repair,
    with_file,
)
from server.crashing import exit_code, fork
from server.spools import AGENT, SITE, USER, config, history, in_state, new_store, queued, quick_job, result_of
from spool.creation import SPOOL_UMASK, link_config
from spool.ctl import checking, folder, house, leftovers
from spool.ctl.findings import PROBLEM, REPAIRED
from spool.errors import NotAllowed
from spool.incoming import Incoming
from spool.names import new_id
from spool.records import Input, Job
from spool.results import accept
from spool.states import State
from spool.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A healthy spool with a job in every state."""
    monkeypatch.setattr(house, "_HOLDERS_ARE_DONE_S", 0)
    monkeypatch.setattr(checking, "surroundings", lambda paths: ())
    before = os.umask(SPOOL_UMASK)
    made = new_store(tmp_path / "spool")
    link_config(made.paths, config(tmp_path / "ini").source or tmp_path)
    for word in State:
        in_state(made, word)
    examine(made, repair=True)  # the quick jobs have neither history nor journal
    assert codes(examine(made)) == []
    yield made
    os.umask(before)


def everything(store: Store) -> list[str]:
    return sorted(str(path) for path in store.paths.root.rglob("*"))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_found_put_right_and_not_found_again(store: Store, name: str) -> None:
    break_it, code = DAMAGES[name]
    break_it(store)
    before = everything(store)
    found = examine(store)
    assert code in codes(found)
    assert all(item.do for item in found)
    assert everything(store) == before, "check changed something"
    repaired = examine(store, repair=True)
    assert {item.code for item in repaired if item.level == REPAIRED} >= {code}
    assert [item for item in repaired if item.level == PROBLEM] == []
    assert all(item.done for item in repaired if item.level == REPAIRED)
    assert to_repair(examine(store)) == []
    assert to_repair(examine(store, repair=True)) == []


# ---- what becomes of it


def test_what_cannot_be_read_is_whole_in_corrupt_and_comes_back(store: Store) -> None:
    job_id = queued(store).id
    state_json = store.paths.job(job_id).state.read_bytes()
    store.paths.job(job_id).state.write_bytes(state_json[:30])
    examine(store, repair=True)
    kept = store.paths.corrupt / job_id
    assert (kept / "in" / "beam.inp").read_bytes()
    assert "not JSON" in json.loads((kept / "reason.json").read_text())["why"]
    assert not any(job_id in path.name for path in store.paths.queue.rglob("*")), "its entry is stale"
    (kept / "state.json").write_bytes(state_json)
    kept.rename(store.paths.jobs / job_id)
    examine(store, repair=True)
    (claimed,) = [state for state in store.claim(SITE, [USER], agent=AGENT, room=9) if state.id == job_id]
    assert claimed.state == State.CLAIMED


def test_results_that_were_all_here_are_accepted_once(store: Store) -> None:
    job_id = results_here(store)
    examine(store, repair=True)
    state = store.state(job_id)
    assert state.state == State.COMPLETED
    assert (store.paths.job(job_id).out / "beam.dat").read_bytes() == FILES["out/beam.dat"]
    result = store.result(job_id)
    assert result is not None
    assert accept(store, result, by=AGENT) == state, "the agent's repeat gets the stored state"


def test_the_runs_of_a_push_at_work_are_left_to_it(store: Store) -> None:
    job_id = results_here(store)
    rewrite(store, job_id, agent="ssh-push")
    store.queue.add_active(SITE, "ssh-push", job_id)
    with open(store.paths.locks / "ssh-push", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [item for item in examine(store, repair=True) if item.code == "results_here"]
        assert [item.level for item in found] == ["remark"]
        assert "at work" in found[0].do
    assert store.state(job_id).state == State.RETURNING
    examine(store, repair=True)
    assert store.state(job_id).state == State.COMPLETED


def test_half_moved_results_are_found_by_the_next_try(store: Store) -> None:
    job_id = results_half(store)
    examine(store, repair=True)
    state = store.state(job_id)
    assert state.state == State.RUNNING
    incoming = Incoming(store.paths.job(job_id).incoming_of(state.run_id))
    accept(store, result_of(state, tuple(incoming.entry(name) for name in FILES)), by=AGENT)
    assert store.state(job_id).state == State.COMPLETED


def test_a_requeue_that_stopped_is_undone_and_can_be_repeated(store: Store) -> None:
    job_id = requeue_half(store)
    examine(store, repair=True)
    assert (store.paths.job(job_id).out / "beam.dat").exists()
    assert not store.paths.job(job_id).attempts.exists()
    assert store.state(job_id).state == State.COMPLETED
    assert store.requeue(job_id, by="op").attempt == 2
    assert to_repair(examine(store)) == []


def test_a_drop_that_was_being_accepted_is_queued_and_one_without_ini_waits(store: Store) -> None:
    job_id = accepting(store)
    ini = store.paths.ini.readlink()
    store.paths.ini.unlink()
    (found,) = [item for item in examine(store, repair=True) if item.code == "tmp_accept"]
    assert found.level == "remark"
    assert "server" in found.do
    store.paths.ini.symlink_to(ini)
    examine(store, repair=True)
    assert store.state(job_id).state == State.QUEUED


def test_a_wrong_key_leads_to_no_path_outside(store: Store) -> None:
    job_id = rewrite(store, in_state(store, State.QUEUED).id, queue_key="../../../evil")
    other = rewrite(store, in_state(store, State.RUNNING).id, agent="../../../evil")
    found = examine(store, repair=True)
    assert [item.job for item in found if item.level == PROBLEM] == [other]
    assert not list(store.paths.root.parent.rglob("evil"))
    assert any(state.id == job_id for state in store.claim(SITE, [USER], agent=AGENT, room=9))


def test_the_journal_is_written_again_from_the_histories(store: Store) -> None:
    job_id = finished(store).id
    before = sorted(journal_of(store).read_bytes().splitlines())
    journal_of(store).unlink()
    assert "journal_lacks" in codes(examine(store))
    examine(store, repair=True)
    after = sorted(journal_of(store).read_bytes().splitlines())
    assert after == before, "the same lines, each once"
    assert sum(json.loads(line)["id"] == job_id for line in after) == store.state(job_id).revision


def test_days_that_were_cleaned_up_stay_so(store: Store) -> None:
    job_id = finished(store).id
    path = store.paths.job(job_id).history
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b'"at":"20', b'"at":"19') + b"".join(lines[1:]))
    assert codes(examine(store)) == []
    for found in store.paths.journal.iterdir():
        found.unlink()
    examine(store, repair=True)
    assert len(list(store.paths.journal.iterdir())) == 2, "nothing was there: all is written"


def test_a_hostile_instant_leads_to_no_path_outside(store: Store) -> None:
    job_id = finished(store).id
    path = store.paths.job(job_id).history
    path.write_bytes(path.read_bytes().replace(b'"at":"20', b'"at":"../../x', 1))
    examine(store, repair=True)
    assert all(len(found.name) == len("2026-01-01.jsonl") for found in store.paths.journal.iterdir())
    assert not list(store.paths.root.parent.rglob("..*"))


# ---- what is not touched


def test_what_may_be_someones_only_bytes_stays(store: Store) -> None:
    mine = old(with_file(store.paths.tmp / new_id() / "in" / "x", b"x").parent.parent)
    other = taken(store, other=b"other bytes")
    found = examine(store, repair=True)
    assert mine.is_dir()
    assert (store.paths.drop / f".taken.{other}" / "in" / "beam.inp").read_bytes() == b"other bytes"
    assert codes(found) == ["drop_taken", "tmp_other"]
    assert [item for item in found if item.level in (PROBLEM, REPAIRED)] == []


def test_half_an_original_goes_too(store: Store) -> None:
    job_id = taken(store)
    (store.paths.drop / f".taken.{job_id}" / "job.json").unlink()
    examine(store, repair=True)
    assert list(store.paths.drop.iterdir()) == []


def test_what_someone_works_on_stays(store: Store) -> None:
    held = [
        store.paths.tmp / f"submit.{new_id()}",
        store.paths.tmp / f"check.{'0' * 16}",
        store.paths.tmp / f"register.{new_id()}",
    ]
    fds = []
    for one in held:
        old(with_file(one / "x").parent)
        fds.append(os.open(one, os.O_RDONLY))
        fcntl.flock(fds[-1], fcntl.LOCK_EX)
    young = with_file(store.paths.tmp / f"submit.{new_id()}" / "x").parent
    job_id = accepting(store)
    lock = with_file(store.paths.tmp / f"accept.{job_id}" / "lock")
    fds.append(os.open(lock, os.O_RDWR))
    fcntl.flock(fds[-1], fcntl.LOCK_EX)
    examine(store, repair=True)
    assert all(one.is_dir() for one in (*held, young, lock.parent))
    for fd in fds:
        os.close(fd)
    examine(store, repair=True)
    assert [one.exists() for one in (*held, young, lock.parent)] == [False, False, False, True, False]


def test_records_of_a_newer_release_stay(store: Store) -> None:
    job_id = rewrite(store, in_state(store, State.QUEUED).id, format=2)
    found = examine(store, repair=True)
    assert codes(found) == ["record_newer"]
    assert store.paths.job(job_id).folder.is_dir()
    assert [path for path in store.paths.queue.rglob("*") if job_id in path.name], "its entry stays with it"


def test_a_link_in_place_of_a_folder_of_the_spool_stays(store: Store) -> None:
    elsewhere = store.paths.root.parent / "elsewhere"
    store.paths.jobs.rename(elsewhere)
    store.paths.jobs.symlink_to(elsewhere)
    found = examine(store, repair=True)
    assert codes(found) == ["folder_link"]
    assert store.paths.jobs.is_symlink()


def test_two_of_the_same_are_left_to_a_person(store: Store) -> None:
    job_id = requeue_half(store)
    with_file(store.paths.job(job_id).out / "beam.dat", b"another")
    (found,) = [item for item in examine(store, repair=True) if item.code == "requeue_half"]
    assert found.level == PROBLEM
    assert "attempts/1/ too" in found.do


def test_only_the_owner_repairs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(NotAllowed, match="owner"):
        checking.run(store.paths.root, as_json=True, repair=True)
    assert checking.run(store.paths.root, as_json=True) == 0


def test_completed_without_a_result_is_a_persons(store: Store) -> None:
    job_id = finished(store).id
    store.paths.job(job_id).result.unlink()
    assert [(item.code, item.level, item.job) for item in examine(store, repair=True)] == [("result_missing", PROBLEM, job_id)]


# ---- how it is told


def test_the_command(ctl: Any) -> None:
    job_id = ctl.submit()
    next(path for path in ctl.store.paths.queue.rglob("*") if path.is_file()).unlink()
    assert "check --repair" in ctl("check", code=1).stdout
    shown = ctl("check", "--repair").stdout
    assert job_id in shown
    assert "the entry was added" in shown
    assert "1 repaired" in shown
    ctl.store.paths.job(job_id).state.write_text("{")
    value = json.loads(ctl("check", "--repair", "--json").stdout)
    assert value["healthy"]
    assert value["repaired"] == 2
    first = value["findings"][0]
    assert (first["code"], first["level"], first["job"]) == ("record_wrong", "repaired", job_id)
    assert "corrupt/" in first["done"]
    assert "restore" in first["do"]
    ctl.submit()
    assert "修復" in ctl("check", "--repair", env={"LANG": "ja_JP.UTF-8"}).stdout
    ctl("--url", "http://127.0.0.1:1", "check", "--repair", spool=False, code=2)


def test_submitting_holds_its_folder(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of inputs that takes hours is not taken for a leftover."""
    seen: list[bool] = []
    real = leftovers._is_held

    def copy(source: Path, target: Path) -> None:
        seen.append(real(target.parent.parent))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(folder, "_copy_in", copy)
    job = Job(id=new_id(), site="s", command="c", inputs=(Input("a.inp"),), user="mint")
    folder.FolderBackend(ctl.rig.spool).submit(job, {"a.inp": ctl.here / "a.inp"}, lambda *args: None)
    assert seen == [True]


# ---- many jobs, and others at work


def test_two_thousand_jobs_quickly(store: Store) -> None:
    for number in range(2000):
        state = quick_job(store)
        if number % 10 == 0:
            (store.paths.queue_of(SITE, USER) / state.queue_key).unlink()
    found = examine(store, repair=True)
    assert sum(item.code == "queue_missing" for item in found) == 200
    start = time.monotonic()
    assert to_repair(examine(store)) == []
    assert time.monotonic() - start < 20


def test_beside_claimers_nothing_is_lost_or_doubled(store: Store, in_background: Callable[[Callable[[], object]], Any]) -> None:
    ids = set()
    for number in range(150):
        state = quick_job(store)
        ids.add(state.id)
        if number % 3 == 0:
            (store.paths.queue_of(SITE, USER) / state.queue_key).unlink()
    (store.paths.journal / "2000-01-01.jsonl").touch()

    def claim() -> None:
        mine, end = Store(store.paths), time.monotonic() + 60
        while time.monotonic() < end and any(mine.state(job_id).state == State.QUEUED for job_id in ids):
            for state in mine.claim(SITE, [USER], agent=f"agent-{os.getpid()}", room=3):
                mine.start(state.id, state.run_id, by="agent")

    waiting = [in_background(claim) for _ in range(2)]
    for _ in range(3):
        found = examine(store, repair=True)
        assert [item for item in found if item.level == PROBLEM] == []
    for wait in waiting:
        assert wait() == 0
    for job_id in ids:
        assert [line["to"] for line in history(store, job_id)].count("claimed") == 1
    assert to_repair(examine(store, repair=True)) == []
    lines = [json.loads(line) for path in store.paths.journal.iterdir() for line in path.read_bytes().split()]
    told = [(line["id"], line["revision"]) for line in lines]
    assert len(told) == len(set(told)), "no line of the journal stands twice"
    assert {job_id for job_id, _ in told} >= ids


@pytest.fixture
def in_background() -> Callable[[Callable[[], object]], Callable[[], int]]:
    def start(work: Callable[[], object]) -> Callable[[], int]:
        pid = fork(work)
        return lambda: exit_code(pid, 90)

    return start
