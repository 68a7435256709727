"""Narrow, lossy and stalled lines, both modes: a silent line is given up soon, and a file goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable

import pytest

from components.figures import tell
from components.netns import together
from components.netrig import STALL_S, NetRig
from components.waiting import wait_until
from faults.conftest import MakeCompanySshd, MakeNetRig

DATA = random.Random(20261123).randbytes(3 << 20)  # nothing that rsync or a hole could shorten
SOME = DATA[: 1 << 20]
FEW = DATA[: 256 << 10]
SLACK = 0.25  # headers, acknowledgements and what is sent twice, as a part of the file
SAY = 'echo said; cat 入力.bin >copy.out'


@dataclass
class Way:
    """A site of either mode: where a file grows that is on its way there or back, and which line of a log tells of a cut."""

    site: str
    rig: NetRig
    mode: str
    base: Path  # the folder that has the job's folder at the company
    figures: list[str] = field(default_factory=list)

    def arrived(self, job: str, *, out: bool) -> int:
        """How much of the one large file is on the other side."""
        if out:
            return largest(self.rig.job(job) / "incoming")
        return largest(self.base / job / ("in.part" if self.mode == "webapi" else "in"))

    def troubles(self) -> int:
        if self.mode == "webapi":
            return self.rig.agent_log(self.site).count("event=tried_again")
        return (self.rig.root / "push.log").read_text(encoding="utf-8").count("event=trouble")

    def stall(self, *, out: bool) -> None:
        """Cut the line in the middle of a file; it is noticed soon, and what is there already is not carried again."""
        line = self.rig.line(self.site)
        (self.rig.root / "data").write_bytes(DATA)
        job = self.rig.drop(self.site, *(
            (f'cat "{self.rig.root}/data" >copy.out', None) if out else ("sha256sum <入力.bin >copy.out", {"入力.bin": DATA})
        ))  # fmt: skip
        wait_until(lambda: self.arrived(job, out=out) > len(DATA) // 3, 60, "a third has arrived", every_s=0.01)
        before, cut_at = self.troubles(), time.monotonic()
        line.cut()
        wait_until(lambda: self.troubles() > before, STALL_S * 3 + 20, "the silence is noticed")
        silent_s = time.monotonic() - cut_at
        here, carried = self.arrived(job, out=out), line.carried()[not out]
        line.heal()
        self.rig.ended_well(job, {"copy.out": DATA if out else f"{hashlib.sha256(DATA).hexdigest()}  -\n".encode()})
        again = line.carried()[not out] - carried
        where = f"{self.mode} {'out' if out else 'in'}"
        assert here > len(DATA) // 3, f"{where}: what had arrived was thrown away"
        assert again < len(DATA) - here + SLACK * len(DATA), f"{where}: {here} were there, yet {again} bytes were carried again"
        self.figures.append(f"{where} noticed in {silent_s:.1f} s, {here} of {len(DATA)} bytes there, {again} bytes after it")


def largest(folder: Path) -> int:
    """The size of the largest file below `folder`, hidden ones too."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just got its name
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)


@pytest.fixture
def make_ways(make_net_rig: MakeNetRig, company_sshd: MakeCompanySshd) -> Callable[..., list[Way]]:
    """`make_ways(pairs)`: so many sites of each mode, webapi and ssh by turns; server, agents and push run."""

    def make(pairs: int = 1) -> list[Way]:
        rig = make_net_rig(2 * pairs)
        ways, sites = [], {}
        for number in range(1, 2 * pairs + 1):
            site = f"site{number}"
            if number % 2:
                sites[site] = {"commands": "*"}
                ways.append(Way(site, rig, "webapi", rig.agent_folder(site) / "base"))
            else:
                sshd = company_sshd(rig.company(site), site)
                sites[site] = sshd.site()
                ways.append(Way(site, rig, "ssh", sshd.home / "base"))
        rig.start_server(sites)
        for way in ways[::2]:
            rig.start_agent(way.site, chunk="256K")
        rig.start_push(sites)
        return ways

    return make


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stalled_file_fails_soon_and_goes_on_where_it_was(make_ways: Callable[..., list[Way]]) -> None:
    ways = make_ways()

    def both(way: Way) -> None:
        way.rig.line(way.site).shape(8000)
        way.stall(out=False)
        way.stall(out=True)

    together({way.mode: partial(both, way) for way in ways})
    tell("network, stalled: " + "; ".join(line for way in ways for line in way.figures))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_narrow_line_and_one_that_loses_a_fifth(make_ways: Callable[..., list[Way]]) -> None:
    ways = make_ways(2)

    def carry(way: Way, data: bytes, bad: Callable[[], None]) -> None:
        bad()
        began = time.monotonic()
        way.rig.ended_well(way.rig.drop(way.site, SAY, {"入力.bin": data}), {"copy.out": data}, 300)
        way.figures.append(f"{way.mode} {len(data) >> 10} KiB there and back in {time.monotonic() - began:.0f} s")

    lines = [way.rig.line(way.site) for way in ways]
    narrow, lossy = (lambda line: line.shape(2000)), (lambda line: line.lose(20))
    together({
        f"{way.mode}, {kind}": partial(carry, way, data, partial(bad, line))
        for way, line, (kind, bad, data) in zip(
            ways, lines, [("2 Mbit/s", narrow, SOME)] * 2 + [("20 % lost", lossy, FEW)] * 2
        )
    })  # fmt: skip
    tell("network, 2 Mbit/s: " + "; ".join(way.figures[0] for way in ways[:2]))
    tell("network, 20 % lost: " + "; ".join(way.figures[0] for way in ways[2:]))
