"""One job's folder at an open site, ``BASE/UUID``, and what is asked of it there.

The folder carries `run_id`, written before anything is sent: every verb looks at it first, so that a folder of an earlier
attempt, or one that is gone, is never taken for this run's. The runner lies at ``BASE/.mint-spool/runner-HASH.sh``, sent
when it is missing. Beside it `disk` names the disk that base is on: a folder counts as gone only where the disk that had
it says so. Nothing here starts a command twice: that is the runner's promise (spool/runner.sh).

The scripts take everything as arguments and interpolate nothing; `-O` (owned by me) is in dash, bash and busybox.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
import time
from collections.abc import Collection, Sequence

from spool import log, runner
from spool.errors import NoSpace, SpoolError
from spool.runner import RunStatus, parse_status, parse_sums
from spool.ssh.connection import NO_SPACE_HINT, Connection, Done, SiteTrouble, says_no_space
from spool.states import Reason

_NO_RUNNER, _GONE, _UNSEEN, _UNREAD = 86, 87, 88, 89
_ENTERED = re.compile(r"([0-9a-f-]{36}) ([0-9a-f-]{36})?\n")

# Shells do not all say why a write failed, nor in which language: at a failure a copy is tried, whose words are known.
_ROOM = r"""
room() {
    LC_ALL=C cp /proc/self/status "$1/.room.$$"
    rm -f "$1/.room.$$"
}
"""

_INSTALL = _ROOM + r"""
umask 077
LC_ALL=C
export LC_ALL
mkdir -p "$1" || exit 1
[ -O "$1" ] && [ ! -L "$1" ] || { echo "$1 belongs to another user; choose another base" >&2; exit 1; }
chmod 700 "$1"
part=$1/.$2.$$
if cat >"$part" && [ "$(sha256sum <"$part")" = "$3  -" ] && chmod 500 "$part" && mv -f "$part" "$1/$2"; then exit 0; fi
rm -f "$part"
room "$1"
echo "cannot write $1/$2; check free space, owner and mode" >&2
exit 1
"""

# An rsync that still receives inputs here. Where the line broke, the site may hear of it later than MInt: until then that rsync
# holds what has arrived under a name of its own, and the next one would begin from nothing. SIGTERM has it keep that as a partial
# file, and the next one waits for that. Both of its processes at the site work in the job's folder.
_SETTLE = r"""
receivers() {
    for process in /proc/[0-9]*; do
        [ "$process/cwd" -ef "$1" ] || continue
        case $(tr '\0' ' ' <"$process/cmdline") in *--sender*) ;; *rsync*--server*) echo "${process#/proc/}" ;; esac
    done
} 2>/dev/null
settle() {
    naps=0
    while pids=$(receivers "$1") && [ -n "$pids" ] && [ "$naps" -lt 50 ]; do
        [ "$naps" -gt 0 ] || kill -s TERM $pids
        naps=$((naps + 1))
        sleep 0.1 || sleep 1
    done
} 2>/dev/null
"""

# What an earlier attempt left is stopped and moved aside, its run_id last, so that a cut anywhere is made good by the next call.
# A run that is of no earlier attempt was started before MInt was restored from a backup: it is named and left as it is.
_ENTER = _ROOM + _SETTLE + r"""
umask 077
LC_ALL=C
export LC_ALL
base=$1 dir=$1/$2 run=$3 runner=$4 mark=$1/.mint-spool/disk old= disk= earlier=
[ -r "$runner" ] && [ "$(sha256sum <"$runner")" = "$5  -" ] || exit 86
shift 5
aside() {
    mkdir -p "$dir/attempts/$old" && mv "$1" "$dir/attempts/$old/" || { room "$dir"; exit 1; }
}
if ! { read -r disk <"$mark"; } 2>/dev/null; then
    [ -s "$mark" ] || rm -f "$mark"
    printf '%s\n' "$run" >"$mark.$$" || { rm -f "$mark.$$"; room "${mark%/*}"; exit 1; }
    ln "$mark.$$" "$mark" 2>/dev/null || [ -e "$mark" ] || cp "$mark.$$" "$mark"
    rm -f "$mark.$$"
    read -r disk <"$mark" || exit 1
fi
[ -d "$dir" ] || mkdir "$dir" || exit 1
[ -O "$dir" ] && [ ! -L "$dir" ] || { echo "$dir belongs to another user" >&2; exit 1; }
settle "$dir"
if [ -s "$dir/run_id" ]; then read -r old <"$dir/run_id" || exit 1; fi
if [ "$old" != "$run" ]; then
    [ ! -d "$dir/attempts/$run" ] || exit 87
    for known in "$@"; do [ "$known" != "$old" ] || earlier=1; done
    if [ -n "$old" ] && [ -z "$earlier" ] && [ -d "$dir/run" ]; then
        status=$(sh "$runner" status "$dir") || exit 1
        case $status in starting* | running* | exited* | lost*) printf '%s %s\n' "$disk" "$old"; exit 0 ;; esac
    fi
    if [ -d "$dir/run" ]; then sh "$runner" cancel "$dir" >/dev/null || { room "$dir"; exit 1; }; fi
    case $old in '' | *[!0-9a-f-]*) old=unknown.$$ ;; esac
    for file in "$dir"/* "$dir"/.[!.]*; do
        case ${file##*/} in attempts | run_id) continue ;; esac
        if [ -e "$file" ] || [ -L "$file" ]; then aside "$file"; fi
    done
    if [ -e "$dir/run_id" ]; then aside "$dir/run_id"; fi
    printf '%s\n' "$run" >"$dir/.run_id.$$" || { room "$dir"; exit 1; }
    sync "$dir/.run_id.$$" 2>/dev/null || sync
    mv "$dir/.run_id.$$" "$dir/run_id" || exit 1
    sync "$dir" 2>/dev/null || sync
fi
mkdir -p "$dir/in" "$dir/log" && printf '%s \n' "$disk"
"""

# Gone (87) is what the disk itself says; where it cannot be asked or is another one (88), or the folder cannot be read (89), it
# may come back.
_VERB = _ROOM + r"""
base=$1 dir=$1/$2 id=$2 run=$3 runner=$4 disk=$5 verb=$6 old= here=
shift 6
if { read -r old <"$dir/run_id"; } 2>/dev/null && [ "$old" = "$run" ]; then
    [ -r "$runner" ] || exit 86
    if [ "$verb" = start ]; then sh "$runner" "$verb" "$dir" "$@"; else LC_ALL=C sh "$runner" "$verb" "$dir" "$@"; fi
    code=$?
    [ "$code" = 0 ] || room "$dir"
    exit "$code"
fi
{ read -r here <"$base/.mint-spool/disk"; } 2>/dev/null
if [ -n "$disk" ]; then [ "$here" = "$disk" ] || exit 88; else [ -d "$base/.mint-spool" ] || exit 88; fi
[ -z "$old" ] || exit 87
if [ -d "$dir" ]; then
    names=$(ls -A "$dir") || exit 89
    [ ! -s "$dir/run_id" ] || exit 89
else
    for name in $(ls "$base" || echo "$id"); do [ "$name" != "$id" ] || exit 89; done
fi
exit 87
"""

# keep_days = 0 takes the folder away at once.
_DELIVERED = r"""
dir=$1/$2 old=
{ read -r old <"$dir/run_id"; } 2>/dev/null
[ "$old" = "$3" ] || exit 0
if [ "$5" = 0 ]; then rm -rf "$dir"; exit; fi
umask 077
printf '%s\n' "$4" >"$dir/delivered"
"""

_CLEAN = r"""
for mark in "$1"/*-*-*-*-*/delivered; do
    dir=${mark%/delivered} spool=
    case ${dir##*/} in *[!0-9a-f-]*) continue ;; ????????-????-????-????-????????????) ;; *) continue ;; esac
    [ -O "$dir" ] && [ ! -L "$dir" ] && [ -f "$dir/run_id" ] || continue
    { read -r spool <"$mark"; } 2>/dev/null
    [ "$spool" = "$2" ] && [ -n "$(find "$mark" -mmin +"$3")" ] || continue
    rm -rf "$dir" && printf '%s\n' "${dir##*/}"
done
"""


class FolderGone(SpoolError):
    """The job's folder is not at the site any more, or belongs to another run."""

    code = "lost"


class Replaced(FolderGone):
    """The folder was this run's, and a later run has moved it aside: it may have been started, and MInt has forgotten that."""


class CannotTell(SiteTrouble):
    """The site answered, but not how the run stands (its disk is not mounted, say); `since_s` says for how long that is so."""

    def __init__(self, message: str, *, since_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint, reason=Reason.LOST)
        self.since_s = since_s


class AtSite:
    """The folder of one run at the site. Every method may be repeated; errors as `Connection`, `FolderGone`, `SiteTrouble`.

    `disk` names the disk that base was on when the run first went there; empty where that is not known.
    """

    def __init__(self, connection: Connection, base: str, job_id: str, run_id: str, disk: str = "") -> None:
        self.connection = connection
        self.base = "/" + base.strip("/")
        self.disk = disk
        self.job_id = job_id
        self.run_id = run_id
        self.folder = f"{self.base.rstrip('/')}/{job_id}"
        self._script = pkgutil.get_data(runner.__name__, "runner.sh") or b""
        self._digest = hashlib.sha256(self._script).hexdigest()
        self._runner_name = f"runner-{self._digest[:16]}.sh"
        self._runner = f"{self.base.rstrip('/')}/.mint-spool/{self._runner_name}"

    def install_runner(self) -> None:
        """Send the runner of this release. Safe to repeat: it appears whole, under a name that holds its digest."""
        folder = self._runner.rpartition("/")[0]
        done = self.connection.run(_sh(_INSTALL, folder, self._runner_name, self._digest), stdin=self._script)
        self._check(done, "installing the runner", "check that base exists and is writable, and that sha256sum is installed")
        log.info("runner_installed", site=self.connection.site.name, file=self._runner)

    def enter(self, earlier: Collection[str] = ()) -> str:
        """Make the folder this run's, and learn its `disk`; what a run of an `earlier` attempt left is stopped and moved aside.

        Returns the empty string, or the id of another run, of none of those, that was started there: nothing is changed then.
        """
        blind = list(self.connection.blind.items())
        if unseen := [job_id for job_id, (base, _) in blind if base == self.base and job_id != self.job_id]:
            what = f"nothing new goes to {self.base} while job {unseen[0]} cannot be seen there"
            raise CannotTell(what, since_s=0.0, hint="is its file system mounted?")
        words = (self.base, self.job_id, self.run_id, self._runner, self._digest, *earlier)
        done = self.connection.run(_sh(_ENTER, *words))
        if done.code == _NO_RUNNER:
            self.install_runner()
            done = self.connection.run(_sh(_ENTER, *words))
        if done.code == _GONE:
            hint = "a restore from a backup? see attempts/ in that folder, then requeue the job"
            raise Replaced(f"run {self.run_id} was in {self.folder} and was replaced since", hint=hint)
        self._check(done, f"making {self.folder}", "check owner, mode and free space of base at the site")
        match = _ENTERED.fullmatch(done.out)
        if match is None:
            raise self._garbled(ValueError(f"unexpected answer {done.out[:200]!r}"))
        self.disk = match[1]
        self.forget_blindness()
        return match[2] or ""

    def prepare(self) -> None:
        """``in/`` copied to ``work/``, once."""
        self._verb("prepare", long=True)

    def start(self) -> RunStatus:
        """Start the command unless it ever was."""
        return self._status("start", reason=Reason.SPAWN)

    def status(self) -> RunStatus:
        """Where the run stands."""
        return self._status("status")

    def cancel(self) -> RunStatus:
        """Stop the command, or see to it that it never starts."""
        return self._status("cancel")

    def sums(self, folder: str) -> tuple[dict[str, str], list[str]]:
        """Return SHA-256 by name of the files below `folder`, and the names of what is no file."""
        out = self._verb("sums", folder, long=True)
        try:
            return parse_sums(out)
        except ValueError as exc:
            raise self._garbled(exc) from exc

    def delivered(self, spool_id: str, keep_days: int) -> None:
        """Mark the folder as delivered, which gives it over to `clean`; with `keep_days` 0 it is removed."""
        self.connection.run(_sh(_DELIVERED, self.base, self.job_id, self.run_id, spool_id, str(keep_days)))

    def _status(self, verb: str, *, reason: Reason | None = None) -> RunStatus:
        """Return what `verb` says of the run; without `reason` a refusal is no verdict on it."""
        try:
            status = parse_status(self._verb(verb, reason=reason or Reason.TRANSFER))
            self.forget_blindness()
            return status
        except ValueError as exc:
            trouble = self._garbled(exc)
        except CannotTell:
            raise
        except SiteTrouble as exc:
            trouble = exc
        if reason is not None:
            raise trouble
        raise CannotTell(trouble.message, since_s=self._blind_for_s(), hint=trouble.hint)

    def _garbled(self, exc: ValueError) -> SiteTrouble:
        hint = "does the login shell there print something by itself (.bashrc)? ssh_push.py check SITE tells"
        return SiteTrouble(f"site {self.connection.site.name}: {exc}", hint=hint)

    def _verb(self, verb: str, *more: str, long: bool = False, reason: Reason = Reason.TRANSFER) -> str:
        words = (self.base, self.job_id, self.run_id, self._runner, self.disk, verb, *more)
        done = self.connection.run(_sh(_VERB, *words), long=long)
        if done.code == _NO_RUNNER:  # cleaned away at the site
            self.install_runner()
            done = self.connection.run(_sh(_VERB, *words), long=long)
        if done.code == _UNSEEN:
            what = f"{self.folder} cannot be seen: {self.base} is gone or on another disk"
            since_s = self._blind_for_s(self.base)
            raise CannotTell(_with(what, done), since_s=since_s, hint="is its file system mounted?")
        if done.code == _UNREAD:
            what = f"{self.folder} cannot be read"
            raise CannotTell(_with(what, done), since_s=self._blind_for_s(), hint="look at its owner and mode at the site")
        if done.code == _GONE:
            raise FolderGone(f"the folder {self.folder} of this run is gone at the site", hint="requeue the job, or ask the site")
        self._check(done, f"{verb} in {self.folder}", "the message names what to do at the site", reason)
        return done.out

    def _blind_for_s(self, base: str = "") -> float:
        """Return for how many seconds it could not be told how this run stands, from the first such answer on.

        `base` is given where it is that which cannot be seen: nothing new goes there until then.
        """
        now = time.monotonic()
        _, since = self.connection.blind.get(self.job_id, ("", now))
        self.connection.blind[self.job_id] = (base, since)
        return now - since

    def forget_blindness(self) -> None:
        """The run was seen, or is over."""
        self.connection.blind.pop(self.job_id, None)

    def _check(self, done: Done, what: str, hint: str, reason: Reason = Reason.TRANSFER) -> None:
        if done.code != 0:
            said = _said(done) or f"exit code {done.code}"
            if says_no_space(done.err):
                raise NoSpace(f"site {self.connection.site.name}: {what}: {said}", hint=NO_SPACE_HINT)
            raise SiteTrouble(f"site {self.connection.site.name}: {what}: {said}", hint=hint, reason=reason)


def _with(what: str, done: Done) -> str:
    said = _said(done)
    return f"{what}: {said}" if said else what


def _said(done: Done) -> str:
    return " ".join(done.err.split())[-400:]


def clean(connection: Connection, base: str, spool_id: str, keep_days: int) -> list[str]:
    """Remove the folders of this spool's jobs at the site that were delivered more than `keep_days` ago; return their ids."""
    done = connection.run(_sh(_CLEAN, "/" + base.strip("/"), spool_id, str(keep_days * 24 * 60)), long=True)
    return done.out.split()


def _sh(script: str, *arguments: str) -> Sequence[str]:
    return ("sh", "-c", script.strip(), "mint-spool", *arguments)
