"""What MInt's operators hold back: sites, workflows, everything. At once, with nothing deleted, and undone by one word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.company import SITE, Company
from components.waiting import wait_until
from ctl.conftest import Ctl
from server.client import Client
from spool.config import default_config
from spool.controls import ControlFile, Controls, mark
from spool.errors import Busy, ConfigError, NotAllowed
from spool.names import new_id
from spool.published import BASE


def test_a_disabled_site_refuses_and_keeps_what_waits(ctl: Ctl) -> None:
    submit = ("submit", "--site", "s", "--command", "c", "--user", "mint")
    waiting = ctl(*submit).stdout.split()[-1]
    ctl.serve()
    ctl("site", "disable", "s", "--because", "保守 [x]")
    for words in (("submit", "--url"), ("submit", "--spool")):
        remote = ctl.remote("submitter")
        done = (
            ctl(*remote, *submit, code=77, spool=False) if words[1] == "--url" else ctl(*submit, code=None)
        )  # fmt: skip
        assert done.returncode in (1, 77)
        assert "disabled since" in done.stderr
        assert "保守 [x]" in done.stderr
    rejected = list(ctl.store.paths.rejected.iterdir())
    assert len(rejected) == 1  # the drop is there still
    assert json.loads((rejected[0] / "reason.json").read_bytes())["code"] == "not_allowed"
    assert ctl.store.state(waiting).state == "queued"
    assert ctl.store.claim("s", ["mint"], agent="a", room=1) == []
    (row,) = json.loads(ctl("site", "ls", "--json").stdout)["sites"]
    assert "disabled since" in row["held_back"]
    ctl("site", "enable", "s")
    assert [state.id for state in ctl.store.claim("s", ["mint"], agent="a", room=1)] == [waiting]
    assert "not known" in ctl("site", "disable", "other", code=2).stderr
    ctl("site", "enable", "s")  # safe to repeat


def test_a_disabled_workflow(ctl: Ctl) -> None:
    submit = ("submit", "--site", "s", "--command", "c", "--user", "mint")
    first, other = (ctl(*submit, "--workflow", name).stdout.split()[-1] for name in ("W1 解析", "W2"))
    ctl("workflow", "disable", "W1 解析")
    assert "disabled since" in ctl(*submit, "--workflow", "W1 解析", code=1).stderr
    assert [state.id for state in ctl.store.claim("s", ["mint"], agent="a", room=5)] == [other]
    assert ctl.store.state(first).state == "queued"
    assert "W1" in ctl("workflow", "ls").stdout
    ctl("workflow", "enable", "W1 解析")
    assert [state.id for state in ctl.store.claim("s", ["mint"], agent="a", room=5)] == [first]


def test_pause_drain_and_stop_all(ctl: Ctl) -> None:
    store, submit = ctl.store, ("submit", "--site", "s", "--command", "c", "--user", "mint")
    running, waiting = (ctl(*submit).stdout.split()[-1] for _ in range(2))
    (state,) = store.claim("s", ["mint"], agent="a", room=1)
    assert state.id == running
    ctl("pause", "--all", "--because", "x")
    assert store.claim("s", ["mint"], agent="a", room=1) == []
    store.start(running, state.run_id, by="a")  # what is in hand goes on
    assert "1 " in ctl("drain", "s", "--timeout", "0.1", code=75).stderr
    assert "Still held back" in ctl("resume", "s").stderr
    ctl("resume", "--all")
    (second,) = store.claim("s", ["mint"], agent="a", room=1)
    assert "goes on" in ctl("stop-all").stdout
    with pytest.raises(Busy, match="stopped"):
        store.start(second.id, second.run_id, by="a")
    assert store.state(second.id).state == "claimed"
    assert not store.state(running).cancel_requested_at
    assert second.id == waiting
    ctl("resume", "s")
    with pytest.raises(Busy, match="stopped"):
        store.start(second.id, second.run_id, by="a")
    assert "cancel requested" in ctl("stop-all", "--kill").stdout
    assert (store.state(second.id).state, bool(store.state(running).cancel_requested_at)) == ("canceled", True)
    drain = ctl.start("drain", "--all")
    store.fail(running, state.run_id, by="a", reason="lost", message="")
    assert drain.wait(60) == 0
    ctl("resume", "--all")
    third = ctl(*submit).stdout.split()[-1]
    assert [state.id for state in store.claim("s", ["mint"], agent="a", room=1)] == [third]
    for words in (("pause",), ("resume",), ("pause", "s", "--all"), ("drain", "nowhere")):
        ctl(*words, code=2)


def test_a_file_that_cannot_be_read_holds_everything_back(ctl: Ctl) -> None:
    ctl("submit", "--site", "s", "--command", "c", "--user", "mint")
    ctl.store.paths.controls.write_text("{")
    assert ctl.store.claim("s", ["mint"], agent="a", room=1) == []
    assert "controls.json" in ctl("pause", "s", code=78).stderr
    with pytest.raises(ConfigError):
        ctl.store.controls.get()
    ctl.store.paths.controls.unlink()
    assert len(ctl.store.claim("s", ["mint"], agent="a", room=1)) == 1


def test_controls_keep_their_marks(tmp_path: Any) -> None:
    file = ControlFile(tmp_path / "controls.json")
    file.change(lambda found: found.with_mark("disabled_sites", "s", mark("me", "why")))
    file.change(lambda found: Controls(found.disabled_sites, {"w": mark("me", "")}, {"*": mark("me", "")}, mark("me", "")))
    found = ControlFile(file._path).get()
    assert found == file.get()
    assert len(found.lines()) == 4
    with pytest.raises(NotAllowed, match="why"):
        found.check_enabled("s", "")
    with pytest.raises(NotAllowed, match="workflow"):
        found.check_enabled("other", "w")
    assert default_config().sites == {}


@pytest.fixture
def published(ctl: Ctl) -> Client:
    ctl.serve()
    return Client(ctl.rig.port, ctl.rig.token("mint", "submitter", "agent"))


def test_the_manuals_answers(ctl: Ctl, published: Client) -> None:
    """400 for a site that is not (any more) on the list, 403 without the right; the published form in both cases."""

    def told(method: str, call: str, body: Any = None) -> tuple[int, Any, str]:
        answer = published(method, f"{BASE}/{call}", json.dumps(body).encode() if body is not None else None)
        (error,) = answer.json["errors"]
        return answer.status, error["code"], error["message"]

    ask = "calc-request?site_id=s"
    calc = {"calc-info": {"command": "c", "remote-site": "s", "parameter_files": {}, "result_files": {}}}
    none = "There is no information for accept_id(None), about the your site id(s)"
    assert told("GET", ask) == (200, "0300", none)
    ctl("site", "disable", "s")
    assert told("GET", ask) == (200, "400", "Your site-id(s) does not match in the list that acceptable to.")
    status, code, message = told("POST", "add-calcinfo", calc)
    assert (status, code) == (202, 400)
    assert "disabled" in message
    ctl("site", "enable", "s")
    assert told("POST", "add-calcinfo", calc)[:2] == (200, 200)
    ctl("pause", "s")
    assert told("GET", ask) == (200, "0300", none)
    ctl("resume", "s")
    published.token = "0" * 64
    assert told("GET", ask) == (403, "0005", f"{BASE}/calc-requestへの実行権がありません。")


@pytest.mark.slow
def test_an_agent_gets_nothing_while_its_site_is_held_back(tmp_path: Any) -> None:
    """With the real server and agent: at once, without a restart, and again at once after it."""
    company = Company(tmp_path / "rig")
    try:
        company.serve()
        company.start()
        assert company.rig.wait_state(company.sh("true"), "completed", deadline_s=60)
        for order, undo in ((("pause", SITE), ("resume", SITE)), (("stop-all",), ("resume", "--all")),
                            (("site", "disable", SITE), ("site", "enable", SITE))):  # fmt: skip
            waiting = company.sh("true") if order[0] != "site" else ""
            company.rig.spoolctl(*order)
            job_id = waiting and company.sh("true")
            if order[0] == "site":
                refused = company.rig.spoolctl("submit", "--site", SITE, "--command", "sh", "--id", new_id(), check=False)
                assert "disabled" in refused.stderr
            else:
                wait_until(lambda job_id=job_id: company.rig.state(job_id).get("state") == "queued", 30, "it waits")
                company.rig.wait_state(waiting, "completed", "queued", "running", "claimed")
            company.rig.spoolctl(*undo)
            for one in filter(None, (waiting, job_id)):
                company.rig.wait_state(one, "completed", deadline_s=60)
    finally:
        company.close()
