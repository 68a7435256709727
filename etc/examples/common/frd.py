"""Results of a plane model in CalculiX' .frd text form: read from ccx or the bundled solver, written by the latter.

CalculiX の結果ファイル (.frd) の読み書き。

Only what the example needs: 8-node quadrilaterals, displacements, stresses, one step. Lines have fixed columns
(cgx manual, "Result Format"): ` -1`, a number of 10 columns, then values of 12 columns each.
"""
from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator

Values = dict[int, tuple[float, ...]]
QUAD8 = 10      # the .frd number of an 8-node quadrilateral


class ResultError(Exception):
    """The file is not a complete result of a plane model."""


@dataclasses.dataclass
class Result:
    """By node or element number; displacements (x, y, z) in mm; stresses (xx, yy, zz, xy, yz, zx) in MPa."""

    nodes: Values
    elements: dict[int, tuple[int, ...]]
    displacements: Values
    stresses: Values
    program: str = ""

    def mises(self) -> dict[int, float]:
        return {n: mises(s) for n, s in self.stresses.items()}

    def largest_displacement(self) -> tuple[float, int]:
        """Its length and its node."""
        return max((math.hypot(*u), n) for n, u in self.displacements.items())

    def largest_mises(self) -> tuple[float, int]:
        return max((value, n) for n, value in self.mises().items())


def mises(stress: tuple[float, ...]) -> float:
    """The von Mises equivalent of a stress (xx, yy, zz, xy, yz, zx)."""
    xx, yy, zz, xy, yz, zx = stress
    return math.sqrt(((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2) / 2 + 3 * (xy * xy + yz * yz + zx * zx))


def read(path: pathlib.Path) -> Result:
    """The last displacements and stresses in the file; ResultError if anything of it is missing."""
    result = Result({}, {}, {}, {})
    lines = iter(path.read_text(encoding="ascii", errors="replace").splitlines())
    complete = False
    for line in lines:
        if line.startswith("    1UPGM"):
            result.program = line[9:].strip() or result.program
        elif line.startswith("    2C"):
            result.nodes = dict(_values(lines))
        elif line.startswith("    3C"):
            result.elements = dict(_elements(lines))
        elif line.startswith(" -4  DISP "):
            result.displacements = dict(_values(lines))
        elif line.startswith(" -4  STRESS "):
            result.stresses = dict(_values(lines))
        complete = line.startswith(" 9999") or complete
    if not (complete and result.nodes and result.elements and result.displacements and result.stresses):
        raise ResultError(f"{path}: nodes, elements, displacements or stresses are missing")
    return result


def _values(lines: Iterator[str]) -> Iterator[tuple[int, tuple[float, ...]]]:
    for line in lines:
        if line.startswith(" -3"):
            return
        if line.startswith(" -1"):
            columns = line[13:].rstrip()
            yield int(line[3:13]), tuple(float(columns[i:i + 12]) for i in range(0, len(columns), 12))


def _elements(lines: Iterator[str]) -> Iterator[tuple[int, tuple[int, ...]]]:
    number = 0
    ring: list[int] = []
    for line in lines:
        if line.startswith(" -3"):
            return
        if line.startswith(" -1"):
            if int(line[13:18]) != QUAD8:
                raise ResultError("only 8-node quadrilaterals can be read")
            number, ring = int(line[3:13]), []
        elif line.startswith(" -2"):
            ring += [int(line[i:i + 10]) for i in range(3, len(line.rstrip()), 10)]
            if len(ring) == 8:
                yield number, tuple(ring)


def write(path: pathlib.Path, result: Result) -> None:
    """The whole result in the same form, so that the same programs read it."""
    out = ["    1C", f"    1UPGM               {result.program}"]
    out += [f"    2C{len(result.nodes):30d}{1:38d}", *_rows(result.nodes), " -3"]
    out += [f"    3C{len(result.elements):30d}{1:38d}"]
    for number, ring in result.elements.items():
        out += [f" -1{number:10d}{QUAD8:5d}{0:5d}{1:5d}", " -2" + "".join(f"{n:10d}" for n in ring)]
    out += [" -3"]
    for name, parts, values in (("DISP", ("D1", "D2", "D3"), result.displacements),
                                ("STRESS", ("SXX", "SYY", "SZZ", "SXY", "SYZ", "SZX"), result.stresses)):
        out += [f"  100CL  101 1.000000000{len(values):12d}                     0    1           1",
                f" -4  {name:8s}{len(parts):5d}    1"]
        out += [f" -5  {part:8s}{1:5d}" for part in parts]
        out += [*_rows(values), " -3"]
    path.write_text("\n".join([*out, " 9999"]) + "\n", encoding="ascii")


def _rows(values: Values) -> Iterator[str]:
    for n, row in values.items():
        yield f" -1{n:10d}" + "".join(f"{value:12.5E}" for value in row)
