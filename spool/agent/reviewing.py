"""`spool_agent.py held | show ID | release ID | refuse ID`: what a reviewer sees and says (docs/agent.md, "Release by a person").

Needs no token, no server and no running agent. Who decides is the user whom the kernel runs this process as; nothing in the
environment is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from spool import jsonio
from spool.agent import remarks
from spool.agent.config import find_config, read_config
from spool.agent.decisions import REFUSE, RELEASE, Decision, Rules, name_of
from spool.agent.held import ChangedAfterSnapshot, digest
from spool.agent.shelf import Lying, Shelf
from spool.agent.snapshot import Snapshot
from spool.errors import Conflict, InvalidRecord, NotAllowed, NotFound
from spool.files import read_record
from spool.paths import JobPaths
from spool.records import FileEntry, Result

EXIT_NOT_DONE = 1


class Desk:
    """What lies below one agent's base, as a reviewer sees it."""

    def __init__(self, base: Path, rules: Rules) -> None:
        self.shelf = Shelf(base)
        own = name_of(os.stat(base).st_uid)  # that of the agent, which need not be ours
        self.rules = replace(rules, reviewers=rules.reviewers or (own,))

    def manifest(self, lying: Lying) -> Result:
        """Return the result that was laid out; `ChangedAfterSnapshot` where another lies there now."""
        try:
            data = read_record(JobPaths(self.shelf.base / lying.id).result, jsonio.MAX_BYTES)
        except (FileNotFoundError, InvalidRecord) as exc:
            raise ChangedAfterSnapshot(f"result.json cannot be read: {exc}", hint=_REFUSE) from exc
        if digest(data) != lying.manifest:
            raise ChangedAfterSnapshot("result.json is not what was laid out", hint=_REFUSE)
        return Result.parse(data)

    def snapshot(self, lying: Lying, result: Result) -> Snapshot:
        """Return the files that were laid out."""
        return Snapshot(self.shelf.base / lying.id, result.files)

    def said(self, lying: Lying) -> tuple[Decision, ...]:
        """Return what the reviewers have said so far."""
        uids = []
        for name in self.rules.reviewers:
            with contextlib.suppress(KeyError):
                uids.append(pwd.getpwnam(name).pw_uid)
        return tuple(self.shelf.decisions.of(lying.id, lying.run_id, lying.manifest, uids)) if uids else ()


_REFUSE = "it will not leave so: refuse it, and ask who can write to the agent's base"


def _desk(config: Path | None, program: Path) -> Desk:
    try:
        read = read_config(find_config(config, program))
        release = read.release
        return Desk(read.base, Rules(release["reviewers"], release["persons"], release["not_submitter"]))
    except PermissionError as exc:
        raise NotAllowed(f"{name_of(os.geteuid())} may not look here: {exc}", hint="see [release] reviewers_group") from exc


def _parser(verb: str, *, one: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"spool_agent.py {verb}")
    if one:
        parser.add_argument("id", metavar="ID", help="a held job's id, or how it alone begins")
    parser.add_argument("--config", type=Path, metavar="INI", help="agent.ini")
    return parser


def _told(work: Any, *args: Any) -> int:
    """Do `work`; what stands in the way of one job is said, with exit code 1."""
    try:
        work(*args)
        return 0
    except (NotFound, Conflict, ChangedAfterSnapshot) as exc:
        print(f"spool_agent.py: {remarks.harmless(exc.message)}\n  {exc.hint}", file=sys.stderr)
        return EXIT_NOT_DONE
    except PermissionError as exc:
        raise NotAllowed(f"{name_of(os.geteuid())} may not look here: {exc}", hint="see [release] reviewers_group") from exc


# held


def held(words: list[str], program: Path) -> int:
    """List what waits. Exit code 0; 77 where this user may not look."""
    parser = _parser("held", one=False)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args(words)
    return _told(_list, _desk(args.config, program), args.json)


def _list(desk: Desk, as_json: bool) -> None:
    rows = [_row(desk, lying) for lying in desk.shelf.all()] if desk.shelf.folder.exists() else []
    if as_json:
        for row in rows:
            print(jsonio.dumps_line(row).decode().rstrip())
        return
    heads = ("ID", "USER", "COMMAND", "SINCE", "FILES", "BYTES", "SAID")
    table = [heads, *(tuple(remarks.harmless(str(row[key.lower()])) for key in heads) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table if rows else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    if not rows:
        print("nothing is held")


def _row(desk: Desk, lying: Lying) -> dict[str, Any]:
    row: dict[str, Any] = {key: getattr(lying, key) for key in ("id", "user", "command", "since", "manifest")}
    try:
        result = desk.manifest(lying)
        row.update(files=len(result.files), bytes=sum(entry.size for entry in result.files))
    except (ChangedAfterSnapshot, OSError):
        row.update(files="changed", bytes="-")
    said = " ".join(f"{one.person}:{one.word}" for one in desk.said(lying))
    return {**row, "said": said or f"none of {desk.rules.persons}"}


# show


def show(words: list[str], program: Path) -> int:
    """Print what one held job would return. Exit code 0; 1 where there is none such, or it has changed."""
    args = _parser("show", one=True).parse_args(words)
    return _told(_show, _desk(args.config, program), args.id)


def _show(desk: Desk, prefix: str) -> None:
    lying = desk.shelf.find(prefix)
    result = desk.manifest(lying)
    for line in _shown(desk, lying, result):
        print(line)


def _shown(desk: Desk, lying: Lying, result: Result) -> Iterator[str]:
    end = result.reason or "success"
    yield f"job       {lying.id}  attempt {lying.attempt}"
    yield f"asked     {remarks.harmless(lying.command)}, by {remarks.harmless(lying.user)}"
    yield f"held      since {lying.since}: {remarks.harmless(lying.why)}"
    yield f"ended     {end}, exit code {result.exit_code}  {remarks.harmless(result.message)}".rstrip()
    for one in desk.said(lying):
        yield f"said      {one.word} by {remarks.harmless(one.person)} at {one.at}  {remarks.harmless(one.because)}".rstrip()
    yield f"folder    {desk.shelf.base / lying.id}"
    if "" in lying.remarks:
        yield f"WARNING   {remarks.harmless(lying.remarks[''])}"
    snapshot = desk.snapshot(lying, result)
    for entry in result.files:
        yield from _file(snapshot, entry, lying)
    for label, names in (("withheld", result.withheld), ("missing", result.missing), ("no file", result.not_carried)):
        for name in names:
            yield f"{label:9} {remarks.harmless(name)}"
    yield f"{len(result.files)} files, {sum(entry.size for entry in result.files)} bytes; no links, no devices: plain files only"
    yield f"manifest  {lying.manifest}"


def _file(snapshot: Snapshot, entry: FileEntry, lying: Lying) -> Iterator[str]:
    yield ""
    yield f"file      {remarks.harmless(entry.path)}  {entry.size} bytes  sha256 {entry.sha256}"
    try:
        with snapshot.open(entry.path) as file:  # what is shown is what the manifest has
            lines, binary = remarks.head(file)
    except ChangedAfterSnapshot as exc:
        yield f"WARNING   CHANGED since it was laid out: {remarks.harmless(exc.message)}"
        return
    found = [*remarks.of_name(entry), *(["binary: its content is not shown"] if binary else [])]
    for remark in (*found, *([lying.remarks[entry.path]] if entry.path in lying.remarks else [])):
        yield f"WARNING   {remarks.harmless(remark)}"
    for line in lines:
        yield f"    | {line}"


# release, refuse


def release(words: list[str], program: Path) -> int:
    """Say that what was laid out may leave. Exit code 0; 1 where that cannot be; 77 where this user may not."""
    parser = _parser("release", one=True)
    parser.add_argument("--manifest", default="", metavar="HASH", help="only where this is the manifest, as `show` printed it")
    args = parser.parse_args(words)
    return _told(_release, _desk(args.config, program), args.id, args.manifest)


def _release(desk: Desk, prefix: str, wanted: str) -> None:
    lying = desk.shelf.find(prefix)
    _need(desk, lying)
    if wanted and wanted != lying.manifest:
        raise ChangedAfterSnapshot(f"the manifest is {lying.manifest}, not {wanted}", hint="show it again")
    desk.snapshot(lying, desk.manifest(lying)).check()
    _say(desk, lying, RELEASE, "")


def refuse(words: list[str], program: Path) -> int:
    """Say that nothing of it leaves; one is enough. Exit codes as of `release`."""
    parser = _parser("refuse", one=True)
    parser.add_argument("--because", default="", metavar="TEXT", help="the reason; MInt is told these words and nothing else")
    args = parser.parse_args(words)
    return _told(_refuse, _desk(args.config, program), args.id, args.because)


def _refuse(desk: Desk, prefix: str, because: str) -> None:
    lying = desk.shelf.find(prefix)
    _need(desk, lying)
    _say(desk, lying, REFUSE, remarks.harmless(because))


def _need(desk: Desk, lying: Lying) -> None:
    if why := desk.rules.why_not(name_of(os.geteuid()), lying.user):
        raise NotAllowed(why, hint="see [release] reviewers and not_submitter in agent.ini")


def _say(desk: Desk, lying: Lying, word: str, because: str) -> None:
    made = desk.shelf.decisions.write(lying.id, lying.run_id, lying.manifest, word, because)
    count = len({one.person for one in desk.said(lying)} | {made.person})
    print(f"{made.person} says {word} for job {lying.id}")
    print(f"manifest {lying.manifest}")
    if word == RELEASE and count < desk.rules.persons:
        print(f"{count} of {desk.rules.persons} persons have said so: it stays held")
