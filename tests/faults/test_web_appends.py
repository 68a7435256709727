"""Chunks that come twice, together, out of order, damaged, too long, after a requeue, and to a server that is killed.

Raw clients against the real server; whatever they do, the file is right, byte for byte, and `HEAD` says the truth.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import pytest

from components.figures import tell
from components.waiting import stays
from server.client import Answer, Service

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
ROUNDS = 1500 if EXHAUSTIVE else 150
KILLS = 40 if EXHAUSTIVE else 8
SEED = 20261123
NAME = "out/結果 1.dat"
KINDS = [
    "twice", "four times", "other lengths", "ahead", "behind", "damaged", "too long", "too short", "plain", "next at once",
]  # fmt: skip


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "rig")
    yield made
    made.close()


class Upload:
    """One file of one run: `data` is what shall be there."""

    def __init__(self, service: Service, told: dict[str, Any], data: bytes, name: str = NAME) -> None:
        self.service = service
        self.told = told
        self.data = data
        self.name = name
        self.path = f"/v1/jobs/{told['id']}/files/{quote(name)}?run_id={told['run_id']}"

    def chunk(self, offset: int, length: int, *, data: bytes | None = None) -> Answer:
        part = self.data[offset : offset + length] if data is None else data
        digest = hashlib.sha256(part).digest()
        return self.service.agent.patch(self.path, offset, part, digest=digest)

    def here(self) -> int:
        """What `HEAD` says; never more than what was sent, and the bytes are right."""
        answer = self.service.agent.ok("HEAD", self.path)
        return int(answer.headers["Upload-Offset"])

    def on_disk(self) -> bytes:
        folder: Path = self.service.rig.job(self.told["id"]) / "incoming" / self.told["run_id"] / "files"
        return (folder / self.name).read_bytes()

    def finish(self) -> None:
        """The rest in one chunk, then the result; the job is completed with these very bytes."""
        here = self.here()
        while here < len(self.data):
            answer = self.chunk(here, 8 << 20)
            assert answer.status == 204
            here = int(answer.headers["Upload-Offset"])
        assert self.service.agent.finish(self.told, {self.name: self.data}).json["state"] == "completed"
        assert (self.service.rig.job(self.told["id"]) / self.name).read_bytes() == self.data


def together(*calls: Callable[[], Answer]) -> list[Answer]:
    """The answers to calls that are made at the same moment, each on a connection of its own."""
    gate = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def call(number: int) -> None:
        gate.wait(30)
        answers[number] = calls[number]()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def begun(service: Service) -> dict[str, Any]:
    service.drop(outputs=["*"])
    return service.agent.start()


def judge(answers: Sequence[Answer], offset: int, lengths: Sequence[int]) -> int:
    """The offset after calls at one offset: exactly one counts, the others are told a true offset."""
    taken = [length for answer, length in zip(answers, lengths) if answer.status == 204]
    assert len(taken) == 1, [answer.status for answer in answers]
    after = offset + taken[0]
    for answer in answers:
        assert int(answer.headers["Upload-Offset"]) == after, (answer.status, answer.headers["Upload-Offset"], after)
        if answer.status != 204:
            answer.problem(409, "offset_mismatch")
    return after


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hundreds_of_rounds_of_everything(service: Service) -> None:
    """At each round the next chunk comes in one of eight wrong ways first; in the end the file is what it should be."""
    chance = random.Random(SEED)
    did = Counter[str]()
    told = begun(service)
    upload = Upload(service, told, chance.randbytes(ROUNDS * 3000))
    offset = 0
    for _ in range(ROUNDS):
        length = min(chance.randrange(1, 6000), len(upload.data) - offset)
        if not length:
            break
        kind = chance.choice(KINDS)
        did[kind] += 1
        if kind in ("twice", "four times"):
            calls = 2 if kind == "twice" else 4
            offset = judge(together(*[partial(upload.chunk, offset, length)] * calls), offset, [length] * calls)
            continue
        if kind == "other lengths":
            lengths = [length, max(1, length // 2), max(1, length // 3)]
            offset = judge(together(*[partial(upload.chunk, offset, number) for number in lengths]), offset, lengths)
            continue
        if kind == "next at once":  # the chunk and its successor cross on the way
            first, second = together(partial(upload.chunk, offset, length), partial(upload.chunk, offset + length, length))
            assert first.status == 204
            assert second.status in (204, 409)
            offset = int(second.headers["Upload-Offset"]) if second.status == 204 else offset + length
            continue
        if kind == "ahead":
            wrong = upload.chunk(offset + chance.randrange(1, 9000), length, data=b"ahead")
        elif kind == "behind":
            wrong = upload.chunk(chance.randrange(0, offset), length) if offset else upload.chunk(1, length, data=b"x")
        elif kind == "damaged":
            digest = hashlib.sha256(upload.data[offset : offset + length]).digest()
            bad = bytes([upload.data[offset] ^ 1]) + upload.data[offset + 1 : offset + length]
            service.agent.patch(upload.path, offset, bad, digest=digest).problem(422, "digest_mismatch")
            assert upload.here() == offset
            continue
        elif kind in ("too long", "too short"):
            misdeclared(service, upload, offset, length, more=kind == "too long")
            offset = upload.here()
            continue
        else:
            answer = upload.chunk(offset, length)
            assert answer.status == 204
            offset = int(answer.headers["Upload-Offset"])
            continue
        wrong.problem(409, "offset_mismatch")
        assert int(wrong.headers["Upload-Offset"]) == offset
    assert upload.here() == offset
    assert upload.on_disk()[:offset] == upload.data[:offset]
    upload.finish()
    tell(f"appends: {sum(did.values())} rounds, {dict(sorted(did.items()))}, {len(upload.data)} bytes right")


def misdeclared(service: Service, upload: Upload, offset: int, length: int, *, more: bool) -> None:
    """A chunk whose body is longer or shorter than its Content-Length: the declared bytes count whole, or nothing does."""
    body = upload.data[offset : offset + length]
    sent = body + b"GET / HTTP/1.0\r\n\r\nand more" if more else body[: length // 2]
    head = f"PATCH {upload.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.agent.token}\r\n"
    head += f"Upload-Offset: {offset}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as line:
        line.sendall(head.encode() + sent)
        line.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(line)
        try:
            answer.begin()
            status = answer.status
        except (http.client.HTTPException, OSError):
            status = 0
    assert status == 204 if more else status != 204
    assert upload.here() == (offset + length if more else offset)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_is_killed_while_chunks_come(service: Service) -> None:
    """SIGKILL at random moments of a stream of doubled chunks; after the restart HEAD is believed, and it goes on from there."""
    chance = random.Random(SEED)
    upload = Upload(service, begun(service), chance.randbytes(48 << 20))
    acknowledged, cut_back, rounds = 0, 0, 0
    for _ in range(KILLS):
        stop = threading.Event()
        heard: list[int] = []

        def send(stop: threading.Event = stop, heard: list[int] = heard) -> None:
            offset, size = upload.here(), chance.choice([1000, 70_000, 400_000])
            while not stop.is_set() and offset + 2 * size < len(upload.data) - 1:
                try:
                    answer = upload.chunk(offset, size)
                except (OSError, http.client.HTTPException):
                    return
                assert answer.status in (204, 409), answer.body
                offset = int(answer.headers["Upload-Offset"])
                heard.append(offset)

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        stays(lambda: True, chance.uniform(0.05, 0.4), "chunks come")
        service.process.kill()
        stop.set()
        for thread in threads:
            thread.join(60)
        rounds += len(heard)
        acknowledged = max([acknowledged, *heard])
        service.restart()
        here = upload.here()
        assert here >= acknowledged, "what was acknowledged is gone"
        disk = upload.on_disk()
        assert disk[:here] == upload.data[:here]
        cut_back += len(disk) > here
        acknowledged = here
    upload.finish()
    tell(f"appends to a killed server: {KILLS} kills, {rounds} answers heard, {cut_back} times more on disk than recorded")


@pytest.mark.slow
def test_a_repeat_after_a_requeue(service: Service) -> None:
    """Chunks of the old run, alone and together with those of the new one at the same offset, touch nothing of the new one."""
    rounds = 0
    name = service.drop(outputs=["*"])
    old = service.agent.start()
    stale = Upload(service, old, b"o" * 90_000)
    stale.chunk(0, 30_000)
    assert service.operator("POST", f"/v1/jobs/{name}/requeue?force=1").status == 200
    stale.chunk(30_000, 30_000).problem(409, "stale_run")
    other = service.agent_of("alice", name="agent-2")
    told = other.start()
    new = Upload(service, told, random.Random(SEED).randbytes(60_000))
    for offset in range(0, 60_000, 5000):
        calls = partial(new.chunk, offset, 5000), partial(stale.chunk, offset, 5000), partial(stale.chunk, 30_000, 5000)
        answers = together(*calls)
        assert answers[0].status == 204
        answers[1].problem(409, "stale_run")
        answers[2].problem(409, "stale_run")
        rounds += 1
    assert service.agent("HEAD", stale.path).headers["Problem-Code"] == "stale_run"
    service.agent.finish(old, {NAME: stale.data}).problem(409, "stale_run")
    assert new.on_disk() == new.data
    assert other.finish(told, {NAME: new.data}).json["state"] == "completed"
    assert (service.rig.job(name) / NAME).read_bytes() == new.data
    assert [path.stem for path in (service.rig.job(name) / "late").iterdir()] == [old["run_id"]]
    tell(f"appends after a requeue: {rounds} rounds of a new chunk and two old ones together")


@pytest.mark.slow
def test_a_requeue_in_the_middle_of_appends(service: Service) -> None:
    """Requeued at random moments while chunks come: what the old run still appends is never found in the new attempt."""
    chance = random.Random(SEED)
    name = service.drop(outputs=["*"])
    count = 60 if EXHAUSTIVE else 12
    for number in range(count):
        told = service.agent.start()
        old = Upload(service, told, bytes([number + 1]) * 400_000)
        statuses: Counter[int] = Counter()

        def send(old: Upload = old, statuses: Counter[int] = statuses) -> None:
            offset = 0
            while offset < len(old.data):
                answer = old.chunk(offset, 4000)
                statuses[answer.status] += 1
                if answer.status not in (204, 503):  # 503: its folder has just been moved aside
                    return
                offset += 4000 if answer.status == 204 else 0

        thread = threading.Thread(target=send)
        thread.start()
        stays(lambda: True, chance.uniform(0.0, 0.1), "chunks come")
        assert service.operator("POST", f"/v1/jobs/{name}/requeue?force=1").status == 200
        thread.join(30)  # refused, or at its end
        assert not thread.is_alive()
        assert set(statuses) <= {204, 409, 503}
        assert statuses[409] or statuses[204] == 100, statuses
    last = Upload(service, service.agent.start(), os.urandom(50_000))
    assert last.here() == 0
    last.finish()
    assert service.rig.state(name)["attempt"] == count + 1
    files = sorted(path.name for path in (service.rig.job(name) / "out").iterdir())
    assert files == [NAME.partition("/")[2]]
    tell(f"requeues in the middle of appends: {count}")


@pytest.mark.slow
def test_more_bytes_while_the_result_is_accepted(service: Service) -> None:
    """A stray chunk behind the announced end, at the very moment of `finish`: what is accepted is what was announced."""
    ends: Counter[str] = Counter()
    for number in range(200 if EXHAUSTIVE else 25):
        upload = Upload(service, begun(service), os.urandom(200_000 + number))
        upload.chunk(0, len(upload.data))
        stray = [partial(upload.chunk, len(upload.data), 5, data=b"stray")] * 3
        answers = together(partial(service.agent.finish, upload.told, {NAME: upload.data}), *stray)
        status = answers[0].status
        ends[str(status)] += 1
        assert status in (200, 422), answers[0].body
        if status == 422:  # the stray one was first: the file is not what was announced, and is sent anew
            upload.finish()
        assert (service.rig.job(upload.told["id"]) / NAME).read_bytes() == upload.data
    tell(f"stray chunks at the moment of finish: {dict(ends)}")
