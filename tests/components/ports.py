"""Ports on loopback that no other test, worker or session is given."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below the range from which Linux takes the ports of outgoing connections, so a stopped server's port stays free.
_RANGE = range(20000, 32000)
_reserved: list[IO[str]] = []


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now and stays reserved for this process until it ends."""
    folder = Path(tempfile.gettempdir(), f"mint-spool-test-ports-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in random.sample(_RANGE, k=2000):
        reservation = open(folder / str(port), "w")  # noqa: SIM115  (held open: the lock lives as long as the process)
        try:
            fcntl.flock(reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _bind(port)
        except OSError:
            reservation.close()
            continue
        _reserved.append(reservation)
        return port
    raise AssertionError(f"no free port among {_RANGE}")


def _bind(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
