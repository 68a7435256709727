"""What MInt's operators hold back: `controls.json` of a spool (docs/operations.md, "Holding back").

Sites and workflows that are disabled, sites that are paused, and the stop of everything. It counts at once in every program that
has the spool open; nothing is deleted by it, and what waits goes on waiting. A file that cannot be read holds everything back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from spool import jsonio
from spool.errors import Busy, ConfigError, Disabled, SpoolError
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.instants import utc_now
from spool.locks import file_lock
from spool.paths import FORMAT

KINDS = ("disabled_sites", "disabled_workflows", "paused_sites")
ALL = "*"  # in `paused_sites`: every site
LIMIT_BYTES = 4 * 1024 * 1024
_BACK = "an operator enables it again when it is back"


@dataclass(frozen=True)
class Mark:
    """Since when something is held back, by whom, and why."""

    at: str
    by: str
    because: str = ""

    def __str__(self) -> str:
        return f"since {self.at[:19]}Z by {self.by}" + (f": {self.because}" if self.because else "")


@dataclass(frozen=True)
class Controls:
    """controls.json. `stopped`: nothing is claimed and nothing is started, anywhere."""

    disabled_sites: Mapping[str, Mark] = field(default_factory=dict)
    disabled_workflows: Mapping[str, Mark] = field(default_factory=dict)
    paused_sites: Mapping[str, Mark] = field(default_factory=dict)
    stopped: Mark | None = None

    @classmethod
    def parse(cls, data: bytes) -> Controls:
        """Read controls.json; `InvalidRecord` or `UnknownFormat` where it is none."""
        fields = Fields(jsonio.loads(data, "controls.json"), "controls.json")
        fields.format()
        marks = {kind: {name: _mark(value) for name, value in fields.mapping(kind).items()} for kind in KINDS}
        return cls(**marks, stopped=_mark(fields.mapping("stopped")) if fields.has("stopped") else None)

    def encode(self) -> bytes:
        """Return the bytes of controls.json."""
        value: dict[str, Any] = {kind: {name: vars(mark) for name, mark in getattr(self, kind).items()} for kind in KINDS}
        return jsonio.dumps({"format": FORMAT, **value, "stopped": vars(self.stopped) if self.stopped else None})

    def check_enabled(self, site: str, workflow: str) -> None:
        """Raise `Disabled` where the site or the workflow is disabled: nothing new is taken for it."""
        if mark := self.disabled_sites.get(site):
            raise Disabled(f"site {site!r} is disabled {mark}", hint=_BACK)
        if workflow and (mark := self.disabled_workflows.get(workflow)):
            raise Disabled(f"workflow {workflow!r} is disabled {mark}", hint=_BACK)

    def why_not_claimed(self, site: str, workflow: str = "") -> str:
        """Return why no job of `site` (of `workflow`) is given out now; ``""`` where it may be."""
        held = (
            ("everything is stopped", self.stopped),
            (f"site {site} is disabled", self.disabled_sites.get(site)),
            (f"site {site} is paused", self.paused_sites.get(site) or self.paused_sites.get(ALL)),
            (f"workflow {workflow} is disabled", self.disabled_workflows.get(workflow) if workflow else None),
        )
        return next((f"{what} {mark}" for what, mark in held if mark), "")

    def check_start(self, job_id: str) -> None:
        """Raise `Busy` where nothing may be started now."""
        if self.stopped:
            raise Busy(f"job {job_id} is not started: everything is stopped {self.stopped}", hint="spoolctl resume --all")

    def lines(self) -> list[str]:
        """Return what is held back, a line each, for people."""
        found = [f"everything is stopped {self.stopped}"] if self.stopped else []
        for kind in KINDS:
            word, noun = kind.split("_")
            for name, mark in sorted(getattr(self, kind).items()):
                found.append(f"{'every site' if name == ALL else f'{noun[:-1]} {name}'} is {word} {mark}")
        return found

    def with_mark(self, kind: str, name: str, mark: Mark | None) -> Controls:
        """Return these with `name` of `kind` marked, or with `mark` None not any more."""
        marks = {key: value for key, value in getattr(self, kind).items() if key != name}
        changed: dict[str, Any] = {kind: {**marks, name: mark} if mark else marks}
        return replace(self, **changed)


def _mark(value: Any) -> Mark:
    fields = Fields(value if isinstance(value, dict) else {}, "controls.json")
    return Mark(fields.string("at"), fields.string("by"), fields.string("because", ""))


class ControlFile:
    """The `controls.json` at `path`, read again whenever it changes. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._controls = Controls()

    def get(self) -> Controls:
        """Return what is held back now; `ConfigError` where nobody can tell."""
        try:
            info = self._path.stat()
        except FileNotFoundError:
            return Controls()
        seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        with self._mutex:
            if seen != self._seen:
                self._controls, self._seen = self._read(), seen
            return self._controls

    def _read(self) -> Controls:
        try:
            return Controls.parse(read_record(self._path, LIMIT_BYTES))
        except SpoolError as exc:
            hint = "nothing is claimed or started until then: correct it, or remove it to hold nothing back"
            raise ConfigError(f"{self._path} cannot be used: {exc.message}", hint=hint) from exc

    def change(self, change: Callable[[Controls], Controls]) -> Controls:
        """Replace the file by what `change` makes of it, atomically and durably; return that."""
        with file_lock(self._path.with_name(f"{self._path.name}.lock")):
            changed = change(self.get())
            replace_file(self._path, changed.encode())
            return changed


def mark(by: str, because: str) -> Mark:
    """Return a mark of now."""
    return Mark(utc_now(), by, because)
