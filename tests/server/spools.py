"""Small spools for tests: a store, its configuration, drops, and jobs in any state."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.rig import Section, write_ini
from spool.config import SpoolConfig, read_config
from spool.drops import Drops, first_state
from spool.names import new_id
from spool.records import FileEntry, Job, JobState, Result
from spool.results import accept
from spool.states import State
from spool.store import Store

SITE = "site-a"
USER = "alice"
AGENT = "agent-1"
DECK = b"*NODE\n1, 0, 0, 0\n"


def new_store(folder: Path) -> Store:
    """A fresh spool in `folder`."""
    before = os.umask(0o007)
    try:
        return Store.open(folder, create=True)
    finally:
        os.umask(before)


def config(folder: Path, sites: Mapping[str, Section] | None = None, **server: Any) -> SpoolConfig:
    """A configuration with site-a, which takes every command of every user."""
    folder.mkdir(exist_ok=True, parents=True)
    sections: dict[str, Section] = {"server": {name: str(value) for name, value in server.items()}}
    sections.update({f"site {name}": section for name, section in (sites or {SITE: {"commands": "*"}}).items()})
    return read_config(write_ini(folder / "spool.ini", sections))


def job_json(**keys: Any) -> bytes:
    """The bytes of a job.json; a key given as None is left out."""
    value = {"site": SITE, "command": "ccx", "user": USER, "inputs": ["beam.inp"], "outputs": ["beam.dat"], **keys}
    return json.dumps({key: item for key, item in value.items() if item is not None}, ensure_ascii=False).encode()


def drop(store: Store, name: str | None = None, *, files: Mapping[str, bytes] | None = None, **keys: Any) -> str:
    """Hand in a complete folder by rename; return its UUID."""
    name = name or new_id()
    folder = store.paths.root / f"making.{name}"
    (folder / "in").mkdir(parents=True)
    for file, data in ({"beam.inp": DECK} if files is None else files).items():
        (folder / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / file).write_bytes(data)
    (folder / "job.json").write_bytes(keys.pop("data", None) or job_json(**keys))
    folder.rename(store.paths.drop / name)
    return name


def queued(store: Store, **keys: Any) -> JobState:
    """A job that waits, taken in as a drop."""
    name = drop(store, **keys)
    state = Drops(store).accept(name, config(store.paths.root.parent / "ini"))
    assert state is not None
    return state


def quick_job(
    store: Store, *, user: str = USER, site: str = SITE, priority: int = 0, state: State = State.QUEUED, **more: Any
) -> JobState:
    """A job written straight into `jobs/`, without a sync: for many of them."""
    job = Job(site=site, command="ccx", user=user, priority=priority, **more)
    made = first_state(job, new_id(), user, (), state=state, by=user)
    folder = store.paths.job(made.id).folder
    (folder / "in").mkdir(parents=True)
    (folder / "job.json").write_bytes(job.encode())
    (folder / "state.json").write_bytes(made.encode())
    if state == State.QUEUED:
        entry = store.paths.queue_of(site, user) / made.queue_key
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.touch()
    return made


def claimed(store: Store, **more: Any) -> JobState:
    """A job that AGENT has claimed."""
    made = quick_job(store, **more)
    found = {state.id: state for state in store.claim(made.site, [made.user], agent=AGENT, room=1000)}
    return found[made.id]


def running(store: Store, **more: Any) -> JobState:
    """A job whose command may have been started."""
    state = claimed(store, **more)
    return store.start(state.id, state.run_id, by=AGENT)


def result_of(state: JobState, files: tuple[FileEntry, ...] = (), **more: Any) -> Result:
    """A result of the state's run: success unless told otherwise."""
    return Result(
        id=state.id, run_id=state.run_id, attempt=state.attempt, exit_code=more.pop("exit_code", 0), files=files, **more
    )


def in_state(store: Store, word: State) -> JobState:
    """A job in that state, brought there by the store's own operations."""
    if word in (State.NEW, State.QUEUED):
        return quick_job(store, state=word)
    if word == State.CLAIMED:
        return claimed(store)
    if word == State.EXPIRED:
        made = quick_job(store)
        with store.locked(made.id) as state:
            return store.end(state, State.EXPIRED, by="test", message="expired")
    if word == State.CANCELED:
        return store.cancel(quick_job(store).id, by="test")
    state = running(store)
    if word == State.HELD:
        with store.locked(state.id) as state:
            return store.write(state, State.HELD, by=AGENT, why="waits for a release")
    if word == State.RETURNING:
        return store.returning(state.id, state.run_id, by=AGENT)
    if word == State.COMPLETED:
        return accept(store, result_of(state), by=AGENT)
    if word == State.FAILED:
        return store.fail(state.id, state.run_id, by=AGENT, reason="lost", message="gone")
    assert word == State.RUNNING
    return state


def history(store: Store, job_id: str) -> list[dict[str, Any]]:
    """The lines of history.jsonl that can be read."""
    found = []
    for line in store.paths.job(job_id).history.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
