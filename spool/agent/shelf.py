"""What reviewers find: `BASE/held/ID.json`, one record a held job, and `BASE/decisions/`, what they say (docs/format.md).

The records tell where to look and what the agent has remarked; what is decided over is the job's own result.json. The agent alone
writes them, the reviewers' group reads them.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.agent.config import AgentConfig
from spool.agent.decisions import Decisions
from spool.errors import ConfigError, NotFound, SpoolError
from spool.fields import Fields
from spool.files import fsync_dir, read_record, replace_file
from spool.names import check_id, is_id


@dataclass(frozen=True)
class Lying:
    """One record: the run whose results wait, the manifest, and what the agent remarked on the files (name -> words)."""

    id: str
    run_id: str
    manifest: str
    user: str
    command: str
    attempt: int
    since: str
    why: str
    remarks: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Lying:
        """Read a record."""
        fields = Fields(jsonio.loads(data, "a record of held results"), "a record of held results")
        fields.format()
        return cls(
            check_id(fields.string("id")), check_id(fields.string("run_id")), fields.string("manifest"), fields.string("user"),
            fields.string("command"), fields.integer("attempt", low=1), fields.string("since"), fields.string("why"),
            fields.string_map("remarks"),
        )  # fmt: skip

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        return jsonio.dumps({"format": 1, **vars(self), "remarks": dict(self.remarks)})


class Shelf:
    """The two folders below an agent's base."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / "held"
        self.decisions = Decisions(base / "decisions")

    def open(self, release: Mapping[str, Any]) -> None:
        """Make both ready for those who decide. Raises `ConfigError` where they could not, or where others could meddle."""
        group = release["reviewers_group"]
        try:
            info = os.lstat(self.base)
            if info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise ConfigError(f"{self.base} is not the agent's own: others could change what is held there",
                                  hint="with hold, set [agent] base to a folder of the agent's own")  # fmt: skip
            self.decisions.open(group)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if os.lstat(self.folder).st_uid != os.geteuid() or not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                raise ConfigError(f"{self.folder} is not the agent's own folder", hint="remove it")
            if group:
                gid = grp.getgrnam(group).gr_gid
                os.chown(self.base, -1, gid)
                os.chmod(self.base, stat.S_IMODE(info.st_mode) | 0o010)
                os.chown(self.folder, -1, gid)
            os.chmod(self.folder, 0o750 if group else 0o700)
        except OSError as exc:
            raise ConfigError(f"{self.base} cannot be made ready for reviewers: {exc.strerror}",
                              hint="is the agent in that group?") from exc  # fmt: skip

    def put(self, lying: Lying, gid: int | None) -> None:
        """Lay a record out, whole. Safe to repeat."""
        path = self._path(lying.id)
        replace_file(path, lying.encode(), mode=0o600)
        if gid is not None:
            os.chown(path, -1, gid)
            os.chmod(path, 0o640)

    def get(self, job_id: str) -> Lying:
        """Return the record of a job; `FileNotFoundError` where it is not held."""
        return Lying.parse(read_record(self._path(job_id), jsonio.MAX_BYTES))

    def all(self) -> Iterator[Lying]:
        """Yield the records, by id; one that cannot be read is said on the log and passed over."""
        for name in sorted(os.listdir(self.folder)):
            job_id = name[: -len(".json")]
            if not name.endswith(".json") or not is_id(job_id):
                continue
            try:
                yield self.get(job_id)
            except FileNotFoundError:
                continue  # decided meanwhile
            except (SpoolError, OSError) as exc:
                log.warning("held_record_unreadable", job=job_id, why=exc, hint="the agent writes it anew at its next start")

    def find(self, prefix: str) -> Lying:
        """Return the held job whose id begins so. Raises `NotFound` where there is none, or more than one."""
        found = [lying for lying in self.all() if prefix and lying.id.startswith(prefix)]
        if len(found) != 1:
            raise NotFound(f"{len(found) or 'no'} held results begin with {prefix!r}", hint="spool_agent.py held lists them")
        return found[0]

    def remove(self, job_id: str, run_id: str) -> None:
        """Take away the record and the decisions of a run that has been decided. Safe to repeat."""
        with contextlib.suppress(OSError, SpoolError):
            if self.get(job_id).run_id == run_id:
                self._path(job_id).unlink(missing_ok=True)
                fsync_dir(self.folder)
        with contextlib.suppress(OSError):
            for name in os.listdir(self.decisions.folder):
                if name.startswith(f"{job_id}.{run_id}."):
                    (self.decisions.folder / name).unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.json"


def ready(config: AgentConfig) -> None:
    """Make the folders ready where results are held or were. Raises `ConfigError` where that cannot be."""
    shelf = Shelf(config.base)
    if config.release["hold"] or shelf.folder.exists():
        shelf.open(config.release)
