"""Redaction: no match leaves, whatever the chunks, the encoding or the length of the line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.agent.redaction import LONG_LINE, MAX_LINE_BYTES, REDACTED, RedactedCopy, Redactor

SECRET = "単結晶-7731"
PATTERNS = [re.compile("単結晶-[0-9]+"), re.compile("license=[^ ]*"), re.compile("x*")]
MARK = REDACTED.encode()


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(PATTERNS)


def copy_in_pieces(folder: Path, redactor: Redactor, pieces: list[bytes]) -> bytes:
    source = os.open(folder / "source", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    target = os.open(folder / "target", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    copy = RedactedCopy(redactor.line, source, target)
    for piece in pieces:
        os.write(source, piece)
        copy.advance()
        assert SECRET.encode() not in (folder / "target").read_bytes()
    size = copy.advance(finished=True)
    os.close(source)
    os.close(target)
    found = (folder / "target").read_bytes()
    assert len(found) == size
    return found


def test_text_and_names(redactor: Redactor) -> None:
    assert redactor.text(f"read {SECRET}: license=27000@host ok") == f"read {REDACTED}: {REDACTED} ok"
    assert redactor.text("nothing") == "nothing"
    assert redactor.finds(f"out/{SECRET}.dat")
    assert not redactor.finds("out/result.dat")
    assert not Redactor([])


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "euc_jp"])
def test_every_encoding(redactor: Redactor, encoding: str) -> None:
    line = f"試料 {SECRET} を読む".encode(encoding)
    found = redactor.line(line)
    assert SECRET.encode(encoding) not in found
    assert REDACTED.encode(encoding) in found
    assert "を読む".encode(encoding) in found


def test_bytes_that_are_no_text(redactor: Redactor) -> None:
    assert redactor.line(b"\xff\xfe\x00 license=abc \xff") == b"\xff\xfe\x00 " + MARK + b" \xff"
    assert redactor.line(b"\xff\x00\x81") == b"\xff\x00\x81"


@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 4000), max_size=30),
    lines=st.lists(st.sampled_from(["", "a", SECRET, f"b {SECRET} c", "\r"]), max_size=60),
)
def test_no_border_of_a_chunk_hides_a_match(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], lines: list[str]) -> None:
    whole = "\n".join(lines).encode()
    at = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in zip(at, at[1:])]
    folder = tmp_path_factory.mktemp("redaction")
    found = copy_in_pieces(folder, Redactor(PATTERNS), pieces)
    assert found == whole.replace(SECRET.encode(), MARK)


def test_a_line_that_is_too_long_stays(tmp_path: Path, redactor: Redactor) -> None:
    long = b"y" * (3 * MAX_LINE_BYTES) + SECRET.encode()
    found = copy_in_pieces(tmp_path, redactor, [b"first\n" + long[:100_000], long[100_000:] + b"\nlast\n", long])
    assert found == b"first\n" + LONG_LINE + b"\nlast\n" + LONG_LINE
    assert redactor.line(b"z" * (MAX_LINE_BYTES + 1)) == LONG_LINE


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_line_of_two_byte_characters_stays_whole(tmp_path: Path, redactor: Redactor, encoding: str) -> None:
    found = copy_in_pieces(tmp_path, redactor, [f"one\n試料 {SECRET}\n終わり\n".encode(encoding)])
    assert MARK in found
    for part in (SECRET, "7731"):
        assert part.encode(encoding) not in found


def test_without_a_pattern_nothing_is_changed(tmp_path: Path) -> None:
    data = os.urandom(50_000) + b"\n" + "結果".encode() * 1000
    assert copy_in_pieces(tmp_path, Redactor([]), [data]) == data


@settings(max_examples=100, deadline=None)
@given(
    logs=st.lists(st.lists(st.sampled_from([SECRET, "a", "\n", "単結", "晶-77", "31\n"]), max_size=12), min_size=2, max_size=4)
)
def test_a_log_that_is_written_anew_is_copied_anew(tmp_path_factory: pytest.TempPathFactory, logs: list[list[str]]) -> None:
    """Cut and written again, of any length: each line of the copy was a whole line of one of the logs, redacted."""
    folder = tmp_path_factory.mktemp("redaction")
    redactor = Redactor(PATTERNS)
    source = os.open(folder / "source", os.O_RDWR | os.O_CREAT)
    target = os.open(folder / "target", os.O_RDWR | os.O_CREAT)
    copy = RedactedCopy(redactor.line, source, target)
    lines: set[bytes] = set()
    for pieces in logs:
        data = "".join(pieces).encode()
        os.ftruncate(source, 0)
        os.pwrite(source, data, 0)
        copy.advance()
        lines |= {redactor.line(line) for line in data.split(b"\n")[:-1]}
        held = (folder / "target").read_bytes()
        assert SECRET.encode() not in held
        assert held in (b"", b"\n".join([*held.split(b"\n")[:-1], b""]))
        assert set(held.split(b"\n")[:-1]) <= lines
    os.close(source)
    os.close(target)


def test_names_in_another_form_of_unicode(redactor: Redactor) -> None:
    strict = Redactor([re.compile("étude"), re.compile("顧客A")])
    for text in ("e\u0301tude.dat", "顧客\uff21.dat"):
        assert strict.finds(text)
        assert strict.text(text) == REDACTED
        assert strict.hides(text)
    assert strict.text("étude e\u0301tude") == REDACTED
    assert strict.hides("\\x8c\\xda")
    assert not Redactor([]).hides("\\x8c\\xda")
