"""docs/openapi.json is what the routes say, and schemathesis makes requests of it for every role: no 500, no stack."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

from components.figures import tell
from components.rig import REPO
from hostile.cast import Cast
from hostile.line import TRACES
from spool.server.openapi import document, text

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
EXAMPLES = 300 if EXHAUSTIVE else 4  # for each role and route
ASKERS = ("nobody", "submitter", "agent", "operator", "viewer", "submitter and agent")


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    made = Cast(tmp_path_factory.mktemp("openapi") / "rig")
    yield made
    made.close()


def test_the_file_is_what_the_routes_say() -> None:
    """After a change: python -m spool.server.openapi > docs/openapi.json"""
    assert (REPO / "docs" / "openapi.json").read_text(encoding="utf-8") == text()


def _operations() -> Any:
    # bottle's paths hold slashes in `name`; schemathesis encodes them, which the server takes for the same.
    schema: Any = schemathesis.openapi.from_dict(document())
    return [found.ok() for found in schema.get_all_operations()]


def _generated(cast: Cast, operation: Any, number: int, headers: dict[str, str], job_id: str, statuses: dict[int, int]) -> None:
    """Send what is generated for one operation, mostly about a job that there is."""

    @seed(number)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck])
    @given(case=operation.as_strategy())
    def once(case: Any) -> None:
        if "job_id" in (case.path_parameters or {}) and len(str(case.path_parameters)) % 4:
            case.path_parameters["job_id"] = job_id
        if isinstance(case.body, dict):
            case.body.update({key: value for key, value in (("wait_s", 0), ("site", "site-a")) if key in case.body})
        answer = case.call(base_url=cast.rig.url, headers=headers, timeout=60, allow_redirects=False)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code not in (500, 502), (case, answer.content)
        assert not any(trace in answer.content for trace in TRACES), (case, answer.content)
        if answer.status_code >= 400 and "problem" in "".join(answer.headers.get("Content-Type", "")) and answer.content:
            assert set(json.loads(answer.content)) == {"code", "message", "hint"}

    once()


@pytest.mark.slow
@pytest.mark.timeout(3000 if EXHAUSTIVE else 300)
@pytest.mark.parametrize("asker", ASKERS)
def test_schemathesis(cast: Cast, asker: str) -> None:
    token = cast.token_of(asker)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    ids = {state: cast.job(state).id for state in ("fresh", "new", "queued", "running", "completed")}
    statuses: dict[int, int] = {}
    for number, operation in enumerate(_operations()):
        _generated(cast, operation, number, headers, list(ids.values())[number % len(ids)], statuses)
    log = cast.process.output()
    assert cast.process.running
    assert "event=internal" not in log, log[log.find("event=internal") :][:3000]
    assert "Traceback" not in log
    assert len(statuses) > 2 or asker == "nobody"
    tell(f"hostile: schemathesis as {asker}: {sum(statuses.values())} requests, {sorted(statuses.items())}: 0 answers of 500")


def test_the_sample_stands_where_the_manual_says() -> None:
    assert "openapi.json" in Path(REPO / "docs" / "protocol.md").read_text(encoding="utf-8")
