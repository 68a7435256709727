"""Every operation that changes a spool: how a spool is made ready for it, the operation itself, what holds once it has returned.

`prepare` fills a fresh spool and returns the case, texts by name; `perform` runs in a process of its own, on a copy of that
spool, and is repeated by whoever restarts. `job` in a case is the job's id.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

from crash.api import call, sync
from crash.cases import (
    ASKED,
    Case,
    a_deck,
    arriving,
    claimed,
    completed,
    dropped,
    emptied,
    expiring,
    failed,
    forgotten,
    half_accepted,
    littered,
    partly_sent,
    queued,
    registered,
    result_of,
    running,
    sent,
    unregistered,
    unwanted,
    uploaded,
)  # fmt: skip
from crash.inventory import DECK, FILES, LATE
from server.spools import AGENT, SITE, USER, job_json
from spool import drops
from spool.config import read_config
from spool.ctl import checking
from spool.ctl.folder import FolderBackend
from spool.drops import Drops
from spool.errors import Busy, Duplicate, InvalidRequest
from spool.files import remove_tree
from spool.paths import JobPaths, SpoolPaths
from spool.records import Job, Result
from spool.results import accept, keep_late
from spool.scratch import sweep
from spool.server.contacts import Contacts
from spool.states import State
from spool.store import Store


@dataclass(frozen=True)
class Operation:
    """`done` must hold of the spool once `perform` has returned; `final` is the state that the job then ends in."""

    prepare: Callable[[Store], Case]
    perform: Callable[[Path, Case], object]
    done: Callable[[Store, Case], bool]
    final: State = State.COMPLETED
    claims: int = 1  # of one attempt at most
    repeatable: bool = True  # else a repeat may be refused where it has happened
    again: bool = True  # the job can be requeued then
    twice: bool = False  # for a while a drop may lie beside what was taken of it
    after_crash: Callable[[Store, Case], object] = lambda store, case: None  # what may come before the repeat does


def in_state(*words: State) -> Callable[[Store, Case], bool]:
    return lambda store, case: store.state(case["job"]).state in words


NOT_NEW = in_state(*(set(State) - {State.NEW}))
HERE = in_state(*State)


# ---- handing in


def submit(root: Path, case: Case) -> None:
    """`spoolctl submit`; repeated, what a killed one has left is taken away first, as its hint says."""
    remove_tree(root / "tmp" / f"submit.{case['job']}")
    job = Job.parse(job_json(id=case["job"], **ASKED))
    try:
        FolderBackend(root).submit(job, {"beam.inp": Path(case["deck"])}, lambda *progress: None)
    except Duplicate:
        if not (root / "drop" / case["job"]).exists():
            raise
        take_in(root, case)


def take_in(root: Path, case: Case) -> None:
    """What the server does each time it looks at the drop."""
    Drops(Store.open(root), workers=1).accept(case["job"], read_config(root / "spool.ini"))


def take_in_copy(root: Path, case: Case) -> None:
    """The same with a drop of another uid, which is copied."""
    real = drops._owners
    drops._owners = lambda folder: {*real(folder), 65534}
    try:
        take_in(root, case)
    finally:
        drops._owners = real


def rejected(store: Store, case: Case) -> bool:
    """The reason follows the rename, so that a crash may take it; an acknowledged rejection has one."""
    return [path.name for path in store.paths.rejected.iterdir() if (path / "job.json").exists()] == [case["job"]]


def register(root: Path, case: Case) -> None:
    call(root, case, "POST", "/v1/jobs", job_json(id=case["job"], **ASKED))


def put_input(root: Path, case: Case) -> None:
    put(root, case, "in/beam.inp", DECK)


def enqueue(root: Path, case: Case) -> None:
    call(root, case, "POST", f"/v1/jobs/{case['job']}/enqueue")


# ---- a run


def claim(root: Path, case: Case) -> None:
    if not Store.open(root).claim(SITE, [USER], agent=AGENT, room=1, order=(1, 1)):
        raise Busy("nothing was claimed", hint="sync again")


def claim_one(root: Path, case: Case) -> None:
    Store.open(root).claim_one(case["job"], agent=AGENT)


def sync_claim(root: Path, case: Case) -> None:
    if not sync(root, case):
        raise Busy("the answer tells of no job", hint="sync again")


def adopt(root: Path, case: Case) -> None:
    sync(root, case, held(case, "running", ready=True))


def not_given_back(store: Store, case: Case) -> None:
    """Its agent is silent: the command may run, so nobody else may get it in this attempt."""
    before = store.state(case["job"])
    if before.run_id == case["run"]:
        assert store.give_back(case["job"], case["run"], by="t", why="no contact").state != State.QUEUED, "started twice"


def held(case: Case, state: str, **more: Any) -> dict[str, Any]:
    return {"id": case["job"], "run_id": case["run"], "state": state, "attempt": 1, **more}


def put(root: Path, case: Case, name: str, data: bytes) -> None:
    run = f"?run_id={case['run']}" if "run" in case else ""
    path = f"/v1/jobs/{case['job']}/files/{quote(name)}{run}"
    here = int(call(root, case, "HEAD", path)[0].get("Upload-Offset", "0"))
    if here < len(data):
        call(root, case, "PATCH", path, data[here:], HTTP_UPLOAD_OFFSET=str(here))


def put_tar(root: Path, case: Case) -> None:
    members = [(name, io.BytesIO(data), len(data)) for name, data in FILES.items()]
    arriving(Store.open(root), case).put_group(iter(members))


def finish(root: Path, case: Case) -> None:
    result = result_of(Store.open(root).state(case["job"]))
    call(root, case, "POST", f"/v1/jobs/{case['job']}/finish", result.encode())


def finish_canceled(root: Path, case: Case) -> None:
    accept(Store.open(root), result_of(Store.open(root).state(case["job"]), reason="canceled"), by=AGENT)


def keep(root: Path, case: Case) -> None:
    keep_late(Store.open(root), Result(case["job"], LATE, 1, exit_code=0), by=AGENT)


def kept(store: Store, case: Case) -> bool:
    return (store.paths.job(case["job"]).late / f"{LATE}.json").exists()


# ---- ends


def cancel(root: Path, case: Case) -> None:
    call(root, case, "POST", f"/v1/jobs/{case['job']}/cancel")


def requeue(root: Path, case: Case) -> None:
    """Once: an operator whose requeue was killed looks first whether it has happened."""
    store = Store.open(root)
    if store.state(case["job"]).attempt == 1:
        store.requeue(case["job"], by="t", force=True)


def requeued(store: Store, case: Case) -> bool:
    """The next attempt begins with nothing of the one before, which is kept."""
    paths = store.paths.job(case["job"])
    left = [name for name in JobPaths.OF_AN_ATTEMPT if (paths.folder / name).exists()]
    kept = any(path.name == "beam.dat" for path in paths.attempt(1).rglob("*"))
    return store.state(case["job"]).state == State.QUEUED and not left and kept


def on_store(method: str, *keys: str, **more: Any) -> Callable[[Path, Case], object]:
    """A method of the store, called with these texts of the case."""
    return lambda root, case: getattr(Store.open(root), method)(*(case[key] for key in keys), **more)


# ---- the house


def swept(store: Store, case: Case) -> bool:
    return not [name for name in os.listdir(store.paths.tmp) if name.startswith(("register.", "published."))]


def heartbeat(root: Path, case: Case) -> None:
    Contacts(Store.open(root)).heard((SITE, USER, AGENT), "1")


def readable(store: Store, case: Case) -> bool:
    """Derived: a failing disk is not the caller's trouble, so it may be missing. But never torn."""
    path = store.paths.site(SITE)
    return not path.exists() or json.loads(path.read_bytes())["agent"] == AGENT


def check(root: Path, case: Case) -> None:
    if checking.run(root, as_json=True):
        raise InvalidRequest("the spool is not healthy", hint="")


def whole(store: Store, case: Case) -> bool:
    return all((store.paths.root / name).is_dir() for name in SpoolPaths.FOLDERS) and len(os.listdir(store.paths.locks)) == 256


S, CASE_RUN = State, ("job", "run")
OPERATIONS: dict[str, Operation] = {
    "submit": Operation(a_deck, submit, HERE, twice=True),
    "accept": Operation(dropped, take_in, HERE),
    "accept a copy": Operation(dropped, take_in_copy, HERE, twice=True),
    "reject": Operation(unwanted, take_in, rejected),
    "register": Operation(unregistered, register, HERE),
    "send an input": Operation(registered, put_input, HERE),
    "enqueue": Operation(uploaded, enqueue, NOT_NEW),
    "claim": Operation(queued, claim, in_state(S.CLAIMED), repeatable=False),
    "claim one": Operation(queued, claim_one, in_state(S.CLAIMED), repeatable=False),
    "sync: claim": Operation(queued, sync_claim, in_state(S.CLAIMED), repeatable=False),
    "adopt": Operation(forgotten, adopt, in_state(S.RUNNING), after_crash=not_given_back),
    "start": Operation(claimed, on_store("start", *CASE_RUN, by=AGENT), in_state(S.RUNNING)),
    "sync: start": Operation(
        claimed, lambda root, case: sync(root, case, held(case, "claimed", ready=True)), in_state(S.RUNNING)
    ),
    "heartbeat": Operation(running, heartbeat, readable),
    "append": Operation(partly_sent, lambda root, case: put(root, case, "out/beam.dat", FILES["out/beam.dat"]), HERE),
    "append below folders": Operation(running, lambda root, case: put(root, case, "out/d/e/場.frd", b"x" * 5000), HERE),
    "send a group": Operation(partly_sent, put_tar, HERE),
    "returning": Operation(running, on_store("returning", *CASE_RUN, by=AGENT), in_state(S.RETURNING)),
    "sync: returning": Operation(running, lambda root, case: sync(root, case, held(case, "returning")), in_state(S.RETURNING)),
    "hold": Operation(running, on_store("hold", *CASE_RUN, by=AGENT), in_state(S.HELD)),
    "finish": Operation(sent, finish, in_state(S.COMPLETED)),
    "finish again": Operation(half_accepted, finish, in_state(S.COMPLETED)),
    "finish canceled": Operation(sent, finish_canceled, in_state(S.CANCELED), S.CANCELED),
    "keep late": Operation(failed, keep, kept, S.FAILED),
    "cancel waiting": Operation(queued, cancel, in_state(S.CANCELED), S.CANCELED),
    "cancel new": Operation(uploaded, cancel, in_state(S.CANCELED), S.CANCELED, again=False),
    "cancel running": Operation(
        running, cancel, lambda store, case: bool(store.state(case["job"]).cancel_requested_at), S.CANCELED
    ),
    "withdraw": Operation(queued, on_store("withdraw", "job", by=USER), in_state(S.CANCELED), S.CANCELED),
    "fail": Operation(sent, on_store("fail", *CASE_RUN, by="t", reason="unreachable", message=""), in_state(S.FAILED), S.FAILED),
    "lose": Operation(running, on_store("lose", *CASE_RUN, by=AGENT, order=(1, 2), message=""), in_state(S.FAILED), S.FAILED),
    "give back": Operation(claimed, on_store("give_back", *CASE_RUN, by="t", why=""), in_state(S.QUEUED), claims=2),
    "expire": Operation(expiring, on_store("expire", "job"), in_state(S.EXPIRED), S.EXPIRED),
    "requeue": Operation(completed, requeue, requeued),
    "requeue by force": Operation(sent, requeue, requeued),
    "sweep": Operation(littered, lambda root, case: sweep(Store.open(root).paths, min_age_s=0), swept),
    "check": Operation(running, check, HERE),
    "create": Operation(emptied, lambda root, case: Store.open(root, create=True), whole),
}
