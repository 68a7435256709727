"""The server killed before any change to the disk, in every call: nothing half done is seen, and the repeat goes through."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlencode

import pytest
from bottle import Bottle

from published.raw_calls import BASE, Answer
from published.their_poller import STDERR, STDOUT
from server.crashing import each_crash
from spool.config import LiveConfig
from spool.scratch import sweep
from spool.server.app import build, token_file
from spool.server.contacts import Contacts
from spool.server.wakeups import Wakeups
from spool.store import Store

pytestmark = pytest.mark.slow

SITE = "nims-dev"
INI = f"[Server]\nipaddress = 127.0.0.1\n[RemoteSites]\nremote_site_ids = {SITE}\n[{SITE}]\ncommands = sh job.sh\n"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def entry(data: bytes) -> dict[str, str]:
    return {"content": b64(data), "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}


CALC = {
    "command": "sh job.sh", "remote-site": SITE, "parameters": "",
    "parameter_files": {"job.sh": [b64(b"echo"), "text/plain;", "x"], "in.dat": [b64(bytes(5000)), "", ""]},
    "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in ("a.dat", "sub/b.dat")},
}  # fmt: skip


def results(word: str) -> dict[str, Any]:
    names = ("a.dat", "sub/b.dat", STDOUT, STDERR)
    return {name: entry(f"{word} {name}".encode()) for name in names}


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed is not a power cut: what was written stays."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class App:
    """The application of a server over the spool at `root`, started anew."""

    def __init__(self, root: Path) -> None:
        ini = root.parent / "spool.ini"
        ini.write_text(INI)
        self.store = Store.open(root, create=True)
        config = LiveConfig(ini)
        self.tokens = token_file(self.store, config)
        self.app: Bottle = build(self.store, config, Wakeups(1), Contacts(self.store), self.tokens)

    def call(self, method: str, call: str, token: str, body: Any = None, **query: str) -> Answer:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        told: list[str] = []
        environ = {
            "REQUEST_METHOD": method, "PATH_INFO": f"{BASE}/{call}", "QUERY_STRING": urlencode(query), "SCRIPT_NAME": "",
            "SERVER_NAME": "x", "SERVER_PORT": "80", "REMOTE_ADDR": "127.0.0.1", "CONTENT_LENGTH": str(len(data)),
            "HTTP_AUTHORIZATION": f"Bearer {token}", "wsgi.input": io.BytesIO(data), "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
        }  # fmt: skip
        blocks = self.app(environ, lambda status, headers, exc=None: told.append(status))
        return Answer(call, int(told[0].split()[0]), b"".join(blocks))


class Case:
    """A spool with one job brought up to a step."""

    def __init__(self, root: Path) -> None:
        os.makedirs(root)
        self.root = root / "spool"
        self.app = App(self.root)
        self.token, _ = self.app.tokens.add("alice", ("submitter", "agent"), ())
        self.job = ""

    def step(self, name: str) -> Answer:
        """One step."""
        app, named = self.app, {"accept_id": self.job, "site_id": SITE}
        steps: dict[str, Callable[[], Answer]] = {
            "add": lambda: app.call("POST", "add-calcinfo", self.token, {"calc-info": CALC}),
            "allow": lambda: app.call("POST", "allow-wait-calc", self.token, {"accept_id": self.job}),
            "request": lambda: app.call("GET", "calc-request", self.token, site_id=SITE),
            "params": lambda: app.call("GET", "calc-params", self.token, **named),
            "complete": lambda: app.call("POST", "calc-params-complete", self.token, named),
            "start": lambda: app.call("POST", "calc-start", self.token, named),
            "end": lambda: app.call("POST", "calc-end", self.token, {**named, "result": "calc end"}),
            "results": lambda: app.call("POST", "send-results", self.token, {**named, "result_files": results("first")}),
            "again": lambda: app.call("POST", "send-results", self.token, {**named, "result_files": results("second")}),
            "end send": lambda: app.call("POST", "end-send", self.token, {**named, "result": "end send"}),
            "cancel": lambda: app.call("POST", "cancel-wait-calc", self.token, {"accept_id": self.job, "delete": "force"}),
            "get": lambda: app.call("GET", "get-calc-result", self.token, accept_id=self.job),
            "status": lambda: app.call("GET", "calc-status", self.token, accept_id=self.job),
        }  # fmt: skip
        return steps[name]()

    def up_to(self, *names: str) -> None:
        for name in names:
            answer = self.step(name)
            assert answer.told == (200, "0300" if name == "request" else 200), (name, answer)
            if name == "add":
                self.job = str(answer.error["accept_id"])

    def said(self) -> set[str]:
        """The first words of the results that the submitter gets."""
        found = self.step("get").error["result-info"]["result_files"]
        return {base64.b64decode(item["content"]).decode().partition(" ")[0] for item in found.values()}

    def history(self) -> list[str]:
        store = Store.open(self.root)
        return [str(line.target) for line in store.history(store.state(self.job))]


ORDER = ("add", "allow", "params", "complete", "start", "end", "results", "end send")
HISTORY = ["new", "queued", "claimed", "running", "returning", "completed"]


def crashes(tmp_path: Path, before: tuple[str, ...], step: str) -> Iterator[Case]:
    """Cases in which the server was killed in `step`, at each of its changes in turn."""
    cases: list[Case] = []

    def prepare(number: int) -> Callable[[], object]:
        case = Case(tmp_path / str(number))
        case.up_to(*before)
        cases.append(case)
        return lambda: case.step(step)

    for _ in each_crash(prepare):
        (case,) = cases
        case.app = App(case.root)
        yield case
        shutil.rmtree(case.root.parent)
        cases.clear()


def test_a_killed_registration_leaves_no_job_or_a_whole_one(tmp_path: Path) -> None:
    for case in crashes(tmp_path, (), "add"):
        store = Store.open(case.root)
        for job_id in store.ids():
            paths = store.paths.job(job_id)
            assert store.state(job_id).state == "new"
            assert {item.name for item in paths.inputs.iterdir()} == {"job.sh", "in.dat"}
            assert job_id in store.queue.new()
        assert list(store.paths.corrupt.iterdir()) == []
        case.up_to("add")
        sweep(store.paths, min_age_s=0)
        assert [item.name for item in store.paths.tmp.iterdir()] == []
        case.up_to("allow", "params")


@pytest.mark.parametrize("step", ["params", "complete", "start", "end", "results", "end send"])
def test_a_killed_step_is_repeated(tmp_path: Path, step: str) -> None:
    at = ORDER.index(step)
    for case in crashes(tmp_path, ORDER[:at], step):
        case.up_to(*ORDER[at:])
        assert case.history() == HISTORY
        assert case.said() == {"first"}
        store = Store.open(case.root)
        assert [path for path in store.paths.job(case.job).incoming.rglob("files/**/*") if path.is_file()] == []
        sweep(store.paths, min_age_s=0)
        assert [item.name for item in store.paths.tmp.iterdir()] == []


def test_a_killed_second_sending_is_never_mixed_with_the_first(tmp_path: Path) -> None:
    """The poller does not repeat it either, but goes on."""
    for case in crashes(tmp_path, ORDER[:7], "again"):
        case.up_to("end send")
        state = Store.open(case.root).state(case.job)
        if state.state == "completed":
            assert case.said() in ({"first"}, {"second"})
        else:
            assert (state.state, state.reason) == ("failed", "transfer")


@pytest.mark.parametrize("step", ["start", "end", "results"])
def test_a_killed_poller_request_is_repeated(tmp_path: Path, step: str) -> None:
    """A poller that was killed too asks for its next job: what it had is ended, whole."""
    asked_once = () if step == "results" else ("request",)  # the first may be one that was given up long ago
    for case in crashes(tmp_path, (*ORDER[: ORDER.index(step) + 1], *asked_once), "request"):
        assert case.step("request").told == (200, "0300")
        state = Store.open(case.root).state(case.job)
        assert state.state == {"start": "failed", "end": "failed", "results": "completed"}[step]
        assert list(case.root.glob("active/*/*/*")) == []


@pytest.mark.parametrize("before", [1, 2, 3, 5, 6, 7, 8])
def test_a_killed_cancel_is_repeated(tmp_path: Path, before: int) -> None:
    for case in crashes(tmp_path, ORDER[:before], "cancel"):
        assert case.step("cancel").told in ((200, 200), (400, 400)), "400: it is gone already"
        assert case.step("status").told == (200, 400)
        for _ in range(2):
            assert case.step("request").told == (200, "0300")
        assert Store.open(case.root).state(case.job).state == ("completed" if before == 8 else "canceled")
        assert case.step("request").told == (200, "0300"), "an index may list too much, but nothing is made of it"
