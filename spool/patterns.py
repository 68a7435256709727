"""Patterns for names: ``*``, ``?``, ``[...]`` and ``**`` (docs/format.md, "Patterns").

The submitter writes a pattern and the company's agent matches it, so no pattern may take for ever, which a regular
expression does when it backtracks. Here all places in the pattern that the name may have come to are kept at once, as the
bits of one number, so that the work grows with pattern times name and no faster.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

_MAX_MASKS = 4096


class _Set(NamedTuple):
    """``[...]``: one character out of ranges, or with `negated` one outside of them; never a slash."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool

    def holds(self, char: str) -> bool:
        return char != "/" and any(low <= char <= high for low, high in self.ranges) != self.negated

    @property
    def only(self) -> str | None:
        """The one character it holds, or None where there are more."""
        low, high = self.ranges[0]
        return low if len(self.ranges) == 1 and low == high and not self.negated else None


class _Pattern:
    """A compiled pattern. Bit N of a set of places stands for "the name has come to item N"."""

    def __init__(self, items: tuple[str | _Set, ...]) -> None:
        self.items = items
        self._masks: dict[str, tuple[int, int, int]] = {}
        # `**/` is two items: at the first a folder may begin, or none; at the second one has begun.
        self._skip_one = self._places("*", "**")
        self._skip_two = self._places("**/")

    def fullmatch(self, name: str) -> bool:
        """True where the whole of `name` matches."""
        here = self._with_skipped(1)
        for char in name:
            on, stay, back = self._masks.get(char) or self._masks_of(char)
            here = self._with_skipped((here & on) << 1 | here & stay | (here & back) >> 1)
            if not here:
                return False
        return bool(here >> len(self.items))

    def _with_skipped(self, here: int) -> int:
        """Add the places that are reached without a character, because a star may stand for nothing."""
        while (more := here | (here & self._skip_one) << 1 | (here & self._skip_two) << 2) != here:
            here = more
        return here

    def _masks_of(self, char: str) -> tuple[int, int, int]:
        """Return from which places `char` leads on to the next, where it stays, and from which it leads one back."""
        on = sum(1 << place for place, item in enumerate(self.items) if isinstance(item, _Set) and item.holds(char))
        on |= self._places(_literal(char))
        if char == "/":
            masks = on, self._places("**"), self._places("in **/")
        else:
            masks = on | self._places("?", "**/"), self._places("*", "**", "in **/"), 0
        if len(self._masks) < _MAX_MASKS:  # whoever writes the names must not be able to fill the memory
            self._masks[char] = masks
        return masks

    def _places(self, *items: str) -> int:
        return sum(1 << place for place, item in enumerate(self.items) if item in items)


@functools.lru_cache(maxsize=512)
def compiled(pattern: str) -> _Pattern:
    """Return `pattern` compiled; every text is a pattern, an unfinished set stands for itself."""
    items: list[str | _Set] = []
    index = 0
    while index < len(pattern):
        some, index = _next_items(pattern, index)
        items += some
    return _Pattern(tuple(items))


def escape(name: str) -> str:
    """Return the pattern that `name` alone matches."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def literal(pattern: str) -> str | None:
    """Return the one name that `pattern` matches: without wildcards, or as `escape` made it; None where it may be several."""
    if not any(char in pattern for char in "*?["):
        return pattern
    found = []
    for item in compiled(pattern).items:
        char = item.only if isinstance(item, _Set) else item[1:] if item.startswith("=") else None
        if char is None:
            return None
        found.append(char)
    return "".join(found)


def _literal(char: str) -> str:
    return "=" + char  # not to be taken for a wildcard


def _next_items(pattern: str, index: int) -> tuple[list[str | _Set], int]:
    if pattern.startswith("**/", index):
        return ["**/", "in **/"], index + 3
    if pattern.startswith("**", index):
        return ["**"], index + 2
    char = pattern[index]
    if char == "[":
        found, end = _next_set(pattern, index)
        if found is not None:
            return [found], end
    return [char if char in "*?" else _literal(char)], index + 1


def _next_set(pattern: str, index: int) -> tuple[_Set | None, int]:
    negated = pattern[index + 1 : index + 2] in ("!", "^")
    start = index + 1 + negated
    end = pattern.find("]", start + 1)  # a first "]" is one of the set
    ranges = _ranges(pattern[start:end]) if end >= 0 else ()
    return (_Set(ranges, negated), end + 1) if ranges else (None, index)


def _ranges(inside: str) -> tuple[tuple[str, str], ...]:
    """Return the ranges of a set; none where one runs backwards, so that it stands for itself, as in a shell."""
    found, at = [], 0
    while at < len(inside):
        is_range = inside[at + 1 : at + 2] == "-" and at + 2 < len(inside)
        low, high = inside[at], inside[at + 2] if is_range else inside[at]
        if low > high:
            return ()
        found.append((low, high))
        at += 3 if is_range else 1
    return tuple(found)
