"""One finding of `spoolctl check`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found, which job it is about, what to do; `where` names the folder that rules out further looking."""

    level: str
    what: str
    do: str
    job: str = ""
    where: str = ""


def problem(what: str, do: str, *, job: str = "", where: str = "") -> Finding:
    """Return a finding that makes the check fail."""
    return Finding("problem", what, do, job, where)


def remark(what: str, do: str, *, job: str = "") -> Finding:
    """Return a finding that someone should know of."""
    return Finding("remark", what, do, job)
