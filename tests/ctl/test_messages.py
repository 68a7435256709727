"""The catalogue: both languages for everything, the same values in both, nothing hostile on the terminal."""

from __future__ import annotations

import re
import string
from typing import Any

import pytest

from components.rig import REPO
from spool.ctl.messages import CATALOGUE, japanese, known, text
from spool.states import Reason, State

SHOWN_IN_ONE_LANGUAGE = {"title"}  # the message itself is English; Japanese readers get its kind in front


def _placeholders(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name is not None} - SHOWN_IN_ONE_LANGUAGE


@pytest.mark.parametrize("key", CATALOGUE)
def test_both_languages_say_the_same(key: str) -> None:
    english, translated = CATALOGUE[key]
    assert english.strip()
    assert translated.strip()
    assert _placeholders(english) == _placeholders(translated)


def test_japanese_is_japanese() -> None:
    same = {key for key, (english, translated) in CATALOGUE.items() if english == translated}
    assert same == {"ended", "remark", "remark_of", "hint", "col_id", "found_in_rejected", "found_in_corrupt"}


@pytest.mark.parametrize("key", [*(f"next_{state}" for state in State), *(f"reason_{reason}" for reason in Reason)])
def test_every_state_and_reason_says_what_to_do_next(key: str) -> None:
    assert known(key)


def test_no_message_is_used_that_is_not_there() -> None:
    used = set()
    for path in (REPO / "spool" / "ctl").glob("*.py"):
        used |= set(re.findall(r"\b(?:say|note|text)\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
        used |= set(re.findall(r"\"(help_\w+)\"", path.read_text(encoding="utf-8")))
        found = re.findall(r"\b(?:problem|remark|shared_mode)\(\s*\"(\w+)\"", path.read_text(encoding="utf-8"))
        used |= {f"found_{code}" for code in found}
    assert len(used) > 120
    assert {key for key in used if not known(key)} == set()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LANG": "ja_JP.UTF-8"}, True), ({"LANG": "en_US.UTF-8"}, False), ({}, False), ({"LC_ALL": "", "LANG": "ja"}, True),
        ({"LC_ALL": "C", "LANG": "ja_JP.UTF-8"}, False), ({"LC_MESSAGES": "ja_JP.eucJP", "LANG": "C"}, True),
    ],
)  # fmt: skip
def test_the_locale_decides(environ: dict[str, str], expected: bool) -> None:
    assert japanese(environ) is expected


def test_values_are_escaped() -> None:
    assert text("error", message="a\x1b[2Jb\nc\x9b", title="") == "spoolctl: a\\x1b[2Jb\\nc\\x9b"


@pytest.mark.parametrize(("language", "words"), [("ja_JP.UTF-8", "ジョブはありません"), ("C.UTF-8", "No jobs")])
def test_spoolctl_speaks_it(ctl: Any, language: str, words: str) -> None:
    assert ctl("ls", env={"LANG": language}).stderr.strip() == words


def test_help_is_there_in_both(ctl: Any) -> None:
    for command in (["submit"], ["token", "add"], []):
        english = ctl(*command, "--help", env={"LANG": "C.UTF-8"}, spool=False).stdout
        translated = ctl(*command, "--help", env={"LANG": "ja_JP.UTF-8"}, spool=False).stdout
        assert "spoolctl" in english
        assert english != translated
    assert "ジョブ" in translated


def test_a_locale_without_the_letters_shows_them_escaped(ctl: Any) -> None:
    shown = ctl("show", "ありません", code=2, env={"PYTHONIOENCODING": "ascii", "LANG": "ja_JP.UTF-8"})
    assert "\\u" in shown.stderr
