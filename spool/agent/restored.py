"""After a restore at MInt: the spool's epoch is another one, and what this agent has ended since may have to be told again.

The epoch last heard is kept in the control folder and goes with every sync. As long as it is not the server's, the server
declares nothing lost and gives nothing out, so that a job whose results were delivered after the backup is neither lost nor run
a second time: it is listed once more as returning, and returned again where MInt wants it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.agent.folder import LocalJob
from spool.agent.published import MARK
from spool.errors import SpoolError
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.records import Result

RECORD_BYTES = 65536
BATCH = 500
LOOK_BACK_S = 30 * 86400.0  # an earlier end is taken to be in the backup


class Epoch:
    """The epoch of MInt's spool as last heard, durable; empty before the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = self._read()

    def _read(self) -> str:
        with contextlib.suppress(OSError, SpoolError):
            return Fields(jsonio.loads(read_record(self._path, RECORD_BYTES), "epoch.json"), "epoch.json").string("epoch")
        return ""

    def keep(self, value: str) -> None:
        """Remember `value`, durably."""
        replace_file(self._path, jsonio.dumps({"format": 1, "epoch": value}), mode=0o600)
        self.value = value


def ended_lately(jobs: Iterator[LocalJob]) -> Iterator[tuple[LocalJob, Result]]:
    """Yield those of `jobs` that ended lately with a result of their last run; what cannot be read is passed over."""
    for job in jobs:
        with contextlib.suppress(OSError, SpoolError):
            if MARK in job.state.extra or time.time() - job.paths.state.stat().st_mtime > LOOK_BACK_S:
                continue
            result = job.result()
            if result is not None and result.run_id == job.state.run_id:
                yield job, result


def report(job: LocalJob, result: Result) -> dict[str, Any]:
    """Return how an ended job is listed: as one whose results are to be returned."""
    state = job.state
    return {
        "id": state.id,
        "run_id": state.run_id,
        "state": "returning",
        "attempt": state.attempt,
        "ready": True,
        "told": "",
        "exit_code": result.exit_code,
    }


def wanted(ended: dict[str, LocalJob], told: list[Any]) -> Iterator[LocalJob]:
    """Yield the ended jobs whose results MInt wants again; log those that it does not know."""
    for item in told:
        job = ended.get(str(item.get("id", ""))) if isinstance(item, dict) else None
        if job is None or item.get("run_id") != job.state.run_id:
            continue
        if item.get("want") == "return":
            yield job
        elif item.get("want") == "keep":
            log.warning("not_in_the_backup", job=job.state.id, run=job.state.run_id, state=job.state.state,
                        hint=f"MInt has forgotten it; its results are in {job.paths.folder}, an operator decides")  # fmt: skip
