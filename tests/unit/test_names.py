"""Names from outside: what passes can be a path below a job's folder, what does not is told why."""

from __future__ import annotations

import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import names
from spool.errors import InvalidName

GOOD = [
    "beam.inp",
    "mesh/beam.inp",
    "入力/梁.inp",
    "a b.dat",
    ".hidden",
    "a/.b",
    "x" * 255,
    "a\\b",
    "~",
    "$(id)",
    "a;b",
    "*",
    "a/" * 100 + "b",
    "a..b",
    "...",
    "à",
    unicodedata.normalize("NFD", "が.dat"),
    "'\"",
    "CON",
    "%00",
]
BAD = [
    "",
    "/",
    "/etc/passwd",
    "..",
    ".",
    "a/..",
    "../a",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "-rf",
    "a/-rf",
    "a\nb",
    "a\0b",
    "\t",
    "\x7f",
    "\x9b31m",
    "a\u2028b",
    "a\u2029",
    "cod\u202etxt.exe",
    "\u2066x",
    "x" * 256,
    "あ" * 86,
    "a/" * 512 + "b",
    "\udcff",
    "a\ud800",
    "a\r",
    "\x1b[2J",
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_name_passes_unchanged(name: str) -> None:
    assert names.check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_name_is_refused_with_a_hint(name: str) -> None:
    assert names.why_not_carried(name)
    with pytest.raises(InvalidName) as caught:
        names.check_name(name)
    assert caught.value.hint
    assert caught.value.message.isprintable(), "the message itself must not carry the control characters on"


@given(st.text(max_size=40))
def test_what_passes_stays_below_its_folder(name: str) -> None:
    if not names.why_not_carried(name):
        parts = name.split("/")
        assert not name.startswith("/")
        assert all(part not in ("", ".", "..") and not part.startswith("-") for part in parts)
        assert not {"\0", "\n"} & set(name)
        assert name.encode("utf-8").decode("utf-8") == name


@pytest.mark.parametrize("given_names", [["a", "a"], ["a", "a/b"], ["a/b/c", "a"], ["x", "a/b", "a/b/c/d"]])
def test_names_against_each_other(given_names: list[str]) -> None:
    with pytest.raises(InvalidName):
        names.check_names(given_names)


def test_neighbours_are_no_conflict() -> None:
    names.check_names(["a", "ab", "a.b", "b/a", "b/ab", "c/d/e", "c/de"])


def test_ids() -> None:
    made = names.new_id()
    assert names.check_id(made) == made == str(uuid.UUID(made))
    assert names.new_id() != made
    for text in ("", made.upper(), made + "\n", made[:-1], "{" + made + "}", made.replace("-", ""), "g" + made[1:], "../" + made):
        assert not names.is_id(text)
        with pytest.raises(InvalidName):
            names.check_id(text)


@pytest.mark.parametrize("text", ["nims-dev", "a", "A1._-", "x" * 64])
def test_sites(text: str) -> None:
    assert names.check_site(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a b", "サイト", "x" * 65, "a\n", "a\0"])
def test_sites_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        names.check_site(text)


@pytest.mark.parametrize("text", ["alice", "山田", "a.b@c+d-e", "_x", "x" * 64])
def test_users(text: str) -> None:
    assert names.check_user(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a b", "-a", "x" * 65, "a\n", "a\0", ".a", "@a"])
def test_users_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        names.check_user(text)


@pytest.mark.parametrize("text", ["A", "_a1", "OMP_NUM_THREADS"])
def test_env_names(text: str) -> None:
    assert names.check_env_name(text) == text


@pytest.mark.parametrize("text", ["", "1A", "A-B", "A=B", "A\n", "Ä", "BASH_FUNC_x%%"])
def test_env_names_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        names.check_env_name(text)
