"""A guarded site's pass struck at each verb and cut after any number of bytes: completed, started once, accepted once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from components.figures import tell
from components.rig import REPO, Rig
from components.sshd import Sshd
from spool.store import Store

from .conftest import lines
from .guarded import Guarded
from .lanes import EXHAUSTIVE, HERE, Lane, sweeping

Sweep = Callable[[Any, Callable[[Lane, Any], bool]], int]
Record = Callable[[str, object], None]
STEPS = ("enter", "put", "prepare", "status", "start", "finish", "get", "delivered")
WAYS = ("after\tcut", "before\tkill", "after\treboot", "before\tcut", "after\tkill", "before\treboot")
LANES = 2
BYTES = 300 if EXHAUSTIVE else 10
LARGE = 24 * 1024 * 1024
SHELL = {"/bin/sh": {"argv": "/bin/sh {args}", "args": "(?s).*"}}


class GuardedLane(Lane):
    """One spool, and one site with an sshd of its own."""

    def __init__(self, root: Path, sshd: Sshd, number: int) -> None:
        self.folder = sshd.home / f"lane{number}"
        self.folder.mkdir()
        config = self.folder / "ssh_config"
        way = f"{sys.executable} -IS {HERE / 'relay.py'} {self.folder} %h %p"
        config.write_text(f"{sshd.ssh_config.read_text()}  ProxyCommand {way}\n")
        self.rig = Rig(root / f"lane{number}")
        site = Guarded(self.rig, sshd, ssh_config=config, stall_s="8")
        site.law(SHELL, stall_s=4)
        gate = f"{sys.executable} -Es {REPO}/spool_agent.py gate --config {site.site_folder}/agent.ini"
        keeper = f"PYTHONPATH={HERE.parent} {sys.executable} -S {HERE / 'gatekeeper.py'} {self.folder}"
        sshd.authorize(f'restrict,command="{keeper} {gate}"')
        self.push = site
        self.made = 0
        Store.open(self.rig.spool, create=True)


@pytest.fixture
def sweep(tmp_path: Path, make_sshd: Callable[..., Sshd]) -> Iterator[Sweep]:
    with sweeping([GuardedLane(tmp_path, make_sshd(), number) for number in range(LANES)]) as run:
        yield run


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_struck_at_each_verb(sweep: Sweep, record_property: Record) -> None:
    """Cut before or after a verb (its answer is lost then), the push killed alone or with all that belongs to it."""

    def hit(lane: Lane, point: tuple[str, str]) -> bool:
        (lane.folder / "plan").write_text(f"{point[0]}\t0\t{point[1]}")
        lane.check(lane.carry())
        return (lane.folder / "plan.done").exists()

    def seen(lane: Lane, _: int) -> bool:
        lane.check(lane.carry())
        assert set(STEPS) <= set(lines(lane.folder / "steps")) <= {*STEPS, "tail"}, "the verbs of a pass are not what they were"
        return True

    assert sweep([0], seen) == 1
    spread = {(verb, WAYS[number % len(WAYS)]) for number, verb in enumerate(STEPS)} | {("start", "after\tcut")}
    points = [(verb, way) for verb in STEPS for way in WAYS] if EXHAUSTIVE else sorted(spread)
    met = sweep(points, hit)
    tell(f"guarded ssh: {met} of {len(points)} strikes at {len(STEPS)} verbs met, each job completed, each command started once")
    record_property("strikes, a guarded pass", met)
    assert met >= 0.9 * len(points), f"{met} of {len(points)}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cut_after_any_number_of_bytes(sweep: Sweep, record_property: Record) -> None:
    most: dict[str, int] = {}

    def measure(lane: Lane, _: int) -> bool:
        lane.check(lane.carry())
        most.update(zip(("up", "down"), lane.carried()))
        return True

    def hit(lane: Lane, point: tuple[str, int]) -> bool:
        (lane.folder / "cut").write_text(f"{point[0]} {point[1]}")
        lane.check(lane.carry())
        return (lane.folder / "cut.done").exists()

    sweep([0], measure)
    points = [(way, most[way] * number // (BYTES // 2)) for way in ("up", "down") for number in range(1, BYTES // 2)]
    met = sweep(points, hit)
    tell(f"guarded ssh: {met} of {len(points)} cuts over {most['up']} bytes there, {most['down']} back met, each job completed")
    record_property("cuts, a guarded pass", met)
    assert met >= 0.8 * len(points), f"{met} of {len(points)}"


@pytest.mark.slow
def test_a_large_file_goes_on_where_it_was_cut(tmp_path: Path, make_sshd: Callable[..., Sshd]) -> None:
    """In the middle of the put, and in the middle of the get; what had come is not sent again."""
    lane = GuardedLane(tmp_path, make_sshd(), 0)
    try:
        for way in ("up", "down"):
            data = os.urandom(LARGE)
            for name in ("cut*", "carried.*"):
                for path in lane.folder.glob(name):
                    path.unlink()
            (lane.folder / "cut").write_text(f"{way} {LARGE * 2 // 3}")
            job_id = lane.push.drop("/bin/sh", "-c", "cp a b.dat", inputs={"a": data}, outputs=["b.dat"])
            for _ in range(6):
                lane.start("--once", job_id).wait(90)
                if lane.rig.state(job_id).get("state") == "completed":
                    break
            assert lane.rig.state(job_id)["state"] == "completed"
            assert (lane.folder / "cut.done").exists(), way
            assert lane.push.out(job_id) == {"b.dat": data}
            carried = lane.carried()[["up", "down"].index(way)]
            assert carried < 1.45 * LARGE, f"{way}: {carried} bytes for a file of {LARGE}"
            tell(f"guarded ssh: cut at 2/3 of {LARGE} bytes {way}: {carried / LARGE:.2f} times the file was carried")
    finally:
        lane.rig.close()
