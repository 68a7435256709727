"""Finds traces of the confidential curve in any file: its lines, its numbers, its pairs of numbers however written.

秘匿の曲線の痕跡(行、数値、数値の組)をファイルの中に探す。

Used by program D before it ends, and by tools/demo to prove that nothing of the curve has left the site. What it cannot
see: compressed or encrypted content, and what an expert concludes from the results.
"""
from __future__ import annotations

import dataclasses
import re

import plate

_NUMBER = re.compile(rb"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d{1,3})?")
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Traces:
    """How many lines, single numbers (exact) and neighbouring pairs (to five digits) of the curve a content holds."""

    lines: int = 0
    numbers: int = 0
    pairs: int = 0

    def __bool__(self) -> bool:
        return bool(self.lines or self.numbers or self.pairs)

    def __add__(self, other: Traces) -> Traces:
        return Traces(self.lines + other.lines, self.numbers + other.numbers, self.pairs + other.pairs)


class Curve:
    """What to look for: each row as it stands in the table, and as program D puts it into the deck."""

    def __init__(self, table: str, material: plate.Material, hardening: plate.Hardening) -> None:
        rows = [line.strip() for line in table.splitlines() if line.strip() and not line.startswith("#")]
        merged = [plate.plastic_line(material, *row) for row in hardening[1:]]
        self.lines = {line.encode() for line in rows + merged}
        values = [tuple(map(float, line.split(","))) for line in rows + merged]
        self.texts = {part.strip().encode() for line in rows + merged for part in line.split(",")}
        self.numbers = {number for pair in values for number in pair}
        self.pairs = {(_five(a), _five(b)) for x, y in values for a, b in ((x, y), (y, x))}

    def search(self, content: bytes) -> Traces:
        found = [float(match.group().lower().replace(b"d", b"e")) for match in _NUMBER.finditer(content)]
        numbers = sum(number in self.numbers for number in found)
        hidden = sum(content.count(text) for text in self.texts)     # inside of longer words, too
        five = [_five(number) for number in found]
        pairs = sum(pair in self.pairs for pair in zip(five, five[1:]))
        return Traces(sum(content.count(line) for line in self.lines), max(numbers, hidden), pairs)


def _five(number: float) -> str:
    return f"{number:.4e}"
