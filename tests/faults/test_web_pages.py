"""A proxy that answers in the server's place, at each step: nothing is taken for an answer that is none, and all goes on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.wire import Act, Request
from components import proc
from components.figures import tell
from components.waiting import wait_until
from faults.pages import PAGES, page
from faults.web import CALLS, Web, call_of, job_of

KINDS = len(PAGES)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "rig")
    yield made
    made.close()


class Square:
    """Job number n meets at call number m the page of kind n + m, once; every second sync is answered by a page, too."""

    def __init__(self, jobs: list[str], *, after: bool) -> None:
        self._jobs = {job: number for number, job in enumerate(jobs)}
        self._after = after
        self._lock = threading.Lock()
        self.met: set[tuple[str, int]] = set()
        self.syncs = 0

    def __call__(self, request: Request) -> Act | None:
        call = call_of(request)
        with self._lock:
            if call == "sync":
                self.syncs += 1
                if self.syncs % 2 or self.syncs > 2 * KINDS:
                    return None
                self.met.add(("sync", self.syncs // 2 % KINDS))
                return page(self.syncs // 2, after=self._after)
            if call not in CALLS or job_of(request) not in self._jobs:
                return None
            kind = (self._jobs[job_of(request)] + CALLS.index(call)) % KINDS
            if (call, kind) in self.met:
                return None
            self.met.add((call, kind))
            return page(kind, after=self._after)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("after", [False, True], ids=["in place of the server", "in place of its answer"])
def test_every_call_meets_every_page(web: Web, after: bool) -> None:
    jobs = [web.at_once(full=True) for _ in range(KINDS)]
    for job in jobs:
        web.is_at(job, "queued")
    square = Square(jobs, after=after)
    web.wire.rule = square
    agent = web.start(slots=KINDS, poll_s="0.2")
    for job in jobs:
        web.right(job, 240)
    assert agent.running
    wait_until(lambda: len(square.met) == KINDS * (len(CALLS) + 1), 60, "every call has met every page")
    said = web.said()
    words = ("社内プロキシ ログイン", "502 from the gateway", "sent on to https://login.example.jp", "client_max_body_size")
    assert [item for item in words if item not in said] == [], "the log says what came, and what to do"
    assert "secret" not in said
    assert "carrier_failed" not in said
    assert "Traceback" not in said
    tries = Counter(line.split("step=")[1].split()[0] for line in said.splitlines() if "event=tried_again" in line)
    tell(f"pages, {'after' if after else 'instead of'} the server: {len(square.met)} pairs of call and page, "
          f"{KINDS} jobs, tries again: {dict(tries)}")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("after", [False, True], ids=["in place of the server", "in place of its answer"])
def test_pages_only_for_a_while_in_every_phase(web: Web, after: bool) -> None:
    """Everything is answered by pages of changing kinds, `an hour` long; running commands go on, and all recovers by itself."""
    agent = web.start(slots=4)
    done = web.at_once()
    web.right(done)
    seen = Counter[str]()

    def storm(request: Request) -> Act:
        seen[call_of(request)] += 1
        return page(sum(seen.values()), after=after)

    running, ending = web.waiting(), web.waiting()
    pids = [web.pid(job) for job in (running, ending)]
    web.is_at(running, "running")
    web.wire.rule = storm
    waiting = web.at_once()  # handed in while nobody hears anything
    web.go(ending)  # ends, and cannot say so
    web.locally(ending, "returning")
    wait_until(lambda: sum(seen.values()) >= 8, 120, "several tries met pages")
    assert agent.running
    assert proc.alive(pids[0]), "the command runs on"
    assert web.starts(waiting) == [] or after
    web.wire.rule = lambda request: None
    web.go(running)
    for job in (running, ending, waiting):
        web.right(job, 120)
    tell(f"pages only: {dict(seen)}")
