"""The audit log: every edit, deletion, reordering and truncation is found; a crash spoils nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.agent.audit import BEGIN, Audit, Head, verify
from spool.errors import InvalidRecord

LINES = 1000


def written(path: Path, count: int) -> tuple[Audit, list[Head]]:
    audit = Audit(path)
    heads: list[Head] = []
    while len(heads) < count:
        batch = [("sent", {"job": f"仕事 {number}", "bytes": number, "name": 'out/結果","hash":"x.dat'}) for number in range(50)]
        start = len(heads)
        audit.append_all(batch)
        heads += [Head(start + 1 + number) for number in range(50)]
    return audit, heads


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], Head]:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    audit, _ = written(path, LINES)
    return path.read_bytes().splitlines(keepends=True), audit.head()


def test_an_empty_log_has_a_head(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    assert audit.head() == Head(0, BEGIN)
    head = audit.append("received", job="a", command="計算")
    assert (head.seq, audit.head()) == (1, head)
    assert Head.parse(str(head)) == head
    assert verify(audit.path, (head,)) == (head, [])
    line = json.loads(audit.path.read_text(encoding="utf-8"))
    assert list(line) == ["seq", "at", "event", "job", "command", "before", "hash"]
    assert "計算" in audit.path.read_text(encoding="utf-8")
    assert audit.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_every_edit_of_one_record_is_found(long_log: tuple[list[bytes], Head], tmp_path: Path) -> None:
    """Each of the 1,000 lines with one byte changed, removed, doubled, moved: found, and at that line or the next."""
    lines, head = long_log
    path, rng, found = tmp_path / "audit.jsonl", random.Random(7), 0
    for number, line in enumerate(lines):
        at = rng.randrange(len(line) - 1)
        edited = line[:at] + bytes([line[at] ^ (1 << rng.randrange(7))]) + line[at + 1 :]
        first, then = lines[:number], lines[number + 1 : number + 40]
        kinds = [[edited, *then], then, [line, line, *then], [*then, line]]
        for spoiled in kinds if number % 5 == 4 else kinds[:1]:
            path.write_bytes(b"".join([*first, *spoiled]))
            findings = verify(path, () if number < LINES - 1 else (head,))[1]
            assert findings or spoiled == [line], (number, edited)
            assert spoiled == [line] or findings[0].line in (0, number + 1, number + 2)
            found += bool(findings)
    assert found == LINES + 3 * LINES // 5 - 1, "only moving the last line to the end is no edit"
    print(f"audit: {found} edits of single records in {LINES} lines, all found")


def test_a_record_rewritten_with_a_right_hash_is_found(long_log: tuple[list[bytes], Head], tmp_path: Path) -> None:
    """Who changes a line and computes its hash anew is found by the next line; who rewrites all is found by the head."""
    lines, head = long_log
    path = tmp_path / "audit.jsonl"
    told = lines[500].rpartition(b',"hash":"')[0].replace(b'"bytes":0', b'"bytes":9')
    forged = told + b',"hash":"' + hashlib.sha256(told).hexdigest().encode() + b'"}\n'
    path.write_bytes(b"".join([*lines[:500], forged, *lines[501:]]))
    assert [finding.line for finding in verify(path, (head,))[1]] == [502]
    path.unlink()
    anew, _ = written(path, LINES)
    assert [finding.line for finding in verify(anew.path, (head,))[1]] == [LINES]


def test_truncation_is_found_by_the_head_that_was_told(long_log: tuple[list[bytes], Head], tmp_path: Path) -> None:
    lines, head = long_log
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path)[1] == []
    assert [finding.line for finding in verify(path, (head,))[1]] == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(0, 3))
def test_lines_torn_by_crashes_are_no_findings(cuts: list[int], between: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder) / "audit.jsonl")
        for cut in cuts:
            for _ in range(between):
                audit.append("held", job="x")
            before = audit.path.stat().st_size if audit.path.exists() else 0
            audit.append("released", job="x", by="sato")
            size = audit.path.stat().st_size
            os.truncate(audit.path, max(before, size - cut))
        head = audit.append("sent", job="x")
        assert verify(audit.path, (head,)) == (head, [])


def test_a_torn_line_that_is_removed_later_is_found(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.append("received", job="x")
    with open(audit.path, "ab") as file:
        file.write(b'{"seq":2,"at":"20')
    head = audit.append("started", job="x")
    lines = audit.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    for spoiled in ([lines[0], lines[2]], [lines[0], b"x" + lines[1], lines[2]]):
        audit.path.write_bytes(b"".join(spoiled))
        assert verify(audit.path, (head,))[1]


def test_a_base_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "gone" / "audit.jsonl")
    for call in (audit.head, lambda: audit.append("received")):
        with pytest.raises(FileNotFoundError):
            call()
    assert not (tmp_path / "gone").exists()


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(InvalidRecord):
            Audit(tmp_path / name).append("received")
    (tmp_path / "long").write_bytes(b"x" * 3_000_000)
    with pytest.raises(InvalidRecord):
        Audit(tmp_path / "long").append("received")
    with pytest.raises(InvalidRecord):
        Audit(tmp_path / "log").append("received", why=["x" * 300_000])
    assert (tmp_path / "log").stat().st_size == 0
    Audit(tmp_path / "log").append("received", why="結" * 300_000)  # a text is said in short
    assert (tmp_path / "log").stat().st_size < 20_000
    assert "… (300000 characters)" in (tmp_path / "log").read_text(encoding="utf-8")
    for text in ("", "1", "1:", "x:" + BEGIN, "1:" + "g" * 64, "1:" + "0" * 63):
        with pytest.raises(InvalidRecord):
            Head.parse(text)


@pytest.mark.slow
def test_many_processes_write_one_chain(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from spool.agent.audit import Audit\n"
    program += "[Audit(Path(sys.argv[1])).append('sent', number=n) for n in range(100)]"
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", program, path], cwd=Path(__file__).parents[2]) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    head, findings = verify(path)
    assert (head.seq, findings) == (400, [])
