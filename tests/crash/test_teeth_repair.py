"""A repair beside others at work: found without the lock is nothing; each thing is judged and repaired under its job's lock."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from server.spools import AGENT, SITE, USER, in_state, new_store, quick_job
from spool.ctl import indexes, jobcheck, journalcheck
from spool.ctl.findings import Finding
from spool.errors import Busy
from spool.states import State
from spool.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for module in (indexes, jobcheck, journalcheck):
        monkeypatch.setattr(module, "LOCK_WAIT_S", 0.1)
    return new_store(folder / "spool")


def mend(store: Store, job_id: str, found: Iterable[Finding], code: str) -> None:
    """Repair what was found, first while another process holds the job's lock, which must keep it off, then once more."""
    (finding,) = [one for one in found if one.code == code]
    assert finding.mend
    with Store(store.paths).locks.hold(job_id), pytest.raises(Busy):
        finding.mend()
    assert finding.mend()


def test_an_entry_that_no_job_stands_behind(store: Store) -> None:
    state = in_state(store, State.COMPLETED)
    store.queue.add_active(SITE, AGENT, state.id)
    mend(store, state.id, indexes.Indexes(store).entries(), "entry_stale")
    assert store.queue.active(SITE, AGENT) == []


def test_an_entry_that_is_missing(store: Store) -> None:
    state = quick_job(store)
    store.queue.remove(SITE, USER, state.queue_key)
    mend(store, state.id, jobcheck.JobFolders(store).all(), "queue_missing")
    assert [entry.job_id for entry in store.queue.waiting(SITE, [USER])] == [state.id]


def test_lines_that_the_journal_lacks(store: Store) -> None:
    state = in_state(store, State.RUNNING)
    for path in store.paths.journal.iterdir():
        path.unlink()
    mend(store, state.id, journalcheck.Journal(store).all(), "journal_lacks")
    assert len(next(store.paths.journal.iterdir()).read_bytes().splitlines()) == state.revision
