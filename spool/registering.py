"""Publishing a registered job: `new`, in its folder, before it is enqueued (docs/format.md, "Writing order")."""

from __future__ import annotations

from typing import Callable

from spool import jsonio
from spool.errors import Duplicate
from spool.files import fsync_dir, replace_file, sync_tree
from spool.paths import JobPaths
from spool.records import JobState
from spool.scratch import scratch
from spool.store import Store


def _nothing(paths: JobPaths) -> None:
    pass


def publish_new(store: Store, state: JobState, job_json: bytes, *, fill: Callable[[JobPaths], None] = _nothing) -> JobState:
    """Publish a job whose first state is `state`, which must be `new`; return the state it has.

    `fill` may put inputs into the folder's `in/` before it is seen. Safe to repeat with the same id, bytes and user: the job is
    then returned as it is; `Duplicate` where the id is taken by another job.
    """
    with scratch(store.paths, "register") as folder:
        paths = JobPaths(folder)
        paths.inputs.mkdir(0o770)
        fill(paths)
        replace_file(paths.job, job_json)
        replace_file(paths.history, jsonio.dumps_line(state.last.encode()) if state.last else b"")
        replace_file(paths.state, state.encode())
        sync_tree(folder)
        with store.locks.hold(state.id):
            if (store.paths.jobs / state.id).exists():
                return _registered_before(store, state, job_json)
            store.queue.add_new(state.id)
            folder.rename(store.paths.jobs / state.id)
            fsync_dir(store.paths.jobs)
            store.published(state)
    return state


def _registered_before(store: Store, state: JobState, job_json: bytes) -> JobState:
    known = store.state(state.id)
    if known.user != state.user or store.job_bytes(state.id) != job_json:
        raise Duplicate(f"the id {state.id} is taken by another job", hint="leave id out, or make a new UUID")
    return known
