"""Our server with a published ini, and the published programs as somebody else wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from components.process import Process
from components.rig import Rig, Section
from components.waiting import wait_until
from published.their_poller import Seen, TheirPoller
from published.their_submitter import TheirSubmitter, calc_info, submit
from spool.store import Store

SITE, OTHER_SITE = "nims-dev", "rme-u-tokyo"
COMMAND = "sh job.sh"
INI: dict[str, Section] = {
    "Server": {"ipaddress": "127.0.0.1"},
    "RemoteSites": {"remote_site_ids": [SITE, OTHER_SITE]},
    SITE: {"commands": [COMMAND, "/opt/fem-ccv/femccv"]},
    OTHER_SITE: {"commands": "create_inp_file.sh"},
}
ROLES = ("submitter", "agent")
SCALE = 0.002


class Institute:
    """Our server as a drop-in for the published one. `token` is alice's, for submitting and polling."""

    def __init__(self, root: Path) -> None:
        self.rig = Rig(root)
        self.threads = ThreadPoolExecutor()
        self.serve()
        self.url = self.rig.url
        self.token = self.rig.token("alice", *ROLES)
        self.module = root / "module"
        self.module.mkdir()

    def serve(self, extra: Mapping[str, Section] | None = None, **options: Any) -> Process:
        ini = {**INI, "Server": {**INI["Server"], "portnumber": self.rig.port}}
        return self.rig.start_server({}, extra={**ini, **(extra or {})}, **options)

    def poller(self, site: str = SITE, token: str = "", **more: Any) -> TheirPoller:
        return TheirPoller(self.url, site, token or self.token, self.rig.root / "calc_base", scale=SCALE, **more)

    def submitter(self, token: str = "") -> TheirSubmitter:
        return TheirSubmitter(self.url, token or self.token)

    def call(self, method: str, call: str, body: bytes | None = None) -> requests.Response:
        """Any request."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.request(method, f"{self.url}/mi-distcomp-api/{call}", data=body, headers=headers, timeout=30)

    def store(self) -> Store:
        return Store.open(self.rig.spool)

    def submit(self, script: str, outputs: list[str], *, status_again: bool = False, **inputs: bytes) -> Future[int]:
        """Their submitter, with what `script` does as the command; the results come to `module`."""
        (self.module / "job.sh").write_text(script, encoding="utf-8")
        for name, data in inputs.items():
            (self.module / name).write_bytes(data)
        names = [Path("job.sh"), *map(Path, inputs)]
        more: dict[str, Any] = {"scale": SCALE, "into": self.module, "status_again": status_again}
        return self.threads.submit(submit, self.url, SITE, self.token, COMMAND, names, outputs, **more)

    def poll(self, **more: Any) -> Future[Seen]:
        """Their poller, for one job."""
        return self.threads.submit(self.poller(**more).run_one, 500)

    def registered(self, *, allow: bool = True, outputs: list[str] | None = None, **calc: Any) -> str:
        """A job registered call by call; its id."""
        value = {**calc_info(SITE, COMMAND, [], outputs or ["out.dat"], "", Path()), **calc}
        accept_id = str(first(self.submitter().add(value))["accept_id"])
        if allow:
            assert first(self.submitter().allow(accept_id))["code"] == 200
        return accept_id

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True) if hasattr(self, "threads") else None
        self.rig.close()


def first(answer: requests.Response) -> dict[str, Any]:
    """The one object of the envelope."""
    (only,) = answer.json()["errors"]
    return dict(only)


def told(answer: requests.Response) -> tuple[int, Any]:
    """(HTTP status, code)."""
    return answer.status_code, first(answer)["code"]


def done(future: Future[Any], deadline_s: float = 30) -> Any:
    wait_until(future.done, deadline_s, "the thread's end")
    return future.result()


@pytest.fixture
def institute(tmp_path: Path) -> Iterator[Institute]:
    """A running server with a published ini."""
    made = Institute(tmp_path / "rig")
    yield made
    made.close()
