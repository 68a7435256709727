"""Every route, every kind of asker, and a job of alice: who is let in, who is told no, and who is told nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.figures import tell
from hostile.cast import Cast
from hostile.line import Told, ask
from hostile.routes import ASKERS, BASE, HIDDEN, NO, RIGHTS, ROUTES, UNTOKENED, WHO, WORD, YES, Route, mounted
from spool.config import LiveConfig
from spool.names import new_id
from spool.server.app import build
from spool.server.contacts import Contacts
from spool.server.tokens import TokenFile
from spool.server.wakeups import Wakeups
from spool.states import State
from unit.test_docs import table

SEES = [asker for asker in ASKERS if RIGHTS["all"][asker] == YES]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    made = Cast(tmp_path_factory.mktemp("cast") / "rig")
    yield made
    made.close()


def test_every_mounted_route_has_a_row(cast: Cast, tmp_path: Path) -> None:
    wakeups = Wakeups(1)
    try:
        app = build(cast.store, LiveConfig(None), wakeups, Contacts(cast.store), TokenFile(tmp_path / "tokens.json"))
    finally:
        wakeups.close()
    assert sorted(mounted(app.routes)) == sorted([*UNTOKENED, *((route.method, route.path) for route in ROUTES)])


def test_the_rights_are_those_of_the_documents() -> None:
    who = {(row[0], row[1]): row[2] for row in table("docs/protocol.md", "Routes")}
    who.update({(row[0], f"{BASE}/{row[1]}"): row[2] for row in table("docs/protocol.md", "The published protocol")})
    for route in ROUTES:
        told = who[route.method, route.path].replace("everybody, no token", "everybody")
        right = route.right.partition(" without")[0]
        # The published table names the side that calls; who else may ask is told below it.
        if route.is_published and right != told:
            assert (told, right) in (("submitter", "all"), ("submitter", "submitter, operator")), route.name
        else:
            assert told == right, route.name
    rows = table("docs/security.md", "Who is answered what")
    assert [row[0] for row in rows] == list(ASKERS)
    for row in rows:
        assert row[1:] == [RIGHTS[right][row[0]] for right in RIGHTS], row[0]


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_asker(cast: Cast, route: Route) -> None:
    agent = cast.token_of("agent")
    leaks: list[Any] = []
    for asker in ASKERS:
        expected, token = RIGHTS[route.right][asker], cast.token_of(asker)
        job = cast.job(route.state, token if expected == YES else agent)
        told = cast.ask(route, job, token)
        assert _outcome(route, asker, told) == expected, (asker, told)
        if asker not in SEES and WORD.encode() in told.head + told.body:
            leaks.append((asker, told))
        if expected == HIDDEN and not route.is_published:
            _as_if_there_were_none(cast, route, job.id, token, told)
        if expected != YES:
            now = cast.store.state(job.id)
            assert (now.revision, now.state) == (job.revision, job.state), (asker, now)
            assert not cast.store.paths.job(job.id).late.exists()
        _out_of_the_way(cast, job.id)
    assert leaks == []


def _outcome(route: Route, asker: str, told: Told) -> str:
    """What an answer amounts to; the answers are those of docs/protocol.md, "Errors" and "The published protocol"."""
    if route.is_published:
        if told.status == 403:
            assert b'"0005"' in told.body
            return RIGHTS[route.right][asker] if RIGHTS[route.right][asker] != YES else NO
        if told.status == 202:  # the refusal of add-calcinfo
            assert b'"code": 401' in told.body
            return NO
        assert told.status == 200, told
        return YES if b'"code": 200' in told.body or b'"0300"' in told.body or b'"errors"' not in told.body else "odd"
    words = {401: WHO, 403: NO, 404: HIDDEN}
    assert told.status in (*words, 200, 201, 204), told
    return words.get(told.status, YES)


def _as_if_there_were_none(cast: Cast, route: Route, job_id: str, token: str, told: Told) -> None:
    """The same answer, but for the id, as for a job that does not exist."""
    other = new_id()
    (none,) = ask(cast.port, [route.make(_Nowhere(other), token)], methods=[route.method])  # type: ignore[arg-type]
    assert (none.status, none.body.replace(other.encode(), b"ID")) == (told.status, told.body.replace(job_id.encode(), b"ID"))


class _Nowhere:
    """As much of a job's state as a request needs."""

    site, attempt = "site-a", 1

    def __init__(self, job_id: str) -> None:
        self.id, self.run_id = job_id, new_id()


def _out_of_the_way(cast: Cast, job_id: str) -> None:
    """End the job, so that nobody is offered or told of it again."""
    state = cast.store.state(job_id)
    if state.state not in (State.COMPLETED, State.FAILED, State.CANCELED, State.EXPIRED):
        with cast.store.locked(job_id) as state:
            cast.store.end(state, State.CANCELED, by="test")


def test_what_a_sync_tells_of_somebody_elses_job(cast: Cast) -> None:
    """A job that one lists but may not see is told of as one that is not there."""
    route = next(route for route in ROUTES if route.path == "/v1/sync")
    for word in ("queued", "running", "completed"):
        job = cast.job(word)
        for asker in ("other agent", "other submitter and agent", "other agent and viewer"):
            told = cast.ask(route, job, cast.token_of(asker))
            assert told.status == 200
            assert b'"state": "unknown"' in told.body
            assert b'"want": "keep"' in told.body
            assert cast.store.state(job.id).revision == job.revision
        _out_of_the_way(cast, job.id)


def test_how_many_were_asked() -> None:
    asked = len(ROUTES) * len(ASKERS)
    tell(f"hostile: {len(ROUTES)} routes x {len(ASKERS)} askers = {asked} questions about another's job: 0 leaks")
