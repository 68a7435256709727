"""Files over a line that cuts, damages, limits and lies: what arrives is whole, and what is there is not sent again."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.company import SITE, Company, noise
from agent.wire import Act, Request, Wire, once
from components.waiting import wait_until
from spool.agent.client import Client, retry_delay_s
from spool.agent.transfer import Sender, fetch_inputs
from spool.errors import SpoolError, TooManyTries, TransferFailed, Unreachable
from spool.paths import JobPaths
from spool.records import FileEntry, JobState

MIB = 1 << 20
Make = Callable[..., Wire]


class Hand:
    """The agent's own client and transfer, called by hand behind a wire, for one job that it has claimed."""

    def __init__(self, company: Company, wire: Wire, folder: Path) -> None:
        self.wire = wire
        self.company = company
        token = company.rig.token("mint", "agent", site=SITE)
        self.client = Client(wire.url, lambda: token)
        self.paths = JobPaths(folder / "job")
        self.paths.folder.mkdir()
        self.paths.out.mkdir()

    def sync(self, room: int, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        request = {"site": SITE, "agent": "hand", "room": room, "wait_s": 5, "jobs": jobs}
        return list(self.client.sync(request)["jobs"])

    def claim(self) -> JobState:
        told = self.sync(1, [])
        return self.client.state(told[0]["id"])

    def running(self) -> JobState:
        """Claimed and permitted to start."""
        state = self.claim()
        self.sync(0, [{"id": state.id, "run_id": state.run_id, "state": "claimed", "ready": True}])
        return state

    def fetch(self, state: JobState) -> None:
        fetch_inputs(self.client, state.id, self.paths, state.inputs)

    def fetch_until_whole(self, state: JobState, tries: int = 10) -> int:
        """As the agent does, without its pauses; returns how many tries it took."""
        for number in range(1, tries + 1):
            try:
                self.fetch(state)
                return number
            except SpoolError as exc:
                if not exc.transient:
                    raise
        raise AssertionError(f"not fetched in {tries} tries")

    def sender(self, state: JobState, chunk: int) -> Sender:
        return Sender(self.client, state.id, state.run_id, self.paths, chunk)

    def leaves(self, name: str, data: bytes) -> FileEntry:
        path = self.paths.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return FileEntry(f"out/{name}", len(data), hashlib.sha256(data).hexdigest())

    def at_mint(self, state: JobState, name: str) -> bytes:
        return (self.company.rig.job(state.id) / "incoming" / state.run_id / "files" / name).read_bytes()


@pytest.fixture
def hand(company: Company, make_wire: Make, tmp_path: Path) -> Hand:
    folder = tmp_path / "hand"
    folder.mkdir()
    return Hand(company, make_wire(company.rig.port), folder)


def is_input(request: Request) -> bool:
    return request.method == "GET" and "/files/in/" in request.path


def is_chunk(request: Request) -> bool:
    return request.method == "PATCH" and "/files/out/" in request.path


# ---- in


@pytest.mark.parametrize("cuts", [(0, 1), (300_000, 262_144), (262_143, 999_999), (2_999_999, 10)], ids=str)
def test_download_goes_on_where_it_was_cut(company: Company, hand: Hand, cuts: tuple[int, ...]) -> None:
    data = noise(3_000_000)
    company.sh("true", inputs={"big 入力.bin": data})
    state = hand.claim()
    hand.wire.rule = once(is_input, *(Act(cut_answer=cut) for cut in cuts))
    assert hand.fetch_until_whole(state) == len(cuts) + 1
    assert (hand.paths.inputs / "big 入力.bin").read_bytes() == data
    ranges = [request.headers.get("range", "") for request in hand.wire.of("GET", "/files/in/")]
    starts = [int(text[len("bytes=") : -1] or 0) if text else 0 for text in ranges]
    assert starts == sorted(starts)
    for start, cut in zip(starts[1:], cuts):
        assert start >= cut - 262_144, f"more than one block was thrown away: {starts} after cuts {cuts}"


def test_small_pieces_add_up(company: Company, hand: Hand) -> None:
    """A line that never carries more than 100 kB at a time: every piece must count, or the job never gets its input."""
    company.sh("true", inputs={"big.bin": noise(1_000_000)})
    state = hand.claim()
    hand.wire.rule = lambda request: Act(cut_answer=100_000) if is_input(request) else None
    assert hand.fetch_until_whole(state, tries=30) <= 12


def test_damaged_input_is_fetched_again(company: Company, hand: Hand) -> None:
    data = noise(2_000_000)
    company.sh("true", inputs={"a.bin": data})
    state = hand.claim()
    hand.wire.rule = once(is_input, Act(damage=1_234_567))
    hand.fetch(state)
    assert (hand.paths.inputs / "a.bin").read_bytes() == data
    assert len(hand.wire.of("GET", "/files/in/")) == 2


def test_input_damaged_for_good_is_said(company: Company, hand: Hand) -> None:
    company.sh("true", inputs={"a.bin": noise(1000)})
    state = hand.claim()
    hand.wire.rule = lambda request: Act(damage=7) if is_input(request) else None
    with pytest.raises(TransferFailed, match=r"a\.bin"):
        hand.fetch(state)
    assert not (hand.paths.inputs / "a.bin").exists()


def many(count: int = 40) -> dict[str, bytes]:
    return {f"d{number % 3}/入力 {number}.txt": noise(20_000, str(number)) for number in range(count)}


@pytest.mark.parametrize("cut", [0, 511, 512, 20_480, 200_000, 850_000])
def test_tar_of_inputs_may_be_cut_anywhere(company: Company, hand: Hand, cut: int) -> None:
    inputs = many()
    company.sh("true", inputs=inputs)
    state = hand.claim()
    hand.wire.rule = once(lambda request: request.path.partition("?")[0].endswith("in.tar"), Act(cut_answer=cut))
    assert hand.fetch_until_whole(state) <= 2
    assert {name: (hand.paths.inputs / name).read_bytes() for name in inputs} == inputs


def test_damage_in_the_tar_is_found(company: Company, hand: Hand) -> None:
    inputs = many(10)
    company.sh("true", inputs=inputs)
    state = hand.claim()
    hand.wire.rule = once(lambda request: "in.tar" in request.path, Act(damage=5000))
    hand.fetch_until_whole(state)
    assert {name: (hand.paths.inputs / name).read_bytes() for name in inputs} == inputs


def test_small_input_damaged_for_good_ends_the_tries(company: Company, hand: Hand) -> None:
    """Damaged on MInt's disk: a size that is right and bytes that are not. One big input is given up after two tries; so must be
    a small one among many."""
    job = company.sh("true", inputs=many(10))
    state = hand.claim()
    (company.rig.job(job) / "in" / "d1" / "入力 1.txt").write_bytes(bytes(20_000))
    with pytest.raises(TransferFailed):
        hand.fetch_until_whole(state, tries=5)


def test_unannounced_members_are_not_taken(company: Company, hand: Hand) -> None:
    company.sh("true", inputs=many(10))
    state = hand.claim()
    fewer = dataclasses.replace(state, inputs=state.inputs[:6])
    hand.fetch(fewer)
    found = [path for path in hand.paths.inputs.rglob("*") if path.is_file()]
    assert len(found) == 6


# ---- out


def test_upload_goes_on_where_it_was_cut(company: Company, hand: Hand) -> None:
    company.sh("true")
    state = hand.running()
    data = noise(5 * MIB + 17)
    entry = hand.leaves("結果 1.bin", data)
    hand.wire.rule = once(is_chunk, Act(), Act(), Act(cut_body=500_000), Act(lose=True))
    sender = hand.sender(state, MIB)
    for _ in range(2):
        with pytest.raises(Unreachable):
            sender.send([entry])
    sender.send([entry])
    assert hand.at_mint(state, entry.path) == data
    offsets = [int(request.headers["upload-offset"]) // MIB for request in hand.wire.of("PATCH", "/files/out/")]
    assert offsets == [0, 1, 2, 2, 3, 4, 5], "a chunk that was here was sent again, or one was left out"


def test_damaged_chunk_does_not_count(company: Company, hand: Hand) -> None:
    """The digest of each chunk is checked before it counts: here the announcement is what was changed on the way."""
    company.sh("true")
    state = hand.running()
    entry = hand.leaves("a.bin", noise(MIB))
    wrong = "sha-256=:" + "A" * 43 + "=:"
    real = hand.client._send

    def damaging(method: str, path: str, **kwargs: Any) -> Any:
        if method == "PATCH":
            kwargs["headers"]["Content-Digest"] = wrong
        return real(method, path, **kwargs)

    hand.client._send = damaging  # type: ignore[method-assign]
    with pytest.raises(SpoolError) as caught:
        hand.sender(state, MIB).send([entry])
    assert caught.value.code == "digest_mismatch"
    assert hand.client.upload_offset(state.id, state.run_id, entry.path) == 0


HTML, OWN = {"Content-Type": "text/html"}, {"Content-Type": "application/problem+json"}


@pytest.mark.parametrize(
    ("headers", "page"),
    [(HTML, b"<html>413</html>"), (OWN, b'{"code": "too_large", "message": "m", "hint": "h"}')],
    ids=["nginx", "own"],
)
def test_413_halves_the_chunk(company: Company, hand: Hand, headers: dict[str, str], page: bytes) -> None:
    company.sh("true")
    state = hand.running()
    data = noise(5 * MIB)
    entry = hand.leaves("a.bin", data)
    hand.wire.rule = lambda request: Act(status=413, headers=headers, page=page) if request.body_bytes > 1_500_000 else None
    sender = hand.sender(state, 4 * MIB)
    for _ in range(4):
        try:
            sender.send([entry])
            break
        except SpoolError:
            continue
    assert hand.at_mint(state, entry.path) == data
    assert [request.body_bytes for request in hand.wire.of("PATCH", "/files/out/")][:3] == [4 * MIB, 2 * MIB, MIB]


@pytest.mark.slow
@pytest.mark.parametrize("headers", [HTML, OWN], ids=["nginx", "own"])
def test_agent_brings_results_through_a_proxy_with_a_limit(company: Company, make_wire: Make, headers: dict[str, str]) -> None:
    """nginx' own default is 1 MiB for a body; 413 comes as HTML from it and as a problem from the server."""
    page = b'{"code": "too_large", "message": "m", "hint": "h"}'
    wire = make_wire(
        company.rig.port, lambda request: Act(status=413, headers=headers, page=page) if request.body_bytes > 1_100_000 else None
    )
    company.start(url=wire.url, chunk="4M")
    job = company.sh("cat in.bin in.bin in.bin > out.bin", inputs={"in.bin": noise(MIB)}, outputs=("out.bin",))
    assert company.completed(job, 30) == {"out.bin": noise(MIB) * 3}


@pytest.mark.slow
def test_agent_brings_many_results_through_a_proxy_with_a_limit(company: Company, make_wire: Make) -> None:
    """The tar of small files obeys the limit too."""
    wire = make_wire(company.rig.port, lambda request: Act(status=413) if request.body_bytes > 1_100_000 else None)
    company.start(url=wire.url)
    job = company.sh(
        "for i in 1 2 3 4 5 6 7 8; do cp in.bin out$i.bin; done", inputs={"in.bin": noise(400_000)}, outputs=("out*",)
    )
    assert company.completed(job, 30) == {f"out{number}.bin": noise(400_000) for number in range(1, 9)}


@pytest.mark.slow
def test_empty_and_equal_files_come_back(company: Company, hand: Hand) -> None:
    company.sh("true")
    state = hand.running()
    entries = [hand.leaves("empty", b""), hand.leaves("sub/same", b"x"), hand.leaves("same", b"x")]
    hand.sender(state, MIB).send(entries)
    hand.sender(state, MIB).send(entries)
    assert [hand.at_mint(state, entry.path) for entry in entries] == [b"", b"x", b"x"]


# ---- what is no answer


@pytest.mark.parametrize("status", [200, 204, 302, 403, 404, 407, 409, 502, 503])
def test_a_proxys_page_is_no_answer(hand: Hand, status: int) -> None:
    hand.wire.rule = lambda request: Act(status=status, page=b"" if status == 204 else b"<html>log in</html>")
    calls: list[Callable[[], object]] = [
        lambda: hand.sync(0, []),
        lambda: hand.client.job_bytes("x"),
        lambda: hand.client.state("x"),
        lambda: hand.client.upload_offset("x", "r", "out/a"),
        lambda: hand.client.upload_tar("x", "r", b"tar"),
    ]
    for call in calls:
        with pytest.raises(SpoolError) as caught:
            call()
        assert caught.value.transient or caught.value.code in ("unauthorized", "not_allowed"), (
            f"{status} of a proxy ends the job's journey: {caught.value!r}"
        )


@pytest.mark.parametrize("page", [b"[]", b"null", b"{", b"\xff", b"", b"<html>"])
def test_json_of_somebody_else_is_no_answer(hand: Hand, page: bytes) -> None:
    hand.wire.rule = lambda request: Act(status=200, page=page, headers={"Content-Type": "application/json"})
    with pytest.raises(Unreachable):
        hand.sync(0, [])


def test_an_answer_without_state_is_no_answer(hand: Hand) -> None:
    """What is not caught as the family's error ends the agent's loop."""
    hand.wire.rule = lambda request: Act(status=200, page=b"{}", headers={"Content-Type": "application/json"})
    with pytest.raises(SpoolError):
        hand.client.state("x")


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("7", 7, 7), ("999999", 3600, 3600), ("1", 1, 1), ("0", 1, 2), ("soon", 1, 2)]
)
def test_retry_after_is_read_and_bounded(hand: Hand, asked: str, least: float, most: float) -> None:
    hand.wire.rule = lambda request: Act(status=503, headers={**HTML, "Retry-After": asked})
    with pytest.raises(SpoolError) as caught:
        hand.sync(0, [])
    assert least <= retry_delay_s(0, caught.value) <= most
    assert retry_delay_s(3, TooManyTries("m", retry_after_s=9)) == 9


def test_pauses_grow_to_five_minutes() -> None:
    for tries in range(40):
        longest = min(300.0, 2.0 * 2**tries)
        for _ in range(20):
            assert longest / 2 <= retry_delay_s(tries) <= longest


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 404, 502])
def test_agent_lives_through_a_proxys_pages(company: Company, make_wire: Make, status: int) -> None:
    """While the results go back, everything is answered by a page for a while; nothing is lost for that."""
    wire = make_wire(company.rig.port)
    company.start(url=wire.url)
    script = "while [ ! -e go ]; do sleep 0.05; done; cat in.bin > out.bin"
    job = company.sh(script, inputs={"in.bin": noise(MIB)}, outputs=("out.bin",))
    company.locally(job, "running")
    company.is_at(job, "running")
    wire.rule = lambda request: Act(status=status)
    (company.local(job) / "work" / "go").touch()
    company.locally(job, "returning")
    before = len(wire.of("HEAD", "/files/out/")) + len(wire.of("PATCH", "/files/"))
    wait_until(lambda: len(wire.of("HEAD", "/files/out/")) + len(wire.of("PATCH", "/files/")) > before, 20, "a try to return")
    wire.rule = lambda request: None
    assert company.completed(job, 30) == {"out.bin": noise(MIB)}


@pytest.mark.slow
def test_agent_obeys_retry_after(company: Company, make_wire: Make) -> None:
    """Asked to come back in 4 s, it does not come before; the first own pause would be at most 2 s."""
    wire = make_wire(company.rig.port)
    asked = Act(status=503, headers={**HTML, "Retry-After": "4"})
    wire.rule = once(lambda request: request.path == "/v1/sync", asked)
    company.start(url=wire.url)
    assert company.agent
    wait_until(lambda: wire.of("POST", "/v1/sync"), 10, "a first sync")
    company.agent.wait_for_output("in_s=4.0", 5)
    job = company.sh("true")
    assert company.completed(job, 15) == {}


@pytest.mark.slow
def test_lost_answer_of_the_last_word(company: Company, make_wire: Make) -> None:
    """The server has accepted the result and the agent never heard: it ends as delivered on both sides, with the bytes once."""
    wire = make_wire(company.rig.port)
    wire.rule = once(lambda request: request.path.endswith("/finish"), Act(lose=True))
    company.start(url=wire.url)
    job = company.sh("cat in.bin | tee out.bin >> ../counter", inputs={"in.bin": noise(MIB)}, outputs=("out.bin",))
    assert company.completed(job) == {"out.bin": noise(MIB)}
    company.locally(job, "completed", "canceled", "failed")
    assert company.local_state(job) == "completed"
    assert (company.local(job) / "counter").stat().st_size == MIB
