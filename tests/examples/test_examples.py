"""The example's programs C and D as a site runs them, and the picture: the curve is used, and no trace of it stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import picture
import plate
import pytest
import traces

from components.waiting import wait_until

COMMON = Path(plate.__file__).parent
MATERIAL = plate.Material(206000.0, 0.3, 235.0)


class Site:
    """A copy of the example in a folder with an odd name, and a working directory with the input."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.programs, self.work = folder / "a b 'c'", folder / "work"
        shutil.copytree(COMMON, self.programs, ignore=shutil.ignore_patterns("__pycache__"))
        (self.programs / "site.conf").write_text(settings)
        self.work.mkdir()
        (self.work / "material.txt").write_text(MATERIAL.encode())
        table = self.programs / "confidential" / "hardening_curve.csv"
        self.curve = traces.Curve(table.read_text(), MATERIAL, plate.read_hardening(table))

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.programs / "program_c.sh", *argv], cwd=self.work, env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    def run(self, *argv: str) -> tuple[int, str]:
        process = self.start(*argv)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def left(self) -> set[str]:
        return {str(path.relative_to(self.work)) for path in self.work.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["", "CCX=none\n"], ids=["ccx", "bundled"])
def test_curve_is_used_and_no_trace_of_it_stays(tmp_path: Path, settings: str) -> None:
    site = Site(tmp_path, settings)
    code, said = site.run("plate", "material.txt")
    assert code == 0, said
    assert ("bundled mini solver" in said) == bool(settings)
    assert site.left() == {"material.txt", "plate.dat", "plate.frd"}
    for name in site.left():
        assert not site.curve.search((site.work / name).read_bytes()), name
    assert not site.curve.search(said.encode())
    found = picture.draw(site.work / "plate.frd", tmp_path / "p.svg")
    assert 280 < found.largest_mises()[0] < 300
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    assert "相当応力" in (tmp_path / "p.svg").read_text(encoding="utf-8")


FAILING = """#!/bin/sh
cat plate.inp
cat plate.inp >&2
cp plate.inp plate.frd
exit 201
"""
LEAKING = """#!/bin/sh
cp plate.inp plate.dat
cp plate.inp plate.frd
"""


@pytest.mark.parametrize(("solver", "code"), [(FAILING, 1), (LEAKING, 3)])
def test_faulty_solver_cannot_carry_the_curve_out(tmp_path: Path, solver: str, code: int) -> None:
    fake = tmp_path / "fake-ccx"
    fake.write_text(solver)
    fake.chmod(0o755)
    site = Site(tmp_path, f"CCX='{fake}'\n")
    ended, said = site.run("plate")
    assert ended == code, said
    assert site.left() == {"material.txt"}
    assert not site.curve.search(said.encode())


def test_canceled_run_leaves_no_trace(tmp_path: Path) -> None:
    fake = tmp_path / "fake-ccx"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    site = Site(tmp_path, f"CCX='{fake}'\n")
    process = site.start("plate")
    wait_until((site.work / "private" / "solver.log").exists, 20, "the solver is at work")
    assert site.curve.search((site.work / "private" / "plate.inp").read_bytes()).lines == 12
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert site.left() == {"material.txt"}


@pytest.mark.parametrize(
    "text",
    [
        "young_mpa = 206000\npoisson = 0.3\n",
        "young_mpa = nan\npoisson = 0.3\nyield_mpa = 235\n",
        "young_mpa = 206000\npoisson = 0.3\nyield_mpa = 1e99\n",
        "young_mpa = 206000\npoisson = 0.3\nyield_mpa = 235\n*INCLUDE, INPUT=curve\n",
        "young_mpa = 206000\nyoung_mpa = 206000\npoisson = 0.3\nyield_mpa = 235\n",
    ],
)
def test_anything_but_three_numbers_is_refused(tmp_path: Path, text: str) -> None:
    site = Site(tmp_path, "")
    (site.work / "material.txt").write_text(text)
    code, said = site.run("plate")
    assert code == 2, said
    assert site.left() == {"material.txt"}


@pytest.mark.parametrize("argv", [[], ["sh", "-c", "id"], ["plate2"]])
def test_other_commands_are_not_run(tmp_path: Path, argv: list[str]) -> None:
    assert Site(tmp_path, "").run(*argv)[0] == 77


def test_traces_are_found_however_they_are_written(tmp_path: Path) -> None:
    curve = Site(tmp_path, "").curve
    deck = plate.deck(MATERIAL, plate.read_hardening(COMMON / "confidential" / "hardening_curve.csv")).encode()
    assert curve.search(deck).lines == 12
    assert not curve.search(plate.deck(MATERIAL, []).encode())
    assert curve.search(b"x0.10273916y").numbers == 1
    assert curve.search(b"[1.0273916E-01]").numbers == 1
    assert curve.search(b"4.474753E+02 1.027392D-01").pairs == 1      # rounded, as a solver prints
    assert not curve.search(b"4.4748E+02 and later, 5, 1.0274E-01")
