"""Spools made ready for an operation: each function fills a fresh one and returns the case, texts by name.

`job` is the job's id, `run` its run, `token` one that may do everything.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from typing import Any

from crash.api import token
from crash.inventory import DECK, FILES, MANIFEST
from server.spools import AGENT, SITE, USER, drop, job_json
from spool.config import read_config
from spool.drops import Drops, first_state
from spool.incoming import Incoming
from spool.names import new_id
from spool.records import FileEntry, Job, JobState, Result
from spool.registering import publish_new
from spool.results import accept
from spool.states import State
from spool.store import Store

Case = dict[str, str]
ASKED: dict[str, Any] = {"outputs": ["beam.dat", "d/*"]}


def registered(store: Store) -> Case:
    data = job_json(**ASKED)
    state = first_state(Job.parse(data), new_id(), USER, (), state=State.NEW, by=USER)
    publish_new(store, state, data)
    return {"job": state.id, "token": token(store)}


def uploaded(store: Store) -> Case:
    case = registered(store)
    Incoming(store.paths.job(case["job"]).incoming / "submit").append("in/beam.inp", 0, io.BytesIO(DECK), len(DECK))
    return case


def queued(store: Store) -> Case:
    job_id = drop(store, **ASKED)
    Drops(store, workers=1).accept(job_id, read_config(store.paths.ini))
    return {"job": job_id, "token": token(store)}


def claimed(store: Store) -> Case:
    case = queued(store)
    (state,) = store.claim(SITE, [USER], agent=AGENT, room=1, order=(1, 1))
    return {**case, "run": state.run_id}


def running(store: Store) -> Case:
    case = claimed(store)
    store.start(case["job"], case["run"], by=AGENT, order=(1, 1))
    return case


def partly_sent(store: Store) -> Case:
    case = running(store)
    arriving(store, case).append("out/beam.dat", 0, io.BytesIO(FILES["out/beam.dat"][:1]), 1)
    return case


def sent(store: Store) -> Case:
    case = running(store)
    send(store, case)
    return case


def half_accepted(store: Store) -> Case:
    """The files of an earlier sending were moved in already, then a crash came, and they were sent again."""
    case = sent(store)
    paths = store.paths.job(case["job"])
    arriving(store, case).move_folder("out", paths.out)
    send(store, case)
    return case


def completed(store: Store) -> Case:
    case = sent(store)
    accept(store, result_of(store.state(case["job"])), by=AGENT)
    return case


def failed(store: Store) -> Case:
    case = sent(store)
    store.fail(case["job"], case["run"], by="t", reason="unreachable", message="")
    return case


def expiring(store: Store) -> Case:
    case = queued(store)
    with store.locked(case["job"]) as state:
        store.write(state, state.state, by="t", why="soon", expires_at="2020-01-01T00:00:00.000Z")
    return case


def arriving(store: Store, case: Mapping[str, str]) -> Incoming:
    return Incoming(store.paths.job(case["job"]).incoming_of(case["run"]))


def send(store: Store, case: Mapping[str, str]) -> None:
    """What the agent does with its results, over and over: from the offset that is here."""
    incoming = arriving(store, case)
    for name, data in FILES.items():
        here = incoming.offset(name)
        if here < len(data):
            incoming.append(name, here, io.BytesIO(data[here:]), len(data) - here)


def result_of(state: JobState, *, reason: str = "", files: tuple[FileEntry, ...] = MANIFEST) -> Result:
    return Result(state.id, state.run_id, state.attempt, exit_code=0, reason=reason, files=files)


def unregistered(store: Store) -> Case:
    return {"job": new_id(), "token": token(store)}


def a_deck(store: Store) -> Case:
    deck = store.paths.root.parent / "beam.inp"
    deck.write_bytes(DECK)
    return {"job": new_id(), "deck": str(deck)}


def dropped(store: Store) -> Case:
    return {"job": drop(store, **ASKED)}


def unwanted(store: Store) -> Case:
    return {"job": drop(store, site="nowhere")}


def forgotten(store: Store) -> Case:
    """The spool was restored and does not know of the run that an agent has started."""
    return {**queued(store), "run": new_id()}


def littered(store: Store) -> Case:
    case = queued(store)
    for kind in ("register", "published"):
        folder = store.paths.tmp / f"{kind}.{new_id()}" / "in"
        folder.mkdir(parents=True)
        (folder / "beam.inp").write_bytes(DECK)
    return case


def emptied(store: Store) -> Case:
    """Not a spool yet: only its configuration is there."""
    for path in store.paths.root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != store.paths.ini:
            path.unlink()
    return {"job": new_id()}
