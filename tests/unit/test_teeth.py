"""tools/teeth: its lists fit the product, and it tells a test that notices from one that does not."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.rig import REPO


def _load() -> Any:
    loader = importlib.machinery.SourceFileLoader("teeth", str(REPO / "tools" / "teeth"))
    spec = importlib.util.spec_from_loader("teeth", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["teeth"] = module  # dataclasses look their module up
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


teeth = _load()
MUTATIONS = teeth.load(REPO)

GUARD = """
def allowed(age):
    if age < 18:
        return False
    return True
"""
SEES = "from guard import allowed\n\ndef test_it():\n    assert not allowed(17)\n"
BLIND = "from guard import allowed\n\ndef test_it():\n    assert allowed(18)\n"
LIST = """# a comment
[the age]
tests: tests/test_sees.py
file: guard.py
--- old
    if age < 18:
--- new
    if age < 0:
--- end
"""


def test_every_mutation_fits_the_product_and_leaves_a_program() -> None:
    """The list must not rot: the lines are there once, what stands instead compiles, and the tests are there."""
    wrong = []
    for one in MUTATIONS:
        texts: dict[str, str] = {}
        for edit in one.edits:
            try:
                changed = edit.apply(REPO)
            except teeth.Broken as exc:
                wrong.append(f"{one.name}: {exc}")
                continue
            texts[edit.file] = changed
            if changed == (REPO / edit.file).read_text(encoding="utf-8"):
                wrong.append(f"{one.name}: changes nothing")
        for name, text in texts.items():
            if name.endswith(".py"):
                compile(text, f"{name}, {one.name}", "exec", dont_inherit=True)
        for word in shlex.split(one.tests):
            if word.startswith("tests/") and not (REPO / word.partition("::")[0]).exists():
                wrong.append(f"{one.name}: there is no {word}")
    assert wrong == []
    assert len(MUTATIONS) > 200


def test_mutated_scripts_are_scripts(tmp_path: Path) -> None:
    for number, one in enumerate(MUTATIONS):
        for edit in one.edits:
            if edit.file.endswith(".sh"):
                (tmp_path / f"{number}.sh").write_text(edit.apply(REPO), encoding="utf-8")
    for path in tmp_path.glob("*.sh"):
        subprocess.run(["sh", "-n", str(path)], check=True)


def test_the_fields_of_the_list() -> None:
    (one,) = teeth.parse(LIST + "--- old\n    return True\n--- new\n--- end\n")
    assert (one.name, one.tests, [edit.file for edit in one.edits]) == ("the age", "tests/test_sees.py", ["guard.py"] * 2)
    assert one.edits[1].new == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file: a.py\n", "a [name] comes first"),
        (LIST.replace("--- end\n", ""), "--- end is missing"),
        (LIST.replace("tests: tests/test_sees.py\n", ""), "names no tests"),
        (LIST.replace("file: guard.py\n", ""), "is none of this form"),
        (LIST + "hello\n", "is none of this form"),
        (LIST.replace("    if age < 18:\n", ""), "nothing is to be replaced"),
    ],
)
def test_a_list_of_another_form(text: str, told: str) -> None:
    with pytest.raises(teeth.Broken, match=told.replace("[", r"\[")):
        teeth.parse(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small product in Japanese surroundings, with a test that sees its guard and one that does not."""
    root = tmp_path / "製品"
    (root / "tests" / "mutations").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (root / "guard.py").write_text(GUARD)
    (root / "tests" / "test_sees.py").write_text(SEES)
    (root / "tests" / "test_blind.py").write_text(BLIND)
    return root


def tried(checkout: Path, text: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    (checkout / "tests" / "mutations" / "list.txt").write_text(text, encoding="utf-8")
    code = teeth.main(["--jobs", "2", *words], checkout)
    return code, "".join(capsys.readouterr())


@pytest.mark.slow
def test_killed_and_survived(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = LIST.replace("the age", "the blind").replace("sees", "blind")
    code, told = tried(checkout, LIST + blind, capsys)
    assert (code, "2 mutations, 1 killed, 1 SURVIVED, 0 BROKEN" in told) == (1, True), told
    code, told = tried(checkout, LIST + blind, capsys, "--only", "age")
    assert (code, "1 mutations, 1 killed" in told) == (0, True), told
    assert (checkout / "guard.py").read_text() == GUARD, "never in place"


@pytest.mark.slow
def test_what_says_nothing_kills_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tests that are red anyway, cannot be collected or find no test; lines that are gone."""
    lists = {
        "red anyway": (LIST, {"tests/test_sees.py": SEES.replace("not ", "")}),
        "no such test": (LIST.replace("sees.py", "sees.py -k other"), {"tests/test_sees.py": SEES}),
        "no such line": (LIST.replace("< 18", "< 21"), {}),
        "no program": (LIST.replace("age < 0", "age <"), {}),
    }
    for why, (text, files) in lists.items():
        for name, content in files.items():
            (checkout / name).write_text(content)
        code, told = tried(checkout, text, capsys)
        assert (code, "0 killed, 0 SURVIVED, 1 BROKEN" in told) == (1, True), f"{why}: {told}"


def test_names_and_words(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = tried(checkout, LIST, capsys, "--list")
    assert (code, told.splitlines()[-1]) == (0, "1 mutations")
    code, told = tried(checkout, LIST + LIST, capsys, "--list")
    assert (code, "named twice: the age" in told) == (1, True)
    with pytest.raises(SystemExit):
        tried(checkout, LIST, capsys, "--only", "nothing of that name")
