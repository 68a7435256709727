"""JSON that carries files: what json and base64 of the standard library write is read back, and the reverse; block borders."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spool import streams
from spool.errors import Conflict, InvalidRecord
from spool.streams import Place, Source, Stored, length_of, read_document, write_document


def is_file(place: Place) -> bool:
    return len(place) == 3 and place[0] == "files" and place[2] == "content"


class Dribble:
    """A stream that gives `size` bytes at a time, whatever is asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = io.BytesIO(data), size

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._size))


def read(data: bytes, folder: Path, step: int = 1 << 20) -> dict[str, Any]:
    target = Path(str(folder)) / f"made{len(list(folder.iterdir()))}"
    target.mkdir()
    return read_document(Dribble(data, step), target, is_file, what="the body")


def plain(value: Any) -> Any:
    """The document with every stored file as the base64 it came as."""
    if isinstance(value, Stored):
        data = value.path.read_bytes()
        assert len(data) == value.size
        return base64.b64encode(data).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**15), 10**15), st.text(st.characters(blacklist_categories=["Cs"])))
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("añ日", max_size=3), inner))
files = st.dictionaries(st.text("ab/日\"\\", max_size=4), st.binary(max_size=40), max_size=4)


@given(documents, files, st.integers(1, 9), st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_json_writes_is_read_back(tmp_path: Path, rest: Any, contents: dict[str, bytes], step: int, escaped: bool) -> None:
    document = {
        "rest": rest,
        "files": {name: {"content": base64.b64encode(data).decode(), "mimetype1": "x"} for name, data in contents.items()},
    }
    data = json.dumps(document, ensure_ascii=escaped).encode("utf-8")
    assert plain(read(data, tmp_path, step)) == document


@given(files)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_by_json(contents: dict[str, bytes]) -> None:
    def source(data: bytes) -> Source:
        return Source(lambda: io.BytesIO(data), len(data))

    document = {"files": {name: [source(data), "計算", None] for name, data in contents.items()}, "計": [1, True]}
    written = b"".join(write_document(document))
    assert len(written) == length_of(document)
    assert b"\\u" not in written
    assert {name: base64.b64decode(item[0]) for name, item in json.loads(written)["files"].items()} == contents


@pytest.mark.parametrize("size", [0, 1, 2, 3, streams.SOURCE_BLOCK_BYTES - 1, streams.SOURCE_BLOCK_BYTES, 2_500_001])
def test_large_files_there_and_back(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    written = b"".join(write_document({"files": {"a": {"content": Source(lambda: io.BytesIO(data), size)}}}))
    stored = read(written, tmp_path)["files"]["a"]["content"]
    assert stored.path.read_bytes() == data
    assert stored.size == size


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1 << 20])
@pytest.mark.parametrize("text", [r"aGVs\/G8=", r"aGVs\nbG8\u003d", "aGVsbG8\\r\\n=\\r\\n", r"\u0061GVsbG8="])
def test_escapes_in_base64(tmp_path: Path, text: str, step: int) -> None:
    """Other writers escape the slash, break lines, or write = as an escape."""
    stored = read(b'{"files":{"a":{"content":"' + text.encode() + b'"}}}', tmp_path, step)["files"]["a"]["content"]
    expected = json.loads(f'"{text}"')
    assert stored.path.read_bytes() == base64.b64decode(expected)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"a"', b'{"a":}', b'{"a":1,}', b'{"a":1 "b":2}', b'{"a":1}x', b'{"a":NaN}', b'{"a":tru}', b'{"a":"',
        b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":1,"a":2}', b"{1:2}", b'{"a":"x\n"}', b"[" * 100,
        b'{"a":' * 50 + b"1" + b"}" * 50,
        b'{"a":-}', b'{"a":111111111111111111111111111111}', b"\xef\xbb{}",
        b'{"files":{"a":{"content":"****"}}}', b'{"files":{"a":{"content":"aaa"}}}', b'{"files":{"a":{"content":"aa==aaaa"}}}',
        b'{"files":{"a":{"content":"a==="}}}', b'{"files":{"a":{"content":"aaaa', b'{"files":{"a":{"content":"aa\\"a"}}}',
        b'{"files":{"a":{"content":"\xe3\x81\x82aa"}}}', b'{"files":{"a":{"content":"aaaa\\',
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_is_no_such_document_is_refused(tmp_path: Path, body: bytes, step: int) -> None:
    with pytest.raises(InvalidRecord, match="the body"):
        read(body, tmp_path, step)


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, step: int) -> None:
    assert read(b'\xef\xbb\xbf {"a": 1}', tmp_path, step) == {"a": 1}


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
@pytest.mark.parametrize("content", ["****", "aaa", "aa==aaaa", "a===", "あaaa", "no such file", "C:\\\\x", 'say "no"', "\\\\"])
def test_what_is_not_base64_may_be_kept_as_damaged(tmp_path: Path, content: str, step: int) -> None:
    body = json.dumps({"files": {"a": {"content": content}, "b": {"content": "YWI="}}}, ensure_ascii=False).encode()
    found = read_document(Dribble(body, step), tmp_path, is_file, what="the body", keep_damaged=True)["files"]
    assert found["a"]["content"].damaged
    assert not found["b"]["content"].damaged
    assert found["b"]["content"].path.read_bytes() == b"ab"


def test_plain_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_PLAIN_BYTES", 5_000_000)
    for body in (b'{"a":"' + b"x" * 6_000_000 + b'"}', b'{"a":["' + b'x","' * 1_500_000 + b'"]}'):
        with pytest.raises(InvalidRecord):
            read(body, tmp_path)
    encoded = base64.b64encode(bytes(6_000_000))
    assert read(b'{"files":{"a":{"content":"' + encoded + b'"}}}', tmp_path)["files"]["a"]["content"].size == 6_000_000


def test_a_file_that_became_shorter_is_not_sent_as_whole() -> None:
    with pytest.raises(Conflict):
        b"".join(write_document({"a": Source(lambda: io.BytesIO(b"abc"), 4)}))


def test_a_file_that_grows_is_sent_as_it_was_announced() -> None:
    assert b"".join(write_document({"a": Source(lambda: io.BytesIO(b"abcdef"), 3)})) == b'{"a": "YWJj"}'
