"""The records of a job folder as frozen values with pure `parse` and `encode` (docs/format.md, "Records").

`parse` takes the bytes of a file and raises `InvalidRecord` or `UnknownFormat`; `encode` gives the bytes back. Keys that
this release does not know survive a round trip in `extra`. Instants are UTC strings ending in `Z`, sizes are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spool import jsonio
from spool.errors import InvalidName, InvalidRecord
from spool.fields import Fields
from spool.instants import to_epoch
from spool.names import check_env_name, check_id, check_names, check_site, check_user, why_not_carried
from spool.paths import FORMAT
from spool.states import Reason, State

JOB_LIMIT_BYTES = 4 * 1024 * 1024
MAX_PRIORITY = 1000
MAX_WALL_TIME_S = 999_999_999
CANCELED = "canceled"
RESULT_REASONS = (CANCELED, *(str(reason) for reason in Reason))
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: its name, size in bytes and SHA-256 in lower-case hex."""

    path: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, value: Any, what: str) -> FileEntry:
        """Read one entry of a manifest in record `what`."""
        if not isinstance(value, dict):
            raise InvalidRecord(f"{what}: a file entry must be an object", hint='{"path": ..., "size": ..., "sha256": ...}')
        fields = Fields(value, what)
        entry = cls(fields.string("path"), fields.integer("size", low=0), fields.string("sha256"))
        why = why_not_carried(entry.path)
        if why:
            raise InvalidName(f"{what}: the file name {entry.path!r} {why}", hint="rename the file")
        if not _SHA256.fullmatch(entry.sha256):
            raise fields.wrong("sha256", "must be 64 lower-case hexadecimal digits")
        return entry

    def encode(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


def parse_entries(values: list[Any], what: str) -> tuple[FileEntry, ...]:
    """Read a manifest; names are checked one by one and against each other."""
    entries = tuple(FileEntry.parse(value, what) for value in values)
    check_names(entry.path for entry in entries)
    return entries


@dataclass(frozen=True)
class Input:
    """One input a job names; `size` (bytes) and `sha256` are there where the submitter fixed them."""

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Job:
    """job.json: what is asked. Written once by the submitter, never changed."""

    site: str
    command: str
    id: str = ""
    args: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    user: str = ""
    priority: int = 0
    workflow: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    wall_time_s: int | None = None
    expires_at: str = ""
    max_attempts: int | None = None
    give_up_after_s: int | None = None
    require_all: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    notify_url: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Job:
        """Read and check job.json: every name rule of the format is enforced here."""
        fields = Fields(jsonio.loads(data, "job.json"), "job.json")
        fields.format()
        job = cls(
            site=check_site(fields.string("site")),
            command=fields.string("command"),
            id=fields.string("id", ""),
            args=fields.strings("args"),
            inputs=tuple(_parse_input(value, fields) for value in fields.list("inputs")),
            outputs=fields.strings("outputs"),
            user=fields.string("user", ""),
            priority=fields.integer("priority", 0, low=-MAX_PRIORITY, high=MAX_PRIORITY),
            workflow=fields.string("workflow", ""),
            env=fields.string_map("env"),
            wall_time_s=fields.optional_integer("wall_time_s", low=1, high=MAX_WALL_TIME_S),
            expires_at=fields.string("expires_at", ""),
            max_attempts=fields.optional_integer("max_attempts", low=1),
            give_up_after_s=fields.optional_integer("give_up_after_s", low=1),
            require_all=fields.boolean("require_all", False),
            labels=fields.string_map("labels"),
            resources=fields.mapping("resources"),
            notify_url=fields.string("notify_url", ""),
            extra=fields.rest(),
        )
        job._check()
        return job

    def _check(self) -> None:
        if self.id:
            check_id(self.id)
        if self.user:
            check_user(self.user)
        if self.expires_at:
            to_epoch(self.expires_at)
        if any(ord(char) < 32 for char in self.command) or self.command.startswith("-"):
            raise InvalidRecord("job.json: 'command' holds a control character or starts with '-'", hint="name the command")
        check_names(item.path for item in self.inputs)
        for name in self.env:
            check_env_name(name)
        for pattern in self.outputs:
            _check_pattern(pattern)

    def encode(self) -> bytes:
        """Return the bytes of job.json; options that have their default are left out."""
        value: dict[str, Any] = {"format": FORMAT, "id": self.id, "site": self.site, "command": self.command}
        value.update(
            args=list(self.args), inputs=[_encode_input(item) for item in self.inputs], outputs=list(self.outputs),
            user=self.user, priority=self.priority, workflow=self.workflow, env=dict(self.env), wall_time_s=self.wall_time_s,
            expires_at=self.expires_at, max_attempts=self.max_attempts, give_up_after_s=self.give_up_after_s,
            require_all=self.require_all, labels=dict(self.labels), resources=dict(self.resources), notify_url=self.notify_url,
        )  # fmt: skip
        kept = {key: item for key, item in value.items() if item not in (None, "", [], {}, False) and item != 0}
        return jsonio.dumps({**kept, **self.extra})


def _parse_input(value: Any, fields: Fields) -> Input:
    if isinstance(value, str):
        return Input(value)
    if not isinstance(value, dict):
        raise fields.wrong("inputs", 'must list file names, or objects {"path", "size", "sha256"}')
    entry = FileEntry.parse(value, "job.json")
    return Input(entry.path, entry.size, entry.sha256)


def _encode_input(item: Input) -> Any:
    if item.size is None or item.sha256 is None:
        return item.path
    return FileEntry(item.path, item.size, item.sha256).encode()


def _check_pattern(pattern: str) -> None:
    # A pattern obeys the rules of names, so that it cannot reach beyond work/; wildcards are ordinary characters there.
    why = why_not_carried(pattern)
    if why:
        raise InvalidName(f"job.json: the output {pattern!r} {why}", hint="outputs are relative names or patterns like *.dat")


@dataclass(frozen=True)
class HistoryEntry:
    """One line of history.jsonl: a change of state, or a remark (`source` equals `target`)."""

    revision: int
    at: str
    source: str
    target: str
    by: str
    attempt: int = 0
    run_id: str = ""
    why: str = ""

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> HistoryEntry:
        """Read one line's object."""
        fields = Fields(value, "history.jsonl")
        return cls(
            revision=fields.integer("revision", low=0),
            at=fields.string("at"),
            source=fields.string("from", ""),
            target=fields.string("to"),
            by=fields.string("by", ""),
            attempt=fields.integer("attempt", 0, low=0),
            run_id=fields.string("run_id", ""),
            why=fields.string("why", ""),
        )

    def encode(self) -> dict[str, Any]:
        """Return the line's object."""
        return {
            "revision": self.revision,
            "at": self.at,
            "from": self.source,
            "to": self.target,
            "by": self.by,
            "attempt": self.attempt,
            "run_id": self.run_id,
            "why": self.why,
        }


@dataclass(frozen=True)
class JobState:
    """state.json: where the job stands. Replaced whole under the job's lock; `revision` grows by one each time."""

    id: str
    state: State
    site: str
    user: str
    revision: int
    command: str = ""
    workflow: str = ""
    priority: int = 0
    attempt: int = 1
    run_id: str = ""
    agent: str = ""
    agent_order: tuple[int, int] = (0, 0)
    queue_key: str = ""
    submitted_at: str = ""
    changed_at: str = ""
    expires_at: str = ""
    claimed_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    cancel_requested_at: str = ""
    cancel_requested_by: str = ""
    via: str = ""
    withdrawn_at: str = ""
    inputs: tuple[FileEntry, ...] = ()
    last: HistoryEntry | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    _STRINGS = (
        "command", "workflow", "run_id", "agent", "queue_key", "submitted_at", "changed_at", "expires_at", "claimed_at",
        "started_at", "ended_at", "reason", "message", "cancel_requested_at", "cancel_requested_by", "via", "withdrawn_at",
    )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> JobState:
        """Read state.json; whatever is wrong with it is an `InvalidRecord`."""
        try:
            return cls._parse(data)
        except InvalidName as exc:
            raise InvalidRecord(f"state.json: {exc.message}", hint=exc.hint) from exc

    @classmethod
    def _parse(cls, data: bytes) -> JobState:
        fields = Fields(jsonio.loads(data, "state.json"), "state.json")
        fields.format()
        word = fields.string("state")
        if word not in State.__members__.values():
            raise fields.wrong("state", f"is {word!r}, which is not a state")
        texts = {name: fields.string(name, "") for name in cls._STRINGS}
        last = fields.mapping("last")
        if texts["expires_at"]:
            to_epoch(texts["expires_at"])
        return cls(
            id=check_id(fields.string("id")),
            state=State(word),
            site=check_site(fields.string("site")),
            user=check_user(fields.string("user")),
            revision=fields.integer("revision", low=0),
            priority=fields.integer("priority", 0, low=-MAX_PRIORITY, high=MAX_PRIORITY),
            attempt=fields.integer("attempt", 1, low=1),
            agent_order=_parse_order(fields),
            exit_code=fields.optional_integer("exit_code"),
            inputs=parse_entries(fields.list("inputs"), "state.json"),
            last=HistoryEntry.parse(last) if last else None,
            extra=fields.rest(),
            **texts,
        )

    def encode(self) -> bytes:
        """Return the bytes of state.json: the few facts first, the long manifest last."""
        value: dict[str, Any] = {"format": FORMAT, "id": self.id, "state": str(self.state), "site": self.site}
        value.update(user=self.user, revision=self.revision, priority=self.priority, attempt=self.attempt)
        value.update((name, text) for name in self._STRINGS if (text := getattr(self, name)))
        if self.agent_order != (0, 0):
            value["agent_order"] = list(self.agent_order)
        if self.exit_code is not None:
            value["exit_code"] = self.exit_code
        if self.last is not None:
            value["last"] = self.last.encode()
        value.update(self.extra)
        value["inputs"] = [entry.encode() for entry in self.inputs]
        return jsonio.dumps(value)

    def with_entry(self, entry: HistoryEntry, **changes: Any) -> JobState:
        """Return the state after `entry`, with `changes` applied."""
        return replace(self, revision=entry.revision, changed_at=entry.at, last=entry, **changes)


def _parse_order(fields: Fields) -> tuple[int, int]:
    order = fields.list("agent_order") or [0, 0]
    if len(order) != 2 or not all(type(number) is int and number >= 0 for number in order):
        raise fields.wrong("agent_order", "must be two numbers, the agent's generation and the number of its sync")
    return order[0], order[1]


@dataclass(frozen=True)
class Result:
    """result.json: how one run ended, by the side that ran it.

    `files` is the manifest of what comes back, names starting with ``out/`` or ``log/``; `missing` are patterns that matched
    nothing, `withheld` and `not_carried` are names with the reason why they stay at the site. `reason` is empty
    where the command did its work, ``canceled`` after a cancel, else one of `spool.states.Reason`.
    """

    id: str
    run_id: str
    attempt: int
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    message: str = ""
    started_at: str = ""
    finished_at: str = ""
    files: tuple[FileEntry, ...] = ()
    missing: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Result:
        """Read result.json."""
        fields = Fields(jsonio.loads(data, "result.json"), "result.json")
        fields.format()
        files = parse_entries(fields.list("files"), "result.json")
        if not all(entry.path.startswith(("out/", "log/")) for entry in files):
            raise fields.wrong("files", "must name files below out/ or log/ only")
        reason = fields.string("reason", "")
        if reason and reason not in RESULT_REASONS:
            raise fields.wrong("reason", f"is {reason!r}, which is not one of: {', '.join(RESULT_REASONS)}")
        return cls(
            id=check_id(fields.string("id")),
            run_id=check_id(fields.string("run_id")),
            attempt=fields.integer("attempt", low=1),
            exit_code=fields.optional_integer("exit_code"),
            signal=fields.optional_integer("signal"),
            reason=reason,
            message=fields.string("message", ""),
            started_at=fields.string("started_at", ""),
            finished_at=fields.string("finished_at", ""),
            files=files,
            missing=fields.strings("missing"),
            withheld=fields.strings("withheld"),
            not_carried=fields.strings("not_carried"),
            extra=fields.rest(),
        )

    def encode(self) -> bytes:
        """Return the bytes of result.json."""
        return jsonio.dumps(
            {
                "format": FORMAT,
                "id": self.id,
                "run_id": self.run_id,
                "attempt": self.attempt,
                "exit_code": self.exit_code,
                "signal": self.signal,
                "reason": self.reason,
                "message": self.message,
                "started_at": self.started_at,
                "finished_at": self.finished_at,
                "missing": list(self.missing),
                "withheld": list(self.withheld),
                "not_carried": list(self.not_carried),
                **self.extra,
                "files": [entry.encode() for entry in self.files],
            }
        )
