"""The forced command of a key: it lets every step of the push through, and strikes at the one that a plan names.

The lane that a command belongs to is the folder above its base. `LANE/steps` gets a line a step. `LANE/plan` holds a step,
which one of its kind (from 0), `before` or `after` it, and what happens there: `cut` (the connection is gone, and what the step
said with it), `kill` (the push alone is killed; its children and its connection live), `reboot` (all that is its is killed).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from components.waiting import wait_until

KINDS = (
    ("fetch", r"exec rsync --server --sender"), ("send", r"exec rsync --server"), ("install", r'cat >"\$part"'),
    ("delivered", r'>"\$dir/delivered"'), ("clean", r"find "), ("enter", r"aside\(\)"), ("tool", r"exec rsync"),
)  # fmt: skip
VERBS = ("prepare", "start", "status", "cancel", "sums in", "sums work", "sums log")


def kind_of(command: str) -> str:
    for verb in VERBS:
        if command.endswith(" " + verb):
            return verb
    return next((kind for kind, pattern in KINDS if re.search(pattern, command)), "other")


def strike(lane: Path, what: str) -> None:
    if what == "cut":
        os.kill(sshd(), signal.SIGKILL)
        return
    wait_until((lane / "pid").exists, 10, "the test has written the pid")
    push = int((lane / "pid").read_text())
    victims = [push]
    if what == "reboot":
        victims += [pid for pid, words in processes() if f"/mint-push-{push}-" in words and pid != os.getpid()]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def sshd() -> int:
    """The process that serves this connection."""
    pid = os.getppid()
    while not name_of(pid).startswith("sshd"):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return pid


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def processes() -> list[tuple[int, str]]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                found.append((int(entry), Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")))
    return found


def main() -> int:
    command = os.environ["SSH_ORIGINAL_COMMAND"]
    match = re.search(r"(/[^ ']*/lane\d+)/", command)
    if match is None:
        return subprocess.call(["sh", "-c", command])
    lane, kind = Path(match[1]), kind_of(command)
    steps = (lane / "steps").read_text().splitlines() if (lane / "steps").exists() else []
    with open(lane / "steps", "a") as file:
        file.write(kind + "\n")
    plan = (lane / "plan").read_text().split("\t") if (lane / "plan").exists() else ["", "0", "", ""]
    if plan[:2] != [kind, str(steps.count(kind))]:
        return subprocess.call(["sh", "-c", command])
    (lane / "plan").rename(lane / "plan.done")
    if plan[2] == "before":
        strike(lane, plan[3])
        return 255 if plan[3] == "cut" else subprocess.call(["sh", "-c", command])
    out = None if "rsync" in command else subprocess.PIPE
    done = subprocess.run(["sh", "-c", command], stdout=out, check=False)
    strike(lane, plan[3])
    os.write(1, done.stdout or b"")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
