"""The forced command of a guarded lane's key: strikes at the verb that a plan names, else hands on to the gate.

`gatekeeper.py LANE COMMAND…`; `LANE/plan` and `LANE/steps` are as doorman.py has them, the steps are the gate's verbs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from doorman import strike  # the script's own folder is on the path


def main() -> int:
    lane, gate = Path(sys.argv[1]), sys.argv[2:]
    kind = (os.environ.get("SSH_ORIGINAL_COMMAND", "") + " ? ? ?").split()[2]
    steps = (lane / "steps").read_text().splitlines() if (lane / "steps").exists() else []
    with open(lane / "steps", "a") as file:
        file.write(kind + "\n")
    plan = (lane / "plan").read_text().split("\t") if (lane / "plan").exists() else ["", "0", "", ""]
    if plan[:2] != [kind, str(steps.count(kind))]:
        return subprocess.call(gate)
    (lane / "plan").rename(lane / "plan.done")
    if plan[2] == "before":
        strike(lane, plan[3])
        return 255 if plan[3] == "cut" else subprocess.call(gate)
    done = subprocess.run(gate, stdout=subprocess.PIPE, check=False)
    strike(lane, plan[3])
    os.write(1, done.stdout or b"")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
