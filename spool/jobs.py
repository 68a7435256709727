"""Reading the jobs of one spool (docs/format.md, "Records"): each record as a value, what cannot be read moved to `corrupt/`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from spool import jsonio, log
from spool.errors import InvalidRecord, NotFound, SpoolError
from spool.files import fsync_dir, read_record, replace_file
from spool.instants import utc_now
from spool.names import check_id, is_id
from spool.paths import SpoolPaths
from spool.records import JOB_LIMIT_BYTES, HistoryEntry, Job, JobState, Result


def no_job(job_id: str) -> NotFound:
    """Return the error for a job that is not there; one that the asker may not see is answered with the same words."""
    return NotFound(f"no job {job_id} here", hint="check the id, and whose token this is: spoolctl ls shows what there is")


class Jobs:
    """The jobs of one spool, to be read. Needs no lock: every record is replaced whole."""

    def __init__(self, paths: SpoolPaths) -> None:
        self.paths = paths

    def ids(self) -> Iterator[str]:
        """Yield the id of every accepted job, in no order."""
        with os.scandir(self.paths.jobs) as entries:
            yield from (entry.name for entry in entries if is_id(entry.name))

    def state(self, job_id: str) -> JobState:
        """Return where the job stands. `NotFound` where there is none; an unreadable record is moved to `corrupt/`."""
        paths = self.paths.job(check_id(job_id))
        try:
            state = JobState.parse(read_record(paths.state, jsonio.MAX_BYTES))
            if state.id != job_id:
                raise InvalidRecord(f"state.json belongs to job {state.id}", hint="someone copied a folder")
            return state
        except FileNotFoundError as exc:
            if paths.folder.exists():
                raise self._corrupt(job_id, "state.json is missing") from exc
            raise no_job(job_id) from exc
        except InvalidRecord as exc:
            raise self._corrupt(job_id, exc.message) from exc

    def job(self, job_id: str) -> Job:
        """Return what the job asks for."""
        return Job.parse(self.job_bytes(job_id))

    def job_bytes(self, job_id: str) -> bytes:
        """Return the exact bytes of job.json."""
        try:
            return read_record(self.paths.job(check_id(job_id)).job, JOB_LIMIT_BYTES)
        except FileNotFoundError as exc:
            raise no_job(job_id) from exc

    def result(self, job_id: str) -> Result | None:
        """Return how the latest run ended, or None where there is no result yet."""
        try:
            return Result.parse(read_record(self.paths.job(check_id(job_id)).result, jsonio.MAX_BYTES))
        except FileNotFoundError:
            return None

    def history(self, state: JobState) -> list[HistoryEntry]:
        """Return the changes up to `state`, oldest first; a torn line spoils only itself, and the last is in `state` too."""
        found: dict[int, HistoryEntry] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in read_record(self.paths.job(state.id).history, jsonio.MAX_BYTES).splitlines():
                with contextlib.suppress(SpoolError):
                    entry = HistoryEntry.parse(jsonio.loads(line, "history.jsonl"))
                    found[entry.revision] = entry
        if state.last is not None:
            found[state.last.revision] = state.last
        return [found[number] for number in sorted(found) if number <= state.revision]

    def knows(self, state: JobState, run_id: str) -> bool:
        """True where the job's history has this run: it is the current one, or was replaced; else the spool has forgotten it."""
        return any(entry.run_id == run_id for entry in self.history(state))

    def states(self) -> Iterator[JobState]:
        """Yield the state of every job that can be read; the others go to `corrupt/`."""
        for job_id in self.ids():
            try:
                yield self.state(job_id)
            except NotFound:  # taken by retention, or moved to corrupt/, meanwhile
                continue
            except (SpoolError, OSError) as exc:  # of another format, or unreadable for now: it does not stop the others
                log.warning("job_skipped", job=job_id, why=exc)

    def _corrupt(self, job_id: str, why: str) -> NotFound:
        """Move the job's folder to `corrupt/` with a reason.json and return the error to raise."""
        folder = self.paths.corrupt / job_id
        with contextlib.suppress(FileNotFoundError):
            while folder.exists():
                folder = folder.with_name(folder.name + "+")
            os.rename(self.paths.job(job_id).folder, folder)
            reason = {
                "at": utc_now(),
                "id": job_id,
                "why": why,
                "hint": "restore the record, move the folder back to jobs/, then: spoolctl check --repair",
            }
            replace_file(folder / "reason.json", jsonio.dumps(reason))
            fsync_dir(self.paths.jobs)
            fsync_dir(self.paths.corrupt)
            log.error("corrupt", job=job_id, why=why, folder=folder)
        return NotFound(f"the records of job {job_id} cannot be read: {why}", hint=f"see {folder}/reason.json")
