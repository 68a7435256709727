"""Records: what is written is read again unchanged, unknown keys included; what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.errors import InvalidName, InvalidRecord, SpoolError, UnknownFormat
from spool.instants import from_epoch, to_epoch
from spool.names import new_id, why_not_carried
from spool.records import MAX_PRIORITY, FileEntry, HistoryEntry, Input, Job, JobState, Result
from spool.states import State

ID = "0d9de71c-5a4b-4b0a-8d20-1f4a3a1f9a10"
RUN = "7c0e6b0e-64a3-4d26-b5ab-6a5de6f0a001"
SHA = "a" * 64

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
ids = st.uuids().map(str)
sha256s = st.text("0123456789abcdef", min_size=64, max_size=64)
parts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="/"), min_size=1, max_size=8)
names = st.lists(parts, min_size=1, max_size=3).map("/".join).filter(lambda name: not why_not_carried(name))
sizes = st.integers(0, 2**53)
entries = st.builds(FileEntry, names, sizes, sha256s)
manifests = st.lists(entries, max_size=3, unique_by=lambda entry: entry.path.split("/")[0]).map(tuple)
extras = st.dictionaries(text.map(lambda key: "x_" + key), st.none() | st.booleans() | st.integers(-9, 9) | text, max_size=3)
maybe = st.none() | st.integers(0, 255)
users = st.sampled_from(["alice", "山田", "a.b@c"])
sites = st.sampled_from(["site-a", "B.1"])
strings = st.lists(text, max_size=3).map(tuple)
entry_lines = st.builds(
    HistoryEntry, st.integers(0, 9), text.filter(bool), text, text.filter(bool), text, st.integers(0, 9), text, text
)
states = st.builds(
    JobState,
    id=ids,
    state=st.sampled_from(State),
    site=sites,
    user=users,
    revision=st.integers(0, 2**53),
    **{**dict.fromkeys(JobState._STRINGS, text), "expires_at": st.sampled_from(["", "2026-11-23T00:05:45Z"])},
    agent_order=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    priority=st.integers(-MAX_PRIORITY, MAX_PRIORITY),
    attempt=st.integers(1, 99),
    exit_code=maybe,
    inputs=manifests,
    last=st.none() | entry_lines,
    extra=extras,
)
results = st.builds(
    Result,
    id=ids,
    run_id=ids,
    attempt=st.integers(1, 9),
    exit_code=maybe,
    signal=maybe,
    reason=st.sampled_from(["", "canceled", "lost"]),
    message=text,
    started_at=text,
    finished_at=text,
    files=manifests.map(lambda found: tuple(dataclasses.replace(entry, path="out/" + entry.path) for entry in found)),
    missing=strings,
    withheld=strings,
    not_carried=strings,
    extra=extras,
)
jobs = st.builds(
    Job,
    site=sites,
    command=st.sampled_from(["ccx", "/opt/x.sh", "計算"]),
    id=st.just("") | ids,
    args=strings,
    inputs=manifests.map(lambda found: tuple(Input(entry.path, entry.size, entry.sha256) for entry in found)),
    outputs=st.lists(names, max_size=3).map(tuple),
    user=st.just("") | users,
    priority=st.integers(-MAX_PRIORITY, MAX_PRIORITY),
    workflow=text,
    env=st.dictionaries(st.sampled_from(["A", "B_1"]), text, max_size=2),
    wall_time_s=st.none() | st.integers(1, 99),
    expires_at=st.sampled_from(["", "2026-11-23T00:05:45Z"]),
    give_up_after_s=st.none() | st.integers(1, 99),
    require_all=st.booleans(),
    labels=st.dictionaries(text, text, max_size=2),
    resources=st.dictionaries(text, st.integers(0, 9), max_size=2),
    notify_url=text,
    extra=extras.map(lambda keys: {key: value for key, value in keys.items() if value is not None}),
)


@given(states)
def test_state_round_trip(state: JobState) -> None:
    assert JobState.parse(state.encode()) == state


@given(results)
def test_result_round_trip(result: Result) -> None:
    assert Result.parse(result.encode()) == result


@given(jobs)
def test_job_round_trip(job: Job) -> None:
    assert Job.parse(job.encode()) == job


@given(entry_lines)
def test_history_round_trip(entry: HistoryEntry) -> None:
    assert HistoryEntry.parse(entry.encode()) == entry


@given(entries)
def test_file_entry_round_trip(entry: FileEntry) -> None:
    assert FileEntry.parse(entry.encode(), "x") == entry


@given(states, st.dictionaries(st.text("abc_", min_size=1, max_size=3), text, max_size=3))
def test_keys_of_a_later_release_survive(state: JobState, later: dict[str, Any]) -> None:
    value = {**json.loads(state.encode()), **later}
    again = json.loads(JobState.parse(json.dumps(value).encode()).encode())
    assert {key: again.get(key) for key in later} == later


@given(
    st.binary(max_size=80)
    | st.dictionaries(
        st.sampled_from(["site", "command", "inputs", "env", "id"]), st.none() | text | st.lists(text) | st.integers()
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_is_read_is_a_record_or_an_error_of_the_family(data: bytes) -> None:
    told: list[SpoolError] = []
    for parse in (Job.parse, JobState.parse, Result.parse):
        try:
            parse(data)
        except SpoolError as error:
            told.append(error)
    assert all(error.message and error.hint for error in told)


def job(**keys: Any) -> bytes:
    value = {"site": "a", "command": "ccx", **keys}
    return json.dumps({key: item for key, item in value.items() if item is not ...}).encode()


def test_the_smallest_useful_job() -> None:
    data = b'{"site": "nims-dev", "command": "ccx", "inputs": ["beam.inp"], "outputs": ["beam.dat", "*.frd"]}'
    found = Job.parse(data)
    assert (found.site, found.command, found.outputs) == ("nims-dev", "ccx", ("beam.dat", "*.frd"))
    assert found.inputs == (Input("beam.inp"),)
    assert found.priority == 0


@pytest.mark.parametrize(
    "keys",
    [
        {"site": ...},
        {"site": ""},
        {"site": "../x"},
        {"site": 1},
        {"command": ...},
        {"command": ""},
        {"command": "-c"},
        {"command": "a\nb"},
        {"command": "a\0b"},
        {"id": "1"},
        {"id": ID.upper()},
        {"args": "x"},
        {"args": [1]},
        {"args": ["a\0b"]},
        {"inputs": [1]},
        {"inputs": ["../x"]},
        {"inputs": ["/etc/passwd"]},
        {"inputs": ["a", "a"]},
        {"inputs": ["a", "a/b"]},
        {"inputs": {"a": 1}},
        {"inputs": [{"path": "a"}]},
        {"inputs": [{"path": "a", "size": -1, "sha256": SHA}]},
        {"inputs": ["-x"]},
        {"inputs": [{"path": "a", "size": 1, "sha256": SHA.upper()}]},
        {"outputs": ["../*"]},
        {"outputs": ["/etc/*"]},
        {"outputs": [""]},
        {"user": "a/b"},
        {"priority": 1001},
        {"priority": -1001},
        {"priority": 1.5},
        {"priority": True},
        {"env": {"A=B": "1"}},
        {"env": {"A": 1}},
        {"env": {"A": "x\0"}},
        {"wall_time_s": 0},
        {"wall_time_s": "5"},
        {"expires_at": "tomorrow"},
        {"expires_at": "2026-11-23T00:00:00"},
        {"give_up_after_s": 0},
        {"require_all": "yes"},
        {"labels": [1]},
        {"resources": []},
    ],
)
def test_a_wrong_job_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises((InvalidRecord, InvalidName)) as caught:
        Job.parse(job(**keys))
    assert caught.value.hint


@pytest.mark.parametrize("parse", [Job.parse, JobState.parse, Result.parse])
@pytest.mark.parametrize("number", [0, 2, 99])
def test_another_major_format_is_told_apart(parse: Any, number: int) -> None:
    with pytest.raises(UnknownFormat):
        parse(b'{"format": %d}' % number)


def result(**keys: Any) -> bytes:
    return json.dumps({"id": ID, "run_id": RUN, "attempt": 1, **keys}).encode()


@pytest.mark.parametrize(
    "path", ["in/a", "a", "out", "state.json", "../out/a", "out/../state.json", "log/../../x", "outer/a", "out/"]
)
def test_a_result_names_nothing_beyond_out_and_log(path: str) -> None:
    with pytest.raises((InvalidRecord, InvalidName)):
        Result.parse(result(files=[{"path": path, "size": 0, "sha256": SHA}]))


def test_the_reasons_are_a_closed_list() -> None:
    """`reason` travels to people, filters and other programs: design section 3 calls the list closed."""
    for word in ("", "canceled", "exit_nonzero", "refused_by_site"):
        assert Result.parse(result(reason=word)).reason == word
    with pytest.raises(InvalidRecord):
        Result.parse(result(reason="banana"))


@pytest.mark.parametrize(
    "keys", [{"state": "done"}, {"id": "x"}, {"user": "a b"}, {"site": ".."}, {"attempt": 0}, {"last": {"revision": 1}}]
)
def test_a_damaged_state_is_an_invalid_record(keys: dict[str, Any]) -> None:
    good = JobState(ID, State.NEW, "a", "b", 1)
    with pytest.raises((InvalidRecord, InvalidName)):
        JobState.parse(json.dumps({**json.loads(good.encode()), **keys}).encode())


@given(st.floats(0, 253402300799))
def test_instants(seconds: float) -> None:
    written = from_epoch(seconds)
    assert written.endswith("Z")
    assert abs(to_epoch(written) - seconds) < 0.002


@pytest.mark.parametrize(
    "instant", ["", "x", "2026-11-23", "2026-11-23T00:00:00", "2026-13-01T00:00:00Z", "2026-11-23T25:00:00Z"]
)
def test_no_instant(instant: str) -> None:
    with pytest.raises(InvalidRecord):
        to_epoch(instant)


@pytest.mark.parametrize("instant", ["2026-11-23T00:05:45.5Z", "2026-11-23T00:05:45.123456789Z", "2026-11-23T09:05:45.12+09:00"])
def test_every_rfc_3339_fraction_is_an_instant(instant: str) -> None:
    """`date --rfc-3339=ns` writes nine digits; Python 3.9 and 3.10 take three or six only, so the floor must not decide."""
    assert abs(to_epoch(instant) - to_epoch("2026-11-23T00:05:45Z")) < 1


@pytest.mark.parametrize("instant", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
def test_an_instant_that_cannot_be_written_again_is_an_error_of_the_family(instant: str) -> None:
    """expires_at is read with `to_epoch` and written with `from_epoch`: beyond the calendar either must say so."""
    try:
        from_epoch(to_epoch(instant))
    except InvalidRecord:
        return
    raise AssertionError("an instant outside the years 1 to 9999 was taken")


def test_new_ids_are_ids() -> None:
    assert len({new_id() for _ in range(100)}) == 100
