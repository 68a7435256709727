"""Mutated requests at a running server, from several connections at once."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hostile.cast import Cast
from hostile.line import Told, answers
from hostile.mutations import Mutator
from hostile.routes import ROUTES
from spool.errors import SpoolError
from spool.records import JobState

THREADS = 6
REFRESH = 60  # so many requests are made of one set of jobs: mutated ones cancel, end and requeue them
PATIENCE_S = 60.0  # for the answer to a request that is whole
GLANCE_S = 0.1  # for what may be no whole request, whose answer may never come
_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.1")
_FIELD = re.compile(rb"[A-Za-z-]+: [^\x00\r\n]*")


@dataclass
class Tally:
    """What was answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    silent: int = 0  # whole requests that were neither answered in time nor cut off
    bad: list[tuple[bytes, Told]] = field(default_factory=list)


def is_whole(request: bytes) -> bool:
    """True for a request that a server must answer without waiting for more of it."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    named = [line.lower().partition(b":") for line in fields]
    lengths = [value.strip() for name, _, value in named if name == b"content-length"]
    odd = {name for name, _, _ in named} & {b"transfer-encoding", b"expect", b"connection", b"upgrade"}
    good = all(_FIELD.fullmatch(line) for line in fields) and _LINE.fullmatch(first) and not odd
    return bool(good) and (lengths == [b"%d" % len(body)] if lengths else not body)


class Fuzz:
    """One round against one server. `seed` makes the requests; what order they arrive in is the threads' affair."""

    def __init__(self, cast: Cast, seed: int, outside: Path) -> None:
        self._cast = cast
        self._seed = seed
        self._outside = outside
        self._tokens = [cast.token("alice", "submitter", "agent"), cast.token("carol", "operator", site="site-a")]
        self._agent = cast.token("alice", "submitter", "agent")
        self._lock = threading.Lock()
        self.tally = Tally()

    def run(self, count: int) -> Tally:
        """Send `count` mutated requests; what is answered is in the tally."""
        shares = [count // THREADS + (number < count % THREADS) for number in range(THREADS)]
        failures: list[BaseException] = []

        def work(number: int, share: int) -> None:
            try:
                self._work(Mutator(self._seed * 1000 + number, self._outside), share)
            except BaseException as exc:  # noqa: BLE001 - the test's own thread: told below
                failures.append(exc)

        threads = [threading.Thread(target=work, args=item) for item in enumerate(shares)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return self.tally

    def _work(self, mutator: Mutator, share: int) -> None:
        sent, templates = 0, self._templates(mutator)
        while sent < share:
            if sent % REFRESH == 0:
                templates = self._templates(mutator)
            batch = [mutator.mutated(mutator.random.choice(templates))]
            if mutator.random.random() < 0.15 and is_whole(batch[0]):
                more = [mutator.mutated(mutator.random.choice(templates)) for _ in range(mutator.random.randrange(1, 5))]
                batch += [one for one in more if is_whole(one)][: share - sent - 1]
            self._send(batch)
            sent += len(batch)

    def _templates(self, mutator: Mutator) -> list[bytes]:
        made = []
        jobs: dict[str, JobState] = {}
        for route in ROUTES:
            token = self._agent if route.is_published else mutator.random.choice(self._tokens)
            state = route.state if mutator.random.random() < 0.7 else "running"
            if state not in jobs:
                jobs[state] = self._job(state)
            made.append(route.make(jobs[state], token))
        return made

    def _job(self, state: str) -> JobState:
        for _ in range(20):
            with contextlib.suppress(SpoolError, AssertionError):  # another thread's request has claimed or canceled it meanwhile
                return self._cast.job(state, self._agent)
        raise AssertionError(f"no job can be brought to {state}")

    def _send(self, batch: list[bytes]) -> None:
        whole = all(map(is_whole, batch))
        methods = [one.split(b" ", 1)[0].decode("latin-1") for one in batch]
        with socket.create_connection(("127.0.0.1", self._cast.port), timeout=PATIENCE_S) as line:
            try:
                line.sendall(b"".join(batch))
            except (BrokenPipeError, ConnectionResetError):
                whole = False  # refused before it was all sent
            line.settimeout(PATIENCE_S if whole else GLANCE_S)
            began = time.monotonic()
            told = answers(line, methods)
            whole = whole and time.monotonic() - began > PATIENCE_S - 1
        with self._lock:
            self.tally.sent += len(batch)
            self.tally.silent += whole and not told
            self.tally.statuses.update(answer.status for answer in told)
            self.tally.bad += [(b"".join(batch)[:3000], one) for one in told if one.status in (500, 502) or one.is_traced()]
