"""Typed arguments: what the site declares against what a hostile job gives. No process is started."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.test_policy import folder, law, order, refused  # noqa: F401 - `folder` is a fixture
from components.rig import write_ini
from spool.agent.config import read_config
from spool.agent.params import MAX_VALUE, declare, fill
from spool.errors import ConfigError, Refused

ARGV = ("/opt/solve", "--cpus={cpus}", "{mode}", "{deck}", "--tag={tag}:{cpus}")
PARAMS = {
    "cpus": "integer 1..8", "cpus.default": "2", "mode": "choice static -modal", "deck": "file", "tag": "match [a-z0-9]+",
    "tag.default": "none",
}  # fmt: skip
INPUTS = ("beam.inp", "mesh/入力 1.inc", "@list", "x{cpus}.inp")


def filled(*args: str, params: dict[str, str] | None = None, argv: tuple[str, ...] = ARGV) -> list[str]:
    return fill("solve", argv, declare(params or PARAMS, argv), args, INPUTS)


def one(kind: str, value: str) -> str | None:
    """The value as the command would get it, or None where it is refused."""
    argv = ("/x", "{v}")
    try:
        return fill("x", argv, declare({"v": kind}, argv), [f"v={value}"], INPUTS)[1]
    except Refused:
        return None


def test_values_take_their_places() -> None:
    assert filled("deck=beam.inp", "mode=static") == ["/opt/solve", "--cpus=2", "static", "beam.inp", "--tag=none:2"]
    assert filled("cpus=8", "tag=a1", "mode=-modal", "deck=mesh/入力 1.inc")[1:] == [
        "--cpus=8", "-modal", "mesh/入力 1.inc", "--tag=a1:8",
    ]  # fmt: skip


def test_what_a_value_holds_is_not_looked_at_again() -> None:
    assert filled("deck=x{cpus}.inp", "mode=static")[3] == "x{cpus}.inp"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["mode=static"], "'deck' of 'solve' is missing"),
        (["deck=beam.inp", "mode=static", "deck=beam.inp"], "'deck' of 'solve' is given twice"),
        (["deck=beam.inp", "mode=static", "cpus"], "argument 3 of 'solve'"),
        (["deck=beam.inp", "mode=static", "Cpus=1"], "argument 3 of 'solve'"),
        (["deck=beam.inp", "mode=static", " cpus=1"], "argument 3 of 'solve'"),
        (["deck=beam.inp", "mode=static", "--cpus=1"], "argument 3 of 'solve'"),
        (["deck=beam.inp", "mode=static", "=1"], "argument 3 of 'solve'"),
        (["deck=beam.inp", "mode=static", "cpus=9"], "'cpus' of 'solve' must be a whole number from 1 to 8"),
        (["deck=beam.inp", "mode=secret"], "'mode' of 'solve' must be one of the words that the site lists"),
        (["deck=beam.inp", "mode=static", "tag=A"], "'tag' of 'solve' does not match the site's pattern"),
        (["deck=other.inp", "mode=static"], "'deck' of 'solve' must be the name of one of the job's inputs"),
    ],
)
def test_the_argument_and_the_rule_are_named(args: list[str], told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)) as caught:
        filled(*args)
    said = caught.value.message + caught.value.hint
    assert "-modal" not in said, "what the site lists is the site's"
    assert "[a-z" not in said


HOSTILE = [
    "", " ", "1 ", " 1", "1\n", "\n1", "1\x00", "+1", "01", "1_0", "0x1", "1e0", "1.0", "１", "١", "-1", "-0", "--x",
    "-", "1\r", "1\u2028", "٣", "1,2", "1;2", "$(x)", "NaN", "inf", "9" * 30,
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_integers_are_matched_as_a_whole(value: str) -> None:
    assert one("integer", value) is None
    assert one("integer 0..8", value) is None


@pytest.mark.parametrize("value", [value for value in HOSTILE if value not in ("1e0", "1.0")])
def test_numbers_are_matched_as_a_whole(value: str) -> None:
    assert one("number", value) is None
    assert one("number 0..1", value) is None


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("integer -5..5", ["-5", "0", "5"], ["-6", "6", "-0", "--5"]),
        ("integer", ["0", "1", "999999999999999999"], ["-1", "1000000000000000000"]),
        ("number 0.1..0.5", ["0.1", "0.5", "5e-1", "0.10"], ["0.09999999", "0.51", ".1", "0.", "1e-999", "-0.1"]),
        ("number -1..1", ["-1", "-1.0", "-0.5", "1"], ["-1.01", "--1", "-"]),
        ("number 0..1", ["0", "1.0"], ["-0.0", "-0"]),
        ("choice a -b", ["a", "-b"], ["b", "a ", "a\n", "A", "", "-a", "a -b"]),
        (r"match \d+", ["12"], ["１２", "٣", "12\n", "1 2", ""]),
        (r"match .*", ["", "a b", "x=y"], ["-x", "--x", "@x", "a\nb", "a\n", "x" * (MAX_VALUE + 1)]),
        (r"match (?s).*", ["a\nb"], ["a\x00", "-a", "\ud800\x00"]),
        (r"match a|b", ["a", "b"], ["ab", "bx", "a\n"]),
        ("file", ["beam.inp", "mesh/入力 1.inc"], ["@list", "./beam.inp", "mesh/../beam.inp", "/etc/passwd", "", "mesh", "-x"]),
    ],
)  # fmt: skip
def test_types(kind: str, good: list[str], bad: list[str]) -> None:
    assert [value for value in good if one(kind, value) != value] == []
    assert [value for value in bad if one(kind, value) is not None] == []


TEXT = st.text(st.characters(max_codepoint=0x2FFF), max_size=12) | st.from_regex(r"\A-?[0-9.eE+\n@{}=]{0,8}\Z")


@given(TEXT)
@example("1\n")
@example("-1")
@example("-0")
@example("٣")
def test_what_passes_is_harmless(value: str) -> None:
    """Whatever a job gives: what reaches the command is that very text, in plain digits within its range, and no option."""
    number = one("number 0..8", value)
    assert number is None or (number == value and number.isascii() and 0 <= Decimal(number) <= 8 and number[0].isdigit())
    whole = one("integer -3..8", value)
    assert whole is None or (whole == value and str(int(whole)) == value and -3 <= int(whole) <= 8)
    free = one(r"match (?s).+", value)
    assert free is None or (free == value and free[0] not in "-@" and "\0" not in free)
    assert free == value or not value or value[0] in "-@" or "\0" in value
    assert one("file", value) in (None, *(name for name in INPUTS if name[0] != "@"))


@given(st.lists(TEXT | TEXT.map("cpus={}".format) | TEXT.map("deck={}".format), max_size=4))
def test_a_job_cannot_add_an_item(args: list[str]) -> None:
    """An argument vector has as many items as the site wrote, and the site's own words where it wrote them."""
    try:
        made = filled("mode=static", *args)
    except Refused:
        return
    assert len(made) == len(ARGV)
    assert (made[0], made[2]) == ("/opt/solve", "static")
    assert re.fullmatch(r"--cpus=[1-8]", made[1])
    assert made[3] in INPUTS


@pytest.mark.parametrize(
    ("argv", "options", "told"),
    [
        ("/x {a}", {}, "needs a param.NAME"),
        ("/x", {"param.a": "integer"}, "stands nowhere in argv"),
        ("/x {a} {args}", {"param.a": "integer", "args": "x"}, "one of the two ways"),
        ("{a}", {"param.a": "integer"}, "the program itself"),
        ("{args}", {"args": ".*"}, "the program itself"),
        ("/x {a", {"param.a": "integer"}, "cannot be used"),
        ("/x {{a}}", {"param.a": "integer"}, "cannot be used"),
        ("/x {a}", {"param.a": "int"}, "the types are"),
        ("/x {a}", {"param.a": ""}, "the types are"),
        ("/x {a}", {"param.a": "integer 1-8"}, "MIN..MAX"),
        ("/x {a}", {"param.a": "integer 8..1"}, "MIN..MAX"),
        ("/x {a}", {"param.a": "integer 1.5..8"}, "MIN..MAX"),
        ("/x {a}", {"param.a": "choice"}, "needs words"),
        ("/x {a}", {"param.a": "match ["}, "not a regular expression"),
        ("/x {a}", {"param.a": "match"}, "regular expression"),
        ("/x {a}", {"param.a": "file x"}, "takes nothing more"),
        ("/x {a}", {"param.a": "integer 1..8", "param.a.default": "9"}, "default: must be"),
        ("/x {a}", {"param.a": "file", "param.a.default": "../x"}, "default: must be"),
        ("/x {a}", {"param.a": "integer", "param.b.default": "1"}, "param.b.default"),
        ("/x {a}", {"param.a": "integer", "param.a.defualt": "1"}, "param.a.defualt"),
        ("/x {a-b}", {"param.a-b": "integer"}, "a name is"),
        ("/x {args}", {"param.args": "integer"}, "a name is"),
        ("/x --n={args}", {"args": "x"}, "cannot be used"),
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_an_error(tmp_path: Path, argv: str, options: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        read_config(write_ini(tmp_path / "agent.ini", {"command x": {"argv": argv, **options}}))
    assert str(tmp_path) in caught.value.message


def test_a_job_and_the_law(folder: Path) -> None:  # noqa: F811
    """Through agent.ini and the policy: the names of the record's inputs count, and what `{args}` takes stays as it was."""
    params = {"param.deck": "file", "param.n": "integer 1..4", "param.n.default": "1"}
    config = law(folder, argv="/usr/bin/ccx -i {deck} -n {n}", **params)
    assert order(config, args=("deck=beam.inp",), inputs=("beam.inp",)).argv == ("/usr/bin/ccx", "-i", "beam.inp", "-n", "1")
    refused(config, "'deck'", args=("deck=beam.inp",), inputs=("other.inp",))
    refused(config, "'n'", args=("deck=beam.inp", "n=4 -o /etc/passwd"), inputs=("beam.inp",))
    assert order(law(folder), args=("x",)).argv == ("/usr/bin/ccx", "x")
