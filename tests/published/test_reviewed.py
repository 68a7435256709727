"""What a review found: finals between two questions, silent runs, slow readers, changed addresses, the last of the disk."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from published.conftest import COMMAND, SITE, Institute, done, first, told
from published.raw_calls import Caller
from published.test_server import RESULTS
from server.spools import SITE as SITE_A
from server.spools import config, new_store, quick_job
from spool.config import LiveConfig
from spool.published import MAX_BODY_BYTES
from spool.records import FileEntry, Job, JobState
from spool.server.contacts import Contacts
from spool.server.published_forms import why_not_for_a_poller
from spool.server.upkeep import Upkeep
from spool.states import State


def started(institute: Institute, poller: Any) -> str:
    job = institute.registered()
    assert poller.params(job).status_code == 200
    for step in (poller.params_complete, poller.start):
        assert told(step(job)) == (200, 200)
    return job


def test_the_status_of_an_end_is_told_before_the_end(institute: Institute) -> None:
    """A submitter that asks for the status, then for the progress, and keeps the status, must not have `none` at the end."""
    poller, submitter = institute.poller(), institute.submitter()
    job = started(institute, poller)
    assert first(submitter.status(job))["message"] == "status:none"
    poller.request()
    poller.request()  # the job is lost: final at once
    assert first(submitter.progress(job))["message"] == "status:getting return"
    assert first(submitter.status(job))["message"] == "status:abnormal"
    assert first(submitter.progress(job))["message"] == "status:got return"


def test_their_submitter_exits_as_the_job_ended(institute: Institute) -> None:
    """As published: the status is not asked for again after the end."""
    for code in (0, 3):
        exit_status = institute.submit(f"echo x >out.dat; exit {code}", ["out.dat"], status_again=False)
        done(institute.poll(after_abnormal="poll"))
        institute.poller().request()
        assert done(exit_status) == (1 if code else 0)


@pytest.mark.parametrize(("agent", "claimed", "running"), [("poller-1@h", "claimed", "running"), ("agent-1", "queued", "failed")])
def test_a_published_poller_is_silent_while_its_command_runs(tmp_path: Path, agent: str, claimed: str, running: str) -> None:
    """Nothing is heard of it, by its protocol; of an agent that would be a silence of an hour."""
    store = new_store(tmp_path / "spool")
    ini = config(tmp_path / "ini", {SITE_A: {"commands": "*", "give_up_after_s": "1"}}).source
    contacts = Contacts(store)
    contacts.started -= 3600
    first_job, second = quick_job(store).id, quick_job(store).id
    store.claim_one(first_job, agent=agent)
    store.start(second, store.claim_one(second, agent=agent).run_id, by=agent)
    Upkeep(store, LiveConfig(ini), contacts)._look_at_silent_agents()
    assert [str(store.state(job).state) for job in (first_job, second)] == [claimed, running]


def test_slow_readers_leave_the_server_to_others(institute: Institute) -> None:
    institute.rig._processes[-1].stop()
    institute.serve({"server": {"threads": "2", "max_waiters": "0"}})
    big = {"in.dat": ["QUJD" * 15_000_000]}
    sockets = []
    for _ in range(3):
        job = institute.registered(parameter_files=big)
        connection = http.client.HTTPConnection("127.0.0.1", institute.rig.port, timeout=60)
        path = f"/mi-distcomp-api/calc-params?accept_id={job}&site_id={SITE}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {institute.token}"})
        sockets.append(connection)
        assert connection.getresponse().status == 200  # and not read any further
    assert institute.rig.health() == 200
    for connection in sockets:
        connection.close()


def test_a_poller_whose_address_changed_may_poll_on(institute: Institute) -> None:
    old, new = (Caller(institute.rig.port, institute.token, SITE, address) for address in ("127.0.0.1", "127.0.0.2"))
    job = institute.registered()
    assert old.params(job).status == 200
    assert new.params_complete(job).told == (200, 200)
    assert new.start(job).told == (200, 200)
    assert new.end(job, "abnormal").told == (200, 200)
    assert new.request().told == (200, "0300")
    assert institute.rig.state(job)["state"] == "failed", "final at that poller's next calc-request"
    assert list((institute.rig.spool / "active" / SITE).glob("*/*")) == []


def test_an_error_entry_may_hold_anything(institute: Institute) -> None:
    poller = institute.poller()
    job = started(institute, poller)
    poller.end(job, "calc end")
    entry = {"content": "ファイルが\"ありません\" C:\\x", "mimetype1": "Error", "mimetype2": "no such file"}
    assert told(poller.send_results(job, {**RESULTS, "out.dat": entry})) == (200, 200)
    assert told(poller.end_send(job)) == (200, 200)
    found = first(institute.submitter().result(job))["result-info"]["result_files"]["out.dat"]
    assert found == {"content": "", "mimetype1": "Error", "mimetype2": "no such file"}


def test_a_nearly_full_disk_takes_results_but_nothing_new(institute: Institute) -> None:
    poller = institute.poller()
    job = started(institute, poller)
    poller.end(job, "calc end")
    ini = institute.rig.root / "spool.ini"
    ini.write_text(ini.read_text().replace("[server]", "[server]\nmin_free = 1000T"))
    assert told(institute.submitter().add({"remote-site": SITE, "command": COMMAND})) == (507, 507)
    assert told(poller.send_results(job, RESULTS)) == (200, 200)
    assert told(poller.end_send(job)) == (200, 200)
    assert institute.rig.state(job)["state"] == "completed"


@pytest.mark.parametrize(("size", "carried"), [(1_000, True), (MAX_BODY_BYTES // 4 * 3 + 1, False)])
def test_inputs_beyond_an_answer_wait_for_an_agent(size: int, carried: bool) -> None:
    job = Job(site=SITE, command=COMMAND)
    state = JobState("x", State.QUEUED, SITE, "alice", 1, inputs=(FileEntry("a", size, "0" * 64),))
    assert (why_not_for_a_poller(job, state) == "") is carried


def test_head_claims_nothing(institute: Institute) -> None:
    job = institute.registered()
    answer = institute.call("HEAD", f"calc-params?accept_id={job}&site_id={SITE}")
    assert answer.status_code == 405
    assert institute.rig.state(job)["state"] == "queued"


def test_users_are_not_told_where_the_servers_files_are(institute: Institute) -> None:
    message = json.dumps(institute.submitter().add({"remote-site": "nowhere", "command": COMMAND}).json())
    assert str(institute.rig.root) not in message
