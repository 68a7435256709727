"""The agent's side of a held job, driven step by step against a raw socket that keeps every byte it is sent.

Every content, every file name is made of tokens (`T` and 16 hexadecimal digits), which are looked for in what was on the wire.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from components.waiting import wait_until
from spool.agent.carrier import Carrier
from spool.agent.client import Client
from spool.agent.conditions import hold
from spool.agent.config import AGENT, COMMAND, RELEASE, AgentConfig, Command
from spool.agent.decisions import Decision, name_of
from spool.agent.folder import Base, LocalJob
from spool.agent.held import digest
from spool.agent.shelf import Shelf
from spool.names import new_id
from spool.records import Job, JobState
from spool.runner import RunStatus
from spool.states import State

TOKEN = re.compile(rb"T[0-9a-f]{16}")
REVIEWERS = (61001, 61002)  # users whom this host does not know
STRANGER = 61003
SITE, USER = "site-a", "mint"


def tokens_in(data: bytes) -> set[bytes]:
    return set(TOKEN.findall(data))


class Receiver:
    """A server of the few calls by which results come in. `wire` is every byte that came, `bodies` how many chunks."""

    def __init__(self) -> None:
        self.wire = bytearray()
        self.chunks = 0
        self.ends: list[dict[str, Any]] = []
        self.on_chunk: Callable[[], None] = lambda: None
        self._offsets: dict[str, int] = {}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(line,), daemon=True).start()

    def _talk(self, line: socket.socket) -> None:
        buffer = b""
        with line:
            while True:
                while b"\r\n\r\n" not in buffer:
                    buffer = self._more(line, buffer)
                    if not buffer.strip():
                        return
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = int((re.search(rb"(?i)content-length: (\d+)", head) or [b"", b"0"])[1])
                while len(buffer) < length:
                    before = len(buffer)
                    buffer = self._more(line, buffer)
                    if len(buffer) == before:
                        return
                body, buffer = buffer[:length], buffer[length:]
                method, target = head.split(b" ", 2)[:2]
                line.sendall(self._answer(method.decode(), target.decode(), body))

    def _more(self, line: socket.socket, buffer: bytes) -> bytes:
        try:
            block = line.recv(1 << 16)
        except OSError:
            block = b""
        self.wire += block
        return buffer + block

    def _answer(self, method: str, target: str, body: bytes) -> bytes:
        if method == "HEAD":
            return f"HTTP/1.1 200 OK\r\nUpload-Offset: {self._offsets.get(target, 0)}\r\nContent-Length: 0\r\n\r\n".encode()
        if method == "PATCH":
            self.chunks += 1
            self._offsets[target] = self._offsets.get(target, 0) + len(body)
            self.on_chunk()
            return f"HTTP/1.1 204 OK\r\nUpload-Offset: {self._offsets[target]}\r\n\r\n".encode()
        value: dict[str, Any] = {"files": 1}
        if "/finish" in target:
            told = json.loads(body)
            self.ends.append(told)
            word = "canceled" if told["reason"] == "canceled" else "failed" if told["reason"] else "completed"
            value = {"id": told["id"], "run_id": told["run_id"], "state": word}
        text = json.dumps(value).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


class NoRunner:
    """Nothing runs here: the command has ended."""

    def cancel(self, folder: Path) -> RunStatus:
        return RunStatus("canceled")


class Site:
    """An agent's base with one job, whose command has ended. `released` are the tokens that persons have let go."""

    def __init__(self, root: Path, receiver: Receiver, seed: int, **release: Any) -> None:
        self.random = random.Random(seed)
        self.receiver = receiver
        self.base = Base(root)
        self.base.open()
        self.shelf = Shelf(root)
        values = {option.name: option.default for option in RELEASE.options}
        names = tuple(map(name_of, REVIEWERS))
        values.update(allow=("**",), logs="return", hold=hold("always"), reviewers=names, **release)
        agent = {option.name: option.default for option in AGENT.options}
        agent.update(site=SITE, url=receiver.url, base=root, chunk=64 * 1024)
        command = {option.name: option.default for option in COMMAND.options}
        self.config = AgentConfig(agent, values, {"sh": Command("sh", **{**command, "argv": ("sh",)}, env={})})
        self.shelf.open({**values, "reviewers_group": ""})
        self.client = Client(receiver.url, lambda: "t" * 64)
        self.released: set[bytes] = set()
        self.laid_out: dict[str, bytes] = {}
        self.manifest = b""
        self.run_id = ""
        self.attempt = 0
        self.job_id = new_id()
        self.carrier: Carrier | None = None
        self.new_run()

    @property
    def folder(self) -> Path:
        return self.base.folder / self.job_id

    def token(self) -> bytes:
        return b"T%016x" % self.random.getrandbits(64)

    def content(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self.token() + b"\n"
        return found[:size]

    # ---- the job

    def new_run(self) -> None:
        """A run has ended: files lie in work/ and log/, nothing is measured yet. What there was of another run is put aside."""
        self.leave()
        self.attempt += 1
        self.run_id = new_id()
        state = JobState(self.job_id, State.CLAIMED, SITE, USER, 1, command="sh", attempt=self.attempt, run_id=self.run_id)
        local = LocalJob(self.folder)
        local.begin(state)
        local.paths.job.write_bytes(Job(SITE, "sh", self.job_id, outputs=("*",)).encode())
        local.advance(State.RUNNING, "may start")
        for name in ("work", "log"):
            (self.folder / name).mkdir()
        for _ in range(self.random.randint(1, 6)):  # with more than four small ones a tar is sent
            (self.folder / "work" / self.token().decode()).write_bytes(self.content(self.random.choice((1, 40, 200, 900))))
        (self.folder / "log" / "stdout.txt").write_bytes(self.content(60))
        if self.random.random() < 0.1:  # one that goes in several requests
            (self.folder / "work" / self.token().decode()).write_bytes((self.token() + b"\n") * 60_000)  # too large for a tar
        carrier = self._carrier()
        carrier._measure(RunStatus("exited", exit_code=0, started_at=1, finished_at=2))
        self.manifest = (self.folder / "result.json").read_bytes()
        self.laid_out = {name: (self.folder / name).read_bytes() for name in self.names()}

    def names(self) -> list[str]:
        """What the manifest of this run lists."""
        return [entry["path"] for entry in json.loads(self.manifest)["files"]]

    def _carrier(self) -> Carrier:
        local = LocalJob(self.folder)
        local.load()
        runner: Any = NoRunner()
        return Carrier(local, self.client, self.config, runner, lambda: None, Base(self.folder.parent))

    def let_go(self) -> None:
        """From now on what was laid out may be on the wire."""
        self.released |= tokens_in(self.manifest)
        for data in self.laid_out.values():
            self.released |= tokens_in(data)

    # ---- the agent

    def start(self) -> None:
        """The agent takes the job up again."""
        self.leave()
        local = LocalJob(self.folder)
        local.load()
        if local.state.state in (State.HELD, State.RETURNING):
            self.carrier = self._carrier()
            self.carrier.start()

    def rests(self) -> None:
        """Until nothing can be done any more but by a person."""
        if (carrier := self.carrier) is not None:
            wait_until(lambda: carrier.rests or carrier.idle, 60, "the agent waits, or is done", every_s=0.001)

    def leave(self) -> None:
        if self.carrier is not None:
            self.carrier.leave()
            self.carrier.join(60)
            assert self.carrier.idle
            self.carrier = None

    def state(self) -> str:
        return str(json.loads((self.folder / "state.json").read_bytes())["state"])

    # ---- persons

    def say(self, word: str, uid: int, *, manifest: str = "", run_id: str = "", mode: int = 0o644, because: str = "") -> Path:
        """What `spool_agent.py release` or `refuse` writes as that user."""
        run_id = run_id or self.run_id
        made = Decision(self.job_id, run_id, manifest or digest(self.manifest), word, because, "2026-01-01T00:00:00.000Z")
        path = self.shelf.decisions.folder / f"{self.job_id}.{run_id}.{uid}.json"
        temp = path.with_name(f".{path.name}.new")
        temp.write_bytes(made.encode())
        os.chmod(temp, mode)
        os.chown(temp, uid, -1)
        if not path.exists():
            os.rename(temp, path)
        else:
            temp.unlink()
        return path

    def decided(self) -> Mapping[int, str]:
        """Who has said what of these very results, as this test sees it: reviewer -> word."""
        found = {}
        for uid in REVIEWERS:
            path = self.shelf.decisions.folder / f"{self.job_id}.{self.run_id}.{uid}.json"
            if path.is_symlink() or not path.is_file():
                continue
            info, said = path.stat(), json.loads(path.read_bytes())
            ours = (said["id"], said["run_id"], said["manifest"]) == (self.job_id, self.run_id, digest(self.manifest))
            if ours and info.st_uid == uid and info.st_nlink == 1 and not info.st_mode & 0o022:
                found[uid] = said["decision"]
        return found

    def unreleased(self) -> set[bytes]:
        """Tokens that were on the wire without a release."""
        return tokens_in(bytes(self.receiver.wire)) - self.released
