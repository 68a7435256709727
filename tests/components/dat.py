"""Comparing CalculiX' .dat files as numbers: another build rounds differently, and a tiny number may have either sign."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Union

Word = Union[float, str]
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|[-+]?nan|[-+]?inf", re.IGNORECASE)


def differences(result: bytes, reference: bytes, *, relative: float = 1e-4, tiny: float = 1e-6) -> list[str]:
    """What differs, one line each, at most ten; empty where both say the same.

    Texts must be equal. Numbers may differ by `relative` of the larger one, or by `tiny` of the largest number in their
    table, which is noise around zero. An empty reference is no reference and fails.
    """
    expected, found = _tables(reference), _tables(result)
    assert any(numbers for _, numbers in expected), "the reference holds no numbers: it is unusable"
    if [title for title, _ in found] != [title for title, _ in expected]:
        return [f"tables {[title for title, _ in found]} instead of {[title for title, _ in expected]}"]
    wrong: list[str] = []
    for (title, numbers), (_, wanted) in zip(found, expected):
        wrong += _differences(title, numbers, wanted, relative, tiny)
    return wrong[:10]


def _differences(title: str, numbers: list[float], wanted: list[float], relative: float, tiny: float) -> Iterator[str]:
    if len(numbers) != len(wanted):
        yield f"{title}: {len(numbers)} numbers instead of {len(wanted)}"
        return
    noise = tiny * max((abs(number) for number in wanted if math.isfinite(number)), default=0.0)
    for place, (number, expected) in enumerate(zip(numbers, wanted)):
        same = math.isclose(number, expected, rel_tol=relative, abs_tol=noise) or (math.isnan(number) and math.isnan(expected))
        if not same:
            yield f"{title}: number {place} is {number!r} instead of {expected!r}"


def _tables(data: bytes) -> list[tuple[str, list[float]]]:
    """Title and numbers of each table: a line that holds anything but numbers begins the next one."""
    tables: list[tuple[str, list[float]]] = [("", [])]
    for line in data.decode("ascii", "replace").splitlines():
        words = line.split()
        if words and all(_NUMBER.fullmatch(word) for word in words):
            tables[-1][1].extend(float(word.replace("D", "E").replace("d", "e")) for word in words)
        elif words:
            tables.append((" ".join(words), []))
    return tables
