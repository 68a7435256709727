"""Taking in what was handed in at `drop/` (docs/format.md, "Drops").

Whoever runs as the owner of the spool accepts: server, push or spoolctl, several at once. A drop is taken to
`tmp/accept.UUID/job/` first, where its submitter cannot change it any more, then checked, hashed outside the jobs' locks,
given its `state.json`, synced, entered in the queue and renamed into `jobs/`. Every step can be repeated after a crash; what
is found in `tmp/` is simply carried on. A drop that cannot be accepted goes to `rejected/` (see `spool.rejecting`).

No drop holds up another: whatever a stranger puts there ends as a reason or as one line in the log, and is looked at
again after `REJUDGE_S`. With less than `min_free` on the disk all drops stay where they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spool import jsonio, log
from spool.config import SpoolConfig
from spool.errors import Busy, Duplicate, InvalidName, InvalidRecord, MissingInputs, NotFound, SpoolError
from spool.files import beneath, fits, free_bytes, fsync_dir, read_record, replace_file, sync_tree, walk
from spool.instants import from_epoch, to_epoch, utc_now
from spool.manifest import Listing, hash_files, list_files, printable
from spool.names import check_user, is_id
from spool.paths import JobPaths, SpoolPaths
from spool.queue import make_key
from spool.records import JOB_LIMIT_BYTES, FileEntry, HistoryEntry, Job, JobState
from spool.rejecting import reject
from spool.room import why_no_room
from spool.signed import check_handed_in, signature_of
from spool.staging import Staging, check_same_owner
from spool.states import State
from spool.store import Store

REJUDGE_S = 1.0
# What the contents of a drop can cause, and never the spool's disk: a file where a folder should be, modes, sockets.
_BY_CONTENTS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}


class Unreadable(InvalidRecord):
    """Something cannot be read, or job.json is not whole JSON: perhaps it is still being written."""


class OddInputs(InvalidName):
    """`in/` holds a link or a name that cannot be carried: perhaps a temporary file of whoever is still writing."""


class OddDrop(InvalidName):
    """Something in `drop/` that is no job folder: perhaps it is about to be renamed."""


# Reasons that may pass: the folder is perhaps still being written.
_UNFINISHED = (MissingInputs, Unreadable, OddInputs, OddDrop, Busy)


def may_accept(paths: SpoolPaths) -> bool:
    """True where this process runs as the owner of the spool, and what it accepts is out of its submitter's reach."""
    return os.stat(paths.spool_json).st_uid == os.geteuid()


def check_against(job: Job, user: str, config: SpoolConfig, store: Store) -> None:
    """Raise unless MInt lets `user` ask for `job`: site and workflow enabled, user and command on the site's lists."""
    site = config.site(job.site)
    store.controls.get().check_enabled(job.site, job.workflow)
    site.check_user(user)
    site.check_command(job.command)
    if job.expires_at and to_epoch(job.expires_at) <= store.clock.certain():
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


def first_state(
    job: Job, job_id: str, user: str, entries: tuple[FileEntry, ...], *, state: State, by: str, via: str = ""
) -> JobState:
    """Return revision 1 of a job that is about to be published, `new` or `queued`; `via`: the protocol it came in by."""
    now = utc_now()
    key = make_key(job_id, 1, job.priority) if state == State.QUEUED else ""
    entry = HistoryEntry(revision=1, at=now, source="", target=str(state), by=by, attempt=1, why="accepted")
    return JobState(
        id=job_id, state=state, site=job.site, user=user, revision=1, command=job.command, workflow=job.workflow,
        priority=job.priority, queue_key=key, submitted_at=now, changed_at=now, inputs=entries, last=entry,
        expires_at=from_epoch(to_epoch(job.expires_at)) if job.expires_at else "", via=via,
    )  # fmt: skip


@dataclass
class _Look:
    """When a drop was last looked at and what it was like, so that one that waits is neither tried nor logged all the time."""

    glance: tuple[int, ...] = ()
    judged_at: float = 0.0
    contents: int = 0
    quiet_since: float = 0.0
    told: str = ""


class Drops:
    """The accepting of one process. `scan` is cheap and returns at once; the work happens in `workers` threads."""

    def __init__(self, store: Store, *, workers: int = 4) -> None:
        self._store = store
        self._paths = store.paths
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="accept")
        self._looks: dict[str, _Look] = {}
        self._under_way: dict[str, Future[None]] = {}
        self._disk_full = False

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True)

    def scan(self, config: SpoolConfig) -> int:
        """Look at `drop/` and at what an earlier process left in `tmp/`; return how many are under way."""
        self._under_way = {name: future for name, future in self._under_way.items() if not future.done()}
        taken = {name[len("accept.") :] for name in _names(self._paths.tmp) if name.startswith("accept.")}
        found = {name for name in _names(self._paths.drop) if not name.startswith(".")} | set(filter(is_id, taken))
        for name in self._looks.keys() - found:
            self._looks.pop(name, None)
        if found and self._has_room(config):
            for name in sorted(found - self._under_way.keys()):
                if self._due(name):
                    self._under_way[name] = self._pool.submit(self._safely, name, config)
        return len(self._under_way)

    def _has_room(self, config: SpoolConfig) -> bool:
        why = why_no_room(self._paths.root, config.server["min_free"])
        if bool(why) != self._disk_full:
            self._disk_full = not self._disk_full
            if self._disk_full:
                log.error("drops_wait", why=why, hint="free space or inodes on the spool's disk, or remount it writable")
            else:
                log.info("drops_go_on", free_bytes=free_bytes(self._paths.root))
        return not self._disk_full

    def _due(self, name: str) -> bool:
        """True where `name` is new, has changed or was last judged a while ago; notes that it is judged now."""
        now, glance = time.monotonic(), _glance(self._paths.drop / name)
        look = self._looks.setdefault(name, _Look())
        if look.glance == glance and now - look.judged_at < REJUDGE_S:
            return False
        look.glance, look.judged_at = glance, now
        return True

    def _safely(self, name: str, config: SpoolConfig) -> None:
        try:
            self.accept(name, config)
        except Busy as exc:  # another process has it, or it is still being written
            log.debug("drop_waits", job=name, why=exc)
        except (SpoolError, OSError) as exc:  # a full disk: this drop waits; the others go on
            # Not the text of an OSError: it may name a temporary file, another one each time.
            if self._is_news(name, str(exc.strerror if isinstance(exc, OSError) else exc)):
                log.warning("drop_waits", job=name, why=exc)
        except Exception as exc:  # noqa: BLE001 - outermost frame of the worker: a defect, but the others go on
            if self._is_news(name, repr(exc)):
                log.error("drop_failed", trace=True, job=name, why=repr(exc))

    def _is_news(self, name: str, why: str) -> bool:
        look = self._looks.setdefault(name, _Look())
        told, look.told = look.told, why
        return told != why

    def accept(self, name: str, config: SpoolConfig) -> JobState | None:
        """Judge the drop `name` now: accepted (its state is returned), rejected, or not finished yet (None).

        With too little room on the disk nothing happens (None).
        """
        if not self._has_room(config):
            return None
        if not is_id(name):
            self._reject_unless_fresh(name, OddDrop(f"{name!r} is not a UUID", hint="name the folder with uuidgen"), config)
            return None
        staging = Staging(self._paths, name)
        if not staging.job.exists():
            try:
                _check_foreign(self._paths.drop / name)
                self._judge(name, self._paths.drop / name, config)
            except FileNotFoundError:
                if not staging.folder.exists():
                    return None
            except SpoolError as exc:
                self._reject_unless_fresh(name, exc, config)
                return None
        with staging.held():
            return self._carry_on(name, staging, config)

    def _carry_on(self, name: str, staging: Staging, config: SpoolConfig) -> JobState | None:
        try:
            self._take(name, staging)
        except FileNotFoundError:  # another process has published it meanwhile
            staging.clear()
            return None
        except SpoolError as exc:
            staging.clear()
            self._reject_unless_fresh(name, exc, config)
            return None
        try:
            job, user = self._judge(name, staging.job, config, owner=staging.owner())
            with _contents_to_blame():
                entries = freeze_inputs(job, staging.job / "in")
            state = self._publish(name, staging.job, job, user, entries)
        except Busy:
            raise
        except SpoolError as exc:
            reject(self._paths, name, staging.job, exc)
            state = None
        staging.clear()
        self._looks.pop(name, None)
        return state

    def _judge(self, name: str, folder: Path, config: SpoolConfig, *, owner: int | None = None) -> tuple[Job, str]:
        """Return the job and its user; raise whatever stands against it. Reads only, and hashes nothing.

        `owner` is the uid that handed it in; none: who owns the folder.
        """
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode):
            raise OddDrop(f"drop/{name} is not a folder", hint="hand in a folder that holds job.json and in/")
        with _contents_to_blame():
            job = Job.parse(_whole_json(folder / "job.json"))
            if job.id not in ("", name):
                raise InvalidName(f"job.json names the id {job.id}, the folder {name}", hint="leave id out, or make them equal")
            if owner is None:
                check_same_owner(info.st_uid, os.lstat(folder / "job.json").st_uid)
            user = _user_of(job, info.st_uid if owner is None else owner, config)
            check_against(job, user, config, self._store)
            check_handed_in(signature_of(JobPaths(folder)), job, name, user)
            _check_listing(list_files(folder / "in"), {item.path for item in job.inputs})
        return job, user

    def _take(self, name: str, staging: Staging) -> None:
        """Bring the drop into `staging`, out of its submitter's reach: by rename where it is ours, else by copy."""
        source = self._paths.drop / name
        if staging.job.exists():
            return
        with _contents_to_blame():
            if _owners(source) == {os.geteuid()}:
                staging.move_in(source)
                return
            staging.copy_in(source)
        staging.set_aside(source)

    def _publish(self, name: str, folder: Path, job: Job, user: str, entries: tuple[FileEntry, ...]) -> JobState | None:
        state = first_state(job, name, user, entries, state=State.QUEUED, by=user)
        self._same_or_new(name, folder, entries)
        paths = JobPaths(folder)
        with _contents_to_blame():
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
        signatures = signature_of(self._paths.job(name)), signature_of(JobPaths(folder))
        same = self._store.job_bytes(name) == read_record(folder / "job.json", JOB_LIMIT_BYTES)
        if known.inputs == entries and same and signatures[0] == signatures[1]:
            return True
        raise Duplicate(f"job {name} exists with other contents", hint="make a new UUID with uuidgen for a new job")

    def _reject_unless_fresh(self, name: str, why: SpoolError, config: SpoolConfig) -> None:
        """Reject the drop, but one that may still be being written only after it did not change for a while."""
        folder = self._paths.drop / name
        now, contents = time.monotonic(), _fingerprint(folder)
        look = self._looks.setdefault(name, _Look())
        if look.contents != contents:
            look.contents, look.quiet_since = contents, now
        if isinstance(why, _UNFINISHED) and now - look.quiet_since < config.server["drop_quiet_s"]:
            return
        reject(self._paths, name, folder, why)
        self._looks.pop(name, None)


@contextlib.contextmanager
def _contents_to_blame() -> Iterator[None]:
    """Make a reason of an `OSError` that what lies in the drop has caused; others pass: the disk, a folder that is gone."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _BY_CONTENTS:
            raise
        where = printable(str(exc.filename)) if isinstance(exc.filename, (str, Path)) else "the folder"
        raise Unreadable(f"{where}: {exc.strerror}", hint="put regular files there, readable by the group of the spool") from exc


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


def _check_foreign(folder: Path) -> None:
    """Raise where the drop brings records or results of another job along: a copied job folder, say."""
    ours = ("state.json", "history.jsonl", "attempts", *JobPaths.OF_AN_ATTEMPT)
    found = [name for name in ours if os.path.lexists(folder / name)]
    if found:
        raise InvalidRecord(
            f"the folder brings {', '.join(found)} along, which only the spool writes", hint="hand in job.json and in/ alone"
        )


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


def _owners(folder: Path) -> set[int]:
    """Return the uids that something in `folder` belongs to; `OddInputs` where it is too deep to be looked through."""
    owners = {os.lstat(folder).st_uid}
    for place in walk(folder):
        owners.update(info.st_uid for _, info in place.entries)
        for name, info in place.entries:
            if stat.S_ISDIR(info.st_mode) and not fits(beneath(place.path, name)):
                raise OddInputs("its folders are nested too deep", hint="names below a job's folder have at most 1024 bytes")
    return owners


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _glance(folder: Path) -> tuple[int, ...]:
    """Return what changes when the drop or its job.json is replaced or completed: cheap, for every scan."""
    found: list[int] = []
    for path in (folder, folder / "job.json", folder / "in"):
        with contextlib.suppress(OSError):
            info = os.lstat(path)
            found += [info.st_ino, info.st_size, info.st_mtime_ns]
    return tuple(found)


def _fingerprint(folder: Path) -> int:
    """Return a number that changes when anything in `folder` is written: names, sizes and times of everything in it."""
    found: list[tuple[object, ...]] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        top = os.lstat(folder)
        found.append((top.st_ino, top.st_size, top.st_mtime_ns))
        for place in walk(folder, on_denied=lambda path: None):
            found += [(name, info.st_ino, info.st_size, info.st_mtime_ns) for name, info in place.entries]
    return hash(tuple(found))
