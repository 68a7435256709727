"""The redacted copies of one run's logs: `logs = redact` of agent.ini (docs/security.md, "What may leave").

They lie in a folder of the agent's own, `BASE/.mint-spool-UID/logs/JOB/RUN/log/`, because the job's own folder is within reach of
the command. What is streamed comes out of them alone. Nothing of their making outlives the process: a restart makes them anew
from the start of the logs, which gives the same bytes, unless the command has written its logs anew; then MInt finds at the end
that what was streamed is not what the manifest says, and gets the copy as a whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from spool.agent.redaction import RedactedCopy, Redactor
from spool.copying import copy_file
from spool.errors import InvalidName
from spool.files import fsync_dir, open_beneath
from spool.manifest import hash_fd
from spool.paths import JobPaths
from spool.records import FileEntry


def _aside(name: str) -> str:
    return f"unredacted.{name}"


class RedactedLogs:
    """The copies of `names` out of `paths.log`, below `folder`. One thread at a time."""

    def __init__(self, folder: Path, paths: JobPaths, redactor: Redactor, names: tuple[str, ...]) -> None:
        self.folder = folder
        self._source = paths.log
        self._redactor = redactor
        self._names = names
        self._open: dict[str, tuple[RedactedCopy, contextlib.ExitStack]] = {}

    def advance(self) -> dict[str, int]:
        """Copy the whole lines that have come; return how long each copy is, in bytes."""
        sizes = {}
        for name in self._names:
            with contextlib.suppress(FileNotFoundError, InvalidName):  # not there yet, or the command put something in its place
                sizes[name] = self._copy(name).advance()
        return sizes

    def finish(self, *, own: bool = False) -> tuple[FileEntry, ...]:
        """Make all copies anew from the logs as they are now, durably; return their entries (``log/...``). Safe to repeat.

        With `own` the logs lie where the command cannot write, and those that `lay_out` put aside are read.
        """
        self.close()
        if own:
            for name in self._names:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self._source / _aside(name), self._source / name)
        found = [self._finished(name) for name in self._names]
        self.close()
        if any(found):
            fsync_dir(self.folder / "log")
        return tuple(entry for entry in found if entry is not None)

    def lay_out(self, entries: tuple[FileEntry, ...]) -> None:
        """Put the copies in the place of the logs, for those who decide on their release; the logs themselves are put aside."""
        for entry in entries:
            name = entry.path.rpartition("/")[2]
            with open(self.folder / "log" / name, "rb") as file:
                temp = self._source / f".{name}.new"
                temp.unlink(missing_ok=True)
                copy_file(file.fileno(), temp)
            os.replace(self._source / name, self._source / _aside(name))
            os.replace(temp, self._source / name)
        fsync_dir(self._source)

    def _finished(self, name: str) -> FileEntry | None:
        try:
            copy = self._copy(name)
        except (FileNotFoundError, InvalidName):
            return None
        copy.advance(finished=True)
        with open(self.folder / "log" / name, "rb") as file:
            digest, size = hash_fd(file.fileno())
            os.fsync(file.fileno())
        return FileEntry(f"log/{name}", size, digest)

    def _copy(self, name: str) -> RedactedCopy:
        if name not in self._open:
            with contextlib.ExitStack() as stack:
                source = stack.enter_context(os.fdopen(open_beneath(self._source, name, os.O_RDONLY), "rb", buffering=0))
                (self.folder / "log").mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                target = stack.enter_context(os.fdopen(os.open(self.folder / "log" / name, flags, 0o600), "r+b", buffering=0))
                self._open[name] = RedactedCopy(self._redactor.line, source.fileno(), target.fileno()), stack.pop_all()
        return self._open[name][0]

    def close(self) -> None:
        """Close the files; the next `advance` begins anew."""
        for _, stack in self._open.values():
            stack.close()
        self._open.clear()
