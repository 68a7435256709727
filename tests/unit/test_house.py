"""Small promises about the repository's own files: links lead somewhere, nothing is left open, every test runs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

REPO = Path(__file__).resolve().parents[2]

# In pieces, because this file is read too.
LEFT_OPEN = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
NOT_RUN = {"skip", "skipif", "xfail", "importorskip", "skipTest", "skipIf", "skipUnless", "SkipTest", "expectedFailure"}
MAY_SLEEP = Path("tests/components/waiting.py")
MAY_SKIP = Path("tests/components/privilege.py")  # outside CI, where there is no root


def _files() -> list[Path]:
    """What is committed or about to be; everything but dot folders where this is no git checkout."""
    if (REPO / ".git").exists() and shutil.which("git"):
        # The checkout may belong to someone else (a container's volume): that is no danger for a listing.
        command = ["git", "-c", f"safe.directory={REPO}", "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, cwd=REPO, capture_output=True, check=True).stdout.decode().split("\0")
        return [REPO / name for name in listed if name and (REPO / name).is_file()]
    inside = (path for path in REPO.rglob("*") if path.is_file())
    return [path for path in inside if not any(part.startswith(".") for part in path.relative_to(REPO).parts[:-1])]


def _text(path: Path) -> str | None:
    """What it holds, or None when it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


FILES = _files()
NAMES = {str(path.relative_to(REPO)): path for path in FILES}
each_test_file = pytest.mark.parametrize(
    "name", sorted(name for name in NAMES if name.startswith("tests/") and name.endswith(".py"))
)


# ---- links


def _prose(page: Path) -> str:
    """Markdown without its code, in which a bracket is no link."""
    text = re.sub(r"^( *)(```+|~~~+).*?^ *\2 *$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "``", text, flags=re.S)


def _links(page: Path) -> Iterator[str]:
    prose = _prose(page)
    yield from re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", prose)
    yield from re.findall(r"^ {0,3}\[[^\]^]+\]:\s*<?([^\s>]+)", prose, flags=re.M)
    yield from re.findall(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"", prose)


def anchors(page: Path) -> set[str]:
    """The names that a `#…` may have: headings as GitHub spells them, and explicit ids."""
    without_code = re.sub(r"^( *)(```+|~~~+).*?^ *\2 *$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set(re.findall(r"<[^>]+\b(?:id|name)=\"([^\"]+)\"", without_code))
    for heading in re.findall(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", without_code, flags=re.M):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (name := slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for link in _links(page):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link):
            continue
        path_part, _, anchor = unquote(link).partition("#")
        target = page if not path_part else (REPO if path_part.startswith("/") else page.parent) / path_part.lstrip("/")
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_links_lead_somewhere() -> None:
    pages = {name: broken_links(path) for name, path in NAMES.items() if name.endswith(".md")}
    assert {name: links for name, links in pages.items() if links} == {}


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# The `one` page, 日本語!\n## Twice\n## Twice\n```\n# no heading [no](nothing)\n```\n"
        "[a](#the-one-page-日本語) [b](#twice-1) [c](page.md#twice) `[no](no)` [d](https://host/x#y)\n"
        "[e](#no-heading) [f](gone.md) [g](page.md#twice-2)\n\n[h]: gone.png\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["#no-heading", "gone.md", "page.md#twice-2", "gone.png"]


# ---- nothing left open, every test runs


def test_nothing_is_left_open() -> None:
    found = []
    for name, path in NAMES.items():
        for number, line in enumerate((_text(path) or "").splitlines(), start=1):
            if LEFT_OPEN.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


def _marks(name: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a test file that is called, named or imported."""
    for node in ast.walk(ast.parse(NAMES[name].read_text(encoding="utf-8"), name)):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


@each_test_file
def test_every_test_runs(name: str) -> None:
    skips = [f"{name}:{line}: {mark}" for line, mark in _marks(name) if mark.rpartition(".")[2] in NOT_RUN]
    assert skips == [] or Path(name) == MAY_SKIP


@each_test_file
def test_only_one_place_sleeps(name: str) -> None:
    """A sleep is too short on a slow machine and too long on a fast one: `wait_until` asks instead."""
    sleeps = [f"{name}:{line}" for line, mark in _marks(name) if mark == "time.sleep"]
    assert sleeps == [] or Path(name) == MAY_SLEEP
