"""Who has said what of held results: one small file a person and a run (docs/security.md, "Release by a person").

A person is an operating-system user: the owner of the decision's file, which the kernel has written down and only root can
change. The folder is the agent's, open for writing to the reviewers' group and sticky, so that nobody removes another's word. A
decision is over the SHA-256 of the exact bytes of `result.json`, whose manifest lists every byte that would leave: it is
none for any other run or manifest.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from spool import jsonio, log
from spool.errors import ConfigError, Conflict, InvalidRecord, NotAllowed, SpoolError
from spool.fields import Fields
from spool.files import fsync_dir, write_new
from spool.instants import utc_now
from spool.names import check_id

RELEASE, REFUSE = "release", "refuse"
MAX_BECAUSE = 500
_MAX_BYTES = 16 * 1024
_NAME = re.compile(r"([0-9a-f-]{36})\.([0-9a-f-]{36})\.([0-9]{1,10})\.json")


@dataclass(frozen=True)
class Decision:
    """What `person` (a user's name) has said of the results of one run whose `result.json` has the SHA-256 `manifest`."""

    id: str
    run_id: str
    manifest: str
    word: str
    because: str
    at: str
    person: str = ""

    @classmethod
    def parse(cls, data: bytes, person: str) -> Decision:
        """Read a decision's file; `person` is its owner."""
        fields = Fields(jsonio.loads(data, "the decision"), "the decision")
        fields.format()
        word = fields.string("decision")
        if word not in (RELEASE, REFUSE):
            raise fields.wrong("decision", f"must be {RELEASE} or {REFUSE}")
        return cls(check_id(fields.string("id")), check_id(fields.string("run_id")), fields.string("manifest"), word,
                   fields.string("because", "")[:MAX_BECAUSE], fields.string("at", ""), person)  # fmt: skip

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        value = {"format": 1, "id": self.id, "run_id": self.run_id, "manifest": self.manifest, "decision": self.word}
        return jsonio.dumps({**value, "because": self.because, "at": self.at})


@dataclass(frozen=True)
class Rules:
    """Who may decide: `reviewers` (names; none: the agent's own account alone), how many persons must say release, and
    whether the job's submitter may be one of them.
    """

    reviewers: tuple[str, ...] = ()
    persons: int = 1
    not_submitter: bool = False

    def why_not(self, person: str, submitter: str) -> str:
        """Return why `person` may not decide on a job of `submitter`, or ``""``."""
        allowed = self.reviewers or (name_of(os.geteuid()),)
        if person not in allowed:
            return f"{person} is not one of those who decide here: {' '.join(allowed)}"
        if self.not_submitter and person == submitter:
            return f"{person} has submitted the job; somebody else decides"
        return ""

    def verdict(self, decisions: Collection[Decision], submitter: str) -> tuple[str, tuple[Decision, ...]]:
        """Return (the word that holds, or "" while it is open; the decisions that count). One refusal is enough."""
        counted = {one.person: one for one in decisions if not self.why_not(one.person, submitter)}
        found = tuple(sorted(counted.values(), key=lambda one: one.person))
        if refusals := tuple(one for one in found if one.word == REFUSE):
            return REFUSE, refusals
        return (RELEASE if len(found) >= self.persons else ""), found


def name_of(uid: int) -> str:
    """Return the user's name, or ``uid N`` where the system knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class Decisions:
    """The folder of decisions below an agent's base."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, group: str = "") -> None:
        """Make the folder, for the agent alone or for `group` to write to. Raises `ConfigError` where that cannot be."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            info = os.lstat(self.folder)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                raise ConfigError(f"{self.folder} is not the agent's own folder", hint="remove it")
            if group:
                os.chown(self.folder, -1, grp.getgrnam(group).gr_gid)
            os.chmod(self.folder, 0o1730 if group else 0o700)
        except KeyError as exc:
            raise ConfigError(f"[release] reviewers_group: there is no group {group!r}", hint="groupadd, or correct it") from exc
        except OSError as exc:
            raise ConfigError(f"{self.folder} cannot be made ready: {exc.strerror}", hint="is the agent in that group?") from exc

    def write(self, job_id: str, run_id: str, manifest: str, word: str, because: str = "") -> Decision:
        """Say `word` as the user who runs this process; the file appears whole.

        Raises `Conflict` where that user has spoken already, `NotAllowed` where the folder takes nothing of that user.
        """
        uid, person = os.geteuid(), name_of(os.geteuid())
        made = Decision(check_id(job_id), check_id(run_id), manifest, word, because[:MAX_BECAUSE], utc_now(), person)
        path = self.folder / f"{job_id}.{run_id}.{uid}.json"
        temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            if os.path.lexists(path):
                raise Conflict(f"{person} has decided on run {run_id} already", hint="a decision is not taken back")
            write_new(temp, made.encode(), mode=0o644)
            os.chmod(temp, 0o644)  # whatever the umask: the agent is to read it, and the folder lets nobody else in
            os.rename(temp, path)
            with contextlib.suppress(PermissionError):  # reviewers may write into the folder, not list it
                fsync_dir(self.folder)
        except PermissionError as exc:
            raise NotAllowed(f"{person} may not decide here", hint="see [release] reviewers_group in agent.ini") from exc
        return made

    def of(self, job_id: str, run_id: str, manifest: str, uids: Collection[int] = ()) -> Iterator[Decision]:
        """Yield what was said of exactly these results; whatever else lies here is logged and counts for nothing.

        Only the agent may list the folder; with `uids` their files alone are looked for.
        """
        try:
            names = [f"{job_id}.{run_id}.{uid}.json" for uid in uids] or sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or match[1] != job_id or match[2] != run_id:
                continue
            try:
                decision = self._read(name, int(match[3]))
                if (decision.id, decision.run_id, decision.manifest) != (job_id, run_id, manifest):
                    raise InvalidRecord("it is about other results", hint="show them, and decide again")
                yield decision
            except FileNotFoundError:
                continue
            except (SpoolError, OSError) as exc:
                log.warning("decision_does_not_count", job=job_id, run=run_id, file=name, why=exc)

    def _read(self, name: str, uid: int) -> Decision:
        fd = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:  # a hard link would carry another's name
                raise InvalidRecord("it is no plain file of its own", hint="links do not count")
            if info.st_uid != uid:
                raise InvalidRecord(f"it belongs to {name_of(info.st_uid)}", hint="its name says another user")
            if info.st_mode & 0o022:
                raise InvalidRecord("others could have written it", hint="spool_agent.py release writes it")
            data = os.read(fd, _MAX_BYTES + 1)
        finally:
            os.close(fd)
        if len(data) > _MAX_BYTES:
            raise InvalidRecord("it is too long", hint="spool_agent.py release writes it")
        return Decision.parse(data, name_of(uid))

