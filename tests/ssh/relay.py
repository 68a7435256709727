"""A ProxyCommand that carries a line and cuts it after a number of bytes.

    relay.py FOLDER HOST PORT

`FOLDER/cut` says where, `up 1234` or `down 1234`; the first line that gets there takes the file away and is gone. Every line
keeps its counts in `FOLDER/carried.PID`. `FOLDER/slow` holds the most bytes a second, both ways.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

counts = {"up": 0, "down": 0}


def carry(way: str, source: int, target: int, limit: int) -> None:
    """Copy until the end, or until `limit` bytes went `way`: then everything ends at once."""
    while data := os.read(source, 16384):
        if slow:
            threading.Event().wait(len(data) / slow)  # a shaped line, not a wait for something
        left = limit - counts[way]
        while data[:left]:
            done = os.write(target, data[:left])
            counts[way] += done
            os.pwrite(told, b"%d %d\n" % (counts["up"], counts["down"]), 0)
            data, left = data[done:], left - done
        if left <= 0:
            end(cut=True)
    end(cut=False)


def end(*, cut: bool) -> None:
    if cut:
        (folder / "cut").rename(folder / "cut.done")
    os._exit(1)


folder, line = Path(sys.argv[1]), socket.create_connection((sys.argv[2], int(sys.argv[3])))
plan = (folder / "cut").read_text().split() if (folder / "cut").exists() else ["up", str(1 << 60)]
slow = int((folder / "slow").read_text()) if (folder / "slow").exists() else 0
limits = {way: int(plan[1]) if way == plan[0] else 1 << 60 for way in counts}
told = os.open(folder / f"carried.{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
threading.Thread(target=carry, args=("down", line.fileno(), 1, limits["down"]), daemon=True).start()
carry("up", 0, line.fileno(), limits["up"])
