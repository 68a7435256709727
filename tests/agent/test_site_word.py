"""The site's word before a start: caps on inputs, pinned programs, and `pre_run`; each through the real agent and server."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.company import Company
from agent.test_policy import folder, law, order, refused  # noqa: F401 - `folder` is a fixture
from components.waiting import wait_until
from spool.agent import pins, policy
from spool.errors import Refused
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import FileEntry, Job, JobState
from spool.states import State

RAN = {"argv": "/bin/sh -c 'echo ran >ran.txt'"}


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def log_of(company: Company) -> str:
    assert company.agent
    return company.agent.output()


def never_ran(company: Company, job_id: str) -> None:
    assert not list(company.local(job_id).glob("log/std*"))
    assert not (company.local(job_id) / "work" / "ran.txt").exists()


# ---- caps


def test_caps_on_inputs(folder: Path) -> None:  # noqa: F811
    config = law(folder, max_inputs=2, max_input_bytes=2)
    assert order(config, inputs=("a", "b"))
    refused(config, "the job has 3 inputs of 3 bytes; 'ccx' takes 2 here", inputs=("a", "b", "c"))
    refused(law(folder, max_input_bytes=1), "2 inputs of 2 bytes; 'ccx' takes 1 bytes here", inputs=("a", "b"))
    refused(law(folder, max_inputs=0), "takes 0 here", inputs=("a",))


def test_room_is_judged_with_the_inputs(folder: Path) -> None:  # noqa: F811
    """Twice their size must fit beside `min_free`; asked before the first byte comes, and not again when some are here."""
    info = os.statvfs(folder)
    free = info.f_bavail * info.f_frsize
    paths = JobPaths(folder / "job")
    paths.folder.mkdir()

    def judge(size: int, min_free: int) -> None:
        config = law(folder, min_free=min_free)
        entries = (FileEntry("a", size, "0" * 64),)
        state = JobState(id=new_id(), site="site-a", command="ccx", user="mint", revision=1, state=State.CLAIMED, inputs=entries)
        policy.check_room(config, Job(site="site-a", command="ccx"), state, paths)

    judge(free // 8, free // 4)
    for size, min_free in ((free // 2, free // 4), (1, 2 * free)):
        with pytest.raises(Refused, match="too little disk"):
            judge(size, min_free)
    paths.inputs.mkdir()
    judge(free // 2, free // 4)


def test_nothing_is_fetched_of_what_is_refused(company: Company) -> None:
    company.commands = {
        "few": {**RAN, "max_inputs": 1}, "small": {**RAN, "max_input_bytes": 3}, "roomy": {**RAN, "min_free": "900000T"},
        "free": RAN,
    }  # fmt: skip
    company.start()
    inputs = {"a.inp": b"12", "b.inp": b"34"}
    jobs = [company.drop(name, inputs=inputs) for name in ("few", "small", "roomy")]
    assert company.completed(company.drop("free", inputs=inputs, outputs=("ran.txt",))) == {"ran.txt": b"ran\n"}
    for job_id, why in zip(jobs, ("takes 1 here", "takes 3 bytes", "too little disk")):
        assert why in company.failed(job_id, "refused_by_site")["message"]
        assert not (company.local(job_id) / "in").exists()
        never_ran(company, job_id)


# ---- pins


def test_a_pin_is_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "solver"
    path.write_bytes(b"x" * 3_000_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pins.why_not(path, digest) == ""
    link = tmp_path / "link"
    link.symlink_to(path)
    assert pins.why_not(link, digest) == ""
    with open(path, "r+b") as file:
        file.seek(2_999_999)
        file.write(b"y")
    assert "agent.ini says" in pins.why_not(path, digest)
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path / "gone", tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        assert pins.why_not(other, digest)


def test_who_else_may_change_a_pinned_file(tmp_path: Path) -> None:
    """By owner and mode of the file and of every folder above it, behind links too."""
    assert pins.writable(Path("/bin/sh")) == ""
    path = tmp_path / "solver"
    path.write_text("x")
    path.chmod(0o666)
    assert pins.writable(path) == str(path)


def test_a_changed_program_is_not_run(company: Company, tmp_path: Path) -> None:
    script = program(tmp_path / "solve", "echo ran >ran.txt")
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    company.commands = {"solve": {"argv": script, "sha256": f"{script} {digest}\n/bin/sh {sha256_of('/bin/sh')}"}}
    company.start()
    assert company.completed(company.drop("solve", outputs=("ran.txt",))) == {"ran.txt": b"ran\n"}
    program(script, "echo ran >ran.txt; cat /etc/shadow")
    job_id = company.drop("solve", outputs=("ran.txt",))
    state = company.failed(job_id, "refused_by_site")
    assert "not the one that the site has approved" in state["message"]
    assert str(script) not in state["message"]
    assert digest not in state["message"]
    assert f"path={script}" in log_of(company)
    never_ran(company, job_id)


def sha256_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_program_changed_after_all_was_judged_is_not_run(tmp_path: Path) -> None:
    """The pin counts at the start itself: here the server's word for it comes late."""
    company = Company(tmp_path / "rig")
    try:
        server = company.serve()
        gate, asked = tmp_path / "go", tmp_path / "asked"
        script = program(tmp_path / "solve", "echo ran >ran.txt")
        hook = program(tmp_path / "hook", f"touch {asked}; while [ ! -e {gate} ]; do sleep 0.05; done")
        company.commands = {"solve": {"argv": script, "pre_run": hook, "sha256": f"{script} {sha256_of(str(script))}"}}
        company.start()
        job_id = company.drop("solve", outputs=("ran.txt",))
        wait_until(asked.exists, 60, "the hook is asked")
        server.kill()
        gate.touch()
        record = company.local(job_id) / "state.json"
        wait_until(lambda: json.loads(record.read_bytes()).get("ready"), 60, "only the server's word is missing")
        program(script, "echo changed >ran.txt")
        company.serve()
        company.failed(job_id, "refused_by_site", deadline_s=90)
        never_ran(company, job_id)
    finally:
        company.close()


# ---- pre_run

SECRET = "部品番号 X-113 is not to be computed abroad"


def test_the_hook_decides(company: Company, tmp_path: Path) -> None:
    hooks: dict[str, Any] = {
        "allows": program(tmp_path / "allows", f"echo '{SECRET}' >&2; exit 0"),
        "refuses": program(tmp_path / "refuses", f"echo '{SECRET}' >&2; echo second >&2; exit 1"),
        "says": program(tmp_path / "says", f"printf '{SECRET}\\001\\nsecond' >&2; exit 3"),
        "dies": program(tmp_path / "dies", "kill -9 $$"),
        "hangs": program(tmp_path / "hangs", f"echo $$ >{tmp_path}/hanging; sleep 600 & wait"),
        "gone": tmp_path / "nowhere",
        "floods": program(tmp_path / "floods", "yes | head -c 5000000 >&2; exit 1"),
    }
    company.commands = {name: {**RAN, "pre_run": f"{path} 'an argument'", "pre_run_s": 30} for name, path in hooks.items()}
    company.commands["hangs"] = {**company.commands["hangs"], "pre_run_s": 1}
    company.commands["says"] = {**company.commands["says"], "pre_run_words": "return"}
    company.start(slots=8)
    jobs = {name: company.drop(name, inputs={"a.inp": b"*NODE\n"}, outputs=("ran.txt",)) for name in hooks}
    assert company.completed(jobs.pop("allows")) == {"ran.txt": b"ran\n"}
    for name, job_id in jobs.items():
        state = company.failed(job_id, "refused_by_site")
        never_ran(company, job_id)
        words = f": {SECRET}?" if name == "says" else ""
        assert state["message"] == f"the site's own check refused the job{words}", "only the fixed words leave"
    assert SECRET in log_of(company)
    for why in ("ended with 1", "ended by signal 9", "not end within 1 s", "cannot be run: No such file"):
        assert why in log_of(company), why
    assert not Path(f"/proc/{(tmp_path / 'hanging').read_text().strip()}").exists()


def test_what_the_hook_is_told(company: Company, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    hook = program(tmp_path / "hook", f'env >{seen}; pwd >>{seen}; cat a.inp "$1" >>{seen}')
    company.commands = {"x": {**RAN, "pre_run": f"{hook} a.inp", "env.LM_LICENSE": "secret"}}
    company.start(env={"HTTPS_PROXY": "http://user:secret@127.0.0.1:1", "NO_PROXY": "*"})
    job_id = company.drop("x", inputs={"a.inp": b"*NODE\n"})
    company.completed(job_id)
    *variables, where, first, second = seen.read_text().splitlines()
    work = company.local(job_id) / "work"
    assert (where, first, second) == (str(work), "*NODE", "*NODE")
    shell = {"PWD", "SHLVL", "_", "OLDPWD"}  # which /bin/sh may add by itself
    assert {line.partition("=")[0] for line in variables} - shell == {
        "PATH", "LANG", "MINT_SPOOL_JOB", "MINT_SPOOL_COMMAND", "MINT_SPOOL_USER", "MINT_SPOOL_SITE", "MINT_SPOOL_FOLDER",
    }  # fmt: skip
    assert {f"MINT_SPOOL_JOB={job_id}", "MINT_SPOOL_USER=mint", f"MINT_SPOOL_FOLDER={work.parent}"} <= set(variables)


def test_the_hook_is_asked_again_after_a_restart(company: Company, tmp_path: Path) -> None:
    """Killed while the hook looks: nothing was started, and the next agent asks again. A stopped agent ends its hook."""
    asked, gate = tmp_path / "asked", tmp_path / "go"
    hook = program(tmp_path / "hook", f"echo $$ >>{asked}; while [ ! -e {gate} ]; do sleep 0.05; done")
    company.commands = {"x": {"argv": "/bin/sh -c 'echo once >>ran.txt'", "pre_run": hook, "pre_run_s": 600}}
    agent = company.start()
    job_id = company.drop("x", outputs=("ran.txt",))

    def pids() -> list[str]:
        return asked.read_text().split() if asked.exists() else []

    wait_until(lambda: len(pids()) == 1, 30, "the hook is asked")
    agent.stop(30)
    wait_until(lambda: not Path(f"/proc/{pids()[0]}/cwd").exists(), 30, "the hook of a stopped agent is ended")
    agent = company.start()
    wait_until(lambda: len(pids()) == 2, 30, "the hook is asked again")
    company.kill_agent()
    company.start()
    wait_until(lambda: len(pids()) == 3, 30, "the hook is asked a third time")
    never_ran(company, job_id)
    gate.touch()
    assert company.completed(job_id) == {"ran.txt": b"once\n"}
