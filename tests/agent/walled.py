"""A company whose commands are hostile: what they try, and the walls that they meet."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.company import Company
from components.rig import REPO

BWRAP = REPO / "etc" / "bwrap-wrapper.sh"
_numbers = itertools.count()

# Each `try NAME …` says "broke NAME" where it works. They run one after the other, so the worst come last.
ATTACK = r"""
tries=0
try() { local name=$1; shift; tries=$((tries + 1)); if "$@" >/dev/null 2>&1; then echo "broke $name"; fi; }
write() { try "write $1" bash -c 'echo "# hostile" >>"$1"' - "$2"; }
read_() { try "read $1" bash -c '[ -n "$(head -c 100 "$1")" ]' - "$2"; }
read_ token "$site/token"
try "link token" ln "$site/token" token.dat
ln -s "$site/token" leak.dat
write policy "$site/agent.ini"
read_ policy "$site/agent.ini"
try "replace policy" bash -c 'echo "[agent]" >"$1.new" && mv "$1.new" "$1.stolen"' - "$site/agent.ini"
write audit "$control/audit.jsonl"
read_ audit "$control/audit.jsonl"
try "list control" ls "$control"
try "list base" bash -c 'ls "$1" | grep -v "^$2\$"' - "$base" "${job##*/}"
for name in state.json job.json history.jsonl run/argv/000 in/deck.inp; do
    read_ "$name" "$job/$name"
    write "$name" "$job/$name"
    try "remove $name" rm "$job/$name"
done
for name in result.json run/exit run/cancel out/forged.dat log/runner.log log/stdout.txt; do write "$name" "$job/$name"; done
for name in run in log; do try "rename $name" mv "$job/$name" "$job/$name.old"; done
try "rename work" mv "$job/work" "$job/work.old"
for name in state.json in/deck.inp work/secret.dat; do read_ "other $name" "$other/$name"; done
write "other's work" "$other/work/secret.dat"
write "the confidential folder" "$confidential/table.csv"
[ -z "$no_network" ] || try network bash -c 'exec 3<>/dev/tcp/127.0.0.1/'"$port"
try "signal agent" kill -0 "$agent"
try "trace agent" cat "/proc/$agent/environ"
[ "$PPID" -le 1 ] || try "signal parent" kill -0 "$PPID"
try "own root" bash -c '[ "$(id -u)" = 0 ] && touch /usr/broken-$$ && rm /usr/broken-$$'
mkdir mnt; try mount bash -c 'mount -t tmpfs none mnt && umount mnt'
cp /bin/true setuid.dat && chmod 6755 setuid.dat
setsid sleep "$mark" >/dev/null 2>&1 &
setsid bash -c 'trap "" TERM; while :; do echo still >>work.dat; sleep '"$mark"'; done' >/dev/null 2>&1 &
sleep 0.2
echo "done $tries"
"""


class Walled(Company):
    """Its folder can be passed through by other accounts; `confidential` lies beside the base, which it may read."""

    def __init__(self, wall: str, *, slots: int = 2) -> None:
        top = Path(tempfile.mkdtemp(prefix="mint-walled-"))
        top.chmod(0o711)
        super().__init__(top / "rig")
        self.wall = wall
        self.options = {**self.options, "slots": slots, "base": self.base}
        # One of many that nobody else has; each test its own, because they run side by side.
        self.uid = 200_000 + (os.getpid() % 60_000) * 20 + 2 * (next(_numbers) % 10)
        self.site.mkdir(mode=0o711, parents=True)
        self.confidential.mkdir(mode=0o755)
        (self.confidential / "table.csv").write_text("confidential line\n")
        for path in (self.rig.root, self.rig.root / "agents", self.folder):
            path.chmod(0o711)
        shell: dict[str, Any] = {"argv": "/bin/bash -c {args}", "args": "(?s).*"}
        if "bwrap" in wall:
            # Everything of the site is shown but its base: the wall must hide that even there.
            shell["wrapper"] = f"{BWRAP} --ro {self.site} --hide {{base}} {{work}} --"
        if "run_as" in wall:
            shell["run_as"] = f"{self.uid}:{self.uid} {self.uid + 1}:{self.uid + 1}"
        self.commands = {"sh": shell}

    @property
    def site(self) -> Path:
        return self.rig.root / "site"

    @property
    def base(self) -> Path:
        return self.site / "base"

    @property
    def confidential(self) -> Path:
        return self.site / "confidential"

    @property
    def control(self) -> Path:
        return self.base / f".mint-spool-{os.geteuid()}"

    def local(self, job_id: str) -> Path:
        return self.base / job_id

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.rig.root.parent, ignore_errors=True)

    def attack(self, other: str, mark: str, *, no_network: bool) -> str:
        """The script of a job that tries everything; it finds its own folder by where it is."""
        assert self.agent
        told = {
            "site": self.folder, "control": self.control, "base": self.base, "other": self.local(other), "port": self.rig.port,
            "confidential": self.confidential, "agent": self.agent.pid, "mark": mark, "no_network": "1" if no_network else "",
        }  # fmt: skip
        return "".join(f"{name}='{value}'\n" for name, value in told.items()) + "job=${CALC_DIR%/work}\n" + ATTACK


@contextlib.contextmanager
def walled(wall: str, **options: Any) -> Iterator[Walled]:
    made = Walled(wall, **options)
    try:
        made.serve()
        yield made
    finally:
        made.close()
