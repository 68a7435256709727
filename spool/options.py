"""Reading ini files by tables: every option has a name, a converter, a default, a unit and a meaning.

The tables themselves are in `spool.config` and `spool.agent.config`; the samples under `etc/` and the documentation are checked
against them by a test. An option or section that no table has is an error that names the nearest known one: a
misspelled rule must never be a rule that silently does not hold.
"""

from __future__ import annotations

import configparser
import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from spool.errors import ConfigError

Converter = Callable[[str], Any]


@dataclass(frozen=True)
class Option:
    """One option. `default` is what holds where the option is absent, already converted; `sample` is how an ini shows it."""

    name: str
    convert: Converter
    default: Any
    meaning: str
    sample: str = ""


@dataclass(frozen=True)
class Section:
    """One kind of section: ``[name]``, or ``[name SOMETHING]`` where `titled`.

    `free` is the prefixes of options of any name, such as ``env. param.``; each becomes a mapping in the section's values.
    """

    name: str
    options: tuple[Option, ...]
    titled: bool = False
    free: str = ""
    meaning: str = ""


Values = Mapping[str, Any]


class Ini:
    """A parsed file: `one(kind)` gives the values of an untitled section, `titled(kind)` those of each titled one."""

    def __init__(self, values: dict[str, dict[str, Any]]) -> None:
        self._values = values

    def one(self, kind: str) -> Values:
        """Return the values of ``[kind]``, defaults filled in."""
        return self._values[kind]

    def titled(self, kind: str) -> dict[str, Values]:
        """Return title -> values for every ``[kind TITLE]``, in the file's order."""
        start = f"{kind} "
        return {name[len(start) :]: values for name, values in self._values.items() if name.startswith(start)}


_PUBLISHED = re.compile(r"(?m)^\[(Server|RemoteSites)\]")
Raw = dict[str, dict[str, str]]  # title -> option -> text, as the file has them


def read_ini(path: Path, sections: Iterable[Section]) -> Ini:
    """Read and convert `path`; raise `ConfigError` naming file, section and option on anything unexpected."""
    return convert(load(path), sections, str(path))


def load(path: Path) -> Raw:
    """Read `path` without converting; raise `ConfigError` where it is no ini file."""
    return load_bytes(path)[0]


def load_bytes(path: Path) -> tuple[Raw, bytes]:
    """As `load`; return the very bytes that were read, too."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist", hint="copy the sample from etc/ and edit it") from exc
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}", hint="make it readable UTF-8 text") from exc
    return parse(text, str(path)), data


def parse_ini(text: str, sections: Iterable[Section], where: str) -> Ini:
    """Convert the text of an ini file; `where` names it in errors."""
    return convert(parse(text, where), sections, where)


def parse(text: str, where: str) -> Raw:
    """Return the sections and options in the text of an ini file; `where` names it in errors.

    Sections of the published form are read as the published server reads them, by configparser's defaults (``:`` separates
    too, ``[DEFAULT]`` is inherited).
    """
    if _PUBLISHED.search(text):
        return _parse_published(text, where)
    parser = configparser.ConfigParser(
        interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"), default_section="\0none"
    )
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(text, source=where)
    except configparser.Error as exc:
        raise ConfigError(f"{where} cannot be read: {exc}", hint="lines are [section] or option = value") from exc
    return {title: dict(parser.items(title)) for title in parser.sections()}


def _parse_published(text: str, where: str) -> Raw:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(text, source=where)
    except configparser.Error as exc:
        raise ConfigError(f"{where} cannot be read: {exc}", hint="lines are [section] or option = value") from exc
    inherited = parser.defaults()
    found: Raw = {}
    for title in parser.sections():
        ours = title.partition(" ")[0] in ("server", "site")
        items = {name: value.replace("%%", "%") for name, value in parser.items(title)}
        found[title] = {name: value for name, value in items.items() if not (ours and name in inherited)}
    return found


def convert(raw: Raw, sections: Iterable[Section], where: str) -> Ini:
    """Convert what `parse` returned; raise `ConfigError` naming section and option on anything unexpected."""
    kinds = {section.name: section for section in sections}
    values: dict[str, dict[str, Any]] = {}
    for kind in kinds.values():
        if not kind.titled:
            values[kind.name] = {option.name: option.default for option in kind.options}
    seen: set[str] = set()
    for title, given in raw.items():
        section = _section_of(title, kinds, where)
        if _normal(title) in seen:
            raise ConfigError(f"{where}: [{_normal(title)}] stands there twice", hint="make one section of the two")
        seen.add(_normal(title))
        values[_normal(title)] = _convert(section, title, given, where)
    return Ini(values)


def _normal(title: str) -> str:
    kind, _, rest = title.partition(" ")
    return f"{kind} {rest.strip()}" if rest.strip() else kind


def _section_of(title: str, kinds: Mapping[str, Section], where: str) -> Section:
    kind, _, rest = title.partition(" ")
    section = kinds.get(kind)
    if section is None or section.titled != bool(rest.strip()):
        known = ", ".join(f"[{name} NAME]" if item.titled else f"[{name}]" for name, item in kinds.items())
        raise ConfigError(f"{where}: [{title}] is not a section of this file", hint=f"its sections are {known}")
    return section


def _convert(section: Section, title: str, given: Mapping[str, str], where: str) -> dict[str, Any]:
    table = {option.name: option for option in section.options}
    values = {option.name: option.default for option in section.options}
    free: dict[str, dict[str, str]] = {prefix: {} for prefix in section.free.split()}
    for name, text in given.items():
        prefix = next((item for item in free if name.startswith(item)), "")
        if prefix:
            free[prefix][name[len(prefix) :]] = text
            continue
        option = table.pop(name.lower(), None)
        if option is None:
            raise ConfigError(f"{where}: [{title}] has no option {name!r}, or has it twice", hint=_nearest(name, section))
        try:
            values[option.name] = option.convert(text)
        except ValueError as exc:
            raise ConfigError(f"{where}: [{title}] {name} = {text}: {exc}", hint=option.meaning) from exc
    values.update({prefix.rstrip("."): found for prefix, found in free.items()})
    return values


def _nearest(name: str, section: Section) -> str:
    names = [option.name for option in section.options]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"its options are {', '.join(names)}"


def text(value: str) -> str:
    """A line of text."""
    if "\n" in value:
        raise ValueError("must be one line")
    return value


def words(value: str) -> tuple[str, ...]:
    """A list, split at blanks and newlines."""
    return tuple(value.split())


def argv(value: str) -> tuple[str, ...]:
    """A command line split as a shell splits it (quotes keep blanks together); no shell ever sees it."""
    found = tuple(shlex.split(value))
    if not found:
        raise ValueError("must not be empty")
    return found


def pins(value: str) -> tuple[tuple[Path, str], ...]:
    """Pairs of a path and a SHA-256 of 64 hex digits; quotes keep blanks together."""
    found = shlex.split(value)
    pairs = tuple((Path(name), digest) for name, digest in zip(found[::2], found[1::2]))
    if not pairs or len(found) % 2 or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for _, digest in pairs):
        raise ValueError("must be PATH DIGEST, the digest as sha256sum prints it")
    return pairs


def path(value: str) -> Path:
    """A path; ~ is the home folder."""
    if not value:
        raise ValueError("must not be empty")
    return Path(value).expanduser()


def boolean(value: str) -> bool:
    """yes or no."""
    word = value.lower()
    if word not in ("yes", "no", "true", "false", "on", "off", "1", "0"):
        raise ValueError("must be yes or no")
    return word in ("yes", "true", "on", "1")


def integer(low: int, high: int) -> Converter:
    """A whole number within `low` ... `high`."""

    def convert(value: str) -> int:
        number = int(value) if re.fullmatch(r"-?\d{1,18}", value) else None
        if number is None or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return convert


def seconds(low: float, high: float) -> Converter:
    """A time in seconds within `low` ... `high`."""

    def convert(value: str) -> float:
        if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value) or not low <= float(value) <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return convert


def size(value: str) -> int:
    """Bytes, with an optional K, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"([0-9]{1,15})\s*(?:([KMGT])(?:i?B)?|B)?", value, re.IGNORECASE)
    if not match:
        raise ValueError("must be bytes, or a number with K, M, G or T such as 16M")
    factor: int = 1024 ** " KMGT".index((match[2] or " ").upper())
    return int(match[1]) * factor


def size_from(low: int) -> Converter:
    """Bytes as `size`, at least `low`."""

    def convert(value: str) -> int:
        number = size(value)
        if number < low:
            raise ValueError(f"must be at least {low} bytes")
        return number

    return convert


def choice(*allowed: str) -> Converter:
    """One of a few words."""

    def convert(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of: {', '.join(allowed)}")
        return value

    return convert


def patterns(value: str) -> tuple[re.Pattern[str], ...]:
    """Regular expressions (Python's `re`), one a line, blanks around them taken off; each may match anywhere in a text."""
    return tuple(pattern(line.strip()) for line in value.splitlines() if line.strip())


def pattern(value: str) -> re.Pattern[str]:
    """A regular expression (Python's `re`) that must match as a whole."""
    try:
        return re.compile(value)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"is not a regular expression: {exc}") from exc
