"""A job's whole way with the real server, the real agent and real commands; and what a job is told where the site says no."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.company import SITE, Company, files_below, gone, noise, pid_of
from agent.wire import Act, Wire, once
from components import proc
from components.nginx import NginxTls
from components.waiting import stays, wait_until

ODD_ARGS = [
    "a b", " ", "", "'q'", '"d"', "$(touch pwned)", "`touch pwned`", "${HOME}", "a\nb\n", "\n", "\t", "日本語 入力", "%s %d",
    "\\n", "*", "-n", "{args}", ";rm -rf x", "x=y", "\u00e9 e\u0301", "~", "!!", "#", "\x01\x7f",
]  # fmt: skip


@pytest.fixture
def running(company: Company) -> Company:
    """The agent is there already."""
    company.start()
    return company


# ---- as it should be


def test_job_runs_and_completes(running: Company) -> None:
    job = running.sh(
        "cat a.inp b/c.inp > a.dat; echo said; echo err >&2", inputs={"a.inp": b"1\n", "b/c.inp": b"2\n"}, outputs=("*.dat",)
    )
    assert running.completed(job) == {"a.dat": b"1\n2\n"}
    assert files_below(running.rig.job(job) / "log") == {"stdout.txt": b"said\n", "stderr.txt": b"err\n"}
    result = running.result(job)
    assert (result["exit_code"], result.get("reason", "")) == (0, "")
    path = running.rig.job(job) / "history.jsonl"
    wanted = ["queued", "claimed", "running", "returning", "completed"]  # the line follows the state by a moment
    wait_until(lambda: [json.loads(line)["to"] for line in path.read_text().splitlines()] == wanted, 5, f"history is {wanted}")
    running.locally(job, "completed")


def test_several_at_once(company: Company) -> None:
    """Each of three jobs waits for the files of the two others; a fourth must wait for a slot."""
    company.start(slots=3)
    meet = company.rig.root / "meet"
    meet.mkdir()
    script = 'touch "$0/$$"; while [ $(ls "$0" | wc -l) -lt 3 ]; do sleep 0.05; done; echo met > met'
    company.commands["meet"] = {"argv": f"/bin/sh -c '{script.replace(chr(39), '')}' {meet}"}
    assert company.agent
    company.agent.stop()
    company.start(slots=3)
    jobs = [company.drop("meet", outputs=("met",)) for _ in range(3)]
    for job in jobs:
        assert company.completed(job) == {"met": b"met\n"}


def test_no_more_at_once_than_slots(company: Company) -> None:
    company.start(slots=1)
    first = company.sh("while [ ! -e go ]; do sleep 0.05; done")
    company.is_at(first, "running")
    second = company.sh("true")
    stays(lambda: company.rig.state(second).get("state", "queued") in ("", "queued"), 1.5, "the second job waits")
    (company.local(first) / "work" / "go").touch()
    company.completed(first)
    company.completed(second)


def test_arguments_arrive_byte_for_byte(company: Company) -> None:
    company.commands["show"] = {"argv": '/bin/sh -c \'for a; do printf "%s\\0" "$a"; done > args\' name {args}', "args": "(?s).*"}
    company.start()
    options = [f"--arg={arg}" for arg in ODD_ARGS]
    job = company.rig.submit(SITE, "show", *options, "--out", "args")
    out = company.completed(job)
    assert out["args"] == b"".join(arg.encode() + b"\0" for arg in ODD_ARGS)
    assert not any("pwned" in names for _, _, names in os.walk(company.rig.root))


def test_two_dashes_are_an_argument_like_any_other(company: Company) -> None:
    """argparse has its own idea of `--arg=--` (before Python 3.13)."""
    company.commands["show"] = {"argv": "/bin/echo {args}", "args": ".*"}
    company.start()
    job = company.rig.submit(SITE, "show", "--arg=--", "--arg=x")
    company.completed(job)
    assert (company.rig.job(job) / "log" / "stdout.txt").read_bytes() == b"-- x\n"


NAMES = {
    "a b.dat": b"1", "日本語/結果 1.dat": b"2", "$(x) `y`.dat": b"3", "q'\".dat": b"4", "leer.dat": b"", "[a]*.dat": b"5",
    "é/e\u0301.dat": b"6",
    "a%20b.dat": b"7", "a+b&c=d?e#f.dat": b"8", "a;b.dat": b"9", ".hidden/x.dat": b"10", "%E3.dat": b"11", "x\\y.dat": b"12",
    "~.dat": b"13",
}  # fmt: skip


@pytest.mark.parametrize("size", [0, 1_500_000], ids=["by tar", "one by one"])
def test_names_and_empty_files_both_ways(company: Company, size: int) -> None:
    inputs = {name: data + bytes(size if data else 0) for name, data in NAMES.items()}
    company.commands["sh"] = {**company.commands["sh"], "inputs_allow": "** .hidden/*"}
    company.start()
    assert company.completed(company.sh("true", inputs=inputs, outputs=("**",))) == inputs


@pytest.mark.slow
def test_500_small_files_both_ways(running: Company) -> None:
    inputs = {f"d{number % 7}/f {number}.txt": noise(number * 3, str(number)) for number in range(500)}
    job = running.sh("for d in d*; do mkdir -p out/$d; cp $d/* out/$d/; done", inputs=inputs, outputs=("out/**",))
    assert running.completed(job) == {f"out/{name}": data for name, data in inputs.items()}


def test_environment_of_a_command(company: Company) -> None:
    company.commands["sh"] = {**company.commands["sh"], "env.LM_LICENSE_FILE": "27000@lic", "env_allow": "OMP_NUM_THREADS"}
    company.start(env={"SECRET_OF_THE_AGENT": "hush", "HTTPS_PROXY": "http://u:hush@127.0.0.1:1", "NO_PROXY": "*"})
    job = company.sh("env > env.txt; cat /proc/$PPID/environ >> env.txt", env={"OMP_NUM_THREADS": "3"}, outputs=("env.txt",))
    text = company.completed(job)["env.txt"].decode()
    token = (company.folder / "token").read_text().strip()
    assert token not in text
    assert "hush" not in text
    assert "LM_LICENSE_FILE=27000@lic" in text
    assert "OMP_NUM_THREADS=3" in text
    found = {line.partition("=")[0] for line in text.partition("\0")[0].splitlines() if "=" in line}
    assert found >= {"PATH", "HOME", "LANG", "MINT_SPOOL_JOB", "MINT_SPOOL_COMMAND", "CALC_DIR"}
    assert not any(name.startswith(("PYTHON", "LC_", "PYTEST")) for name in found)


def test_logs_are_withheld_by_default(company: Company) -> None:
    company.release = {"allow": "*"}
    company.start()
    job = company.sh("echo confidential; echo x > a.dat; sleep 3", outputs=("*",))
    assert company.completed(job) == {"a.dat": b"x\n"}
    mint = company.rig.spool
    assert not any(b"confidential" in data for name, data in files_below(mint).items() if not name.endswith("job.json"))


def test_withheld_outputs_are_named_or_counted(company: Company) -> None:
    company.release = {"allow": "*.dat", "deny": "secret*"}
    company.start()
    job = company.sh("echo 1 > a.dat; echo 2 > secret.dat; echo 3 > b.frd", outputs=("*.dat", "b.frd"))
    assert company.completed(job) == {"a.dat": b"1\n"}
    logs = ["log/stdout.txt: withheld by the site", "log/stderr.txt: withheld by the site"]
    assert company.result(job)["withheld"] == ["b.frd: withheld by the site", "1 more file: withheld by the site", *logs]
    assert b"2\n" not in files_below(company.rig.job(job)).values()


# ---- how a job ends


@pytest.mark.parametrize(
    ("script", "more", "reason", "exit_code"),
    [
        ("exit 3", {}, "exit_nonzero", 3), ("kill -SEGV $$", {}, "signal", 139), ("kill -9 $$", {}, "signal", 137),
        ("true", {"outputs": ["*.dat"]}, "no_outputs", 0),
        ("touch a.dat", {"outputs": ["a.dat", "b.dat"], "require_all": True}, "missing_outputs", 0),
        ("echo x > a.dat; exit 1", {"outputs": ["a.dat"]}, "exit_nonzero", 1),
    ],
)  # fmt: skip
def test_failures(running: Company, script: str, more: dict[str, Any], reason: str, exit_code: int) -> None:
    outputs = tuple(more.pop("outputs", ()))
    state = running.failed(running.sh(script, outputs=outputs, **more), reason)
    assert state["exit_code"] == exit_code
    assert state["message"]
    if "a.dat" in outputs:
        assert "a.dat" in running.out(state["id"]), "what a failed command wrote is wanted most"


def test_missing_outputs_are_listed(running: Company) -> None:
    job = running.sh("touch a.dat", outputs=("a.dat", "*.frd"))
    assert running.completed(job) == {"a.dat": b""}
    assert running.result(job)["missing"] == ["*.frd"]


@pytest.mark.parametrize(("site", "job", "limit"), [(None, 1, "1 s"), (1, None, "1 s"), (1, 500, "1 s")])
def test_wall_time(company: Company, site: int | None, job: int | None, limit: str) -> None:
    if site:
        company.commands["sh"] = {**company.commands["sh"], "wall_time_s": site}
    company.start()
    made = company.sh(
        "echo $$ > pid; echo part > a.dat; sleep 300 & wait", outputs=("a.dat",), **({"wall_time_s": job} if job else {})
    )
    state = company.failed(made, "wall_time")
    assert limit in state["message"], f"the limit that held was {limit}"
    gone(pid_of(company.local(made) / "work" / "pid"))
    assert company.out(made) == {"a.dat": b"part\n"}


def test_a_command_that_is_not_there(company: Company) -> None:
    company.commands["gone"] = {"argv": "/no/such/solver"}
    company.start()
    assert "exit code 127" in company.failed(company.drop("gone"), "spawn")["message"]


@pytest.mark.parametrize(
    ("change", "job"),
    [
        ({}, {"command": "rm"}), ({"users": "alice"}, {}), ({"args": "[a-z]"}, {"args": ("touch ran; false",)}),
        ({"inputs_allow": "*.inp"}, {"inputs": {"x.sh": b"x"}}), ({}, {"inputs": {".bashrc": b"x"}}),
        ({}, {"env": {"LD_PRELOAD": "x"}}),
    ],
    ids=["command", "user", "argument", "input", "dotfile", "variable"],
)  # fmt: skip
def test_refused_and_nothing_is_run(company: Company, change: dict[str, Any], job: dict[str, Any]) -> None:
    company.commands["sh"] = {**company.commands["sh"], **change}
    company.start()
    asked = {"command": "sh", "args": ("touch ../../ran",), **job}
    made = company.drop(asked.pop("command"), *asked.pop("args"), **asked)
    state = company.failed(made, "refused_by_site")
    assert state["message"]
    assert not (company.local(made) / "work").exists()
    assert not (company.local(made) / "run").exists()
    assert not list(company.folder.rglob("ran"))


@pytest.mark.parametrize("cap", [{"max_bytes": "10"}, {"max_files": 1}])
def test_too_much_to_return_is_refused(company: Company, cap: dict[str, Any]) -> None:
    company.release = {"allow": "*", "logs": "return", **cap}
    company.start()
    job = company.sh("echo 12345678 > a.dat; cp a.dat b.dat", outputs=("*.dat",))
    assert company.failed(job, "refused_by_site")["exit_code"] == 0
    assert company.out(job) == {}


# ---- what must not jam the agent: the one slot is free for the next job afterwards


def test_a_damaged_input_at_mint_ends_the_job(company: Company) -> None:
    bad = company.sh("true", inputs={"a.inp": noise(1000)})
    company.is_at(bad, "queued")
    (company.rig.job(bad) / "in" / "a.inp").write_bytes(b"short")
    company.start(slots=1)
    company.failed(bad, "transfer")
    assert company.completed(company.sh("true")) == {}


def test_a_vanished_input_at_mint_ends_the_job(company: Company) -> None:
    bad = company.sh("true", inputs={"a.inp": noise(1000)})
    company.is_at(bad, "queued")
    (company.rig.job(bad) / "in" / "a.inp").unlink()
    company.start(slots=1)
    company.failed(bad, "transfer")
    assert company.completed(company.sh("true")) == {}


def test_a_huge_wall_time_is_no_trap(company: Company) -> None:
    """The format takes any whole number; the runner takes nine digits."""
    company.start(slots=1)
    company.ended(company.sh("true", wall_time_s=999_999_999))
    assert company.completed(company.sh("true")) == {}


def test_an_argument_longer_than_the_system_takes(company: Company) -> None:
    company.start(slots=1)
    company.failed(company.sh("x" * 200_000), "spawn")
    assert company.completed(company.sh("true")) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "ln -sf /etc/passwd ../log/stdout.txt", "ln -s /tmp ../out", "echo x > ../out", "rm -rf ../log", "rm -rf ../work",
        "rm ../job.json", "mkdir ../result.json", "rm -rf ../run", "rm ../state.json", "rm -rf ../in ../in.part",
        "rm ../log/stderr.txt; mkfifo ../log/stderr.txt", "mkfifo a.dat",
        "echo x > 'new\nline.dat'", "rm -rf ../../$MINT_SPOOL_JOB",
    ],
)  # fmt: skip
def test_a_command_that_meddles_with_its_folder_jams_nothing(company: Company, script: str) -> None:
    """However it ends, it ends, nothing of the host leaves, and the slot is free again. It runs as the agent's own user here."""
    company.start(slots=1)
    job = company.sh(f"{script}; true", outputs=("**",))
    bad = company.ended(job, 25)
    assert not any(b"root:" in data for data in files_below(company.rig.job(job)).values()), bad
    assert company.completed(company.sh("true"), 25) == {}


@pytest.mark.slow
def test_a_folder_that_cannot_be_taken_up_is_no_trap(company: Company) -> None:
    """A file stands where the job's folder would be: the next job runs, and the agent does not turn hot."""
    company.start(slots=1)
    bad = company.sh("true")
    company.completed(bad)
    assert company.agent
    company.agent.stop()
    bad = company.sh("true")
    company.is_at(bad, "queued")
    company.local(bad).write_text("in the way")
    company.start(slots=1, poll_s="0.2")
    assert company.completed(company.sh("true")) == {}


@pytest.mark.slow
def test_a_base_that_is_gone_for_a_while(company: Company) -> None:
    """A file system that does not answer for a moment (a stale NFS handle, an automounter): the agent says so and goes on."""
    company.start(wait_s=1)
    job = company.sh("true")
    company.completed(job)
    company.locally(job, "completed")
    base = company.folder / "base"
    base.rename(company.folder / "away")
    stays(lambda: company.agent is not None and company.agent.running, 3, "the agent lives")
    (company.folder / "away").rename(base)
    assert company.completed(company.sh("true")) == {}


@pytest.mark.slow
def test_a_strange_answer_does_not_end_the_agent(company: Company, make_wire: Callable[..., Wire]) -> None:
    """JSON, but not what was asked for, once: whatever the loop did not foresee is logged, and the loop goes on."""
    is_state = re.compile(r"/v1/jobs/[0-9a-f-]+").fullmatch
    strange = Act(status=200, page=b"{}", headers={"Content-Type": "application/json"})
    wire = make_wire(company.rig.port, once(lambda request: request.method == "GET" and bool(is_state(request.path)), strange))
    company.start(url=wire.url)
    assert company.completed(company.sh("true")) == {}
    assert company.agent
    assert company.agent.running


# ---- cancel


def test_cancel_of_a_queued_job(company: Company) -> None:
    job = company.sh("touch ../../ran")
    company.is_at(job, "queued")
    company.rig.spoolctl("cancel", job)
    company.start()
    assert company.ended(job)["state"] == "canceled"
    assert company.completed(company.sh("true")) == {}
    assert not list(company.folder.rglob("ran"))


@pytest.mark.parametrize(
    "script", ["sleep 300 & sleep 300 & wait", "trap '' TERM; while :; do sleep 0.2; done"], ids=["tree", "deaf"]
)
def test_cancel_of_a_running_job(running: Company, script: str) -> None:
    job = running.sh(f"echo $$ > pid; {script}")
    work = running.local(job) / "work"
    pid = pid_of(work / "pid")
    assert proc.alive(pid)
    running.rig.spoolctl("cancel", job)
    assert running.ended(job)["state"] == "canceled"
    gone(pid)
    assert proc.working_in(work) == []
    assert running.completed(running.sh("true")) == {}


def test_what_a_canceled_command_wrote_comes_back(running: Company) -> None:
    job = running.sh("echo part > a.dat; echo $$ > pid; sleep 300", outputs=("a.dat",))
    pid_of(running.local(job) / "work" / "pid")
    running.rig.spoolctl("cancel", job)
    assert running.ended(job)["state"] == "canceled"
    assert running.out(job) == {"a.dat": b"part\n"}


@pytest.mark.slow
def test_cancel_reaches_an_agent_that_was_away(running: Company) -> None:
    job = running.sh("echo $$ > pid; sleep 300")
    pid = pid_of(running.local(job) / "work" / "pid")
    running.kill_agent()
    running.rig.spoolctl("cancel", job)
    assert running.rig.state(job)["state"] == "running"
    running.start()
    assert running.ended(job)["state"] == "canceled"
    gone(pid)


# ---- requeue, tokens, lost jobs


def test_requeue_is_another_attempt(running: Company) -> None:
    job = running.sh('echo "$$" > a.dat; echo x >> ../../counter', outputs=("a.dat",))
    first = running.completed(job)
    run_id = running.result(job)["run_id"]
    running.rig.spoolctl("requeue", job)
    wait_until(lambda: running.rig.state(job).get("attempt") == 2, 10, "attempt 2")
    second = running.completed(job)
    assert first != second
    assert files_below(running.rig.job(job) / "attempts" / "1" / "out") == first
    assert running.result(job)["run_id"] != run_id
    assert len((running.folder / "base" / "counter").read_text().splitlines()) == 2
    assert (running.local(job) / "attempts" / "1" / "work" / "a.dat").read_bytes() == first["a.dat"]


@pytest.mark.slow
def test_a_job_whose_folder_is_gone_is_lost(running: Company) -> None:
    job = running.sh("echo $$ > pid; sleep 300")
    pid_of(running.local(job) / "work" / "pid")
    assert running.agent
    running.agent.stop()
    shutil.rmtree(running.local(job))
    running.start()
    assert "no longer has this job" in running.failed(job, "lost")["message"]


@pytest.mark.slow
def test_a_job_killed_with_its_supervisor_is_lost(running: Company) -> None:
    job = running.sh("echo $$ > pid; sleep 300")
    pid_of(running.local(job) / "work" / "pid")
    supervisor = int((running.local(job) / "run" / "supervisor").read_text().split()[0])
    proc.kill([supervisor, *(process.pid for process in proc.descendants(supervisor))])
    proc.kill(proc.working_in(running.local(job)))
    running.failed(job, "lost", 30)


@pytest.mark.slow
def test_a_revoked_token_does_not_stop_a_command(running: Company) -> None:
    """The command goes on; the token is read at the start, so the result goes back after a new token and a restart."""
    job = running.sh(
        "echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done; echo done > a.dat; echo x >> ../../counter", outputs=("a.dat",)
    )
    work = running.local(job) / "work"
    pid = pid_of(work / "pid")
    token_id = running.rig.spoolctl("token", "ls", "--json").stdout
    running.rig.spoolctl(
        "token", "revoke", json.loads(token_id)["tokens"][0]["id"] if "tokens" in token_id else first_word(token_id)
    )
    assert running.agent
    running.agent.wait_for_output("unauthorized", 30)
    assert proc.alive(pid)
    (work / "go").touch()
    running.locally(job, "returning")
    stays(lambda: running.agent is not None and running.agent.running, 1, "the agent stays with its job")
    (running.folder / "token").write_text(running.rig.token("mint", "agent", site=SITE) + "\n")
    running.agent.stop()
    running.start()
    assert running.completed(job) == {"a.dat": b"done\n"}
    assert (running.folder / "base" / "counter").read_text() == "x\n"


def first_word(text: str) -> str:
    found = json.loads(text)
    return str((found if isinstance(found, list) else next(iter(found.values())))[0]["id"])


# ---- two agents, odd paths, TLS


def test_two_agents_on_one_base(running: Company) -> None:
    running.completed(running.sh("true"))
    first = running.agent
    second = running.start()
    assert second.wait(15) == 75
    assert "another agent works in" in second.output()
    assert first is not None
    assert first.running
    running.completed(running.sh("true"))


@pytest.mark.slow
def test_everything_below_an_odd_path(odd_dir: Path) -> None:
    company = Company(odd_dir)
    try:
        company.serve()
        company.start()
        job = company.sh("cat '入 力.inp' > 'a b.dat'; pwd", inputs={"入 力.inp": b"x"}, outputs=("*.dat",))
        assert company.completed(job) == {"a b.dat": b"x"}
        many = company.sh("true", inputs={f"{number}.dat": b"y" for number in range(20)}, outputs=("*.dat",))
        assert len(company.completed(many)) == 20
        assert company.agent
        assert company.agent.stop() == 0
        assert not list(odd_dir.rglob("pwned"))
    finally:
        company.close()


@pytest.fixture
def tls(company: Company, nginx_tls: Callable[..., NginxTls]) -> Iterator[NginxTls]:
    return nginx_tls(company.rig.port)  # type: ignore[return-value]


@pytest.mark.slow
def test_behind_nginx_with_an_authority_of_its_own(company: Company, tls: NginxTls) -> None:
    company.start(url=tls.url, ca_file=tls.ca)
    inputs = {"a.bin": noise(3_000_000), **{f"s{number}": b"x" for number in range(10)}}
    job = company.sh(
        "cp a.bin b.bin; for i in 1 2 3 4 5 6; do echo $i > o$i; done; echo log", inputs=inputs, outputs=("b.bin", "o*")
    )
    out = company.completed(job)
    assert out == {"b.bin": inputs["a.bin"], **{f"o{number}": f"{number}\n".encode() for number in range(1, 7)}}
    assert (company.rig.job(job) / "log" / "stdout.txt").read_bytes() == b"log\n"


@pytest.mark.slow
def test_published_no_auth_with_a_ca_file(company: Company, tls: NginxTls) -> None:
    company.start("--once").wait(20)
    token = (company.folder / "token").read_text().strip()
    words = [SITE, "localhost", token, f"port:{tls.port}", f"calc_base:{company.rig.root}/b", "retry:1,0.2"]
    # Loopback means http in the published form unless the address says https.
    words[1] = "https://localhost"
    company.start(*words, f"no_auth:{tls.ca}")
    assert company.completed(company.sh("true")) == {}
    assert company.agent
    assert "NOT verified" not in company.agent.output()
    company.agent.stop()
    assert company.start(*words).wait(20) == 75, "an authority that nobody named is not trusted"
    company.start(*words, "no_auth")
    assert company.completed(company.sh("true")) == {}
    assert "NOT verified" in company.agent.output()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl+c", "term"])
def test_ends_at_once_when_idle(running: Company, how: signal.Signals) -> None:
    """A sync waits at the server for five seconds here (25 in service); the end does not wait for it."""
    running.completed(running.sh("true"))
    assert running.agent
    running.agent.signal(how)
    assert running.agent.wait(3) == 0
    if how == signal.SIGINT:
        assert "Ctrl + C スクリプト停止要求受付" in running.agent.output()
    assert "Traceback" not in running.agent.output()
