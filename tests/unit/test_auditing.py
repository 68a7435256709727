"""`spool_agent.py audit verify`: every change of a long log is found, named in words, and ends it with 1."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from spool.agent import auditing
from spool.agent.audit import Head
from spool.agent.folder import Base
from spool.errors import ConfigError

LINES = 1000
EVERY = 1 if os.environ.get("MINT_EXHAUSTIVE") else 25  # tests/unit/test_audit.py edits each line, without the command line


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, list[bytes], Head]:
    base = Base(tmp_path_factory.mktemp("audit") / "base")
    base.open()
    for start in range(0, LINES, 100):
        head = base.audit.append_all([("sent", {"job": f"仕事 {start + n}", "bytes": n}) for n in range(100)])
    return base, base.audit.path.read_bytes().splitlines(keepends=True), head


def verified(base: Base, *words: str) -> int:
    return auditing.run(["verify", "--base", str(base.folder), *words], Path("spool_agent.py"))


@pytest.mark.slow
def test_every_change_of_a_long_log(original: tuple[Base, list[bytes], Head], capsys: pytest.CaptureFixture[str]) -> None:
    """Edits, deletions, exchanges, truncations: each ends with 1, names the line and says what is wrong."""
    base, lines, head = original
    path, rng, found = base.audit.path, random.Random(3), 0
    for number in range(EVERY - 1, LINES, EVERY):
        line = lines[number]
        at = rng.randrange(len(line) - 1)
        edited = line[:at] + bytes([line[at] ^ (1 << rng.randrange(7))]) + line[at + 1 :]
        changes = [[*lines[:number], edited, *lines[number + 1 :]]]
        if number % 5 == 4:
            changes.append([*lines[:number], *lines[number + 1 :]])
            changes.append([*lines[: number - 1], lines[number], lines[number - 1], *lines[number + 1 :]])
            changes.append(lines[:number])
        for changed in changes:
            path.write_bytes(b"".join(changed))
            assert verified(base, "--head", str(head)) == 1, number
            told = capsys.readouterr().out.splitlines()[0]
            assert told.startswith(f"{path}, ")
            assert "at its end: " in told or int(told.partition(", line ")[2].partition(":")[0]) in range(number, number + 3)
            found += 1
    path.write_bytes(b"".join(lines))
    assert verified(base, "--head", str(head)) == 0
    print(f"audit verify: {found} changes of {LINES} lines, all found")


def test_words_for_what_is_wrong(original: tuple[Base, list[bytes], Head], capsys: pytest.CaptureFixture[str]) -> None:
    base, lines, head = original
    for changed, words in (
        ([*lines[:9], lines[9].replace(b'"bytes":9', b'"bytes":8'), *lines[10:]], "line 10: was changed: its hash is another"),
        ([*lines[:9], *lines[10:]], "line 10: has number 11 where 10 must stand: lines were removed, added or moved"),
        ([*lines[:9], b"rubbish\n", *lines[9:]], "line 10: cannot be read"),
        (lines[:-1], f"at its end: line {LINES} was told of and is not there: the log was cut off"),
    ):
        base.audit.path.write_bytes(b"".join(changed))
        assert verified(base, "--head", str(head)) == 1
        assert words in capsys.readouterr().out
    base.audit.path.write_bytes(b"".join(lines))


def test_heads_from_a_file(
    original: tuple[Base, list[bytes], Head], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As MInt gives them: a line of another agent of the site is none of this log."""
    base, _, head = original
    (base.control / "agent.json").write_text(json.dumps({"format": 1, "id": "agent-here", "generation": 1, "machine": ""}))
    other = f"7:{'0' * 64}"
    told = [{"agent": "agent-here", "head": str(head)}, {"agent": "agent-there", "head": other}]
    file = tmp_path / "heads"
    file.write_text("\n".join([*map(json.dumps, told), str(head), ""]))
    assert verified(base, "--head", f"@{file}") == 0
    assert "2 heads compared" in capsys.readouterr().out
    file.write_text(f"{other}\n")
    assert verified(base, "--head", f"@{file}") == 1
    assert "line 7: is not the line 7 that was told of" in capsys.readouterr().out
    for text in ("x\n", '{"head": 7}\n', '{"agent": "agent-here"}\n'):
        file.write_text(text)
        with pytest.raises(SystemExit, match="2"):  # wrong usage, with the words of what is wrong
            verified(base, "--head", f"@{file}")
    with pytest.raises(ConfigError):
        verified(base, "--head", f"@{file}.none")
    file.write_text(json.dumps(told[1]))
    with pytest.raises(ConfigError, match="no head of this agent"):  # what was asked for is not silently left out
        verified(base, "--head", f"@{file}")
    (base.control / "agent.json").unlink()
    assert verified(base, "--head", f"@{file}") == 1, "who takes the name away has all heads held against the log"


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        auditing.run(["--base", str(tmp_path)], Path("spool_agent.py"))
