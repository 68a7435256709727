#!/usr/bin/env python3
"""A very small finite element solver, for computers on which CalculiX (ccx) cannot be installed.

同梱の簡易ソルバー。CalculiX (ccx) を導入できない計算機でだけ使う。実務には使わないこと。

    mini_solver.py NAME         reads NAME.inp, writes NAME.dat and NAME.frd, as `ccx -i NAME` does

It knows plate.py's decks and nothing more: CPS8R elements (plane stress, 8 nodes, 2 x 2 points), one material, elastic
or plastic with isotropic hardening (von Mises), small strains, one step of nodal forces. Any other keyword is refused.
Standard library only. The tests compare it with ccx, elastic and plastic.

Method: the elastic stiffness is factored once (Cholesky, skyline); yielding is brought in by repeating the solution
with the unbalanced forces until they vanish; the stress at a point comes from the return mapping of Simo and Taylor
(1986), which keeps the plane-stress condition exact.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
import operator
import pathlib
import sys
from typing import Callable

import frd

PROGRAM = "mint-spool mini_solver (bundled, not CalculiX)"
GAUSS = 1 / math.sqrt(3)
POINTS = ((-GAUSS, -GAUSS), (GAUSS, -GAUSS), (-GAUSS, GAUSS), (GAUSS, GAUSS))       # in ccx' order
CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1), (0, -1), (1, 0), (0, 1), (-1, 0))    # of the 8 nodes
TOLERANCE = 1e-5        # of unbalanced to applied force; ccx' own default is 5e-3
MOST_ROUNDS = 500
IGNORED = {"*HEADING", "*STEP", "*STATIC", "*NODE PRINT", "*EL PRINT", "*NODE FILE", "*EL FILE", "*END STEP"}

Stress = tuple[float, float, float]     # xx, yy, xy


class DeckError(Exception):
    """The deck asks for something that this solver does not know. Never quotes a data line: it may be confidential."""


@dataclasses.dataclass
class Deck:
    nodes: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    elements: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    sets: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    young: float = 0.0
    poisson: float = 0.0
    curve: list[tuple[float, float]] = dataclasses.field(default_factory=list)   # (plastic strain, yield stress)
    thickness: float = 0.0
    fixed: set[tuple[int, int]] = dataclasses.field(default_factory=set)         # (node, direction 0 or 1)
    forces: dict[tuple[int, int], float] = dataclasses.field(default_factory=dict)


def read_deck(text: str) -> Deck:
    deck, card, name = Deck(), "", ""
    for line in text.splitlines():
        if line.startswith("**") or not line.strip():
            continue
        if line.startswith("*"):
            card, *options = (part.strip().upper() for part in line.split(","))
            name = dict(option.partition("=")[::2] for option in options).get("NSET", "")
            if card not in IGNORED and card not in READERS:
                raise DeckError(f"the bundled solver does not know {card}")
            if card == "*ELEMENT" and "TYPE=CPS8R" not in options:
                raise DeckError("the bundled solver knows elements of type CPS8R only")
        elif card in READERS:
            try:
                READERS[card](deck, name, [part.strip() for part in line.split(",") if part.strip()])
            except (ValueError, IndexError, KeyError):
                raise DeckError(f"a line under {card} cannot be read") from None
    if not (deck.elements and deck.young and deck.thickness and deck.fixed and deck.forces):
        raise DeckError("the deck lacks elements, a material, a thickness, supports or forces")
    return deck


def _node(deck: Deck, name: str, parts: list[str]) -> None:
    deck.nodes[int(parts[0])] = (float(parts[1]), float(parts[2]))


def _element(deck: Deck, name: str, parts: list[str]) -> None:
    number, *ring = map(int, parts)
    if len(ring) != 8:
        raise ValueError
    deck.elements[number] = tuple(ring)


def _nset(deck: Deck, name: str, parts: list[str]) -> None:
    deck.sets.setdefault(name, []).extend(map(int, parts))


def _elastic(deck: Deck, name: str, parts: list[str]) -> None:
    deck.young, deck.poisson = map(float, parts)


def _plastic(deck: Deck, name: str, parts: list[str]) -> None:
    stress, strain = map(float, parts)
    deck.curve.append((strain, stress))


def _section(deck: Deck, name: str, parts: list[str]) -> None:
    deck.thickness = float(parts[0])


def _boundary(deck: Deck, name: str, parts: list[str]) -> None:
    nodes = deck.sets[parts[0].upper()] if parts[0].upper() in deck.sets else [int(parts[0])]
    deck.fixed.update((n, d - 1) for n in nodes for d in range(int(parts[1]), int(parts[2]) + 1))


def _cload(deck: Deck, name: str, parts: list[str]) -> None:
    deck.forces[int(parts[0]), int(parts[1]) - 1] = float(parts[2])


READERS = {"*NODE": _node, "*ELEMENT": _element, "*NSET": _nset, "*MATERIAL": lambda *_: None, "*ELASTIC": _elastic,
           "*PLASTIC": _plastic, "*SOLID SECTION": _section, "*BOUNDARY": _boundary, "*CLOAD": _cload}


def shape_slopes(a: float, b: float) -> list[tuple[float, float]]:
    """Slopes of the 8 shape functions over the element's own coordinates (a, b), both -1 … 1."""
    slopes = []
    for p, q in CORNERS:
        if p and q:
            slopes.append((p * (1 + b * q) * (2 * a * p + b * q) / 4, q * (1 + a * p) * (2 * b * q + a * p) / 4))
        elif q:
            slopes.append((-a * (1 + b * q), q * (1 - a * a) / 2))
        else:
            slopes.append((p * (1 - b * b) / 2, -b * (1 + a * p)))
    return slopes


@dataclasses.dataclass
class GaussPoint:
    """One point of one element: its nodes' slopes in x and y, and the volume it stands for."""

    ring: tuple[int, ...]
    dx: list[float]
    dy: list[float]
    volume: float

    def strain(self, u: dict[tuple[int, int], float]) -> Stress:
        ux, uy = [u[n, 0] for n in self.ring], [u[n, 1] for n in self.ring]
        return (_dot(self.dx, ux), _dot(self.dy, uy), _dot(self.dy, ux) + _dot(self.dx, uy))


def _dot(a: list[float], b: list[float]) -> float:
    return sum(map(operator.mul, a, b), 0.0)


def gauss_points(deck: Deck) -> dict[int, list[GaussPoint]]:
    """The four points of each element."""
    slopes = [shape_slopes(a, b) for a, b in POINTS]
    return {e: [_gauss_point(deck, ring, rows) for rows in slopes] for e, ring in deck.elements.items()}


def _gauss_point(deck: Deck, ring: tuple[int, ...], slopes: list[tuple[float, float]]) -> GaussPoint:
    xa, ya, xb, yb = 0.0, 0.0, 0.0, 0.0
    for n, (da, db) in zip(ring, slopes):
        x, y = deck.nodes[n]
        xa, ya, xb, yb = xa + da * x, ya + da * y, xb + db * x, yb + db * y
    area = xa * yb - ya * xb
    if area <= 0:
        raise DeckError("an element is turned inside out")
    dx = [(yb * da - ya * db) / area for da, db in slopes]
    dy = [(xa * db - xb * da) / area for da, db in slopes]
    return GaussPoint(ring, dx, dy, area * deck.thickness)


class Stiffness:
    """The elastic stiffness of the free directions, factored: row i is kept from its first non-zero to its diagonal."""

    def __init__(self, deck: Deck, points: dict[int, list[GaussPoint]]) -> None:
        order = [(n, d) for n in _front_order(deck) for d in (0, 1) if (n, d) not in deck.fixed]
        self.order = order
        self.index = {dof: i for i, dof in enumerate(order)}
        self.first = list(range(len(order)))
        for ring in deck.elements.values():
            used = [self.index[n, d] for n in ring for d in (0, 1) if (n, d) in self.index]
            for i in used:
                self.first[i] = min(self.first[i], *used)
        self.rows = [[0.0] * (i - first + 1) for i, first in enumerate(self.first)]
        for point in itertools.chain.from_iterable(points.values()):
            self._add(deck, point)
        self._factor()

    def _add(self, deck: Deck, point: GaussPoint) -> None:
        c = deck.young / (1 - deck.poisson ** 2) * point.volume
        g = deck.young / (2 + 2 * deck.poisson) * point.volume
        v = deck.poisson
        where = [(self.index.get((n, 0), -1), self.index.get((n, 1), -1)) for n in point.ring]
        for (ix, iy), xi, yi in zip(where, point.dx, point.dy):
            for (jx, jy), xj, yj in zip(where, point.dx, point.dy):
                self._put(ix, jx, c * xi * xj + g * yi * yj)
                self._put(ix, jy, c * v * xi * yj + g * yi * xj)
                self._put(iy, jx, c * v * yi * xj + g * xi * yj)
                self._put(iy, jy, c * yi * yj + g * xi * xj)

    def _put(self, i: int, j: int, value: float) -> None:
        if i >= j >= 0:
            self.rows[i][j - self.first[i]] += value

    def _factor(self) -> None:
        """Cholesky in place."""
        rows, first = self.rows, self.first
        for i, row in enumerate(rows):
            start = first[i]
            for j in range(start, i):
                other, low = rows[j], max(start, first[j])
                part = _dot(row[low - start:j - start], other[low - first[j]:j - first[j]]) if low < j else 0.0
                row[j - start] = (row[j - start] - part) / other[-1]
            pivot = row[-1] - _dot(row[:-1], row[:-1])
            if pivot <= 0:
                raise DeckError("the model is not held: it could move as a whole")
            row[-1] = math.sqrt(pivot)

    def solve(self, load: list[float]) -> list[float]:
        x = list(load)
        for i, row in enumerate(self.rows):
            x[i] = (x[i] - _dot(row[:-1], x[self.first[i]:i])) / row[-1]
        for i in range(len(x) - 1, -1, -1):
            row, start = self.rows[i], self.first[i]
            x[i] = value = x[i] / row[-1]
            x[start:i] = [a - b * value for a, b in zip(x[start:i], row)]
        return x


def _front_order(deck: Deck) -> list[int]:
    """Nodes in the order in which a front coming from the supports reaches them: keeps the rows short."""
    elements_of: dict[int, list[tuple[int, ...]]] = {}
    for ring in deck.elements.values():
        for n in ring:
            elements_of.setdefault(n, []).append(ring)
    reached = dict.fromkeys(sorted({n for n, _ in deck.fixed}))
    queue = list(reached)
    for n in queue:
        for near in sorted({m for ring in elements_of[n] for m in ring} - reached.keys()):
            reached[near] = None
            queue.append(near)
    return queue


def elastic_stress(deck: Deck, strain: Stress) -> Stress:
    c, v = deck.young / (1 - deck.poisson ** 2), deck.poisson
    return c * (strain[0] + v * strain[1]), c * (strain[1] + v * strain[0]), c * (1 - v) / 2 * strain[2]


def yield_stress(curve: list[tuple[float, float]], plastic: float) -> float:
    """Straight between the curve's points, level after the last, as in CalculiX."""
    for (a, low), (b, high) in zip(curve, curve[1:]):
        if plastic < b:
            return low + (high - low) * (plastic - a) / (b - a)
    return curve[-1][1]


def return_mapping(deck: Deck, trial: Stress) -> Stress:
    """The stress on the yield surface that belongs to an elastic trial stress, in one step from the unloaded state."""
    xx, yy, xy = trial
    if not deck.curve or xx * xx + yy * yy - xx * yy + 3 * xy * xy <= deck.curve[0][1] ** 2:
        return trial
    both, apart = xx + yy, yy - xx
    soft_both, soft_apart = deck.young / (3 * (1 - deck.poisson)), deck.young / (1 + deck.poisson)

    def excess(flow: float) -> float:
        size = both ** 2 / 6 / (1 + soft_both * flow) ** 2
        size += (apart ** 2 / 2 + 2 * xy * xy) / (1 + soft_apart * flow) ** 2
        return math.sqrt(1.5 * size) - yield_stress(deck.curve, flow * math.sqrt(2 / 3 * size))

    low, high = 0.0, 1 / deck.young
    while excess(high) > 0:
        low, high = high, high * 4
    flow = _root(excess, low, high)
    both, apart, xy = both / (1 + soft_both * flow), apart / (1 + soft_apart * flow), xy / (1 + soft_apart * flow)
    return (both - apart) / 2, (both + apart) / 2, xy


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where `falling` is zero between `low` and `high`: regula falsi in the Illinois form, safe and quick."""
    at_low, at_high, side = falling(low), falling(high), 0
    exact = 1e-10 * at_low
    middle = high
    for _ in range(200):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = falling(middle)
        if abs(value) <= exact:
            break
        if value > 0:
            low, at_low = middle, value
            at_high /= 2 if side > 0 else 1
            side = 1
        else:
            high, at_high = middle, value
            at_low /= 2 if side < 0 else 1
            side = -1
    return middle


@dataclasses.dataclass
class Solution:
    deck: Deck
    u: dict[tuple[int, int], float]             # displacement by node and direction
    stresses: dict[int, list[Stress]]           # by element: its four points
    reaction: tuple[float, float]               # sum of the forces at the supports
    rounds: int

    def result(self) -> frd.Result:
        """As ccx writes it: stresses carried from the points to the nodes, there the mean of all elements."""
        sums: dict[int, list[float]] = {n: [0.0, 0.0, 0.0, 0.0] for n in self.deck.nodes}
        for e, ring in self.deck.elements.items():
            for n, stress in zip(ring, _at_nodes(self.stresses[e])):
                sums[n] = [a + b for a, b in zip(sums[n], (*stress, 1.0))]
        nodes: frd.Values = {n: (x, y, 0.0) for n, (x, y) in self.deck.nodes.items()}
        moved: frd.Values = {n: (self.u[n, 0], self.u[n, 1], 0.0) for n in nodes}
        means: frd.Values = {n: (xx / k, yy / k, 0.0, xy / k, 0.0, 0.0) for n, (xx, yy, xy, k) in sums.items()}
        return frd.Result(nodes, self.deck.elements, moved, means, PROGRAM)


def _at_nodes(stresses: list[Stress]) -> list[Stress]:
    """From the 2 x 2 points out to the corners, bilinear; a midside node gets the mean of its two corners."""
    far = math.sqrt(3)
    found: list[Stress] = []
    for p, q in CORNERS[:4]:
        parts = [(1 + far * p * math.copysign(1, a)) * (1 + far * q * math.copysign(1, b)) / 4 for a, b in POINTS]
        found.append(_weighted(parts, stresses))
    return found + [_weighted([0.5, 0.5], [found[i], found[(i + 1) % 4]]) for i in range(4)]


def _weighted(parts: list[float], stresses: list[Stress]) -> Stress:
    xx, yy, xy = (_dot(parts, [s[k] for s in stresses]) for k in range(3))
    return xx, yy, xy


def solve(deck: Deck) -> Solution:
    """Repeat: strains, stresses, unbalanced forces, correction; until all is balanced. One round where elastic."""
    points = gauss_points(deck)
    stiffness = Stiffness(deck, points)
    load = [deck.forces.get(dof, 0.0) for dof in stiffness.order]
    enough = TOLERANCE * max(map(abs, load))
    u = {(n, d): 0.0 for n in deck.nodes for d in (0, 1)}
    rest, change, stride = load, [], 1.0
    for rounds in range(1, MOST_ROUNDS + 1):
        change, before = stiffness.solve(rest), change
        stride = _stride(stride, change, before) if rounds > 2 else 1.0
        for dof, part in zip(stiffness.order, change):
            u[dof] += stride * part
        stresses = {e: [return_mapping(deck, elastic_stress(deck, point.strain(u))) for point in points[e]]
                    for e in points}
        inner = _inner_forces(deck, points, stresses)
        rest = [force - inner[dof] for force, dof in zip(load, stiffness.order)]
        if max(map(abs, rest)) <= enough:
            held = [math.fsum(inner[n, d] for n, d in deck.fixed if d == direction) for direction in (0, 1)]
            return Solution(deck, u, stresses, (held[0], held[1]), rounds)
    raise DeckError("no equilibrium found: the load is more than the material bears")


def _stride(stride: float, change: list[float], before: list[float]) -> float:
    """How far to follow the next correction: Aitken's rule for vectors; saves more than half of the rounds."""
    apart = [a - b for a, b in zip(change, before)]
    return min(10.0, max(0.5, -stride * _dot(before, apart) / (_dot(apart, apart) or 1.0)))


def _inner_forces(deck: Deck, points: dict[int, list[GaussPoint]],
                  stresses: dict[int, list[Stress]]) -> dict[tuple[int, int], float]:
    inner = {(n, d): 0.0 for n in deck.nodes for d in (0, 1)}
    for e, ring in deck.elements.items():
        for point, (xx, yy, xy) in zip(points[e], stresses[e]):
            for n, dx, dy in zip(ring, point.dx, point.dy):
                inner[n, 0] += (dx * xx + dy * xy) * point.volume
                inner[n, 1] += (dy * yy + dx * xy) * point.volume
    return inner


def dat(solution: Solution) -> str:
    """The printed results, under the headings of ccx."""
    lines = ["", f" {PROGRAM}", "", " displacements (vx,vy,vz) for set ALL and time  0.1000000E+01", ""]
    lines += [f"{n:10d} {solution.u[n, 0]:13.6E} {solution.u[n, 1]:13.6E} {0:13.6E}" for n in solution.deck.nodes]
    lines += ["", " total force (fx,fy,fz) for set LEFT and time  0.1000000E+01", ""]
    lines += [f"       {solution.reaction[0]:13.6E} {solution.reaction[1]:13.6E} {0:13.6E}", ""]
    lines += [" stresses (elem, integ.pnt.,sxx,syy,szz,sxy,sxz,syz) for set PLATE and time  0.1000000E+01", ""]
    for e, found in solution.stresses.items():
        lines += [f"{e:10d}{k:4d} " + " ".join(f"{value:13.6E}" for value in (xx, yy, 0, xy, 0, 0))
                  for k, (xx, yy, xy) in enumerate(found, 1)]
    return "\n".join(lines) + "\n"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: mini_solver.py NAME    (reads NAME.inp)", file=sys.stderr)
        return 2
    name = sys.argv[1]
    print(f"{PROGRAM}: for demonstration only")
    try:
        solution = solve(read_deck(pathlib.Path(name + ".inp").read_text(encoding="utf-8")))
    except (DeckError, OSError) as error:
        print(f"mini_solver.py: {error}", file=sys.stderr)
        return 1
    pathlib.Path(name + ".dat").write_text(dat(solution), encoding="ascii")
    frd.write(pathlib.Path(name + ".frd"), solution.result())
    print(f"{len(solution.deck.elements)} elements, {len(solution.deck.nodes)} nodes, {solution.rounds} round(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
