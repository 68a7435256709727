"""Typed arguments of a command: what the site declares (``param.NAME = TYPE …``) and what a job gives (``NAME=VALUE``).

A value is text from outside that becomes part of an argument vector. It is taken as it stands or refused, never mended; it
matches its type as a whole, in ASCII digits; it is never read as an option (a leading ``-``) or as a file of options (a leading
``@``), unless the site itself wrote that word or allows negative numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Callable

from spool.errors import Refused
from spool.names import why_not_carried

MAX_VALUE = 4096
ALL = "{args}"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
_PLACE = re.compile(r"\{([^{}]*)\}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?")

Judge = Callable[[str, Collection[str]], str]
"""Gets a value and the names of the job's inputs; returns the rule that the value breaks, in words, or ``""``."""


@dataclass(frozen=True)
class Param:
    """One declared argument. Without a `default` a job must give it."""

    why_not: Judge
    default: str | None = None


def declare(given: Mapping[str, str], argv: Sequence[str]) -> dict[str, Param]:
    """Return the arguments that ``param.*`` declares for `argv`; raise `ValueError` saying what is wrong with them."""
    params: dict[str, Param] = {}
    for name, text in given.items():
        if "." in name:
            continue
        if not _NAME.fullmatch(name) or name == ALL.strip("{}"):
            raise ValueError(f"param.{name}: a name is letters, digits and '_', begins with a letter, and is not 'args'")
        params[name] = Param(_judge(name, text), given.get(f"{name}.default"))
    for name in given:
        if "." in name and (not name.endswith(".default") or name[: -len(".default")] not in params):
            raise ValueError(f"param.{name}: there is param.NAME, and param.NAME.default beside it")
    _check_places(argv, params)
    for name, param in params.items():
        # Whether a job has the file that a default names shows with the job.
        why = "" if param.default is None else param.why_not(param.default, (param.default,))
        if why:
            raise ValueError(f"param.{name}.default: {why}")
    return params


def _check_places(argv: Sequence[str], params: Mapping[str, Param]) -> None:
    used: set[str] = set()
    for number, item in enumerate(argv):
        names = _PLACE.findall(item)
        if number == 0 and names:
            raise ValueError(f"argv: {item!r}: the program itself is the site's, no argument stands for it")
        if ALL in argv and params:
            raise ValueError("argv has {args}, and there are param.*: a command takes its arguments in one of the two ways")
        if item == ALL:
            continue
        if re.search(r"[{}]", _PLACE.sub("", item)) or not set(names) <= set(params):
            raise ValueError(f"argv: {item!r} cannot be used: {{args}} stands alone, {{NAME}} needs a param.NAME")
        used |= set(names)
    if unused := sorted(set(params) - used):
        raise ValueError(f"param.{unused[0]} stands nowhere in argv as {{{unused[0]}}}")


def fill(
    command: str, argv: Sequence[str], params: Mapping[str, Param], args: Sequence[str], inputs: Collection[str]
) -> list[str]:
    """Return `argv` with the values that a job's `args` give; raise `Refused` naming the argument and the rule."""
    values: dict[str, str] = {}
    for number, arg in enumerate(args, 1):
        name, equals, value = arg.partition("=")
        if not equals or name not in params:
            hint = f"NAME=VALUE, NAME one of: {', '.join(params)}"
            what = "names no argument that it takes here" if equals else "is not NAME=VALUE, as this site takes them"
            raise Refused(f"argument {number} of {command!r} {what}", hint=hint)
        if name in values:
            raise Refused(f"argument {name!r} of {command!r} is given twice", hint="give it once")
        values[name] = value
    for name, param in params.items():
        if name not in values:
            if param.default is None:
                raise Refused(f"argument {name!r} of {command!r} is missing", hint=f"give {name}=VALUE")
            values[name] = param.default
        if why := param.why_not(values[name], inputs):
            raise Refused(f"argument {name!r} of {command!r} {why}", hint="the site decides what its commands take")
    return [put(item, values) for item in argv]


def put(item: str, values: Mapping[str, str]) -> str:
    """Return `item` with each ``{NAME}`` replaced, in one pass: what a value holds is never looked at again."""
    return _PLACE.sub(lambda match: values[match[1]], item)


# ---- the types


def _judge(name: str, text: str) -> Judge:
    kind, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    try:
        return _KINDS[kind](rest)
    except KeyError as exc:
        raise ValueError(f"param.{name} = {text}: the types are {', '.join(_KINDS)}") from exc
    except ValueError as exc:
        raise ValueError(f"param.{name} = {text}: {exc}") from exc


def _numeric(form: re.Pattern[str], what: str) -> Callable[[str], Judge]:
    def make(rest: str) -> Judge:
        low, high = _range(form, rest)
        rule = f"must be {what}" + (f" of {low} or more" if high is None else f" from {low} to {high}")

        def why_not(value: str, inputs: Collection[str]) -> str:
            if not form.fullmatch(value) or (value.startswith("-") and low >= 0):  # "-0" lies within 0..1
                return rule
            return "" if low <= Decimal(value) and (high is None or Decimal(value) <= high) else rule

        return why_not

    return make


def _range(form: re.Pattern[str], rest: str) -> tuple[Decimal, Decimal | None]:
    # Without a range nothing negative: -5 is an option to many programs.
    if not rest:
        return Decimal(0), None
    low, _, high = rest.partition("..")
    if not (form.fullmatch(low) and form.fullmatch(high)) or Decimal(low) > Decimal(high):
        raise ValueError("a range is MIN..MAX, such as 1..8")
    return Decimal(low), Decimal(high)


def _choice(rest: str) -> Judge:
    words = rest.split()
    if not words:
        raise ValueError("choice needs words, such as: choice static modal")
    return lambda value, inputs: "" if value in words else "must be one of the words that the site lists"


def _match(rest: str) -> Judge:
    if not rest or "\n" in rest:
        raise ValueError("match needs a regular expression, on one line")
    try:
        pattern = re.compile(rest, re.ASCII)  # \d and \w mean what a person thinks they mean, not every digit of Unicode
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"is not a regular expression: {exc}") from exc

    def why_not(value: str, inputs: Collection[str]) -> str:
        if value.startswith(("-", "@")):
            return "must not begin with '-' or '@'"
        if len(value) > MAX_VALUE or "\0" in value:
            return f"must not be longer than {MAX_VALUE} characters, nor hold a NUL"
        return "" if pattern.fullmatch(value) else "does not match the site's pattern for it"

    return why_not


def _file(rest: str) -> Judge:
    if rest:
        raise ValueError("file takes nothing more")

    def why_not(value: str, inputs: Collection[str]) -> str:
        if why_not_carried(value) or value.startswith(("-", "@")):
            return "must be the name of a file, and not begin with '-' or '@'"
        return "" if value in inputs else "must be the name of one of the job's inputs"

    return why_not


_KINDS: dict[str, Callable[[str], Judge]] = {
    "integer": _numeric(_INTEGER, "a whole number"),
    "number": _numeric(_NUMBER, "a number"),
    "choice": _choice,
    "match": _match,
    "file": _file,
}
