"""The bundled solver against CalculiX and against what is known exactly."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import frd
import mini_solver
import plate
import pytest

STEEL = plate.Material(206000.0, 0.3, 235.0)
CURVE = [(0.0, 0.0), (0.002, 25.0), (0.01, 70.0), (0.1, 200.0)]


def by_ccx(folder: Path, deck: str) -> frd.Result:
    (folder / "deck.inp").write_text(deck)
    subprocess.run(["ccx", "-i", "deck"], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return frd.read(folder / "deck.frd")


def by_mini(deck: str) -> frd.Result:
    return mini_solver.solve(mini_solver.read_deck(deck)).result()


def off(a: frd.Values, b: frd.Values, parts: tuple[int, ...] = (0, 1)) -> float:
    """The largest difference of any of these components, over the largest value of any."""
    assert a.keys() == b.keys()
    largest = max(abs(row[i]) for row in a.values() for i in parts)
    return max(abs(a[n][i] - b[n][i]) for n in a for i in parts) / largest


IN_PLANE = (0, 1, 3)    # of a stress


def skewed_mesh() -> plate.Mesh:
    """A plate without a hole, of 4 x 3 crooked elements with straight edges."""
    rng = random.Random(7)
    corners = {}
    for i, j in itertools.product(range(5), range(4)):
        dx, dy = (rng.uniform(-9, 9) if 0 < i < 4 else 0, rng.uniform(-6, 6) if 0 < j < 3 else 0)
        corners[2 * i, 2 * j] = (-100 + 50 * i + dx, -50 + 100 / 3 * j + dy)

    def place(i: int, j: int) -> plate.Point:
        ends = [corners[i + a, j + b] for a, b in itertools.product((-(i % 2), i % 2), (-(j % 2), j % 2))]
        return sum(p[0] for p in ends) / 4, sum(p[1] for p in ends) / 4

    number: dict[tuple[int, int], int] = {}
    elements: dict[int, tuple[int, ...]] = {}
    for i, j in itertools.product(range(0, 8, 2), range(0, 6, 2)):
        ring = [(i, j), (i + 2, j), (i + 2, j + 2), (i, j + 2), (i + 1, j), (i + 2, j + 1), (i + 1, j + 2), (i, j + 1)]
        elements[len(elements) + 1] = tuple(number.setdefault(at, len(number) + 1) for at in ring)
    return plate.Mesh({n: place(*at) for at, n in number.items()}, elements)


@pytest.mark.slow
def test_elastic_plate_with_a_hole_agrees_with_ccx(tmp_path: Path) -> None:
    deck = plate.deck(STEEL, [])
    ccx, mini = by_ccx(tmp_path, deck), by_mini(deck)
    assert off(ccx.nodes, mini.nodes) < 1e-5
    assert ccx.elements == mini.elements
    # ccx makes a brick of a plane element; its stress across the thickness vanishes on average, not at each point.
    assert off(ccx.displacements, mini.displacements) < 5e-4
    assert off(ccx.stresses, mini.stresses, IN_PLANE) < 0.01
    assert mini.largest_mises()[0] == pytest.approx(ccx.largest_mises()[0], rel=0.01)


@pytest.mark.slow
def test_without_lateral_contraction_it_agrees_with_ccx_to_four_digits(tmp_path: Path) -> None:
    deck = plate.deck(plate.Material(206000.0, 0.0, 235.0), [])
    ccx, mini = by_ccx(tmp_path, deck), by_mini(deck)
    assert off(ccx.displacements, mini.displacements) < 1e-5
    assert off(ccx.stresses, mini.stresses, IN_PLANE) < 1e-4


@pytest.mark.slow
def test_plastic_plate_with_a_hole_agrees_with_ccx(tmp_path: Path) -> None:
    deck = plate.deck(STEEL, CURVE)
    ccx, mini = by_ccx(tmp_path, deck), by_mini(deck)
    assert mini.largest_mises()[0] > STEEL.yield_mpa * 1.1
    assert mini.largest_displacement()[0] == pytest.approx(ccx.largest_displacement()[0], rel=0.01)
    assert mini.largest_mises()[0] == pytest.approx(ccx.largest_mises()[0], rel=0.01)
    # At single nodes the mean over elements jumps where the curve has a kink; the field as a whole must agree.
    apart = [abs(value - mini.mises()[n]) for n, value in ccx.mises().items()]
    assert sum(apart) / len(apart) < 0.005 * ccx.largest_mises()[0]


def test_uniform_tension_is_exact_in_any_mesh_and_agrees_with_ccx(tmp_path: Path) -> None:
    deck = plate.deck(STEEL, [], skewed_mesh(), load_mpa=120.0)
    ccx, mini = by_ccx(tmp_path, deck), by_mini(deck)
    for result, digits in ((mini, 1e-8), (ccx, 1e-4)):
        for n, (x, _y, _z) in result.nodes.items():
            assert result.stresses[n] == pytest.approx((120, 0, 0, 0, 0, 0), abs=120 * digits)
            assert result.displacements[n][0] == pytest.approx(120 / 206000 * (x + 100), abs=0.12 * digits)
    assert off(ccx.displacements, mini.displacements) < 1e-4


def test_uniform_plastic_tension_lies_on_the_curve() -> None:
    # 270 MPa is 35 above yield: between (0.002, 25) and (0.01, 70).
    plastic = 0.002 + (35 - 25) / (70 - 25) * 0.008
    mini = by_mini(plate.deck(STEEL, CURVE, skewed_mesh(), load_mpa=270.0))
    right = [mini.displacements[n][0] for n, (x, *_) in mini.nodes.items() if abs(x - 100) < 1e-6]
    assert right == pytest.approx([200 * (270 / 206000 + plastic)] * len(right), rel=2e-4)


def test_reaction_balances_the_load() -> None:
    solution = mini_solver.solve(mini_solver.read_deck(plate.deck(STEEL, CURVE, skewed_mesh(), load_mpa=270.0)))
    assert solution.reaction == pytest.approx((-270 * 100 * 5, 0), abs=5)


def test_too_much_load_is_an_error_and_not_a_result() -> None:
    with pytest.raises(mini_solver.DeckError, match="no equilibrium"):
        by_mini(plate.deck(STEEL, CURVE, skewed_mesh(), load_mpa=500.0))


@pytest.mark.parametrize(
    ("deck", "message"),
    [
        ("*INCLUDE, INPUT=secret\n", "does not know"),
        ("*ELEMENT, TYPE=C3D8\n", "CPS8R"),
        ("*PLASTIC\n61.2345678, x\n", "cannot be read"),
        ("*HEADING\n", "lacks"),
    ],
)
def test_refusals_name_the_keyword_and_never_the_data(deck: str, message: str) -> None:
    with pytest.raises(mini_solver.DeckError, match=message) as caught:
        mini_solver.read_deck(deck)
    assert "61.2345678" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_written_result_is_read_back(tmp_path: Path) -> None:
    mini = by_mini(plate.deck(STEEL, [], skewed_mesh()))
    frd.write(tmp_path / "a.frd", mini)
    again = frd.read(tmp_path / "a.frd")
    assert again.program == mini.program
    assert again.elements == mini.elements
    assert off(mini.displacements, again.displacements) < 1e-5
    assert off(mini.stresses, again.stresses, IN_PLANE) < 1e-5


def test_cut_off_result_is_refused(tmp_path: Path) -> None:
    mini = by_mini(plate.deck(STEEL, [], skewed_mesh()))
    frd.write(tmp_path / "a.frd", mini)
    whole = (tmp_path / "a.frd").read_text()
    (tmp_path / "b.frd").write_text(whole[: len(whole) - 6])
    with pytest.raises(frd.ResultError):
        frd.read(tmp_path / "b.frd")
