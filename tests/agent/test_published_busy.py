"""A server, or a gateway before it, that is busy for a while: no job is given up for that, and no result replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.abroad import COUNT, MANY, STEPS, UNTIL_GO, Abroad
from agent.company import gone, noise
from components import proc
from components.waiting import stays
from spool.agent.published_calls import Answer, Calls
from spool.agent.published_way import REFUSALS, Steps, Way
from spool.errors import SpoolError, StaleRun, TransferFailed, Unreachable
from spool.published import CALC_END, COMPLETE_SEND, GETTING_RETURN, GOT_RETURN, NOT_START, RUNNING, SENDING_PARAMS

slow = pytest.mark.slow
DATA = noise(200_000)


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Abroad]:
    """A strict published server; the agent is started by the test."""
    made = Abroad(tmp_path / "rig")
    yield made
    made.close()


def whole(abroad: Abroad, job: str) -> None:
    """It ended well: the command ran once, and its result is here to the last byte."""
    assert abroad.ended(job, 60) == "completed"
    assert (abroad.out(job), abroad.starts()) == ({"out.bin": DATA}, 1)
    abroad.locally(job, "completed")


def submit(abroad: Abroad) -> str:
    return abroad.submit(f"{COUNT}; cp in.bin out.bin", "out.bin", inputs={"in.bin": DATA})


# ---- the whole agent


@slow
@pytest.mark.parametrize(
    "how",
    [{"times": 2}, {"status": 429, "code": 429}, {"status": 200, "code": 500, "times": 2}, {"status": 400, "code": "0500"}],
    ids=["503 twice", "429", "code 500 twice", "400"],
)
@pytest.mark.parametrize("call", STEPS)
def test_busy_for_a_while(abroad: Abroad, call: str, how: dict[str, Any]) -> None:
    job = submit(abroad)
    abroad.server.busy(call, **how)
    abroad.start()
    whole(abroad, job)


@slow
@pytest.mark.parametrize("call", STEPS[2:])
def test_done_although_a_gateway_said_504(abroad: Abroad, call: str) -> None:
    job = submit(abroad)
    abroad.server.busy(call, status=504, code=504, done=True)
    abroad.start()
    whole(abroad, job)
    assert abroad.asked(call) == 1


@slow
@pytest.mark.parametrize("call", STEPS[2:])
def test_the_look_up_is_busy_too(abroad: Abroad, call: str) -> None:
    job = submit(abroad)
    abroad.server.drop_answer(call)
    abroad.server.busy("calc-progress", 2)
    abroad.start()
    whole(abroad, job)


@slow
@pytest.mark.parametrize(
    "how", [{}, {"status": 403, "code": "0005"}, {"status": 200, "code": 500}], ids=["503", "403", "code 500"]
)
def test_a_forced_cancel_is_noticed_after_a_busy_look(abroad: Abroad, how: dict[str, Any]) -> None:
    abroad.server.busy("calc-progress", **how)
    job = abroad.submit(UNTIL_GO, "out.dat")
    abroad.start()
    pid = abroad.pid(job)
    abroad.called("calc-progress", 2)
    assert proc.alive(pid)
    abroad.submitter.cancel(job, force=True)
    gone(pid)
    abroad.locally(job, "canceled")


@slow
@pytest.mark.parametrize("call", ["calc-request", "calc-start", "calc-end"])
def test_retry_after_is_obeyed(abroad: Abroad, call: str) -> None:
    """By everything that asks: nothing at all is sent before that."""
    submit(abroad)
    abroad.server.busy(call, MANY, retry_after="600")
    abroad.start(poll_s="0.1")
    abroad.called(call)
    seen = len(abroad.server.requests)
    stays(lambda: len(abroad.server.requests) == seen, 3, "nothing is sent")
    assert "in_s=600.0" in abroad.said() or "in_s=599" in abroad.said()


# ---- refused with a code again and again, without an agent


class Refusing(Calls):
    """Refuses every step; `progress` is what it says of the job. `left`: after so many refusals it does the step."""

    def __init__(self, told: str | None, left: int = MANY) -> None:
        self.told, self.left, self.steps = told, left, 0

    def _answer(self) -> Answer:
        self.steps += 1
        self.left -= 1
        return Answer(200, "500", "busy") if self.left >= 0 else Answer(200, "200", "OK")

    def params(self, accept_id: str, site: str, folder: Path) -> tuple[Answer, dict[str, Any]]:
        return self._answer(), {}

    def step(self, call: str, document: Mapping[str, Any]) -> Answer:
        return self._answer()

    def progress(self, accept_id: str) -> str | None:
        return self.told


def way(folder: Path, calls: Calls, taken: str, trying: str = "") -> Way:
    (folder / "published").mkdir()
    return Way(calls, folder, Steps("run", "id", taken, trying), "site")


@pytest.mark.parametrize(
    ("taken", "target", "end"),
    [(SENDING_PARAMS, COMPLETE_SEND, StaleRun), (COMPLETE_SEND, RUNNING, StaleRun), (RUNNING, CALC_END, StaleRun),
     (CALC_END, GETTING_RETURN, TransferFailed), (CALC_END, GOT_RETURN, StaleRun), (GETTING_RETURN, GOT_RETURN, StaleRun)],
)  # fmt: skip
def test_refusals_are_bounded(tmp_path: Path, taken: str, target: str, end: type[SpoolError]) -> None:
    calls = Refusing(taken)
    one = way(tmp_path, calls, taken)
    for _ in range(REFUSALS - 1):
        with pytest.raises(Unreachable):
            one.take("call", target)
    with pytest.raises(end):
        one.take("call", target)
    assert calls.steps == REFUSALS


def test_refusals_of_the_claim_are_bounded(tmp_path: Path) -> None:
    one = way(tmp_path, Refusing(NOT_START), NOT_START)
    for _ in range(REFUSALS - 1):
        with pytest.raises(Unreachable):
            one.params(tmp_path)
    with pytest.raises(StaleRun):
        one.params(tmp_path)


@pytest.mark.parametrize("told", ["", CALC_END, GOT_RETURN, None])
def test_elsewhere_is_given_up_at_once(tmp_path: Path, told: str | None) -> None:
    calls = Refusing(told)
    with pytest.raises(StaleRun):
        way(tmp_path, calls, COMPLETE_SEND).take("calc-start", RUNNING)
    assert calls.steps == 1


def test_a_refusal_is_no_lost_answer(tmp_path: Path) -> None:
    """Refused once, and then nobody tells the progress: that must not count as taken."""
    calls = Refusing(RUNNING)
    one = way(tmp_path, calls, RUNNING)
    with pytest.raises(Unreachable):
        one.take("calc-end", CALC_END)
    calls.told = None
    with pytest.raises(StaleRun):
        one.take("calc-end", CALC_END)


def test_taken_by_the_request_whose_answer_was_lost(tmp_path: Path) -> None:
    """It was still being worked on when it was looked up, and when it was asked for again: that is remembered."""
    calls = Refusing(CALC_END)
    one = way(tmp_path, calls, CALC_END, trying=GETTING_RETURN)
    with pytest.raises(Unreachable):
        one.take("send-results", GETTING_RETURN)
    calls.told = GETTING_RETURN
    one.take("send-results", GETTING_RETURN)
    assert (one.reached(GETTING_RETURN), calls.steps) == (True, 1)


def test_who_does_not_tell_the_progress_is_asked_less_and_less(tmp_path: Path) -> None:
    asked = []

    class Silent(Refusing):
        def progress(self, accept_id: str) -> str | None:
            asked.append(accept_id)
            return self.told

    calls = Silent(None)
    one = way(tmp_path, calls, RUNNING)
    assert all(one.still_there() for _ in range(1000))
    assert 10 < len(asked) < 40
    calls.told = ""
    assert not all(one.still_there() for _ in range(100))
