"""What the site's audit log is told of one job: the events, their order, and what goes on only after they are durable.

An event stands before the act that it tells of (`start`, `sending`), or before the next act where it tells of what was
(`receipt`, `end`, `measured`, `sent`). So after a crash an event may stand there twice, because the act is repeated, and none
is missing: `sending` without `sent` means that so much may have left. Long lists go over several lines of one event, `part` of
`parts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Callable, Protocol

from spool import log
from spool.agent.audit import Audit, AuditFailed
from spool.errors import InvalidRecord
from spool.records import CANCELED, FileEntry, Job, JobState, Result
from spool.runner import RunStatus, signal_of
from spool.states import Reason

PART_BYTES = 96 * 1024  # of one list in one line, at most
NOWHERE: Mapping[str, int] = MappingProxyType({})
HINT = "nothing goes on that it must tell of: free space, or see spool_agent.py audit verify"


class HasState(Protocol):
    """Whose events are told: a job in hand, or one that is only asked for."""

    @property
    def state(self) -> JobState:
        """Its local record, or what that would be."""


class Book:
    """Writes a job's events. Each raises `AuditFailed`, which is tried again, where the log takes nothing. Safe to repeat."""

    def __init__(self, audit: Audit, local: HasState, policy: str) -> None:
        self._audit = audit
        self._local = local
        self._policy = policy
        self._told: set[str] = set()
        self._cuts: dict[str, int] = {}

    def receipt(self, job: Job, data: bytes) -> None:
        """The job came: what it asks for, with `data`, the bytes of job.json, by their SHA-256. Once a process."""
        state, inputs = self._local.state, self._local.state.inputs
        values = {
            "site": state.site, "user": state.user, "command": job.command, **_argv(job.args, "args"),
            "job_sha256": _sha256(data), "policy": self._policy,
        }  # fmt: skip
        self._once("receipt", inputs, values, key="inputs")

    def start(self, argv: Sequence[str]) -> None:
        """The command may run from now on."""
        self._write("start", **_argv(argv, "argv"), policy=self._policy)

    def end(self, status: RunStatus) -> None:
        """The command is over."""
        code = status.exit_code
        self._write(
            "end", exit=code, signal=None if code is None else signal_of(code), started_at=status.started_at,
            finished_at=status.finished_at, how=status.word, why=status.why,
        )  # fmt: skip

    def measured(self, result: Result) -> None:
        """This is what may leave, and what stays; `manifest` is the SHA-256 of result.json."""
        values = {
            "exit": result.exit_code, "reason": result.reason, "message": result.message, "manifest": manifest_of(result),
            "withheld": _short(result.withheld), "not_carried": _short(result.not_carried), "policy": self._policy,
        }  # fmt: skip
        events = list(_parts("measured", result.files, values))
        if result.reason == Reason.REFUSED_BY_SITE:
            events.append(("refused", {"message": result.message}))
        self._append(events)

    def ended(self, reason: str, told: str, why: str) -> None:
        """The job ends without results; `told` is what MInt hears of it."""
        event = {CANCELED: "canceled", Reason.REFUSED_BY_SITE: "refused"}.get(reason, "failed")
        self._write(event, reason=str(reason), message=told, why=_text(why))

    def given_up(self, why: str) -> None:
        """MInt gave this run up: nothing more of it leaves."""
        self._write("given_up", why=_text(why))

    def delivered(self, result: Result, state: str) -> None:
        """MInt has taken the result."""
        self._write("delivered", state=state, manifest=manifest_of(result), files=len(result.files))

    def tell(self, event: str, **values: Any) -> None:
        """One more event, of results that are held."""
        self._write(event, **values)

    # What leaves

    def sending(self, files: Sequence[FileEntry], starts: Mapping[str, int] = NOWHERE) -> None:
        """These files may leave from now on; each from its first byte on, or from where `starts` says. Once a process."""
        if files:
            self._once("sending", files, {"bytes": _sum(files, starts)}, starts=starts)

    def streaming(self, name: str) -> None:
        """The log `name` may leave as it grows, from now on. Once a process."""
        if f"streaming {name}" not in self._told:
            self._write("sending", file=name, grows=True)
            self._told.add(f"streaming {name}")

    def sent(self, files: Sequence[FileEntry], starts: Mapping[str, int] = NOWHERE) -> None:
        """These files have left to their end; `starts` as in `sending`."""
        if files:
            self._append(list(_parts("sent", files, {"bytes": _sum(files, starts)}, starts=starts)))

    def streamed(self, name: str, start: int, end: int) -> None:
        """MInt has the bytes `start` to `end` of a log."""
        self._write("sent", file=name, start=start, end=end, bytes=end - start)

    def cut(self, name: str, here: int, at_most: int, size: int) -> None:
        """A sending ended early: MInt has told of `here` bytes of `size`; up to `at_most` may have left."""
        if self._cuts.get(name) != at_most:  # not at each try while a line is down
            self._write("cut", file=name, bytes=here, at_most=at_most, size=size)
            self._cuts[name] = at_most

    def _once(
        self, event: str, files: Sequence[FileEntry], values: dict[str, Any], key: str = "files",
        starts: Mapping[str, int] = NOWHERE,
    ) -> None:  # fmt: skip
        events = list(_parts(event, files, values, key, starts))
        mark = _sha256(json.dumps([event, [values for _, values in events]]).encode())
        if mark not in self._told:
            self._append(events)
            self._told.add(mark)

    def _write(self, event: str, **values: Any) -> None:
        self._append([(event, values)])

    def _append(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        state = self._local.state
        whose = {"job": state.id, "run": state.run_id, "attempt": state.attempt}
        told(self._audit, lambda: self._audit.append_all([(event, {**whose, **values}) for event, values in events]))


def told(audit: Audit, write: Callable[[], object]) -> None:
    """Do `write`; raise `AuditFailed` where the log does not take it."""
    try:
        write()
    except (OSError, InvalidRecord) as exc:
        why = exc.message if isinstance(exc, InvalidRecord) else exc.strerror or str(exc)
        log.error("audit_not_written", file=audit.path, why=why, hint=HINT)
        raise AuditFailed(f"the audit log cannot be written: {why}", hint=HINT) from exc


def manifest_of(result: Result) -> str:
    """Return the SHA-256 of result.json: ``sha256sum BASE/JOB/result.json`` shows it."""
    return _sha256(result.encode())


def _text(words: str) -> str:
    """Return words that a program may have made of anything as a line can hold them."""
    return words[:4000].encode("utf-8", "backslashreplace").decode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _argv(values: Sequence[str], key: str) -> dict[str, Any]:
    """Return an argument vector with its SHA-256 (over JSON without blanks); the vector itself where a line has room for it."""
    data = json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    digest = {f"{key}_sha256": _sha256(data)}
    return {key: list(values), **digest} if len(data) <= PART_BYTES else digest


def _short(values: Sequence[str]) -> list[str]:
    """Return as many of `values` as a line has room for, and how many more there are."""
    left = PART_BYTES // 2
    found: list[str] = []
    for value in values:
        left -= len(value.encode("utf-8", "surrogatepass")) + 4
        if left < 0:
            return [*found, f"and {len(values) - len(found)} more"]
        found.append(value)
    return found


def _sum(files: Sequence[FileEntry], starts: Mapping[str, int]) -> int:
    """Return how many bytes leave."""
    return sum(entry.size - starts.get(entry.path, 0) for entry in files)


def _parts(
    event: str, files: Sequence[FileEntry], values: dict[str, Any], key: str = "files", starts: Mapping[str, int] = NOWHERE
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events that tell of `files`: one, or several where they do not fit into a line."""
    groups: list[list[dict[str, Any]]] = [[]]
    left = PART_BYTES
    for entry in files:
        item: dict[str, Any] = {"path": entry.path, "size": entry.size, "sha256": entry.sha256}
        item.update({"start": starts[entry.path]} if starts.get(entry.path) else {})
        left -= len(json.dumps(item)) + 1
        if left < 0:
            groups.append([])
            left = PART_BYTES
        groups[-1].append(item)
    for number, group in enumerate(groups, 1):
        part = {"part": number, "parts": len(groups)} if len(groups) > 1 else {}
        yield event, {**(values if number == 1 else {}), key: group, **part}
