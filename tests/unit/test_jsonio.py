"""JSON: one strict reading, so that no two readers see two records."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import jsonio
from spool.errors import InvalidRecord

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_round_trip(value: dict[str, Any]) -> None:
    assert jsonio.loads(jsonio.dumps(value), "x") == value
    line = jsonio.dumps_line(value)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert jsonio.loads(line, "x") == value


def test_written_for_people() -> None:
    assert jsonio.dumps({"名": "梁"}) == '{\n  "名": "梁"\n}\n'.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"1",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"a":2}}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":' + b"9" * 30 + b"}",
        b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"a":1}'.decode().encode("utf-16"),
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":"\n"}',
    ],
)
def test_refused_naming_the_record_and_a_hint(data: bytes) -> None:
    with pytest.raises(InvalidRecord) as caught:
        jsonio.loads(data, "job.json")
    assert "job.json" in caught.value.message
    assert caught.value.hint


def test_the_place_of_a_slip_is_named() -> None:
    with pytest.raises(InvalidRecord, match="line 2, column 8"):
        jsonio.loads(b'{\n  "a": x}', "job.json")


def test_a_byte_order_mark_of_an_editor_is_taken() -> None:
    assert jsonio.loads(b'\xef\xbb\xbf{"a":1}', "x") == {"a": 1}


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_that_cannot_be_written_again_is_refused(number: str) -> None:
    """It would be read as infinity and be written as `Infinity`, which no reader takes, this one included."""
    with pytest.raises(InvalidRecord):
        jsonio.loads(b'{"a":' + number.encode() + b"}", "x")


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_an_error(data: bytes) -> None:
    try:
        value = jsonio.loads(data, "x")
    except InvalidRecord:
        return
    assert isinstance(value, dict)
    json.dumps(value, allow_nan=False)
