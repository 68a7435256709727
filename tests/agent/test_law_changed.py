"""agent.ini was changed between the measuring of results and their return: what leaves is what the law of now lets leave."""

from __future__ import annotations

import pytest

from agent.company import Company, files_below
from agent.test_held import WALLED, events
from components.rig import Section

LAW: Section = {"allow": "*.dat", "logs": "return"}
SCRIPT = "echo 結果 > a.dat; echo said; until [ -e go ]; do sleep 0.05; done"
REDACTED: Section = {"allow": "*.dat", "logs": "redact", "redact": "license=[^ ]*"}
CHANGES: dict[str, tuple[Section, Section]] = {
    "allow": (LAW, {"allow": "*.frd", "logs": "return"}),
    "deny": (LAW, {**LAW, "deny": "a.*"}),
    "redact": (LAW, {**LAW, "redact": "^a"}),
    "caps": (LAW, {**LAW, "max_files": "1"}),
    "withhold": (LAW, {"allow": "*.dat"}),
    "redacted from now on": (LAW, REDACTED),
    "redacted by more": (REDACTED, {**REDACTED, "redact": "said"}),
    "redact, of a word": ({"allow": "b.dat"}, {"allow": "b.dat", "redact": "a[.]dat"}),
    "hold": (LAW, {**LAW, "hold": "always"}),
    "scrub": (LAW, {**LAW, "scrub": "/bin/true"}),
}


def measured(company: Company, law: Section) -> str:
    """A job whose results were measured, and could not leave before the agent was killed."""
    company.release, company.commands = dict(law), dict(WALLED)
    company.start()
    job = company.sh(SCRIPT, outputs=("*.dat", "a.dat"))
    company.is_at(job, "running")
    company.locally(job, "running")
    (server,) = [one for one in company.rig._processes if one is not company.agent]
    server.kill()
    (company.local(job) / "work" / "go").touch()
    company.locally(job, "returning")
    company.kill_agent()
    return job


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_law_of_now_does_not_let_leave_stays(company: Company, change: str) -> None:
    before, now = CHANGES[change]
    job = measured(company, before)
    company.release = dict(now)
    company.serve()
    company.start()
    state = company.failed(job, "refused_by_site")
    caps = "the results are more files than the site lets leave"
    assert state["message"] == (caps if change == "caps" else "the site changed its rules before the results left")
    assert files_below(company.rig.job(job) / "out") == {}
    assert files_below(company.rig.job(job) / "incoming") == {}
    assert b"said" not in b"".join(files_below(company.rig.job(job) / "log").values())
    assert (company.local(job) / "work" / "a.dat").exists(), "what was made stays at the site"
    words = [one["event"] for one in events(company) if one.get("job") == job]
    assert words[-1] == "refused"
    assert "sent" not in words


@pytest.mark.slow
def test_a_change_that_lets_all_of_it_leave_holds_nothing_up(company: Company) -> None:
    job = measured(company, {"allow": "*.dat"})
    company.release = {"allow": "*.dat *.frd", "max_files": "9"}
    company.serve()
    company.start()
    assert company.completed(job) == {"a.dat": "結果\n".encode()}
