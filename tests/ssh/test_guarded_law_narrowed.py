"""Rules that were narrowed between the measuring and the sending of what a gate has measured."""

from __future__ import annotations

import pytest

from .guarded import Guarded, Run, parts
from .test_guarded_law import site
from .test_guarded_release import HELD, WALLED

__all__ = ["site"]


@pytest.mark.parametrize("now", [{"allow": "*.frd"}, {"allow": "*.dat", "deny": "y.*"}, {"allow": "*.dat", "max_bytes": "1"}])
def test_a_law_that_was_narrowed_since_the_measuring_stops_it(site: Guarded, now: dict[str, str]) -> None:
    site.law(release={"allow": "*.dat", "logs": "withhold"})
    run = Run(site, "echo yy >y.dat")
    run.to_end()
    site.law(release=now)
    done = run.ask("get", parts({"out/y.dat": 0}))
    assert b"yy" not in done.stdout
    assert run.good("finish")["result"]["reason"] == "refused_by_site"
    assert run.good("finish")["result"]["files"] == []
    run.over("failed", "refused_by_site")


def test_what_persons_have_released_leaves_by_the_names_of_now(site: Guarded) -> None:
    site.law(WALLED, HELD)
    run = Run(site, "echo yy >y.dat")
    run.to_exit()
    assert run.good("finish")["held"] is True
    site.person("release", run.id)
    assert run.good("finish")["held"] is False
    site.law(WALLED, {**HELD, "deny": "*.dat"})
    assert run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site"
    result = run.good("finish")["result"]
    assert (result["reason"], result["files"], result["exit_code"]) == ("refused_by_site", [], None)
    run.over("failed", "refused_by_site")
    assert "sent" not in site.events(run.id)
