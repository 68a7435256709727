"""One job's folder at an open site, ``BASE/UUID``, and what is asked of it there.

The folder carries `run_id`, written before anything is sent: every verb looks at it first, so that a folder of an earlier
attempt, or one that is gone, is never taken for this run's. The runner lies at ``BASE/.mint-spool/runner-HASH.sh``, sent
when it is missing. Nothing here starts a command twice: that is the runner's promise (spool/runner.sh).

The scripts take everything as arguments and interpolate nothing; `-O` (owned by me) is in dash, bash and busybox.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Sequence

from spool import log, runner
from spool.errors import NoSpace, SpoolError
from spool.runner import RunStatus, parse_status, parse_sums
from spool.ssh.connection import NO_SPACE_HINT, Connection, Done, SiteTrouble, says_no_space
from spool.states import Reason

_NO_RUNNER, _GONE, _NO_BASE = 86, 87, 88

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

# What an earlier attempt left is stopped and moved aside, its run_id last, so that a cut anywhere is made good by the next call.
_ENTER = _ROOM + r"""
umask 077
LC_ALL=C
export LC_ALL
base=$1 dir=$1/$2 run=$3 runner=$4 old=
[ -r "$runner" ] && [ "$(sha256sum <"$runner")" = "$5  -" ] || exit 86
aside() {
    mkdir -p "$dir/attempts/$old" && mv "$1" "$dir/attempts/$old/" || { room "$dir"; exit 1; }
}
mkdir -p "$base" || exit 1
[ -d "$dir" ] || mkdir "$dir" || exit 1
[ -O "$dir" ] && [ ! -L "$dir" ] || { echo "$dir belongs to another user" >&2; exit 1; }
if [ -f "$dir/run_id" ]; then read -r old <"$dir/run_id"; fi
if [ "$old" != "$run" ]; then
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
mkdir -p "$dir/in" "$dir/log"
"""

_VERB = _ROOM + r"""
base=$1 dir=$1/$2 run=$3 runner=$4 verb=$5 old=
shift 5
[ -d "$dir" ] || [ -d "$base/.mint-spool" ] || exit 88
[ -d "$dir" ] || exit 87
{ read -r old <"$dir/run_id"; } 2>/dev/null
[ "$old" = "$run" ] || exit 87
[ -r "$runner" ] || exit 86
if [ "$verb" = start ]; then sh "$runner" "$verb" "$dir" "$@"; else LC_ALL=C sh "$runner" "$verb" "$dir" "$@"; fi
code=$?
[ "$code" = 0 ] || room "$dir"
exit "$code"
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


class AtSite:
    """The folder of one run at the site. Every method may be repeated; errors as `Connection`, `FolderGone`, `SiteTrouble`."""

    def __init__(self, connection: Connection, base: str, job_id: str, run_id: str) -> None:
        self.connection = connection
        self.base = "/" + base.strip("/")
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

    def enter(self) -> None:
        """Make the folder this run's: what an earlier attempt left is stopped and moved to ``attempts/RUN_ID/`` in it."""
        words = (self.base, self.job_id, self.run_id, self._runner, self._digest)
        done = self.connection.run(_sh(_ENTER, *words))
        if done.code == _NO_RUNNER:
            self.install_runner()
            done = self.connection.run(_sh(_ENTER, *words))
        self._check(done, f"making {self.folder}", "check owner, mode and free space of base at the site")

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

    def _status(self, verb: str, *, reason: Reason = Reason.TRANSFER) -> RunStatus:
        out = self._verb(verb, reason=reason)
        try:
            return parse_status(out)
        except ValueError as exc:
            raise self._garbled(exc) from exc

    def _garbled(self, exc: ValueError) -> SiteTrouble:
        hint = "does the login shell there print something by itself (.bashrc)? ssh_push.py check SITE tells"
        return SiteTrouble(f"site {self.connection.site.name}: {exc}", hint=hint)

    def _verb(self, verb: str, *more: str, long: bool = False, reason: Reason = Reason.TRANSFER) -> str:
        words = (self.base, self.job_id, self.run_id, self._runner, verb, *more)
        done = self.connection.run(_sh(_VERB, *words), long=long)
        if done.code == _NO_RUNNER:  # cleaned away at the site
            self.install_runner()
            done = self.connection.run(_sh(_VERB, *words), long=long)
        if done.code == _GONE:
            raise FolderGone(f"the folder {self.folder} of this run is gone at the site", hint="requeue the job, or ask the site")
        if done.code == _NO_BASE:
            hint = "is its file system mounted?"
            raise SiteTrouble(f"all of {self.base} is gone at the site", hint=hint, reason=Reason.LOST)
        self._check(done, f"{verb} in {self.folder}", "the message names what to do at the site", reason)
        return done.out

    def _check(self, done: Done, what: str, hint: str, reason: Reason = Reason.TRANSFER) -> None:
        if done.code != 0:
            said = " ".join(done.err.split())[-400:] or f"exit code {done.code}"
            if says_no_space(done.err):
                raise NoSpace(f"site {self.connection.site.name}: {what}: {said}", hint=NO_SPACE_HINT)
            raise SiteTrouble(f"site {self.connection.site.name}: {what}: {said}", hint=hint, reason=reason)


def clean(connection: Connection, base: str, spool_id: str, keep_days: int) -> list[str]:
    """Remove the folders of this spool's jobs at the site that were delivered more than `keep_days` ago; return their ids."""
    done = connection.run(_sh(_CLEAN, "/" + base.strip("/"), spool_id, str(keep_days * 24 * 60)), long=True)
    return done.out.split()


def _sh(script: str, *arguments: str) -> Sequence[str]:
    return ("sh", "-c", script.strip(), "mint-spool", *arguments)
