"""The published protocol over lines that fail: our agent with a published server, and a published poller with ours."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.figures import tell
from components.netns import DROP, RESET, Line, together
from components.netrig import NetRig
from components.rig import Section
from components.waiting import wait_until
from faults.conftest import MakeNetRig
from published import their_poller
from published.their_poller import TheirPoller
from published.their_server import TheirServer
from published.their_submitter import TheirSubmitter, calc_info

CALLS = {
    "calc-request": "GET", "calc-params": "GET", "calc-params-complete": "POST", "calc-start": "POST", "calc-end": "POST",
    "send-results": "POST", "end-send": "POST",
}  # fmt: skip
SITES = {f"site{number}": call for number, call in enumerate(CALLS, 1)}
KINDS = [(trap, how) for how in (DROP, RESET) for trap in (Line.trap_request, Line.trap_answer)]
TOKEN = "5" * 64
COMMAND = "sh job.sh"
TEXT = "計算結果 " * 2000
SILENCE_S = 3.0


def script(counter: Path) -> str:
    """Counts by the folder's name, which is the job's id; an agent's command works in ``work/`` in it."""
    return f'folder=${{PWD%/work}}; echo "${{folder##*/}}" >>"{counter}"; cat 入力.txt >copy.out'


def start_of(call: str) -> str:
    return f"{CALLS[call]} /mi-distcomp-api/{call}"


def through_all_faults(line: Line, call: str, submit: Callable[[], str], ended: Callable[[str, bool], None],
                       noticed: Callable[[], int]) -> None:  # fmt: skip
    """A job for each way in which that call may fail: its request lost, its answer lost, dropped, reset.

    `ended(job, lost)` waits for the job's end; `lost` says that the inputs were sent, and did not arrive.
    """
    for trap, how in KINDS:
        before = noticed()
        trap(line, start_of(call), how)
        job = submit()
        line.wait_sprung()
        wait_until(lambda: noticed() > before, 60, f"{call}: it is noticed", every_s=0.05)  # noqa: B023  waited for here
        # A calc-request that arrives late, after later steps, ends the job as lost: the protocol numbers nothing, and a poller
        # that asks is taken to have no job in hand (docs/protocol.md, "Repeating").
        line.heal(late=call != "calc-request")
        ended(job, call == "calc-params" and trap is Line.trap_answer)


# ---- our agent, their server


class Abroad:
    """Their server at MInt, our agents in the companies."""

    def __init__(self, rig: NetRig) -> None:
        self.rig = rig
        self.host = rig.net.mint
        where: dict[str, Any] = {"host": self.host.address, "port": rig.port}
        self.server = self.host.within(lambda: TheirServer({site: [COMMAND] for site in SITES}, {TOKEN: "user"}, **where))
        self.server.__enter__()
        self.submitter = TheirSubmitter(self.server.url, TOKEN)

    def submit(self, site: str) -> str:
        calc = calc_info(site, COMMAND, [], ["copy.out"], "", Path())
        files = {"job.sh": script(self.rig.counter), "入力.txt": TEXT}
        calc["parameter_files"] = {
            name: [base64.b64encode(text.encode()).decode(), "text/plain;", "charset=utf-8"] for name, text in files.items()
        }
        job = str(self.host.within(lambda: self.submitter.add(calc)).json()["errors"][0]["accept_id"])
        assert self.host.within(lambda: self.submitter.allow(job)).status_code == 200
        return job

    def ended(self, job: str, lost: bool) -> None:
        """A strict server does not give the inputs twice (docs/agent.md): then nothing was run, and the job says so."""
        wait_until(lambda: self.server.jobs[job].progress == "got return", 120, f"{job} got return")
        assert self.server.jobs[job].status == ("abnormal" if lost else "completed")
        assert self.rig.starts(job) == (not lost)
        if lost:
            return
        files = self.host.within(lambda: self.submitter.result(job)).json()["errors"][0]["result-info"]["result_files"]
        assert base64.b64decode(files["copy.out"]["content"]).decode() == TEXT

    def troubles(self, site: str) -> int:
        said = self.rig.agent_log(site)
        return sum(said.count(f"event={word}") for word in ("tried_again", "sync_failed", "not_taken_up"))


@pytest.fixture
def abroad(make_net_rig: MakeNetRig) -> Iterator[Abroad]:
    made = Abroad(make_net_rig(len(SITES)))
    yield made
    made.server.__exit__()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_our_agent(abroad: Abroad) -> None:
    rig = abroad.rig
    for site in SITES:
        commands: dict[str, Section] = {COMMAND: {"argv": "/bin/sh job.sh"}}
        rig.start_agent(site, commands, token=TOKEN, release={"allow": "**", "logs": "return"}, poll_s="0.2", slots=1)
        wait_until(lambda: "protocol=published" in rig.agent_log(site), 60, "the protocol is found out")  # noqa: B023
    together({
        call: partial(through_all_faults, rig.line(site), call, partial(abroad.submit, site), abroad.ended,
                      partial(abroad.troubles, site))
        for site, call in SITES.items()
    })  # fmt: skip
    number = len(SITES) * len(KINDS)
    tell(f"network, published server: {len(SITES)} calls, {number} faults, {number} jobs ended, 26 started once, 2 never "
          "(inputs lost that are not sent twice)")  # fmt: skip


# ---- their poller, our server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_their_poller(make_net_rig: MakeNetRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(their_poller, "SILENCE_S", SILENCE_S)
    rig = make_net_rig(len(SITES))
    ini: dict[str, Section] = {
        "Server": {"ipaddress": rig.net.mint.address, "portnumber": rig.port},
        "RemoteSites": {"remote_site_ids": list(SITES)},
        **{site: {"commands": [COMMAND]} for site in SITES},
    }
    rig.start_server({}, extra=ini)
    token = rig.token("mint", "agent")
    pollers = {
        site: TheirPoller(rig.url, site, token, rig.root / "calc" / site, retry=(1000, 60.0)) for site in SITES
    }

    def submit(site: str) -> str:
        inputs = {"job.sh": script(rig.counter).encode(), "入力.txt": TEXT.encode()}
        return rig.drop(site, "", inputs, command=COMMAND, args=[], outputs=["copy.out"])

    def ended(job: str, lost: bool) -> None:
        rig.ended_well(job, {"copy.out": TEXT.encode()})

    def noticed(site: str) -> int:
        return sum("no answer" in line for line in pollers[site].printed)

    def lane(site: str, call: str) -> None:
        try:
            through_all_faults(rig.line(site), call, partial(submit, site), ended, partial(noticed, site))
        finally:
            pollers[site].stop()

    polling = {f"poller of {site}": partial(rig.company(site).within, poller.run) for site, poller in pollers.items()}
    together({**{f"{site}, {call}": partial(lane, site, call) for site, call in SITES.items()}, **polling})
    number = len(SITES) * len(KINDS)
    tell(f"network, published poller: {len(SITES)} calls, {number} faults, {number} jobs completed, each started once")
