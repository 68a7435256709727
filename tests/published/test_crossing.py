"""A job that came in by one protocol goes out by the other: published or /v1 in, published, /v1 or ssh out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.sshd import Sshd
from published.conftest import COMMAND, SITE, Institute, done, first, told
from published.their_poller import STDERR, STDOUT
from spool.published import WITHHELD

FILES = {"in.dat": "計算\n".encode(), "bin.dat": bytes(range(256)), "empty.dat": b""}
SCRIPT = "cat in.dat bin.dat empty.dat >出力.dat; echo said; echo also >&2; : >empty.out"
OUTPUTS = ["出力.dat", "empty.out"]
EXPECTED = {"出力.dat": FILES["in.dat"] + FILES["bin.dat"], "empty.out": b""}


def start_agent(institute: Institute, *, logs: str = "return", allow: str = "**") -> None:
    """Our agent, of the same user; its law knows the command by the very name that MInt has."""
    institute.rig.start_agent(
        SITE, {COMMAND: {"argv": "/bin/sh job.sh", "inputs_allow": "**"}}, token=institute.token,
        release={"allow": allow, "logs": logs}, poll_s="0.2", wait_s=5,
    )  # fmt: skip


def by_v1(institute: Institute) -> str:
    """The job, submitted by spoolctl over http."""
    module = institute.module
    (module / "job.sh").write_text(SCRIPT, encoding="utf-8")
    for name, data in FILES.items():
        (module / name).write_bytes(data)
    token = institute.rig.root / "token"
    token.write_text(institute.token)
    words: list[Any] = []
    for name in ("job.sh", *FILES):
        words += ["--in", module / name]
    for name in OUTPUTS:
        words += ["--out", name]
    return institute.rig.submit(SITE, COMMAND, *words, user="alice")


def fetched(institute: Institute, job: str) -> dict[str, bytes]:
    into = institute.rig.root / "into"
    institute.rig.spoolctl("fetch", job, "--into", into)
    return {name: (into / "out" / name if (into / "out").exists() else into / name).read_bytes() for name in OUTPUTS}


def written(institute: Institute) -> dict[str, bytes]:
    return {name: (institute.module / name).read_bytes() for name in OUTPUTS}


def test_published_in_published_out(institute: Institute) -> None:
    exit_status = institute.submit(SCRIPT, OUTPUTS, **FILES)
    done(institute.poll())
    assert done(exit_status) == 0
    assert written(institute) == EXPECTED


def test_published_in_v1_out(institute: Institute) -> None:
    start_agent(institute)
    exit_status = institute.submit(SCRIPT, OUTPUTS, **FILES)
    assert done(exit_status) == 0
    assert written(institute) == EXPECTED
    assert (institute.module / STDOUT).read_text() == "said\n"
    assert (institute.module / STDERR).read_text() == "also\n"


def test_v1_in_published_out(institute: Institute) -> None:
    job = by_v1(institute)
    seen = done(institute.poll())
    assert seen.accept_id == job
    institute.rig.wait_state(job, "completed")
    assert fetched(institute, job) == EXPECTED
    assert (institute.rig.job(job) / "log" / "stdout.txt").read_text() == "said\n"


def test_v1_in_v1_out(institute: Institute) -> None:
    start_agent(institute)
    job = by_v1(institute)
    institute.rig.wait_state(job, "completed")
    assert fetched(institute, job) == EXPECTED


def test_published_in_ssh_out(institute: Institute, sshd: Sshd) -> None:
    program = sshd.home / "program.sh"  # the site's fixed program, as in the manual
    program.write_text("#!/bin/sh\nexec sh job.sh\n")
    program.chmod(0o755)
    site = {"mode": "ssh", "host": sshd.name, "ssh_config": sshd.ssh_config, "base": sshd.home / "base", "program": program}
    institute.rig._processes[-1].stop()
    institute.serve({f"site {SITE}": site})
    institute.rig.start_push({SITE: {**site, "commands": "*"}})
    exit_status = institute.submit(SCRIPT, OUTPUTS, **FILES)
    assert done(exit_status, 60) == 0
    assert written(institute) == EXPECTED
    assert (institute.module / STDOUT).read_text() == "said\n"


def test_what_the_site_withholds_is_said_to_be_withheld(institute: Institute) -> None:
    start_agent(institute, logs="withhold", allow="empty.out")
    exit_status = institute.submit(SCRIPT, OUTPUTS, **FILES)
    done(exit_status)
    (job,) = institute.submitter().calcinfo().json()
    found = first(institute.submitter().result(job))["result-info"]["result_files"]
    assert found["出力.dat"]["mimetype1"] == "Error"
    assert "withheld" in found["出力.dat"]["mimetype2"]
    assert found["empty.out"]["mimetype1"] == "inode/x-empty;"
    assert {(found[name]["mimetype1"], found[name]["mimetype2"]) for name in (STDOUT, STDERR)} == {("Error", WITHHELD)}


def test_arguments_and_variables_of_v1_are_quoted_for_a_poller(institute: Institute) -> None:
    folder = institute.rig.spool / "tmp" / "made"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "job.sh").write_text('printf "%s|" "$@" "$NAME" >out.dat')
    args = ["a b", "$(id)", "it's", "計算", ""]
    job = {"site": SITE, "command": COMMAND, "args": args, "inputs": ["job.sh"], "outputs": ["out.dat"], "user": "alice"}
    (folder / "job.json").write_text(json.dumps({**job, "env": {"NAME": "x y; exit 1"}}), encoding="utf-8")
    job_id = "11111111-2222-4333-8444-555555555555"
    folder.rename(institute.rig.spool / "drop" / job_id)
    institute.rig.wait_state(job_id, "queued")
    done(institute.poll())
    institute.rig.wait_state(job_id, "completed")
    assert (institute.rig.job(job_id) / "out" / "out.dat").read_text() == "a b|$(id)|it's|計算||x y; exit 1|"


@pytest.mark.parametrize(
    "job", [{"outputs": ["*.dat"]}, {"inputs": ["a/x", "b/x"], "outputs": ["out.dat"]}], ids=["patterns", "equal last parts"]
)
def test_what_no_poller_can_carry_is_not_offered(institute: Institute, job: dict[str, Any]) -> None:
    folder = institute.rig.spool / "tmp" / "made"
    for name in job.get("inputs", []):
        (folder / "in" / name).parent.mkdir(parents=True)
        (folder / "in" / name).write_text("x")
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"site": SITE, "command": COMMAND, "user": "alice", **job}), encoding="utf-8")
    job_id = "11111111-2222-4333-8444-555555555555"
    folder.rename(institute.rig.spool / "drop" / job_id)
    institute.rig.wait_state(job_id, "queued")
    other = institute.registered()
    assert first(institute.poller().request())["accept_id"] == other, "another job is not delayed"
    assert told(institute.poller().params(job_id)) == (200, 401)
    assert "event=not_for_a_poller" in institute.rig._processes[-1].output()


def test_a_job_canceled_by_an_operator_is_abnormal_for_its_submitter(institute: Institute) -> None:
    job = institute.registered()
    institute.rig.spoolctl("cancel", job)
    assert first(institute.submitter().status(job))["message"] == "status:abnormal"
    assert first(institute.submitter().progress(job))["message"] == "status:got return"
    found = first(institute.submitter().result(job))["result-info"]["result_files"]
    assert "canceled" in found["out.dat"]["mimetype2"]


def test_a_requeued_job_goes_round_again(institute: Institute, tmp_path: Path) -> None:
    exit_status = institute.submit("exit 1", ["out.dat"])
    seen = done(institute.poll())
    assert done(exit_status) == 1
    institute.rig.spoolctl("requeue", seen.accept_id)
    poller = institute.poller()
    assert first(poller.request())["accept_id"] == seen.accept_id
    for step in (poller.params, poller.params_complete, poller.start):
        assert step(seen.accept_id).status_code == 200
    poller.end(seen.accept_id, "calc end")
    poller.send_results(seen.accept_id, {"out.dat": {"content": "MQ==", "mimetype1": "text/plain;", "mimetype2": ""}})
    assert told(poller.end_send(seen.accept_id)) == (200, 200)
    assert institute.rig.state(seen.accept_id)["attempt"] == 2
    assert first(institute.submitter().status(seen.accept_id))["message"] == "status:completed"
