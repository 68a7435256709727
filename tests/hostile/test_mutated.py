"""Mutated requests: whatever comes in, the answer is a refusal in words, and nothing else is harmed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from components import proc
from components.figures import tell
from hostile.cast import Cast
from hostile.fuzz import Fuzz, is_whole
from hostile.line import request
from hostile.surroundings import Surroundings, holds_canary, odd_below, tree

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
IN_CI, IN_ALL, ROUND = 5_000, 100_000, 5_000
MAX_RSS_MB = 200


@pytest.mark.slow
@pytest.mark.timeout(3600 if EXHAUSTIVE else 300)
def test_mutated_requests(tmp_path: Path) -> None:
    """0 answers of 500, 0 stacks, another's job untouched byte for byte, nothing outside, a spool that `check` finds clean."""
    total = IN_ALL if EXHAUSTIVE else IN_CI
    statuses: dict[int, int] = {}
    silent, peak_mb = 0, 0.0
    for number in range(total // ROUND):
        root = tmp_path / f"round-{number}"
        cast = Cast(root)
        try:
            found = _round(cast, number, root)
        finally:
            cast.close()
        for status, count in found[0].items():
            statuses[status] = statuses.get(status, 0) + count
        silent, peak_mb = silent + found[1], max(peak_mb, found[2])
    told = " ".join(f"{status}:{statuses[status]}" for status in sorted(statuses))
    tell(f"hostile: {total} mutated requests: 0 answers of 500, 0 stacks; {told}; server's peak {peak_mb:.0f} MB")
    assert silent <= total // 1000


def _round(cast: Cast, seed: int, root: Path) -> tuple[dict[int, int], int, float]:
    canary = [cast.job("completed", user="bob", site="site-b"), cast.job("queued", user="bob", site="site-b")]
    folders = [cast.store.paths.job(job.id).folder for job in canary]
    before = [tree(folder) for folder in folders]
    around = Surroundings(root, ["spool", "home", "spool.log"])
    tally = Fuzz(cast, seed, around.outside).run(ROUND)
    log = cast.process.output()
    assert cast.process.running, log[-3000:]
    assert tally.bad == []
    for word in ("event=internal", "Traceback", "level=CRITICAL", "Exception while serving"):
        assert word not in log, log[max(0, log.find(word) - 500) :][:4000]
    assert cast.rig.health() == 200
    assert [tree(folder) for folder in folders] == before
    around.check()
    assert (odd_below(cast.rig.spool), holds_canary(cast.rig.spool)) == ([str(cast.rig.spool / "spool.ini")], [])
    peak_mb = proc.peak_rss_mb(cast.process.pid)
    assert peak_mb < MAX_RSS_MB
    cast.process.stop(30)
    done = cast.rig.spoolctl("check", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(tally.statuses[status] for status in (200, 201,
        204)) > ROUND // 20, "most were refused at the door: the mutations are dull"
    return dict(tally.statuses), tally.silent, peak_mb


def test_what_counts_as_whole() -> None:
    assert is_whole(request("POST", "/v1/sync", b"{}"))
    assert is_whole(request("GET", "/health"))
    assert not is_whole(request("POST", "/v1/sync", b"{}", {"Content-Length": "3"}))
    assert not is_whole(request("POST", "/v1/sync", b"{}", {"Transfer-Encoding": "chunked"}))
    assert not is_whole(request("GET", "/health").replace(b" HTTP/1.1", b""))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64
