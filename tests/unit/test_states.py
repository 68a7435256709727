"""Every pair of states against the table of the design, written out here a second time on purpose."""

from __future__ import annotations

import itertools

import pytest

from spool.errors import Conflict
from spool.states import FINAL, MEANING, REASON_MEANING, TRANSITIONS, WITH_SITE, Reason, State, check_transition

ALLOWED = """
new: queued canceled expired
queued: claimed canceled expired
claimed: running queued failed canceled
running: held returning failed canceled
held: returning failed canceled
returning: completed failed canceled
completed: queued
failed: queued
canceled: queued
expired: queued
"""
TABLE = {line.partition(":")[0]: set(line.partition(":")[2].split()) for line in ALLOWED.split("\n") if line}
ID = "0d9de71c-5a4b-4b0a-8d20-1f4a3a1f9a10"


@pytest.mark.parametrize(("source", "target"), list(itertools.product(State, State)))
def test_every_pair(source: State, target: State) -> None:
    if str(target) in TABLE[str(source)]:
        check_transition(ID, source, target)
    else:
        with pytest.raises(Conflict) as caught:
            check_transition(ID, source, target)
        assert ID in caught.value.message
        assert str(source) in caught.value.message
        assert all(word in caught.value.hint for word in TABLE[str(source)])


def test_the_table_is_whole() -> None:
    assert set(TRANSITIONS) == set(State) == set(MEANING)
    assert set(REASON_MEANING) == set(Reason)
    assert {str(state) for state in State} == set(TABLE)
    assert all(why for targets in TRANSITIONS.values() for why in targets.values())


def test_final_states_are_left_by_a_requeue_only() -> None:
    assert {state for state in State if set(TRANSITIONS[state]) == {State.QUEUED} and state != State.NEW} == FINAL
    assert FINAL.isdisjoint(WITH_SITE)
    assert FINAL | WITH_SITE | {State.NEW, State.QUEUED} == set(State)


def test_every_state_can_be_reached_and_ends() -> None:
    reached, more = {State.NEW}, {State.NEW}
    while more:
        more = {target for state in more for target in TRANSITIONS[state]} - reached
        reached |= more
    assert reached == set(State)


def test_no_way_back_from_a_started_run() -> None:
    """What may have been started never becomes claimable by itself."""
    assert all(not TRANSITIONS[state].keys() & {State.QUEUED, State.CLAIMED, State.NEW} for state in WITH_SITE - {State.CLAIMED})


def test_the_words_are_those_on_disk() -> None:
    assert [str(state) for state in State] == [state.value for state in State]
    assert f"{Reason.EXIT_NONZERO}" == "exit_nonzero"
