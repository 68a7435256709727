"""Many small spools with one site each, side by side, that are cut and killed again and again; and what must be true after."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Callable, TypeVar

from components import proc
from components.process import Process
from components.rig import Rig
from components.sshd import Sshd
from spool import runner
from spool.store import Store
from ssh.conftest import Pushed, lines

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
LANES = 6
PASSES = 6
HERE = Path(__file__).parent
DECK = bytes(range(256)) * 48
Point = TypeVar("Point")


class Lane:
    """One spool and one site. `folder` is at the site: what relay and doorman read and write is there."""

    def __init__(self, root: Path, sshd: Sshd, number: int) -> None:
        self.folder = sshd.home / f"lane{number}"
        self.folder.mkdir()
        config = self.folder / "ssh_config"
        way = f"{sys.executable} -IS {HERE / 'relay.py'} {self.folder} %h %p"
        config.write_text(f"{sshd.ssh_config.read_text()}  ProxyCommand {way}\n")
        self.rig = Rig(root / f"lane{number}")
        self.push = Pushed(self.rig, sshd, self.folder / "base", {"ssh_config": config})
        self.made = 0
        runner.install(self.push.base)
        Store.open(self.rig.spool, create=True)

    def start(self, *args: str) -> Process:
        process = self.rig.start_push({"site": self.push.options}, *args)
        (self.folder / "pid.part").write_text(str(process.pid))
        (self.folder / "pid.part").rename(self.folder / "pid")
        return process

    def drop(self) -> str:
        self.made += 1
        script = f"echo started >>{self.folder}/counter.{self.made}; cat 入力.inp 入力.inp >結果.dat; echo done"
        return self.push.drop("/bin/sh", "-c", script, inputs={"入力.inp": DECK}, outputs=["*.dat"])

    def carry(self) -> str:
        """One job, in as many passes as it needs; returns its id."""
        job_id = self.drop()
        for _ in range(PASSES):
            self.start("--once", job_id).wait(90)
            if self.rig.state(job_id).get("state") == "completed":
                break
        return job_id

    def carried(self) -> tuple[int, int]:
        """The bytes that all lines of this lane have carried, to the site and from it."""
        counts = [path.read_text().split() for path in self.folder.glob("carried.*")]
        return sum(int(up) for up, _ in counts), sum(int(down) for _, down in counts)

    def check(self, job_id: str) -> None:
        """Completed byte for byte, started once, each change told once, nothing left on its way."""
        state = self.rig.state(job_id)
        assert state.get("state") == "completed", json.dumps(state, ensure_ascii=False)
        assert self.push.out(job_id) == {"結果.dat": DECK * 2}
        assert self.push.log(job_id) == "done\n"
        assert lines(self.folder / f"counter.{self.made}") == ["started"], "the command was not started exactly once"
        told = [json.loads(line) for line in lines(self.rig.job(job_id) / "history.jsonl")]
        assert Counter(entry["to"] for entry in told)["running"] == 1
        assert state["attempt"] == 1
        wait = self.rig.job(job_id) / "incoming"
        assert not wait.exists() or not list(wait.glob("*/files/*/*")), "results are left on their way"


@contextmanager
def lanes(root: Path, sshd: Sshd) -> Iterator[Callable[[Sequence[Point], Callable[[Lane, Point], bool]], int]]:
    """Yields `sweep(points, hit)`: `hit` strikes at one point and judges; returns how many of the points were met."""
    doorman = f"PYTHONPATH={HERE.parent} {sys.executable} -S {HERE / 'doorman.py'}"
    sshd.authorize(f'command="{doorman}"')
    with sweeping([Lane(root, sshd, number) for number in range(LANES)]) as sweep:
        yield sweep


@contextmanager
def sweeping(made: Sequence[Lane]) -> Iterator[Callable[[Sequence[Point], Callable[[Lane, Point], bool]], int]]:
    """`sweep` over these lanes, which are closed at the end."""
    free: SimpleQueue[Lane] = SimpleQueue()
    for lane in made:
        free.put(lane)

    def sweep(points: Sequence[Point], hit: Callable[[Lane, Point], bool]) -> int:
        def one(point: Point) -> bool:
            lane = free.get()
            try:
                return hit(lane, point)
            except AssertionError as error:
                log = (lane.rig.root / "push.log").read_text(errors="replace")[-6000:]
                raise AssertionError(f"at {point}: {error}\n{log}") from error
            finally:
                for name in ("plan*", "cut*", "pid", "steps", "carried.*"):
                    for path in lane.folder.glob(name):
                        path.unlink()
                free.put(lane)

        with ThreadPoolExecutor(len(made)) as pool:
            return sum(pool.map(one, points))

    try:
        yield sweep
    finally:
        for lane in made:
            lane.rig.close()


def kill_push_and_all(process: Process) -> None:
    """As a reboot of the MInt side does: the push, its children, and its connection, which lives apart from it."""
    children = [one.pid for one in proc.descendants(process.pid)]
    process.kill()
    proc.kill(children)
    for one in proc.all_processes():
        if f"mint-push-{process.pid}-" in words_of(one.pid):
            proc.kill([one.pid])


def words_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
