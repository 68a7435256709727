"""Slow clients, many, in a process of their own: headers, bodies and readers that take for ever (slowloris and its kind)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.process import Process
from components.waiting import wait_until

KINDS = ("header", "body", "reader")
SIP_S = 2.0
PER_ADDRESS = 334  # so many of them come from one address of 127.0.0.0/8
BODY_BYTES = 60_000


class SlowClients:
    """`count` connections to a port of this host, kept up, a third of each kind; with `ca` by TLS. Use it in a `with`.

    `token` is shown by every other one, so that half of them are strangers; `path` is what the slow readers ask for.
    """

    def __init__(self, folder: Path, port: int, count: int, *, token: str, path: str, ca: Path | None = None) -> None:
        self._seen = folder / "slow.json"
        wanted = {"port": port, "count": count, "token": token, "path": path, "ca": str(ca or ""), "seen": str(self._seen)}
        tests = str(Path(__file__).resolve().parents[1])
        argv = [sys.executable, "-c", "from components.slow import main; main()", json.dumps(wanted)]
        self._process = Process(argv, log=folder / "slow.log", env={"PYTHONPATH": tests, "PATH": "/usr/bin:/bin"})
        self.count = count

    def seen(self) -> Mapping[str, int]:
        """How many connections of each kind are open, and how many were ended by the other side so far (`ended`)."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self._seen.read_text()))
        return {}

    def wait_open(self, share: float, deadline_s: float) -> None:
        """Until that share of them is open at once."""
        def enough() -> bool:
            assert self._process.running, self._process.output()
            return sum(self.seen().get(kind, 0) for kind in KINDS) >= share * self.count

        wait_until(enough, deadline_s, f"{self.count} slow connections are open", every_s=0.2)

    def __enter__(self) -> SlowClients:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def main() -> None:
    """The process: keeps the connections up until it is killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_all(json.loads(sys.argv[1])))


async def _all(wanted: dict[str, Any]) -> None:
    seen: Counter[str] = Counter()
    context = ssl.create_default_context(cafile=wanted["ca"]) if wanted["ca"] else None
    starting = asyncio.Semaphore(50)
    tasks = [asyncio.create_task(_one(number, wanted, seen, context, starting)) for number in range(wanted["count"])]
    while not all(task.done() for task in tasks):
        new = Path(f"{wanted['seen']}.new")
        new.write_text(json.dumps(seen))
        new.replace(wanted["seen"])
        await asyncio.sleep(0.3)


async def _one(
    number: int, wanted: dict[str, Any], seen: Counter[str], context: ssl.SSLContext | None, starting: asyncio.Semaphore
) -> None:
    kind = KINDS[number % len(KINDS)]
    token = wanted["token"] if kind == "reader" or number % 2 else "junk" * 16
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.setblocking(False)
            line.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
            async with starting:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", wanted["port"])), 60)
                reader, writer = await asyncio.open_connection(
                    sock=line, ssl=context, server_hostname="localhost" if context else None, limit=1024
                )
            seen[kind] += 1
            try:
                await _sip(kind, token, wanted["path"], reader, writer)
            finally:
                seen[kind] -= 1
                seen["ended"] += 1
                writer.transport.abort()
        await asyncio.sleep(SIP_S)


async def _sip(kind: str, token: str, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Go on until the other side ends it."""
    call = f"GET {path}" if kind == "reader" else "POST /v1/sync"
    body = f"Content-Type: application/json\r\nContent-Length: {BODY_BYTES}\r\n" if kind == "body" else ""
    writer.write(f"{call} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{body}".encode())
    if kind != "header":
        writer.write(b"\r\n")
    while not reader.at_eof() and not writer.is_closing():
        if kind == "reader":
            await reader.read(1)
        else:
            writer.write(b"X-a: b\r\n" if kind == "header" else b" ")
            await writer.drain()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1024), SIP_S)
            continue
        await asyncio.sleep(SIP_S)
