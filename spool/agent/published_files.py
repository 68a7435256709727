"""The files of one job between the published protocol's documents and the job's folder.

In: the inputs of a ``calc-info`` are decoded into `published/params/`, which is published by rename, and from there get their
names in `in/`; so a restart asks nothing again. Out: ``result_files`` out of `out/` and `log/`, streamed when they are sent,
and for everything that does not leave an entry that says why.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable

from spool import jsonio
from spool.agent.snapshot import Snapshot
from spool.errors import InvalidRecord, Refused
from spool.fields import Fields
from spool.files import fsync_dir, read_record, remove_tree, sync_tree, write_new
from spool.names import why_not_carried
from spool.patterns import escape
from spool.published import ERROR, LOGS, WITHHELD, last_part, media_type
from spool.records import FileEntry, Input, Job, Result
from spool.streams import Source, Stored

NOT_WRITTEN = "the command did not write it"


@dataclass(frozen=True)
class Params:
    """What `published/params/calc-info.json` holds: the calculation without contents, and where each input lies."""

    folder: Path
    calc: Mapping[str, Any]
    stored: tuple[tuple[str, FileEntry], ...]  # the number it is stored under; its name in in/, size and SHA-256

    @property
    def inputs(self) -> tuple[FileEntry, ...]:
        """The manifest of the inputs."""
        return tuple(entry for _, entry in self.stored)

    def check(self) -> None:
        """Raise `Refused` for names that cannot be: they come without their folders."""
        for name, times in Counter(entry.path for entry in self.inputs).items():
            why = why_not_carried(name) or ("is given twice, without its folders" if times > 1 else "")
            if why:
                raise Refused(f"the input name {name!r} {why}", hint="rename the file")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the results that are asked for, without the two logs, which always are."""
        asked = self.calc.get("result_files")
        return tuple(name for name in asked if name not in LOGS) if isinstance(asked, dict) else ()


def load(folder: Path) -> Params | None:
    """Return the params that were received into `folder`, None where none were. Their names are not checked."""
    try:
        value = jsonio.loads(read_record(folder / "calc-info.json", jsonio.MAX_BYTES), "calc-info.json")
    except FileNotFoundError:
        return None
    fields = Fields(value, "calc-info.json")
    inputs = [Fields(value, "calc-info.json") for value in fields.list("inputs")]
    stored = tuple((item.string("stored"), _entry(item)) for item in inputs)
    return Params(folder, fields.mapping("calc-info"), stored)


def _entry(item: Fields) -> FileEntry:
    return FileEntry(last_part(item.string("name", "")), item.integer("size", low=0), item.string("sha256"))


def receive(fetch: Callable[[Path], dict[str, Any]], folder: Path) -> None:
    """Have `fetch` return a ``calc-info``, its inputs decoded into the folder it is given; publish both as `folder`."""
    part = folder.with_name(f"{folder.name}.part")
    remove_tree(part)
    part.mkdir(mode=0o700)
    calc = fetch(part)
    given = calc.pop("parameter_files", None) or {}
    if not isinstance(given, dict):
        raise InvalidRecord("parameter_files must be an object", hint="name: [base64, type, charset]")
    inputs = [_described(name, value) for name, value in given.items()]
    write_new(part / "calc-info.json", jsonio.dumps({"format": 1, "calc-info": calc, "inputs": inputs}), mode=0o600)
    sync_tree(part)
    os.rename(part, folder)
    fsync_dir(folder.parent)


def _described(name: str, value: Any) -> dict[str, Any]:
    content = value[0] if isinstance(value, list) and value else None
    if not isinstance(content, Stored):
        raise InvalidRecord(f"the input {name!r} has no content", hint="parameter_files: name: [base64, type, charset]")
    return {"name": name, "stored": content.path.name, "size": content.size, "sha256": content.sha256}


def place(params: Params, inputs: Path) -> None:
    """Give every input its name in `inputs`. Safe to repeat."""
    inputs.mkdir(mode=0o700, exist_ok=True)
    for number, entry in params.stored:
        if (params.folder / number).exists():
            os.rename(params.folder / number, inputs / entry.path)
    fsync_dir(inputs)
    fsync_dir(params.folder)


def job_of(params: Params, job_id: str, site: str, user: str) -> Job:
    """Return the job as this project describes it. ``parameters`` is no argument: it never reaches a command."""
    calc = params.calc
    outputs = tuple(escape(name) for name in params.wanted if not why_not_carried(name))
    return Job(
        site=str(calc.get("remote-site") or site),
        command=str(calc.get("command") or ""),
        id=job_id,
        inputs=tuple(Input(entry.path) for entry in params.inputs),
        outputs=outputs,
        user=user,
    )


# Results


def entries(
    wanted: tuple[str, ...], result: Result, folder: Path, logs: Path | None, hides: Callable[[str], bool]
) -> dict[str, Any]:
    """Return ``result_files``: each wanted name and the two logs, with its content or with the reason why it does not come.

    ``out/`` lies in `folder`, ``log/`` in `logs` (None: logs do not leave). Of a name that `hides` nothing is told, not even
    whether there is such a file.
    """
    here = {entry.path: entry for entry in result.files}
    found: dict[str, Any] = {}
    for name in wanted:
        entry = here.get(f"out/{name}")
        found[name] = _content(folder, entry) if entry else absent(WITHHELD if hides(name) else _why_not(name, result))
    for name, log in LOGS.items():
        entry = here.get(f"log/{log}")
        why = result.message if logs else WITHHELD
        found[name] = _content(logs, entry) if logs and entry else absent(why or "there is none")
    return found


def all_absent(names: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Return ``result_files`` in which nothing comes, for one reason; what is withheld stays said to be so."""
    return {name: entry if entry["mimetype2"] == WITHHELD else absent(why) for name, entry in names.items()}


def absent(why: str) -> dict[str, Any]:
    """Return the entry of a file that does not come."""
    return {"content": "", "mimetype1": ERROR, "mimetype2": why}


def _why_not(name: str, result: Result) -> str:
    why = why_not_carried(name)
    if why:
        return f"the name {why}"
    for told in (*result.withheld, *result.not_carried):
        if told.startswith(f"{name}: "):
            return told[len(name) + 2 :]
    if not result.started_at or result.reason not in ("", "no_outputs", "missing_outputs", "exit_nonzero"):
        return f"{result.reason}: {result.message}" if result.reason else NOT_WRITTEN
    return f"{NOT_WRITTEN} ({result.message})" if result.message else NOT_WRITTEN


def _content(folder: Path, entry: FileEntry) -> dict[str, Any]:
    """Return the entry of a file whose bytes are compared with the manifest as they are sent (`ChangedAfterSnapshot`)."""
    snapshot = Snapshot(folder, (entry,), exact=False)

    def opened() -> BinaryIO:
        return snapshot.open(entry.path)

    if not os.path.lexists(folder / entry.path):  # the command, which can write to its folder, took it away
        return absent("gone before it was returned")
    with opened() as file:
        kind, charset = media_type(file)
    return {"content": Source(opened, entry.size), "mimetype1": kind, "mimetype2": charset}
