"""One finding of `spoolctl check`, and its repair.

A finding is a *problem* (the spool is inconsistent or cannot do its work: exit 1) or a *remark* (someone should know). What can
be repaired brings its repair along, which judges once more and does nothing where others have mended it meanwhile. The words
are in `spool.ctl.checktexts`: ``found_CODE`` what is wrong, ``done_CODE`` what the repair did, ``do_CODE`` what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable

from spool.ctl.messages import known, text
from spool.errors import SpoolError

PROBLEM, REMARK, REPAIRED = "problem", "remark", "repaired"
Mend = Callable[[], bool]  # True: repaired; False: nothing was wrong any more; SpoolError, OSError: it could not be


@dataclass(frozen=True)
class Finding:
    """What was found, which job it is about, what to do; `where` names the folder that rules out further looking."""

    level: str
    code: str
    what: str
    do: str
    job: str = ""
    where: str = ""
    done: str = ""
    mend: Mend | None = None

    def encode(self) -> dict[str, Any]:
        """Return what `--json` tells of it."""
        told = {name: getattr(self, name) for name in ("level", "code", "what", "do", "job", "done")}
        return {**told, "repairable": self.mend is not None}


def problem(code: str, *, job: str = "", where: str = "", do: str = "", mend: Mend | None = None, **values: object) -> Finding:
    """Return a finding that makes the check fail; `values` go into its words."""
    return _finding(PROBLEM, code, job, where, do, mend, values)


def remark(code: str, *, job: str = "", where: str = "", do: str = "", mend: Mend | None = None, **values: object) -> Finding:
    """Return a finding that someone should know of."""
    return _finding(REMARK, code, job, where, do, mend, values)


def _finding(level: str, code: str, job: str, where: str, do: str, mend: Mend | None, values: dict[str, object]) -> Finding:
    do, done = (text(key, **values) if known(key) else default for key, default in ((f"do_{code}", do), (f"done_{code}", "")))
    return Finding(level, code, text(f"found_{code}", **values), do, job, where, done, mend)


def settled(found: Iterable[Finding], *, repair: bool) -> Iterator[Finding]:
    """Yield the findings as they are to be told; with `repair` each is repaired before the next one is looked for."""
    for one in found:
        if one.mend is None:
            yield replace(one, done="")
        elif not repair:
            yield replace(one, do=text("check_repairable", do=one.do) if one.do else text("check_repair"), done="")
        else:
            yield from _repaired(one, one.mend)


def _repaired(one: Finding, mend: Mend) -> Iterator[Finding]:
    try:
        if mend():
            yield replace(one, level=REPAIRED)
    except (SpoolError, OSError, RecursionError) as exc:  # this one stays as it is; the others go on
        yield replace(one, do=text("check_not_repaired", why=exc, do=one.do), done="")
