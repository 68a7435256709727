"""tools/mi-system-wf.py where nobody answers: before anything is registered it stops after a while, afterwards never."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.ports import free_port
from published.their_server import TheirServer
from published.workflow_module import COMMAND, SITE, TOKEN, Module
from spool.ctl import published
from spool.errors import SpoolError

CALLS = ("allow-wait-calc", "calc-progress", "calc-status", "get-calc-result")


@pytest.fixture
def server() -> Iterator[TheirServer]:
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}) as server:
        yield server


@pytest.fixture
def module(tmp_path: Path, server: TheirServer) -> Iterator[Module]:
    made = Module(tmp_path, server)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["refused", "no such name", "a page", "busy"])
def test_an_address_where_nobody_answers(module: Module, server: TheirServer, kind: str) -> None:
    """Before anything is registered it stops after a while, whatever the silence is like."""
    nowhere = {"refused": f"http://127.0.0.1:{free_port()}", "no such name": "https://gone.invalid:443"}
    url = nowhere.get(kind, server.url)
    server.html("add-calcinfo", 99 if kind == "a page" else 0)
    server.busy("add-calcinfo", 99 if kind == "busy" else 0)
    said = module.run(url=url, code=75, MI_SYSTEM_WF_PATIENCE_S="1")
    line = rf"(?m)^mi-system-wf.py: {url} has not answered for \d+ s \(\d tries\): is the address right\? Nothing was registered$"
    assert re.search(line, said)
    assert said.count("trying again") >= published.LEAST_TRIES - 1
    assert server.jobs == {}
    assert module.asked("cancel-wait-calc") == 0


def test_nobody_answers_in_japanese(module: Module) -> None:
    said = module.run(url=f"http://127.0.0.1:{free_port()}", code=75, MI_SYSTEM_WF_PATIENCE_S="0", LANG="ja_JP.UTF-8")
    assert "秒間応答がありません(3回試行)。アドレスを確認してください。何も登録していません" in said
    assert "応答がありません: http://127.0.0.1" in said


def test_a_server_that_asks_for_time_is_waited_for(module: Module, server: TheirServer) -> None:
    module.script("echo 1 > out.dat")
    server.busy("add-calcinfo", 4, retry_after="1")
    module.poll()
    module.run(MI_SYSTEM_WF_PATIENCE_S="0")


@pytest.mark.parametrize("call", CALLS)
def test_once_registered_it_is_patient_for_ever(module: Module, server: TheirServer, call: str) -> None:
    module.script("echo 1 > out.dat")
    server.refuse(call, 4)
    module.poll()
    assert "has not answered" not in module.run(MI_SYSTEM_WF_PATIENCE_S="0")


def test_the_patience_is_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(published.PATIENCE, raising=False)
    words = ["mint", SITE, TOKEN, COMMAND, "", ""]
    assert published.parse(words, tmp_path).patience_s == 600
    for wrong in ("-1", "ten", "1.5", "nan"):
        monkeypatch.setenv(published.PATIENCE, wrong)
        with pytest.raises(SpoolError):
            published.parse(words, tmp_path)
