"""`spoolctl check`: is this spool as docs/format.md says? Reads only; nothing is moved, corrected or made.

A finding is a *problem* (the spool is inconsistent or cannot do its work: exit 1) or a *remark* (someone should know). Whatever
looks inconsistent is judged again under the job's lock, because the others go on working meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from spool import jsonio
from spool.creation import open_spool
from spool.ctl import exits
from spool.ctl.findings import Finding, problem, remark
from spool.ctl.listing import print_json
from spool.ctl.messages import say
from spool.ctl.surroundings import surroundings
from spool.errors import SpoolError, UnknownFormat, from_os_error
from spool.files import read_record
from spool.locks import JobLocks
from spool.names import is_id
from spool.paths import SpoolPaths
from spool.queue import Queue, parse_key
from spool.records import JOB_LIMIT_BYTES, Job, JobState, Result
from spool.states import WITH_SITE, State

LEFTOVER_S = 600
_DROP_LATE_S = 60


def run(root: Path, *, as_json: bool) -> int:
    """Examine the spool at `root` and print what was found; 0 healthy, 1 with problems. `ConfigError` where there is no spool."""
    jobs = 0
    try:
        paths = open_spool(root)
        found = [*_house(paths), *surroundings(paths)]
        if not any(item.where in ("jobs", "locks") for item in found):
            examined = Jobs(paths)
            found += [*examined.all(), *examined.entries()]
            jobs = examined.count
        found += [*_leftovers(paths)]
    except UnknownFormat as exc:
        found = [problem(exc.message, exc.hint, where="spool.json")]
    except OSError as exc:
        raise from_os_error(exc, f"checking {root}") from exc
    return _print(found, jobs, as_json=as_json)


def _print(found: list[Finding], jobs: int, *, as_json: bool) -> int:
    problems = sum(item.level == "problem" for item in found)
    remarks = len(found) - problems
    if as_json:
        print_json({"healthy": not problems, "jobs": jobs, "findings": [vars(item) for item in found]})
    else:
        for item in sorted(found, key=lambda one: one.level):
            what = item.what if not item.job or item.job in item.what else f"{item.job}: {item.what}"
            say(f"check_{item.level}", what=what, do=item.do)
        say("check_wrong" if problems else "check_healthy", problems=problems, remarks=remarks, jobs=jobs)
    return exits.FAILED if problems else exits.DONE


# The house: folders, locks, rights


def _house(paths: SpoolPaths) -> Iterator[Finding]:
    for name in SpoolPaths.FOLDERS:
        yield from _folder(paths.root / name)
    if paths.locks.is_dir():
        yield from _locks(paths.locks)
    owner = paths.spool_json.stat().st_uid
    if owner != os.geteuid():
        yield remark(
            f"the spool belongs to uid {owner}, this is uid {os.geteuid()}: drops are accepted by the owner only",
            "run the server or the push as the owner",
        )


def _folder(folder: Path) -> Iterator[Finding]:
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        yield problem(f"the folder {folder.name}/ is missing", f"mkdir -m 2770 {folder}", where=folder.name)
        return
    if not stat.S_ISDIR(mode):
        yield problem(f"{folder.name} is not a folder", "restore it from a backup", where=folder.name)
    elif stat.S_IMODE(mode) != 0o2770:
        yield problem(f"{folder.name}/ has the mode {stat.S_IMODE(mode):04o}, not 2770", f"chmod 2770 {folder}")


def _locks(folder: Path) -> Iterator[Finding]:
    missing, wrong = [], []
    for number in range(256):
        path = folder / f"{number:02x}"
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            missing.append(path.name)
            continue
        if not stat.S_ISREG(mode) or stat.S_IMODE(mode) != 0o660:
            wrong.append(path.name)
    if missing:
        do = f"find out who removed them, stop all programs, then make them: umask 007; touch {folder}/{missing[0]} ..."
        yield problem(f"{len(missing)} lock files are missing: {_some(missing)}", do, where="locks")
    if wrong:
        yield problem(f"{len(wrong)} lock files have a wrong mode: {_some(wrong)}", f"chmod 0660 {folder}/??")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# The jobs and the two indexes over them


class Jobs:
    """Judges every job folder, and every entry of `queue/` and `active/`, against the other."""

    def __init__(self, paths: SpoolPaths) -> None:
        self._paths = paths
        self._queue = Queue(paths)
        self._locks = JobLocks(paths.locks)
        self.count = 0

    def all(self) -> Iterator[Finding]:
        """Yield what is wrong with the folders in jobs/."""
        for name in sorted(os.listdir(self._paths.jobs)):
            if not is_id(name):
                yield remark(f"jobs/{name} is not a job", "move it elsewhere")
                continue
            self.count += 1
            yield from self._job(name)

    def _job(self, job_id: str) -> Iterator[Finding]:
        paths = self._paths.job(job_id)
        try:
            state = self._state(job_id)
            Job.parse(read_record(paths.job, JOB_LIMIT_BYTES))
            with contextlib.suppress(FileNotFoundError):
                Result.parse(read_record(paths.result, jsonio.MAX_BYTES))
        except FileNotFoundError as exc:
            if paths.folder.exists():  # else retention took it meanwhile
                name = Path(exc.filename or "a record").name
                do = "restore it from a backup, or move the folder to corrupt/"
                yield problem(f"jobs/{job_id} has no {name}", do, job=job_id)
        except (SpoolError, OSError) as exc:
            do = "restore the record; the next program that reads it moves the folder to corrupt/"
            yield problem(f"a record of jobs/{job_id} cannot be read: {exc}", do, job=job_id)
        else:
            if state.id != job_id:
                do = "someone copied a folder; remove the copy"
                yield problem(f"state.json of jobs/{job_id} is of job {state.id}", do, job=job_id)
            elif self._lacks_entry(state) and self._surely(job_id):
                yield problem(f"job {job_id} is {state.state} and has no entry in {self._index(state)}/: nobody will take it up",
                              f"touch {self._entry(state)}", job=job_id)  # fmt: skip

    def _state(self, job_id: str) -> JobState:
        return JobState.parse(read_record(self._paths.job(job_id).state, jsonio.MAX_BYTES))

    def _index(self, state: JobState) -> str:
        return "queue" if state.state == State.QUEUED else "active"

    def _entry(self, state: JobState) -> Path:
        if state.state == State.QUEUED:
            return self._paths.queue_of(state.site, state.user) / (state.queue_key or "KEY")
        return self._paths.active / state.site / state.agent / state.id

    def _lacks_entry(self, state: JobState) -> bool:
        return (state.state == State.QUEUED or state.state in WITH_SITE) and not self._entry(state).exists()

    def _surely(self, job_id: str) -> bool:
        """True where the entry is still missing when nobody can be in the middle of a change."""
        try:
            with self._locks.hold(job_id, timeout_s=5):
                return self._lacks_entry(self._state(job_id))
        except (SpoolError, OSError):
            return False

    def entries(self) -> Iterator[Finding]:
        """Yield the entries that no job stands behind; harmless, the next claimer removes them."""
        for site in self._queue.sites():
            for user in self._queue.users(site):
                for key in sorted(os.listdir(self._paths.queue_of(site, user))):
                    entry = parse_key(key, user)
                    if entry is None or self._stale(entry.job_id, State.QUEUED, key):
                        yield remark(f"queue/{site}/{user}/{key} is stale", "nothing: the next claimer removes it",
                                     job=entry.job_id if entry else "")  # fmt: skip
        for site in self._queue.active_sites():
            for agent in self._queue.agents(site):
                for job_id in self._queue.active(site, agent):
                    if self._stale(job_id, None, agent):
                        path = f"active/{site}/{agent}/{job_id}"
                        yield remark(f"{path} is stale", f"rm {self._paths.root / path}", job=job_id)

    def _stale(self, job_id: str, wanted: State | None, word: str) -> bool:
        return not self._backed(job_id, wanted, word) and self._stale_under_lock(job_id, wanted, word)

    def _backed(self, job_id: str, wanted: State | None, word: str) -> bool:
        try:
            state = self._state(job_id)
        except (SpoolError, OSError):
            return False
        if wanted is not None:
            return state.state == wanted and state.queue_key == word
        return state.state in WITH_SITE and state.agent == word

    def _stale_under_lock(self, job_id: str, wanted: State | None, word: str) -> bool:
        try:
            with self._locks.hold(job_id, timeout_s=5):
                return not self._backed(job_id, wanted, word)
        except (SpoolError, OSError):
            return False


# What lies about


def _leftovers(paths: SpoolPaths) -> Iterator[Finding]:
    now = time.time()
    for path in _old(paths.tmp, now - LEFTOVER_S):
        do = f"if no program works on it: rm -r {path}"
        if path.name.startswith("accept."):
            do = "the server or the push carries it on when it runs"
        yield remark(f"tmp/{path.name} has not changed for more than {LEFTOVER_S // 60} minutes", do)
    for path in _old(paths.drop, now - _DROP_LATE_S):
        yield remark(f"drop/{path.name} waits to be accepted", "see that the server or the push runs, as the owner of the spool")
    for folder in (paths.rejected, paths.corrupt):
        for name in _names(folder):
            yield remark(f"{folder.name}/{name}: {_why(folder / name)}", f"see {folder / name}/reason.json; remove it when done",
                         job=name.rstrip("+") if is_id(name.rstrip("+")) else "")  # fmt: skip


def _old(folder: Path, before: float) -> Iterator[Path]:
    for name in _names(folder):
        with contextlib.suppress(OSError):
            if not name.startswith(".taken.") and (folder / name).lstat().st_mtime < before:
                yield folder / name


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def _why(folder: Path) -> str:
    try:
        value = jsonio.loads(read_record(folder / "reason.json", jsonio.MAX_BYTES), "reason.json")
    except (SpoolError, OSError):
        return "no reason.json"
    return str(value.get("message") or value.get("why") or "no reason")
