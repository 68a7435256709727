"""check --repair killed between any two changes that it makes to a spool with every damage at once: the next run finishes it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from ctl.damages import DAMAGES, examine, finished, to_repair
from server.crashing import each_crash
from server.spools import SITE, USER, config, history, new_store
from spool.creation import SPOOL_UMASK, link_config
from spool.ctl import checking, house
from spool.names import is_id
from spool.records import JobState
from spool.states import FINAL, State
from spool.store import Store

# Together where none hides another; at least one of each kind.
PARTS = {
    "house": ["folder missing", "folder mode", "file for a folder", "locks missing", "lock mode", "lock a fifo", "index mode"],
    "folders": ["no job", "job is a file", "job mode", "state missing", "state torn", "state of another", "result torn, running",
                "temporary files"],
    "entries": ["new without entry", "queued elsewhere", "wrong key", "running without entry", "stale queue entry",
                "stale active entry", "strange entry with something", "folder for an entry"],
    "runs": ["history a fifo", "history torn", "results all here", "results half", "results half, merged", "incoming left",
             "requeue half"],
    "leftovers": ["accepting", "register", "submit", "bin", "spool.json", "taken", "temporary file of a site",
                  "rejected without reason", "corrupt without reason", "journal a fifo", "journal lines"],
    "journal": ["journal missing", "history behind"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(house, "_HOLDERS_ARE_DONE_S", 0)
    monkeypatch.setattr(checking, "surroundings", lambda paths: ())
    before = os.umask(SPOOL_UMASK)
    yield
    os.umask(before)


def test_each_kind_of_damage_is_in_a_part() -> None:
    assert {DAMAGES[name][1] for names in PARTS.values() for name in names} == {code for _, code in DAMAGES.values()}


@pytest.mark.parametrize("part", PARTS)
def test_killed_anywhere(tmp_path: Path, part: str) -> None:
    store = damaged(tmp_path, PARTS[part])
    ids = set(filter(is_id, os.listdir(store.paths.jobs)))
    before = bytes_of(store)

    def prepare(step: int) -> Callable[[], object]:
        copy = tmp_path / f"copy{step}"
        clone(store.paths.root, copy, locks=part == "house")
        return lambda: examine(Store.open(copy), repair=True)

    for step in each_crash(prepare):
        here = Store.open(tmp_path / f"copy{step}")
        examine(here, repair=True)
        assert to_repair(examine(here, repair=True)) == [], f"killed before change {step}"
        assert ids <= {path.name for folder in (here.paths.jobs, here.paths.corrupt) for path in folder.iterdir()}
        assert before <= bytes_of(here), f"killed before change {step}: something is lost"
        for job_id in here.paths.jobs.iterdir():
            judge(here, here.state(job_id.name))
        shutil.rmtree(here.paths.root)


def damaged(folder: Path, names: list[str]) -> Store:
    store = Store(new_store(folder / "spool").paths)
    link_config(store.paths, config(folder / "ini").source or folder)
    finished(store)
    for name in names:
        DAMAGES[name][0](store)
    return store


def clone(source: Path, target: Path, *, locks: bool) -> None:
    """A copy with its links, FIFOs and times; the lock files are the same ones unless `locks` is set, which is quicker."""

    def copy(one: str, other: str) -> object:
        if not os.path.islink(one) and os.path.exists(one) and not os.path.isfile(one):
            return os.mkfifo(other)
        if not locks and Path(one).parent == source / "locks":
            return os.link(one, other)
        return shutil.copy2(one, other, follow_symlinks=False)

    copied: list[tuple[Path, Path]] = []
    for path, folders, files in os.walk(source):
        here = target / Path(path).relative_to(source)
        here.mkdir(exist_ok=True)
        copied.append((Path(path), here))
        for name in files + [name for name in folders if (Path(path) / name).is_symlink()]:
            copy(str(Path(path) / name), str(here / name))
    for one, other in reversed(copied):
        shutil.copystat(one, other)


def bytes_of(store: Store) -> set[bytes]:
    """The content of every file that somebody has handed in or brought back."""
    found = set()
    for path, folders, files in os.walk(store.paths.root):
        if Path(path) == store.paths.root:
            folders[:] = [name for name in folders if name not in ("locks", "journal")]
        folders[:] = [name for name in folders if not name.startswith(("check.", "submit.", "register.", ".taken.", "incoming"))]
        for name in files:
            file = Path(path) / name
            ours = name in ("reason.json", "state.json", "history.jsonl") or name.endswith(".tmp")
            if file.is_file() and not file.is_symlink() and not ours:
                found.add(file.read_bytes())
    return found - {b""}


def judge(store: Store, state: JobState) -> None:
    """What holds of every job: its history is whole, and where it waits it can be claimed."""
    told = [line["revision"] for line in history(store, state.id)]
    assert told[-1] == state.revision
    assert len(set(told)) == len(told)
    if state.state == State.QUEUED:
        assert any(entry.key == state.queue_key for entry in store.queue.waiting(SITE, [USER]))
    if state.state in FINAL:
        assert not store.paths.job(state.id).attempt(state.attempt).exists()
    days = [path for path in store.paths.journal.iterdir() if path.is_file()]
    lines = [json.loads(line) for path in days for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    in_journal = sorted(line["revision"] for line in lines if line["id"] == state.id)
    assert len(set(in_journal)) == len(in_journal)
    assert set(told) <= set(in_journal)
