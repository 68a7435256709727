"""`[release] hold`: whose results wait for a person's release (docs/agent.md, "Release by a person").

`never`, `always`, or `when:` and conditions split at blanks, of which one that is met is enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spool import options
from spool.records import JobState, Result

NEVER, ALWAYS, WHEN = "never", "always", "when:"
_MORE = re.compile(r"(files|bytes)>(\S+)")
_SAME = re.compile(r"(user|command)=(\S+)")
_ALONE = ("logs", "failed", "table")


@dataclass(frozen=True)
class Hold:
    """The option's value: `word` is never, always or ``when:``; False where nothing is ever held."""

    word: str = NEVER
    conditions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.word != NEVER

    def __str__(self) -> str:
        return " ".join((self.word, *self.conditions))

    @property
    def asks_for_table(self) -> bool:
        """True where the lines of a confidential table decide."""
        return "table" in self.conditions

    def why(self, state: JobState, result: Result, in_table: bool) -> str:
        """Return why these results are held: the condition that is met, or ``""``. `in_table`: one has a line of the table."""
        if self.word != WHEN:
            return self.word if self else ""
        facts = {
            "logs": any(entry.path.startswith("log/") for entry in result.files),
            "failed": bool(result.reason),
            "table": in_table,
            "files": len(result.files),
            "bytes": sum(entry.size for entry in result.files),
            "user": state.user,
            "command": state.command,
        }
        return next((condition for condition in self.conditions if _met(condition, facts)), "")


def _met(condition: str, facts: Mapping[str, Any]) -> bool:
    if match := _MORE.fullmatch(condition):
        return bool(facts[match[1]] > options.size(match[2]))
    if match := _SAME.fullmatch(condition):
        return bool(facts[match[1]] == match[2])
    return bool(facts[condition])


def hold(value: str) -> Hold:
    """Convert the option's text; `ValueError` where it is none of these."""
    if value in (NEVER, ALWAYS):
        return Hold(value)
    word, *conditions = value.split() or [""]
    if word != WHEN or not conditions:
        raise ValueError("must be never, always, or when: and conditions")
    for condition in conditions:
        if match := _MORE.fullmatch(condition):
            options.size(match[2])
        elif condition not in _ALONE and not _SAME.fullmatch(condition):
            raise ValueError(f"{condition!r} is no condition: files>N bytes>SIZE user=NAME command=NAME {' '.join(_ALONE)}")
    return Hold(WHEN, tuple(conditions))
