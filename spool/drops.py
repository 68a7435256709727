"""Taking in what was handed in at `drop/` (docs/format.md, "Drops").

Whoever runs as the owner of the spool accepts: server, push or spoolctl, several at once. A drop is taken to
`tmp/accept.UUID/job/` first, where its submitter cannot change it any more, then checked, hashed outside the jobs' locks,
given its `state.json`, synced, entered in the queue and renamed into `jobs/`. Every step can be repeated after a crash; what
is found in `tmp/` is simply carried on. A drop that cannot be accepted goes to `rejected/` with a reason.json.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spool import jsonio, log
from spool.config import SpoolConfig
from spool.errors import Busy, Duplicate, InvalidName, InvalidRecord, MissingInputs, NotFound, SpoolError
from spool.files import copy_tree, fsync_dir, read_record, remove_tree, replace_file, sync_tree
from spool.instants import from_epoch, to_epoch, utc_now
from spool.locks import file_lock
from spool.manifest import Listing, hash_files, list_files
from spool.names import check_user, is_id
from spool.paths import JobPaths, SpoolPaths
from spool.queue import make_key
from spool.records import JOB_LIMIT_BYTES, FileEntry, HistoryEntry, Job, JobState
from spool.states import State
from spool.store import Store

REJUDGE_S = 1.0


class Unreadable(InvalidRecord):
    """job.json is not there or not whole JSON: perhaps it is still being written."""


class OddInputs(InvalidName):
    """`in/` holds a link or a name that cannot be carried: perhaps a temporary file of whoever is still writing."""


class OddDrop(InvalidName):
    """Something in `drop/` that is no job folder: perhaps it is about to be renamed."""


# Reasons that may pass: the folder is perhaps still being written.
_UNFINISHED = (MissingInputs, Unreadable, OddInputs, OddDrop, Busy)


def may_accept(paths: SpoolPaths) -> bool:
    """True where this process runs as the owner of the spool, and what it accepts is out of its submitter's reach."""
    return os.stat(paths.spool_json).st_uid == os.geteuid()


def check_against(job: Job, user: str, config: SpoolConfig) -> None:
    """Raise unless the configuration lets `user` ask for `job`: site known and enabled, user and command on its lists."""
    site = config.site(job.site)
    site.check_user(user)
    site.check_command(job.command)
    if job.expires_at and to_epoch(job.expires_at) <= time.time():
        raise InvalidRecord(f"expires_at {job.expires_at} has passed already", hint="set a later instant, or none")


def freeze_inputs(job: Job, folder: Path) -> tuple[FileEntry, ...]:
    """Return size and SHA-256 of every input the job names, read from `folder`.

    `MissingInputs` where one is missing or differs from what job.json fixes, or where `folder` holds a file that
    the job does not name.
    """
    listing = list_files(folder)
    named = {item.path: item for item in job.inputs}
    _check_listing(listing, set(named))
    entries = hash_files(folder, sorted(named))
    for entry in entries:
        fixed = named[entry.path]
        if fixed.sha256 not in (None, entry.sha256) or fixed.size not in (None, entry.size):
            raise MissingInputs(f"{entry.path!r} is not the file job.json fixes", hint="hand in the file that was hashed")
    return entries


def first_state(job: Job, job_id: str, user: str, entries: tuple[FileEntry, ...], *, state: State, by: str) -> JobState:
    """Return revision 1 of a job that is about to be published, `new` or `queued`."""
    now = utc_now()
    key = make_key(job_id, 1, job.priority) if state == State.QUEUED else ""
    entry = HistoryEntry(revision=1, at=now, source="", target=str(state), by=by, attempt=1, why="accepted")
    return JobState(
        id=job_id, state=state, site=job.site, user=user, revision=1, command=job.command, workflow=job.workflow,
        priority=job.priority, queue_key=key, submitted_at=now, changed_at=now, inputs=entries, last=entry,
        expires_at=from_epoch(to_epoch(job.expires_at)) if job.expires_at else "",
    )  # fmt: skip


@dataclass
class _Look:
    """What a drop looked like when it was last judged, so that an unfinished one is judged again only when it changed."""

    seen: tuple[int, ...]
    quiet_since: float
    judged_at: float


class Drops:
    """The accepting of one process. `scan` is cheap and returns at once; the work happens in `workers` threads."""

    def __init__(self, store: Store, *, workers: int = 4) -> None:
        self._store = store
        self._paths = store.paths
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="accept")
        self._looks: dict[str, _Look] = {}
        self._under_way: dict[str, Future[None]] = {}

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True)

    def scan(self, config: SpoolConfig) -> int:
        """Look at `drop/` and at what an earlier process left in `tmp/`; return how many are under way."""
        self._under_way = {name: future for name, future in self._under_way.items() if not future.done()}
        taken = {name[len("accept.") :] for name in _names(self._paths.tmp) if name.startswith("accept.")}
        handed_in = _names(self._paths.drop)
        self._looks = {name: look for name, look in self._looks.items() if name in handed_in or name in taken}
        for name in sorted({*handed_in, *filter(is_id, taken)}):
            if name not in self._under_way and not name.startswith(".") and self._due(name):
                self._under_way[name] = self._pool.submit(self._safely, name, config)
        return len(self._under_way)

    def _due(self, name: str) -> bool:
        look = self._looks.get(name)
        return look is None or time.monotonic() - look.judged_at > REJUDGE_S or look.seen != _fingerprint(self._paths.drop / name)

    def _safely(self, name: str, config: SpoolConfig) -> None:
        try:
            self.accept(name, config)
        except (SpoolError, OSError) as exc:  # this drop waits; the others go on
            log.warning("drop_waits", job=name, why=exc)

    def accept(self, name: str, config: SpoolConfig) -> JobState | None:
        """Judge the drop `name` now: accepted (its state is returned), rejected, or not finished yet (None)."""
        if not is_id(name):
            self._reject_unless_fresh(name, OddDrop(f"{name!r} is not a UUID", hint="name the folder with uuidgen"), config)
            return None
        staging = self._paths.accepting(name)
        taken = (staging / "job").exists()
        if not taken:
            try:
                self._judge(name, self._paths.drop / name, config)
            except FileNotFoundError:
                return None
            except SpoolError as exc:
                self._reject_unless_fresh(name, exc, config)
                return None
        with contextlib.suppress(FileExistsError):
            os.mkdir(staging, 0o770)
        with file_lock(staging / "lock", timeout_s=0):
            return self._carry_on(name, staging, config)

    def _carry_on(self, name: str, staging: Path, config: SpoolConfig) -> JobState | None:
        try:
            self._take(name, staging)
        except FileNotFoundError:  # another process has published it meanwhile
            remove_tree(staging)
            return None
        try:
            job, user = self._judge(name, staging / "job", config)
            entries = freeze_inputs(job, staging / "job" / "in")
            state = self._publish(name, staging / "job", job, user, entries)
        except Busy:
            raise
        except SpoolError as exc:
            self._reject(name, staging / "job", exc)
            state = None
        remove_tree(staging)
        self._looks.pop(name, None)
        return state

    def _judge(self, name: str, folder: Path, config: SpoolConfig) -> tuple[Job, str]:
        """Return the job and its user; raise whatever stands against it. Reads only, and hashes nothing."""
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode):
            raise OddDrop(f"drop/{name} is not a folder", hint="hand in a folder that holds job.json and in/")
        job = Job.parse(_whole_json(folder / "job.json"))
        if job.id not in ("", name):
            raise InvalidName(f"job.json names the id {job.id}, the folder {name}", hint="leave id out, or make them equal")
        user = _user_of(job, _owner_of(folder, info), config)
        check_against(job, user, config)
        _check_listing(list_files(folder / "in"), {item.path for item in job.inputs})
        return job, user

    def _take(self, name: str, staging: Path) -> None:
        """Bring the drop to `staging/job`, out of its submitter's reach: by rename where it is ours, else by copy."""
        source, target = self._paths.drop / name, staging / "job"
        if target.exists():
            return
        owners = {os.lstat(source).st_uid}
        for path, dirs, files, dir_fd in os.fwalk(source, follow_symlinks=False):
            owners.update(os.stat(item, dir_fd=dir_fd, follow_symlinks=False).st_uid for item in (*dirs, *files))
            del path
        if owners == {os.geteuid()}:
            os.rename(source, target)
            return
        remove_tree(staging / "copy")
        copy_tree(source, staging / "copy")
        replace_file(staging / "owner", str(os.lstat(source).st_uid).encode("ascii"))
        os.rename(staging / "copy", target)
        self._discard(name, source)

    def _discard(self, name: str, source: Path) -> None:
        """Remove the submitter's original of a copied drop; where its modes forbid that, hide it from later scans."""
        try:
            remove_tree(source)
        except OSError as exc:
            hidden = self._paths.drop / f".taken.{name}"
            log.warning("drop_original_kept", job=name, folder=hidden, why=exc)
            with contextlib.suppress(OSError):
                os.rename(source, hidden)

    def _publish(self, name: str, folder: Path, job: Job, user: str, entries: tuple[FileEntry, ...]) -> JobState | None:
        state = first_state(job, name, user, entries, state=State.QUEUED, by=user)
        self._same_or_new(name, folder, entries)
        paths = JobPaths(folder)
        replace_file(paths.history, jsonio.dumps_line(state.last.encode()) if state.last else b"")
        replace_file(paths.state, state.encode())
        os.chmod(folder, 0o2770)
        sync_tree(folder)
        with self._store.locks.hold(name):
            if self._same_or_new(name, folder, entries):
                return self._store.state(name)
            self._store.queue.add(state.site, state.user, state.queue_key)
            os.rename(folder, self._paths.jobs / name)
            fsync_dir(self._paths.jobs)
            self._store.published(state)
        return state

    def _same_or_new(self, name: str, folder: Path, entries: tuple[FileEntry, ...]) -> bool:
        """True where this job is here already with the same bytes; `Duplicate` where the UUID is taken by another."""
        try:
            known = self._store.state(name)
        except NotFound:
            return False
        if known.inputs == entries and self._store.job_bytes(name) == read_record(folder / "job.json", JOB_LIMIT_BYTES):
            return True
        raise Duplicate(f"job {name} exists with other contents", hint="make a new UUID with uuidgen for a new job")

    def _reject_unless_fresh(self, name: str, why: SpoolError, config: SpoolConfig) -> None:
        """Reject the drop, but one that may still be being written only after it did not change for a while."""
        folder = self._paths.drop / name
        now, seen = time.monotonic(), _fingerprint(folder)
        look = self._looks.get(name)
        if look is None or look.seen != seen:
            look = self._looks[name] = _Look(seen, now, now)
        look.judged_at = now
        if isinstance(why, _UNFINISHED) and now - look.quiet_since < config.server["drop_quiet_s"]:
            return
        self._reject(name, folder, why)
        self._looks.pop(name, None)

    def _reject(self, name: str, folder: Path, why: SpoolError) -> None:
        target = self._paths.rejected / name.lstrip(".")[:200]
        while os.path.lexists(target):
            target = target.with_name(target.name + "+")
        reason = {"at": utc_now(), "id": name, "code": why.code, "message": why.message, "hint": why.hint}
        if not folder.is_dir() or folder.is_symlink():
            os.mkdir(target, 0o2770)
            os.rename(folder, target / "drop")
        else:
            os.rename(folder, target)
        replace_file(target / "reason.json", jsonio.dumps(reason))
        fsync_dir(self._paths.rejected)
        log.warning("rejected", job=name, code=why.code, why=why.message, folder=target)


def _whole_json(path: Path) -> bytes:
    """Return the bytes of job.json if they are whole JSON; `Unreadable` where they are not there, or not yet."""
    try:
        data = read_record(path, JOB_LIMIT_BYTES)
        jsonio.loads(data, "job.json")
    except (FileNotFoundError, PermissionError) as exc:
        raise Unreadable("job.json is missing or unreadable", hint="write job.json last, readable by the group") from exc
    except InvalidRecord as exc:
        raise Unreadable(exc.message, hint=exc.hint) from exc
    return data


def _check_listing(listing: Listing, named: set[str]) -> None:
    """Raise unless `in/` holds exactly the files that job.json names."""
    if listing.odd:
        raise OddInputs(f"in/ holds what cannot be carried: {'; '.join(listing.odd[:5])}", hint="put regular files there")
    missing, extra = sorted(named - set(listing.files)), sorted(set(listing.files) - named)
    if missing:
        raise MissingInputs(f"in/ does not hold {', '.join(missing[:5])}", hint="put every input named in job.json into in/")
    if extra:
        raise MissingInputs(f"job.json does not name {', '.join(extra[:5])}", hint="add it to inputs, or remove it from in/")


def _user_of(job: Job, owner: int, config: SpoolConfig) -> str:
    """Return whose job it is: `user` counts only from this program's own uid and from trusted ones."""
    if job.user and (owner == os.geteuid() or owner in config.server["trusted_uids"]):
        return job.user
    try:
        return check_user(pwd.getpwuid(owner).pw_name)
    except KeyError as exc:
        raise InvalidRecord(
            f"uid {owner} has no login name here", hint="set user in job.json and list the uid as trusted"
        ) from exc


def _owner_of(folder: Path, info: os.stat_result) -> int:
    try:  # a copied drop remembers whose it was
        return int(read_record(folder.parent / "owner", 32))
    except FileNotFoundError:
        return info.st_uid


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _fingerprint(folder: Path) -> tuple[int, ...]:
    """Return what changes when anything in `folder` is written: names, sizes and times of everything in it."""
    found: list[int] = []
    try:
        info = os.lstat(folder)
        found += [info.st_mtime_ns, info.st_ino]
        for _, dirs, names, dir_fd in os.fwalk(folder, follow_symlinks=False):
            for name in (*dirs, *names):
                info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                found += [info.st_ino, info.st_size, info.st_mtime_ns]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        found.append(-1)
    return tuple(found)
