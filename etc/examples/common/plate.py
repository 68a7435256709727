#!/usr/bin/env python3
"""The example's model: a steel plate with a hole, pulled at its right edge, as a CalculiX deck.

例題のモデル: 右端を引っ張られる円孔付き鋼板 (CalculiX の入力ファイル)。

From MInt come three numbers (Material); from the site's own folder comes the hardening curve (Hardening). Both sides
may read this file: the mesh is no secret. Reading is strict: the three numbers are all that an outsider can say.

    plate.py --young-mpa 206000 --poisson 0.3 --yield-mpa 235 > material.txt      MInt: writes the input
    plate.py --deck material.txt [CURVE.csv] > plate.inp                          to try the deck by hand
"""
from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import sys
from typing import Callable

Point = tuple[float, float]
Hardening = list[tuple[float, float]]   # (plastic strain, stress above yield in MPa), both rising

LENGTH_MM, HEIGHT_MM, THICKNESS_MM, RADIUS_MM = 200.0, 100.0, 5.0, 20.0
LOAD_MPA = 150.0        # mean stress on the right edge; beside the hole the plate yields
AROUND, OUTWARD, BESIDE = 10, 8, 6      # elements: along a quarter of the hole, away from it, in each end block

# name: lowest, highest. Outside of these the deck would be nonsense, so the site does not even try.
LIMITS = {"young_mpa": (1e3, 1e6), "poisson": (0.0, 0.49), "yield_mpa": (20.0, 5000.0)}


class InputError(Exception):
    """The three numbers or the curve cannot be used. The text never repeats what the curve says."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What MInt sends: Young's modulus and yield stress in MPa, Poisson's ratio."""

    young_mpa: float
    poisson: float
    yield_mpa: float

    def encode(self) -> str:
        return "".join(f"{name} = {value!r}\n" for name, value in dataclasses.asdict(self).items())

    @classmethod
    def parse(cls, text: str) -> Material:
        """Exactly the three names, each once, each a finite number within LIMITS; `#` starts a comment."""
        found: dict[str, float] = {}
        for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
            name, _, value = (part.strip() for part in line.partition("="))
            if name not in LIMITS or name in found:
                raise InputError(f"unknown or repeated name: {name[:40]!r}; wanted: {', '.join(LIMITS)}")
            found[name] = _number(name, value)
        missing = [name for name in LIMITS if name not in found]
        if missing:
            raise InputError(f"missing: {', '.join(missing)}")
        return cls(**found)


def _number(name: str, text: str) -> float:
    low, high = LIMITS[name]
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{name} is not a number") from None
    if not low <= value <= high:    # NaN fails this too
        raise InputError(f"{name} must lie between {low:g} and {high:g}")
    return value


def read_hardening(path: pathlib.Path) -> Hardening:
    """The site's table: `plastic strain, stress above yield` a line, `#` starts a comment. Errors never quote it."""
    curve: Hardening = [(0.0, 0.0)]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            strain, increment = (float(part) for part in line.split(","))
        except ValueError:
            raise InputError(f"the site's table, line {number}: two numbers wanted") from None
        if not (strain > curve[-1][0] and increment >= curve[-1][1]):
            raise InputError(f"the site's table, line {number}: strain must rise and stress must not fall")
        curve.append((strain, increment))
    return curve


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Nodes and 8-node quadrilaterals (4 corners counter-clockwise, then 4 midsides), numbered from 1."""

    nodes: dict[int, Point]
    elements: dict[int, tuple[int, ...]]

    def edge(self, x: float) -> list[int]:
        """The nodes on the vertical line at x, from the bottom to the top."""
        return sorted((n for n, p in self.nodes.items() if abs(p[0] - x) < 1e-6), key=lambda n: self.nodes[n][1])


def build_mesh(around: int = AROUND, outward: int = OUTWARD, beside: int = BESIDE) -> Mesh:
    """Four blocks round the hole, fine towards it, and one block at each end."""
    nodes: dict[tuple[int, int], int] = {}
    points: dict[int, Point] = {}
    elements: dict[int, tuple[int, ...]] = {}

    def node(point: Point) -> int:
        key = (round(point[0] * 1e6), round(point[1] * 1e6))
        number = nodes.setdefault(key, len(nodes) + 1)
        points.setdefault(number, point)
        return number

    def block(place: Callable[[float, float], Point], columns: int, rows: int) -> None:
        for i in range(columns):
            for j in range(rows):
                ring = [(0, 0), (1, 0), (1, 1), (0, 1), (.5, 0), (1, .5), (.5, 1), (0, .5)]
                elements[len(elements) + 1] = tuple(node(place(i + a, j + b)) for a, b in ring)

    half = HEIGHT_MM / 2
    width = (LENGTH_MM - HEIGHT_MM) / 2
    block(lambda i, j: (-LENGTH_MM / 2 + width * i / beside, -half + HEIGHT_MM * j / around), beside, around)
    for quarter in range(4):
        block(lambda i, j, q=quarter: _round_hole(q, i, j, around, outward, half),  # type: ignore[misc]
              outward, around)
    block(lambda i, j: (half + width * i / beside, -half + HEIGHT_MM * j / around), beside, around)
    return Mesh(points, elements)


def _round_hole(quarter: int, i: float, j: float, around: int, outward: int, half: float) -> Point:
    """From the circle (i = 0) out to the square (i = outward), j along a quarter that starts at -45 degrees."""
    side = 2 * j / around - 1
    angle = side * math.pi / 4
    low = math.floor(i)
    grade = [(k / outward) ** 1.5 for k in (low, math.ceil(i))]
    w = grade[0] + (grade[1] - grade[0]) * (i - low)
    x = RADIUS_MM * math.cos(angle) * (1 - w) + half * w
    y = RADIUS_MM * math.sin(angle) * (1 - w) + half * side * w
    for _ in range(quarter):
        x, y = -y, x
    return x, y


def edge_forces(mesh: Mesh, load_mpa: float) -> dict[int, float]:
    """An even pull on the right edge as nodal forces: 1/6, 4/6, 1/6 of each element's share."""
    edge = mesh.edge(LENGTH_MM / 2)
    forces = dict.fromkeys(edge, 0.0)
    for first, middle, last in zip(edge[0::2], edge[1::2], edge[2::2]):
        share = load_mpa * THICKNESS_MM * (mesh.nodes[last][1] - mesh.nodes[first][1])
        for n, part in ((first, 1 / 6), (middle, 4 / 6), (last, 1 / 6)):
            forces[n] += share * part
    return forces


def deck(material: Material, hardening: Hardening, mesh: Mesh | None = None, load_mpa: float = LOAD_MPA) -> str:
    """The complete CalculiX input; an empty `hardening` gives an elastic one.

    It asks for displacements and stresses and, on purpose, not for plastic strains: stress against plastic strain
    at one point *is* a point of the confidential curve.
    """
    mesh = mesh or build_mesh()
    left = mesh.edge(-LENGTH_MM / 2)
    middle = min(left, key=lambda n: abs(mesh.nodes[n][1]))
    lines = ["*HEADING", "Plate with a hole, mint-spool example (mm, N, MPa)", "*NODE, NSET=ALL"]
    lines += [f"{n}, {x:.9g}, {y:.9g}, 0." for n, (x, y) in mesh.nodes.items()]
    lines += ["*ELEMENT, TYPE=CPS8R, ELSET=PLATE"]
    lines += [f"{e}, " + ", ".join(map(str, ring)) for e, ring in mesh.elements.items()]
    lines += ["*NSET, NSET=LEFT"] + [f"{n}," for n in left]
    lines += ["*MATERIAL, NAME=STEEL", "*ELASTIC", f"{material.young_mpa:.9g}, {material.poisson:.9g}"]
    if hardening:
        lines += ["*PLASTIC"] + [plastic_line(material, *row) for row in hardening]
    lines += ["*SOLID SECTION, ELSET=PLATE, MATERIAL=STEEL", f"{THICKNESS_MM:.9g}"]
    lines += ["*BOUNDARY", "LEFT, 1, 1", f"{middle}, 2, 2"]
    lines += ["*STEP, INC=200", "*STATIC", "0.25, 1.0"]
    lines += ["*CLOAD"] + [f"{n}, 1, {force:.9g}" for n, force in edge_forces(mesh, load_mpa).items()]
    lines += ["*NODE PRINT, NSET=ALL, FREQUENCY=1000", "U", "*NODE PRINT, NSET=LEFT, TOTALS=ONLY, FREQUENCY=1000", "RF"]
    lines += ["*EL PRINT, ELSET=PLATE, FREQUENCY=1000", "S"]
    lines += ["*NODE FILE, OUTPUT=2D, FREQUENCY=1000", "U", "*EL FILE, OUTPUT=2D, FREQUENCY=1000", "S", "*END STEP"]
    return "\n".join(lines) + "\n"


def plastic_line(material: Material, strain: float, increment_mpa: float) -> str:
    """One line of *PLASTIC: the confidential part of the deck."""
    return f"{material.yield_mpa + increment_mpa:.10g}, {strain:.10g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in LIMITS:
        parser.add_argument("--" + name.replace("_", "-"), metavar="X")
    parser.add_argument("--deck", nargs="+", metavar="FILE", help="material.txt and, if wanted, the curve")
    given = vars(parser.parse_args())
    try:
        if given["deck"]:
            material = Material.parse(pathlib.Path(given["deck"][0]).read_text(encoding="utf-8"))
            curve = read_hardening(pathlib.Path(given["deck"][1])) if given["deck"][1:] else []
            sys.stdout.write(deck(material, curve))
        else:
            text = "".join(f"{name} = {given[name]}\n" for name in LIMITS if given[name] is not None)
            sys.stdout.write(Material.parse(text).encode())
    except (InputError, OSError) as error:
        print(f"plate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
