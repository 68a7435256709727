"""Our submitter, server and agent together, and each with the published others, through nginx as it is shipped too."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from components.process import Process, clean_env
from components.rig import REPO
from published.conftest import COMMAND, SITE, Institute
from published.their_poller import STDERR, STDOUT

ALL_BYTES = bytes(range(256)) * 40


def start_agent(institute: Institute, **options: str) -> Process:
    return institute.rig.start_agent(
        SITE, {COMMAND: {"argv": "/bin/sh job.sh", "inputs_allow": "**"}}, token=institute.token,
        release={"allow": "**", "logs": "return"}, **options,
    )  # fmt: skip


def start_submitter(institute: Institute, ins: str, outs: str) -> Process:
    words = [institute.url, SITE, institute.token, COMMAND, ins, outs]
    return Process(
        [sys.executable, REPO / "tools" / "mi-system-wf.py", *words], log=institute.rig.root / "submitter.log",
        env=clean_env(institute.rig.home), cwd=institute.module,
    )  # fmt: skip


def prepare(institute: Institute, script: str) -> None:
    (institute.module / "job.sh").write_text(script, encoding="utf-8")
    (institute.module / "入力.dat").write_bytes(ALL_BYTES)


@pytest.mark.parametrize("runs", ["our agent", "their poller"])
def test_our_submitter_and_our_server(institute: Institute, runs: str) -> None:
    prepare(institute, "cat 入力.dat >出力.dat; : >empty; echo said; echo also >&2")
    if runs == "our agent":
        start_agent(institute)
    else:
        institute.poll()
    process = start_submitter(institute, "job.sh:入力.dat", "出力.dat:empty")
    assert process.wait(30) == 0, process.output()
    assert (institute.module / "出力.dat").read_bytes() == ALL_BYTES
    assert (institute.module / "empty").read_bytes() == b""
    assert (institute.module / STDOUT).read_text() == "said\n"
    assert (institute.module / STDERR).read_text() == "also\n"


@pytest.mark.parametrize("script", ["echo x >out.dat; exit 3", "exit 0"], ids=["exit status", "no result file"])
def test_an_abnormal_end_is_exit_code_1(institute: Institute, script: str) -> None:
    prepare(institute, script)
    start_agent(institute)
    process = start_submitter(institute, "job.sh", "out.dat")
    assert process.wait(30) == 1, process.output()


def test_a_trivial_job_of_three_starts(institute: Institute) -> None:
    """What took 86 s: printed, not asserted; that no interval of minutes is left is asserted by the number of syncs."""
    prepare(institute, "echo 42 >out.dat")
    agent = start_agent(institute)
    agent.wait_for_output("event=started_agent", 20)
    for _ in range(3):
        began = time.monotonic()
        process = start_submitter(institute, "job.sh", "out.dat")
        assert process.wait(30) == 0, process.output()
        print(f"\ntrivial job, our three parts: {time.monotonic() - began:.2f} s from the submitter's start to its end")
        assert (institute.module / "out.dat").read_text() == "42\n"


def test_a_submitter_cut_short_cancels_at_the_site(institute: Institute) -> None:
    prepare(institute, "echo $$ >pid; while :; do sleep 0.05; done")
    start_agent(institute)
    process = start_submitter(institute, "job.sh", "out.dat")
    process.wait_for_output("running", 20)
    process.signal(2)
    assert process.wait(20) == 130
    (job,) = os.listdir(institute.rig.spool / "jobs")
    institute.rig.wait_state(job, "canceled")


def test_our_submitter_and_agent_survive_a_restart_of_the_server(institute: Institute, tmp_path: Path) -> None:
    go = tmp_path / "go"
    prepare(institute, f"while ! [ -e {go} ]; do sleep 0.05; done; echo 42 >out.dat")
    start_agent(institute, wait_s="2")
    process = start_submitter(institute, "job.sh", "out.dat")
    process.wait_for_output("running", 20)
    institute.rig._processes[0].kill()
    go.touch()
    institute.serve()
    assert process.wait(60) == 0, process.output()
    assert (institute.module / "out.dat").read_text() == "42\n"
