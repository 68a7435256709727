"""`spoolctl check`: is this spool as docs/format.md says? Without `--repair` it reads only; with it, what a crash has left is
put right by the store's own order of writes, each thing under its job's lock, while server, push and agents go on working.

What is found is in the modules beside this one: `house`, `surroundings`, `indexes`, `jobcheck`, `leftovers`, `journalcheck`. A
repair that is killed is simply run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spool.creation import open_spool
from spool.ctl import exits
from spool.ctl.findings import PROBLEM, REMARK, REPAIRED, Finding, problem, settled
from spool.ctl.house import house
from spool.ctl.indexes import Indexes
from spool.ctl.jobcheck import JobFolders
from spool.ctl.journalcheck import Journal
from spool.ctl.leftovers import Leftovers
from spool.ctl.listing import print_json
from spool.ctl.messages import say
from spool.ctl.surroundings import surroundings
from spool.drops import may_accept
from spool.errors import NotAllowed, UnknownFormat, from_os_error
from spool.paths import SpoolPaths
from spool.store import Store

_ORDER = (PROBLEM, REMARK, REPAIRED)


def run(root: Path, *, as_json: bool, repair: bool = False) -> int:
    """Examine the spool at `root`, with `repair` put it right, and print what was found; 0 healthy now, 1 with problems.

    `ConfigError` where there is no spool, `NotAllowed` where another than its owner asks for a repair.
    """
    check: Check | None = None
    try:
        check = Check(open_spool(root), repair=repair)
        found = list(check.all())
    except UnknownFormat as exc:
        found = [problem("unknown_format", why=exc.message, do=exc.hint)]
    except OSError as exc:
        raise from_os_error(exc, f"checking {root}") from exc
    return _print(found, check.jobs if check else 0, as_json=as_json)


class Check:
    """One check of one spool."""

    def __init__(self, paths: SpoolPaths, *, repair: bool) -> None:
        if repair and not may_accept(paths):
            hint = f"run it as the owner of {paths.spool_json}"
            raise NotAllowed("only the owner of the spool repairs it", hint=hint)
        self._paths = paths
        self._repair = repair
        self.jobs = 0

    def all(self) -> Iterator[Finding]:
        """Yield what was found, and repaired where that was asked for: first what the next step stands on."""
        found = list(settled(house(self._paths), repair=self._repair))
        yield from found
        yield from surroundings(self._paths)
        barred = {item.where for item in found if item.level == PROBLEM}
        if barred.isdisjoint(("jobs", "locks")):
            yield from settled(self._inside(barred), repair=self._repair)

    def _inside(self, barred: set[str]) -> Iterator[Finding]:
        store = Store(self._paths)
        indexes, folders, leftovers = Indexes(store), JobFolders(store), Leftovers(store, eager=self._repair)
        yield from indexes.structure()
        yield from leftovers.accepting()
        yield from folders.all()
        self.jobs = folders.count
        yield from indexes.entries()
        yield from leftovers.all()
        if "journal" not in barred:
            yield from Journal(store).all()


def _print(found: list[Finding], jobs: int, *, as_json: bool) -> int:
    problems, remarks, repaired = (sum(item.level == level for item in found) for level in _ORDER)
    if as_json:
        counts = {"healthy": not problems, "jobs": jobs, **({"repaired": repaired} if repaired else {})}
        print_json({**counts, "findings": [item.encode() for item in found]})
        return exits.FAILED if problems else exits.DONE
    for item in sorted(found, key=lambda one: _ORDER.index(one.level)):
        what = item.what if not item.job or item.job in item.what else f"{item.job}: {item.what}"
        say(f"check_{item.level}", what=what)
        for words in filter(None, (item.done, item.do)):
            say("check_line", words=words)
    say("check_wrong" if problems else "check_healthy", problems=problems, remarks=remarks, repaired=repaired, jobs=jobs)
    return exits.FAILED if problems else exits.DONE
