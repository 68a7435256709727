"""tools/demo for real, both modes: from a copy of the checkout in a path with blanks, with an empty home."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from components.waiting import wait_until

REPO = Path(__file__).resolve().parents[2]
PRIVATE = (".git", ".venv*", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__", "tests", "*.egg-info")


class Demo:
    """A copy of the checkout, and a folder to call it from; the Python environment is made once for all tests here."""

    def __init__(self, folder: Path) -> None:
        self.copy, self.here, self.home, self.tmp = (folder / name for name in ("a copy", "called from", "home", "tmp"))
        shutil.copytree(REPO, self.copy, ignore=shutil.ignore_patterns(*PRIVATE))
        for made in (self.here, self.home, self.tmp):
            made.mkdir()

    def environment(self, language: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTEST", "PYTHON"))}
        return {**kept, "HOME": str(self.home), "LANG": language, "TMPDIR": str(self.tmp)}

    def start(self, *options: str, language: str = "C.UTF-8") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.copy / "tools" / "demo", *options], cwd=self.here, env=self.environment(language),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    def run(self, *options: str, language: str = "C.UTF-8") -> tuple[int, str]:
        process = self.start(*options, language=language)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def solver_works(self) -> bool:
        """The command of the demo's job has been started: its runner has left a pid."""
        return any(self.tmp.glob("mint-spool-demo*/site/**/run/pid"))

    def left_over(self) -> list[str]:
        """Temporary folders, and processes that work in them."""
        found = [path.name for path in self.tmp.glob("mint-spool-demo*")]
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "cwd").startswith(str(self.tmp)):
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def row(said: str, name: str) -> list[int]:
    """The four numbers of a line of the proof: files, bytes, lines found, numbers found."""
    line = next(line for line in said.splitlines() if line.strip().startswith(name))
    return [int(part.replace(",", "")) for part in re.findall(r"[\d,]+", line.partition(name)[2])]


def check_proof(said: str) -> None:
    for clean in ("spool at MInt", "all of MInt (logs, results)", "jobs' folders at the site"):
        files, size, lines, numbers = row(said, clean)
        assert files > 5 or clean.startswith("jobs'"), said
        assert size > 100_000
        assert (lines, numbers) == (0, 0)
    assert row(said, "the site's own folder")[2:] == [12, 24]
    assert row(said, "(the deck as the solver had it)")[2:] == [12, 24]
    assert "PROVED: no line and no number" in said


def check_picture(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    text = "".join(root.itertext())
    assert "von Mises" in text
    assert "変位" in text
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [[], ["--ssh"]], ids=["webapi", "ssh"])
def test_demo_shows_and_proves(demo: Demo, options: list[str]) -> None:
    code, said = demo.run(*options, "--picture", f"picture{len(options)}.svg")
    assert code == 0, said
    for step in (
        "folder created", "accepted and queued", "claimed by the site", "fetched and verified; start permitted",
        "program C started", "program C ended, exit 0", "results on their way", "everything returned and verified",
        "history.jsonl", "out/plate.frd", "CalculiX", "0.2139 mm", "290.9 MPa",
    ):  # fmt: skip
        assert step in said, said
    times = [float(found) for found in re.findall(r"^\[ *([\d.]+) s\]", said, re.M)]
    assert times[-1] < 60
    check_proof(said)
    check_picture(demo.here / f"picture{len(options)}.svg")
    assert demo.left_over() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_in_japanese_with_the_bundled_solver(demo: Demo) -> None:
    code, said = demo.run("--bundled-solver", "--no-install", language="ja_JP.UTF-8")
    assert code == 0, said
    for words in ("確認: 秘匿の硬化曲線は", "ジョブの履歴", "mini_solver", "最大相当応力"):
        assert words in said
    check_picture(demo.here / "demo-result.svg")
    assert demo.left_over() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupted_demo_cleans_up(demo: Demo) -> None:
    process = demo.start("--bundled-solver")
    assert process.stdout
    for line in process.stdout:
        if "program A" in line:
            break
    wait_until(demo.solver_works, 60, "the solver is at work")
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130, rest
    wait_until(lambda: demo.left_over() == [], 20, "what was killed is gone")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kept_folder_is_named(demo: Demo) -> None:
    code, said = demo.run("--keep", "--bundled-solver")
    assert code == 0, said
    kept = Path(re.findall(r"Kept: (.*)", said)[0])
    assert len(list((kept / "mint" / "spool" / "jobs").iterdir())) == 1
    shutil.rmtree(kept)
    assert demo.left_over() == []


WITHOUT_VENV = """
folder=$(python3 -c 'import ensurepip, os; print(os.path.dirname(ensurepip.__file__))') && mount --bind "$1" "$folder" || exit 99
shift
exec "$@"
"""  # Debian's python3 as it comes: the part of venv that python3-venv brings is not there


@pytest.mark.parametrize("language", ["C.UTF-8", "ja_JP.UTF-8"])
def test_where_venv_is_missing_the_command_is_told(demo: Demo, tmp_path: Path, language: str) -> None:
    code, said = without_venv(demo, tmp_path, "--no-install", language=language)
    assert code == 1, said
    assert "apt-get update && apt-get install -y --no-install-recommends python3-venv" in said
    assert ("root で次を実行" in said) == language.startswith("ja")
    assert "Traceback" not in said
    assert demo.left_over() == []


def test_where_venv_is_missing_root_installs_it(demo: Demo, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    apt_get.chmod(0o755)
    code, said = without_venv(demo, tmp_path, PATH=f"{apt_get.parent}:{os.environ['PATH']}")
    assert "install -y --no-install-recommends python3-venv" in asked.read_text()
    assert code == 1, said
    assert "has no venv" in said, "an installation that brings nothing is told too"


def without_venv(demo: Demo, tmp_path: Path, *options: str, language: str = "C.UTF-8", **more: str) -> tuple[int, str]:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", WITHOUT_VENV, "sh", empty, demo.copy / "tools" / "demo", *options],
        cwd=demo.here, env={**demo.environment(language), **more}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout
