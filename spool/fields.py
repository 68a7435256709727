"""Reading typed fields out of a JSON object, with errors that name the record, the key and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spool.errors import InvalidRecord, UnknownFormat
from spool.paths import FORMAT


class Fields:
    """One JSON object being read: take each known key once; what is left over are the unknown keys, kept as they are."""

    def __init__(self, value: Mapping[str, Any], what: str) -> None:
        self._left = dict(value)
        self._what = what

    def format(self) -> int:
        """Take ``format``; an unknown major format raises `UnknownFormat`. Missing counts as 1."""
        number = self.integer("format", FORMAT)
        if number != FORMAT:
            raise UnknownFormat(
                f"{self._what} has format {number}, this program knows format {FORMAT}",
                hint="use the release that wrote it, or a newer one",
            )
        return FORMAT

    def string(self, key: str, default: str | None = None) -> str:
        """Take a string; without `default` it must be there and not be empty."""
        value = self._take(key, default, str, "a string")
        if default is None and not value:
            raise self.wrong(key, "must not be empty")
        if "\0" in value:
            raise self.wrong(key, "must not hold a NUL character")
        return str(value)

    def integer(self, key: str, default: int | None = None, *, low: int = -(2**53), high: int = 2**53) -> int:
        """Take an integer within `low` ... `high`."""
        value = self._take(key, default, int, "a whole number")
        if isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"must be a whole number from {low} to {high}")
        return int(value)

    def optional_integer(self, key: str, *, low: int = 0, high: int = 2**53) -> int | None:
        """Take an integer that may be missing or null."""
        return None if self._absent(key) else self.integer(key, low=low, high=high)

    def boolean(self, key: str, default: bool) -> bool:
        """Take true or false."""
        return bool(self._take(key, default, bool, "true or false"))

    def strings(self, key: str) -> tuple[str, ...]:
        """Take a list of strings; missing counts as empty."""
        values = self.list(key)
        if not all(isinstance(value, str) and "\0" not in value for value in values):
            raise self.wrong(key, "must be a list of strings without NUL characters")
        return tuple(values)

    def list(self, key: str) -> list[Any]:
        """Take a list; missing counts as empty."""
        return list(self._take(key, [], list, "a list"))

    def mapping(self, key: str) -> dict[str, Any]:
        """Take an object; missing counts as empty."""
        return dict(self._take(key, {}, dict, "an object"))

    def string_map(self, key: str) -> dict[str, str]:
        """Take an object whose values are strings."""
        values = self.mapping(key)
        if not all(isinstance(value, str) and "\0" not in value for value in values.values()):
            raise self.wrong(key, "must be an object whose values are strings without NUL characters")
        return values

    def has(self, key: str) -> bool:
        """True where the key is there and not null."""
        return self._left.get(key) is not None

    def rest(self) -> dict[str, Any]:
        """Return the keys that nobody took."""
        return self._left

    def wrong(self, key: str, why: str) -> InvalidRecord:
        """Return the error for this key."""
        return InvalidRecord(f"{self._what}: {key!r} {why}", hint=f"correct {key!r} (docs/format.md lists every key)")

    def _absent(self, key: str) -> bool:
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return True
        return False

    def _take(self, key: str, default: Any, kind: type, kind_name: str) -> Any:
        if self._absent(key):
            if default is None:
                raise self.wrong(key, "is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind):
            raise self.wrong(key, f"must be {kind_name}")
        return value
