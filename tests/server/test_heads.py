"""The heads of audit logs at MInt: kept, over a restart too, not too many, and one that went back is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.spools import new_store
from spool import heads
from spool.errors import InvalidRequest
from spool.heads import Heads, read_heads
from spool.server.request import Request

KEY = ("site-a", "sato", "agent-1")


def head(number: int, digit: str = "a") -> str:
    return f"{number}:{digit * 64}"


@pytest.fixture
def paths(tmp_path: Path) -> Any:
    return new_store(tmp_path / "spool").paths


def kept(paths: Any) -> list[str]:
    return [told["head"].partition(":")[0] for told in read_heads(paths.heads("site-a"))]


def test_at_most_one_a_minute_and_the_last_word(paths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Heads(paths)
    for number in range(1, 50):
        made.note(KEY, head(number))
    assert kept(paths) == ["1"]
    made.note(KEY, head(50), last_word=True)
    made.note(KEY, head(50), last_word=True)
    assert kept(paths) == ["1", "50"]
    monkeypatch.setattr(heads, "EVERY_S", 0.0)
    made.note(KEY, head(51))
    assert kept(paths) == ["1", "50", "51"]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("back", [head(3), head(9, "b"), head(0)])
def test_a_head_that_went_back_is_told_at_once(
    paths: Any, caplog: pytest.LogCaptureFixture, restart: bool, back: str
) -> None:
    made = Heads(paths)
    made.note(KEY, head(9))
    made = Heads(paths) if restart else made
    made.note(KEY, back)
    told = list(read_heads(paths.heads("site-a")))
    assert (told[-1]["head"], told[-1]["before"]) == (back, head(9))
    assert "event=audit_went_back" in caplog.text
    made.note(("site-a", "sato", "agent-2"), head(1))
    assert "before" not in list(read_heads(paths.heads("site-a")))[-1], "another agent has a log of its own"


def test_a_head_that_was_told_and_not_yet_written_counts(paths: Any) -> None:
    made = Heads(paths)
    made.note(KEY, head(1))
    made.note(KEY, head(20))
    made.note(KEY, head(7))
    assert list(read_heads(paths.heads("site-a")))[-1]["before"] == head(20)


def test_what_cannot_be_written_or_read(paths: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = Heads(paths)
    paths.heads("site-a").mkdir()
    with pytest.raises(OSError, match="directory"):
        list(read_heads(paths.heads("site-a")))
    made.note(KEY, head(1))
    assert "event=contact_not_written" in caplog.text
    paths.heads("site-a").rmdir()
    made.note(KEY, head(2))
    paths.heads("site-a").write_bytes(paths.heads("site-a").read_bytes() + b'rubbish\n{"at":1}\n')
    assert kept(paths) == ["2"]


A = "a" * 64


@pytest.mark.parametrize("text", ["1", f"x:{A}", f"1:{'A' * 64}", f"01:{A}", f"1:{A}\n", f"-1:{A}", f"1:{A}a"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Request.parse(json.dumps({"site": "s", "agent": "a", "audit": text}).encode())
