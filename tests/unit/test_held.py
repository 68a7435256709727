"""What may be told of a held result, whose results are held, and what a reviewer is warned of."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spool.agent.conditions import Hold, hold
from spool.agent.config import read_config
from spool.agent.held import CHANGED, NOT_RELEASED, ChangedAfterSnapshot, Mark, digest, tellable
from spool.agent.remarks import Tables, head, of_name
from spool.errors import ConfigError
from spool.names import new_id
from spool.records import FileEntry, JobState, Result
from spool.states import State

FILES = (FileEntry("out/a.dat", 2000, "0" * 64), FileEntry("log/stdout.txt", 5, "0" * 64))


def lying(**mark: Any) -> tuple[JobState, Result]:
    state = JobState(new_id(), State.HELD, "site-a", "mint", 3, command="ccx", run_id=new_id())
    end: dict[str, Any] = {"exit_code": 3, "reason": "exit_nonzero", "message": "secret"}
    result = Result(state.id, state.run_id, 1, **end, files=FILES, withheld=("x: y",))
    made = Mark(digest(result.encode()), "2026-01-01T00:00:00.000Z", "always", **mark)
    return replace(state, extra=made.extra(state)), result


def test_nothing_is_told_before_the_release() -> None:
    state, result = lying()
    told = tellable(result.encode(), state)
    assert (told.reason, told.message) == ("refused_by_site", NOT_RELEASED)
    assert (told.files, told.exit_code, told.withheld) == ((), None, ())
    state, _ = lying(reason="canceled", message="because")
    assert (tellable(result.encode(), state).reason, tellable(b"", state).message) == ("canceled", "because")


def test_only_the_released_bytes_are_told() -> None:
    state, result = lying(released=True)
    state = replace(state, extra=Mark(digest(result.encode()), "", released=True).extra(state))
    assert tellable(result.encode(), state) == result
    with pytest.raises(ChangedAfterSnapshot):
        tellable(replace(result, message="other").encode(), state)
    assert tellable(result.encode(), replace(state, extra={})) == result, "one that was never held"
    assert "nothing" in CHANGED


@pytest.mark.parametrize(
    ("value", "met"),
    [
        ("never", ""), ("always", "always"), ("when: files>1", "files>1"), ("when: files>2", ""), ("when: bytes>2K", ""),
        ("when: bytes>2004", "bytes>2004"), ("when: user=eve user=mint", "user=mint"), ("when: command=ccx", "command=ccx"),
        ("when: logs", "logs"), ("when: failed", "failed"), ("when: table", ""),
    ],
)  # fmt: skip
def test_conditions(value: str, met: str) -> None:
    state, result = lying()
    made = hold(value)
    assert (made.why(state, result, False), str(made), bool(made)) == (met, value, value != "never")
    assert (hold("when: table").why(state, result, True), Hold().why(state, result, True)) == ("table", "")


@pytest.mark.parametrize("value", ["", "sometimes", "when:", "when: files", "when: files>x", "when: size>1", "always logs"])
def test_what_is_no_condition(value: str) -> None:
    with pytest.raises(ValueError, match=r"must be|is no condition"):
        hold(value)


def test_lines_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("ひずみ, 応力, MPa\n0.0100, 2.350E+08\n0, 0\n".encode("cp932"))
    tables = Tables([path, tmp_path / "gone"])
    assert len(tables.troubles) == 1
    for line, found in (
        (b"x 0.01;235000000\n", True), (b"1.0D-2 2.35e8 9\n", True), (b"0 0\n", False), (b"0.01 9 235000000\n", False),
        ("ひずみ 応力 MPa".encode(), True), (b"", False),
    ):  # fmt: skip
        assert bool(tables.remark(io.BytesIO(b"first\n" + line), 10)) == found, line


def test_heads_and_names() -> None:
    assert head(io.BytesIO(b"a\x1b[31m\nb")) == (["a\\x1b[31m", "b"], False)
    assert head(io.BytesIO(b"a\0b")) == ([], True)
    assert head(io.BytesIO("応力".encode("cp932"))) == (["応力"], False)
    assert head(io.BytesIO("あ".encode() * 2000))[1] is False, "cut within a character"
    assert list(of_name(FILES[0])) == []
    assert len(list(of_name(FileEntry("out/.x", 1 << 40, "")))) == 2


def test_no_command_decides_on_itself(tmp_path: Path) -> None:
    ini = tmp_path / "agent.ini"
    law = "[command a]\nargv = /bin/true\nrun_as = mint-job1 mint-job2\n[release]\nhold = always\nreviewers_group=r\nreviewers="
    ini.write_text(f"{law}sato mint-job2\n")
    with pytest.raises(ConfigError, match="run as mint-job2"):
        read_config(ini)
    ini.write_text(f"{law}sato\n")
    assert read_config(ini).release["reviewers"] == ("sato",)
