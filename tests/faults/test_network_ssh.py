"""SSH mode over a line that drops or resets after any number of bytes: the next try finds the job there, and no second start."""

from __future__ import annotations

import os
from functools import partial

import pytest

from components.figures import tell
from components.netns import DROP, RESET, together
from components.netrig import STALL_S, NetRig
from components.waiting import stays, wait_until
from faults.conftest import MakeCompanySshd, MakeNetRig

LANES = 5
OFFSETS = 20 if os.environ.get("MINT_EXHAUSTIVE") == "1" else 2  # a lane
INPUT = bytes(range(256)) * 256
GIVE_UP_S = 3
SAY = "echo said; cp 入力.bin copy.out"


class Push:
    """The push over ssh sites, one a lane."""

    def __init__(self, rig: NetRig, make_sshd: MakeCompanySshd, lanes: int) -> None:
        self.rig = rig
        names = [f"site{number}" for number in range(1, lanes + 1)]
        self.sshds = {site: make_sshd(rig.company(site), site) for site in names}
        self.sites = {site: dict(sshd.site()) for site, sshd in self.sshds.items()}

    def start(self) -> None:
        self.rig.start_push(self.sites)
        wait_until((self.rig.spool / "drop").exists, 60, "the spool is there")

    def troubles(self, job: str) -> int:
        lines = (self.rig.root / "push.log").read_text(encoding="utf-8").splitlines()
        return sum("event=trouble" in line and job in line for line in lines)

    def wait_trouble(self, job: str, times: int = 1) -> None:
        wait_until(lambda: self.troubles(job) >= times, STALL_S * 10 * times + 60, f"{job} meets the silence")

    def until_go(self, site: str) -> str:
        """A job that runs until `let_go`; returns its id when its command has started."""
        job = self.rig.drop(site, f'while [ ! -e "{self.go(site)}" ]; do sleep 0.05; done; {SAY}', {"入力.bin": INPUT})
        wait_until(lambda: self.rig.starts(job), 60, "the command starts", every_s=0.001)
        return job

    def go(self, site: str) -> str:
        return f"{self.rig.root}/go-{site}"

    def let_go(self, site: str) -> None:
        with open(self.go(site), "w"):
            pass

    def ended_well(self, job: str) -> None:
        self.rig.ended_well(job, {"copy.out": INPUT})

    # ---- what meets a lane

    def cuts_by_bytes(self, site: str, points: list[int]) -> int:
        """A job for each point and kind, its line cut after so many bytes; returns how many cuts a job felt."""
        felt = 0
        line = self.rig.line(site)
        for count in points:
            for how in (DROP, RESET):
                line.cut_after(count, how)
                job = self.rig.drop(site, SAY, {"入力.bin": INPUT})
                felt += self.felt(job)
                line.heal()
                self.ended_well(job)
        return felt

    def felt(self, job: str) -> bool:
        """Wait until the job has met the cut, or was through before it."""
        done = partial(self.rig.state, job)
        wait_until(lambda: self.troubles(job) or done().get("state") == "completed", 60, "the cut is noticed")
        return self.troubles(job) > 0

    def before_the_connection(self, site: str) -> None:
        """Nothing answers at first; the site is tried until it does."""
        line = self.rig.line(site)
        for how in (DROP, RESET):
            line.cut(how)
            job = self.rig.drop(site, SAY, {"入力.bin": INPUT})
            self.wait_trouble(job)
            line.heal()
            self.ended_well(job)

    def right_after_the_start(self, site: str) -> None:
        """The line is cut at the first thing that the command does: the answer to start is lost, or the next."""
        line = self.rig.line(site)
        for how in (DROP, RESET):
            job = self.until_go(site)
            line.cut(how)
            self.wait_trouble(job)
            line.heal()
            self.let_go(site)
            self.ended_well(job)
            os.unlink(self.go(site))

    def long_while_it_runs(self, site: str) -> None:
        """Silent for several tries, during which the command ends; it is found ended, and fetched."""
        line = self.rig.line(site)
        job = self.until_go(site)
        stays(lambda: self.rig.state(job)["state"] == "running", 2, "it runs")
        line.cut()
        self.wait_trouble(job, 2)
        self.let_go(site)
        ended = self.sshds[site].home / "base" / job / "run" / "exit"
        wait_until(ended.exists, 60, "the command has ended")
        assert self.rig.state(job)["state"] == "running"
        line.heal()
        self.ended_well(job)

    def longer_than_the_limit(self, site: str) -> None:
        """With `give_up_after_s` the job fails, and says why; a requeue runs it once more."""
        line = self.rig.line(site)
        job = self.until_go(site)
        line.cut()
        state = self.rig.ended(job)
        assert (state["state"], state["reason"]) == ("failed", "unreachable")
        line.heal()
        self.let_go(site)
        self.rig.spoolctl("requeue", job)
        assert self.rig.ended(job)["state"] == "completed"
        assert self.rig.starts(job) == 2, "one start for each attempt"
        assert self.rig.out(job, "copy.out") == INPUT


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * OFFSETS)
def test_cut_anywhere(make_net_rig: MakeNetRig, company_sshd: MakeCompanySshd) -> None:
    push = Push(make_net_rig(LANES), company_sshd, LANES)
    push.start()
    # The first job opens the connection and brings the runner; the second is the measure.
    for _ in range(2):
        before = sum(push.rig.line("site1").carried())
        push.ended_well(push.rig.drop("site1", SAY, {"入力.bin": INPUT}))
    whole = sum(push.rig.line("site1").carried()) - before
    number = LANES * OFFSETS
    points = [whole * (2 * point + 1) // (2 * number) for point in range(number)]
    felt: dict[str, int] = {}

    def go_through(lane: int, site: str) -> None:
        felt[site] = push.cuts_by_bytes(site, points[lane::LANES])

    together({site: partial(go_through, lane, site) for lane, site in enumerate(push.sites)})
    tell(f"network, ssh: {number * 2} cuts after 0 to {whole} bytes, {sum(felt.values())} felt, {number * 2} jobs completed, "
          "each started once")  # fmt: skip
    assert sum(felt.values()) > number, "most cuts must be felt, or the test shows nothing"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_step(make_net_rig: MakeNetRig, company_sshd: MakeCompanySshd) -> None:
    push = Push(make_net_rig(4), company_sshd, 4)
    push.sites["site4"]["give_up_after_s"] = GIVE_UP_S
    push.start()
    steps = (push.before_the_connection, push.right_after_the_start, push.long_while_it_runs, push.longer_than_the_limit)
    together({step.__name__: partial(step, site) for step, site in zip(steps, push.sites)})
    tell("network, ssh steps: connecting, start, hours of silence, given up: 6 cuts, 6 jobs completed, one start an attempt")
