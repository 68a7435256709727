"""Commented sample ini files, written from the option tables: every option, its default and its meaning.

`etc/spool.ini`, `etc/agent.ini` and what `spool_agent.py init` writes come from here; a test keeps them equal to the tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spool.options import Option, Section

SYNTAX = """\
# Lines are `option = value`; a line that starts with # or ; is a comment. Lists are split at blanks and newlines (a line that
# goes on is indented). Sizes take K, M, G or T (powers of 1024). An option or section that is not known is an error.
"""


def render(heading: str, sections: Iterable[Section], given: Mapping[str, str] | None = None) -> str:
    """Return the text of a sample; options named in `given` (``section.option`` -> value) are set, the others commented out."""
    given = given or {}
    parts = [f"# {heading}\n{SYNTAX}"]
    for section in sections:
        name = f"{section.name} NAME" if section.titled else section.name
        mark = "#" if section.titled else ""
        lines = [f"# {section.meaning}", f"{mark}[{name}]"]
        for option in section.options:
            lines += ["", f"# {option.meaning}", f"#   default: {_shown(option)}", _line(section, option, given)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(section: Section, option: Option, given: Mapping[str, str]) -> str:
    value = given.get(f"{section.name}.{option.name}", "")
    if value:
        return f"{option.name} = {value}"
    return f"#{option.name} = {option.sample or _text(option.default)}".rstrip()


def _shown(option: Option) -> str:
    return _text(option.default) or "none"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, re.Pattern):
        return str(value.pattern)
    if isinstance(value, int) and value >= 1024 and value % 1024 == 0:
        return f"{value // 1048576}M" if value % 1048576 == 0 else f"{value // 1024}K"
    return f"{value:g}" if isinstance(value, float) else str(value if not isinstance(value, Path) else value.as_posix())
