"""What no single kill leaves: a power cut that took a name, and two programs one of which was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.cases import arriving, result_of, send, sent
from crash.checks import came_back
from crash.inventory import FILES
from server.spools import AGENT, new_store
from spool.attempts import set_attempt_aside
from spool.errors import DigestMismatch
from spool.results import accept
from spool.states import State

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")


def test_a_file_is_gone_and_its_offset_is_not(folder: Path) -> None:
    """The agent is not told for ever that everything is here."""
    store = new_store(folder / "spool")
    store.paths.ini.write_text("[site site-a]\ncommands = *\n[server]\nmin_free = 0\n")
    case = sent(store)
    state, incoming = store.state(case["job"]), arriving(store, case)
    (incoming.files / "out" / "beam.dat").unlink()
    assert incoming.offset("out/beam.dat") == len(FILES["out/beam.dat"])
    with pytest.raises(DigestMismatch):
        accept(store, result_of(state), by=AGENT)
    assert incoming.offset("out/beam.dat") == 0
    send(store, case)
    ended = accept(store, result_of(state), by=AGENT)
    assert ended.state == State.COMPLETED
    came_back(store, ended)


def test_a_late_chunk_between_two_tries_of_a_requeue(folder: Path) -> None:
    """A requeue was killed after it had moved `incoming/`; a chunk that was on its way then made it again."""
    store = new_store(folder / "spool")
    store.paths.ini.write_text("[site site-a]\ncommands = *\n[server]\nmin_free = 0\n")
    case = sent(store)
    store.fail(case["job"], case["run"], by="t", reason="unreachable", message="")
    set_attempt_aside(store.paths.job(case["job"]), 1)
    send(store, case)
    assert store.requeue(case["job"], by="t").attempt == 2
    paths = store.paths.job(case["job"])
    assert not paths.incoming.exists()
    aside = [path for path in paths.attempt(1).rglob("beam.dat") if "files" in path.parts]
    assert [path.read_bytes() for path in aside] == [FILES["out/beam.dat"]] * 2, "both are kept"
