"""Hostile commands behind each wall, with the real agent and server: nothing but `work/` gives way, and the job ends properly."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from agent.walled import BWRAP, Walled, walled
from components import proc
from components.privilege import need_root
from components.process import run
from components.waiting import wait_until
from spool.agent import checking

WALLS = ("bwrap", "run_as", "run_as bwrap")


@pytest.fixture(autouse=True)
def as_root() -> None:
    need_root()


def running(mark: str) -> list[int]:
    """The processes that have `mark` as a word of their command line, zombies left out."""
    found = []
    for process in proc.all_processes():
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(mark.encode() in word for word in words[1:4]) and process.state not in "ZX" and process.name in ("sleep", "bash"):
            found.append(process.pid)
    return found


def holds_the_secret(company: Walled) -> str:
    """A job that keeps its `work/` to itself until `go` appears there; returns its id once it runs."""
    script = "echo secret >secret.dat; while [ ! -e go ]; do sleep 0.1; done"
    job_id = company.sh(script, inputs={"deck.inp": b"x"}, outputs=("*.dat",))
    wait_until((company.local(job_id) / "work" / "secret.dat").exists, 60, "the other job runs")
    return job_id


def said(company: Walled, job_id: str) -> list[str]:
    return (company.local(job_id) / "log" / "stdout.txt").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("wall", WALLS)
def test_a_hostile_command_gets_nowhere(wall: str) -> None:
    with walled(wall) as company:
        company.start()
        other = holds_the_secret(company)
        mark = str(700_000_000 + company.uid)
        script = company.attack(other, mark, no_network="bwrap" in wall)
        job_id = company.sh(script, inputs={"deck.inp": b"y"}, outputs=("*.dat",))
        out = company.completed(job_id, deadline_s=90)
        (last,) = said(company, job_id)
        assert re.fullmatch("done [45][0-9]", last), "all of them were tried"
        assert running(mark) == []
        assert set(out) <= {"setuid.dat", "work.dat"}
        for path in company.local(job_id).rglob("*"):
            assert not path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID) or not path.is_file(), path
        assert company.agent
        assert company.agent.running
        (company.local(other) / "work" / "go").touch()
        assert company.completed(other) == {"secret.dat": b"secret\n"}
        assert not list(company.control.glob("accounts/*")), "accounts are given back"
        assert {stat.S_IMODE(company.local(name).stat().st_mode) for name in (job_id, other)} == {0o700}


@pytest.mark.slow
def test_without_a_wall_the_same_command_breaks_out() -> None:
    """The attempts are real ones: each that a wall stops works where there is none."""
    with walled("") as company:
        company.start()
        other = holds_the_secret(company)
        (company.control / "audit.jsonl").write_text("one line\n")
        job_id = company.sh(company.attack(other, "1", no_network=True), inputs={"deck.inp": b"y"})
        log = company.local(job_id) / "log.old" / "stdout.txt"
        wait_until(lambda: log.exists() and "done" in log.read_text(), 60, "it is through")
        broke = {line[len("broke ") :] for line in log.read_text().splitlines() if line.startswith("broke ")}
    wanted = {
        "read token", "link token", "write policy", "replace policy", "write audit", "read audit", "list control", "list base",
        "read state.json", "write state.json", "remove state.json", "write result.json", "write run/exit", "write log/stdout.txt",
        "rename run", "rename work", "read other work/secret.dat", "write other's work", "write the confidential folder",
        "network", "signal agent", "trace agent", "signal parent", "own root",
    }  # fmt: skip
    assert wanted - broke == set()


@pytest.mark.slow
@pytest.mark.parametrize("wall", WALLS)
def test_a_walled_job_outlives_the_agent(wall: str) -> None:
    with walled(wall) as company:
        company.start()
        job_id = company.sh("echo $$ >pid.txt; while [ ! -e go ]; do sleep 0.1; done; echo x >x.dat; exit 7", outputs=("x.dat",))
        work = company.local(job_id) / "work"
        wait_until((work / "pid.txt").exists, 60, "the command runs")
        company.kill_agent()
        company.start()
        wait_until(lambda: "taken_up_again" in (company.agent.output() if company.agent else ""), 60, "the agent is back")
        (work / "go").touch()
        company.failed(job_id, "exit_nonzero", deadline_s=90)
        assert company.result(job_id)["exit_code"] == 7
        assert (work / "x.dat").read_text() == "x\n"


@pytest.mark.slow
@pytest.mark.parametrize("wall", WALLS)
def test_a_cancel_reaches_the_command_and_all_it_left(wall: str) -> None:
    """TERM first, which a command may use to clean up; then the end of everything, also of what left its session."""
    with walled(wall) as company:
        company.start(cancel_grace_s=20)
        mark = str(800_000_000 + company.uid)
        job_id = company.sh(
            f"setsid sleep {mark} & trap 'sleep 1; echo cleaned >cleaned.dat; exit 3' TERM\n"
            "echo x >here; while :; do sleep 0.1; done"
        )
        work = company.local(job_id) / "work"
        wait_until((work / "here").exists, 60, "the command runs")
        company.rig.spoolctl("cancel", job_id)
        company.is_at(job_id, "canceled", deadline_s=90)
        assert (work / "cleaned.dat").read_text() == "cleaned\n"
        wait_until(lambda: running(mark) == [], 30, "what it left is gone")


@pytest.mark.slow
def test_an_account_has_one_job_at_a_time() -> None:
    with walled("run_as", slots=3) as company:
        company.start()
        script = "id -u >uid.dat; id -G >>uid.dat; while [ ! -e go ]; do sleep 0.1; done"
        jobs = [company.sh(script, outputs=("uid.dat",)) for _ in range(3)]

        def at_work() -> list[str]:
            return [job_id for job_id in jobs if (company.local(job_id) / "work" / "uid.dat").exists()]

        wait_until(lambda: len(at_work()) == 2, 60, "two of them run")
        (waits,) = set(jobs) - set(at_work())
        assert company.agent
        company.agent.wait_for_output("is in use", 60)
        first, second = at_work()
        (company.local(first) / "work" / "go").touch()
        company.completed(first)
        wait_until(lambda: len(at_work()) == 3, 90, "the third runs in the first one's account")
        uids = {}
        for job_id in (second, waits):
            (company.local(job_id) / "work" / "go").touch()
            uids[job_id] = company.completed(job_id, deadline_s=90)["uid.dat"].split()
        uids[first] = company.out(first)["uid.dat"].split()
        words = {path.read_text() for path in (company.local(first) / "run" / "argv").iterdir()}
        assert {"--clear-groups", "--no-new-privs", "--bounding-set=-all"} <= words
        assert uids[first] == uids[waits]
        assert sorted([uids[first], uids[second]]) == [[str(company.uid + n).encode()] * 2 for n in (0, 1)], "no other group"


@pytest.mark.slow
def test_an_account_that_a_person_uses_is_left_alone() -> None:
    """Nothing is run as, and nothing ended of, an account that has processes which no job started."""
    with walled("run_as") as company:
        company.commands["sh"] = {**company.commands["sh"], "run_as": f"{company.uid}:{company.uid}"}
        person = subprocess.Popen(["sleep", "600"], user=company.uid, group=company.uid, extra_groups=[])
        try:
            company.start()
            job_id = company.sh("echo x >x.dat", outputs=("x.dat",))
            assert company.agent
            company.agent.wait_for_output("account_in_use", 60)
            assert person.poll() is None
            assert not (company.local(job_id) / "run").exists()
        finally:
            person.kill()
            person.wait()
        assert company.completed(job_id, deadline_s=90) == {"x.dat": b"x\n"}


@pytest.mark.slow
def test_a_hard_link_to_a_file_of_root_brings_nothing_home() -> None:
    """As a command makes it where fs.protected_hardlinks is 0; the agent, which is root, could read it."""
    with walled("run_as") as company:
        company.start()
        job_id = company.sh("echo x >x.dat; ln x.dat y.dat; while [ ! -e go ]; do sleep 0.1; done", outputs=("*.dat",))
        work = company.local(job_id) / "work"
        wait_until((work / "y.dat").exists, 60, "the command runs")
        shadow = company.rig.root / "shadow"
        shadow.write_text("secret\n")
        shadow.chmod(0o4600)
        os.link(shadow, work / "stolen.dat")
        (work / "go").touch()
        assert company.completed(job_id, deadline_s=90) == {"x.dat": b"x\n", "y.dat": b"x\n"}
        assert shadow.read_text() == "secret\n"
        assert stat.S_IMODE(shadow.stat().st_mode) == 0o4600, "nor is the file itself touched"


@pytest.mark.slow
def test_what_a_killed_agent_left_in_an_account_is_ended() -> None:
    """The account of an ended job whose agent could not clean up: the next job of the account ends its leftovers first."""
    with walled("run_as") as company:
        company.commands["sh"] = {**company.commands["sh"], "run_as": f"{company.uid}:{company.uid}"}
        company.start()
        job_id = company.sh("echo x >x.dat", outputs=("x.dat",))
        company.completed(job_id)
        company.locally(job_id, "completed")  # the agent gives the account back before
        state = json.loads((company.local(job_id) / "state.json").read_bytes())
        (company.control / "accounts" / str(company.uid)).write_text(f"{job_id} {state['run_id']} {company.uid}\n")
        left = subprocess.Popen(["sleep", "600"], user=company.uid, group=company.uid, extra_groups=[])
        script = f"case $(grep ^State: /proc/{left.pid}/status) in *Z*) echo ended ;; *) echo alive ;; esac >y.dat"
        assert company.completed(company.sh(script, outputs=("y.dat",))) == {"y.dat": b"ended\n"}
        assert left.wait(30) == -9


@pytest.mark.slow
def test_a_jobs_variables_stay_inside_the_wall() -> None:
    """With LD_PRELOAD or PATH a job would have its own code run by setpriv, as root, or by the wrapper."""
    with walled("run_as") as company:
        company.commands["sh"] = {**company.commands["sh"], "env_allow": "LD_PRELOAD PATH"}
        company.start()
        env = {"LD_PRELOAD": "./evil.so", "PATH": "/nowhere"}
        job_id = company.sh("echo $LD_PRELOAD $PATH >env.dat", env=env, outputs=("env.dat",))
        assert company.completed(job_id) == {"env.dat": b"./evil.so /nowhere\n"}
        met = (company.local(job_id) / "log" / "stderr.txt").read_text().count("evil.so")
        assert met == 1, "the loader tells of it in each program that meets it: bash, and neither setpriv nor env"
        assert not list((company.local(job_id) / "run" / "env").iterdir())


# ---- check, and the wrapper by itself


def check(company: Walled) -> dict[str, str]:
    """What `check` says, by subject."""
    company.start("check").wait(60)
    assert company.agent
    found = {}
    for line in company.agent.output().splitlines():
        word, _, rest = line.partition(" ")
        subject, _, why = rest.strip().partition(": ")
        found[subject] = f"{word} {why}".strip()
    return found


@pytest.mark.slow
def test_check_tries_the_walls() -> None:
    with walled("run_as bwrap") as company:
        shell = company.commands["sh"]
        company.commands |= {
            "open": {"argv": "/bin/sh"},
            "paper": {"argv": "/bin/sh", "wrapper": "/usr/bin/env"},
            "broken": {"argv": "/bin/sh", "wrapper": "/bin/false"},
            "lost": {"argv": "/bin/sh", "wrapper": f"{BWRAP} --hide {{base}} /nowhere --"},
            "nobody": {"argv": "/bin/sh", "run_as": "no-such-account"},
            "root": {"argv": "/bin/sh", "run_as": "root"},
            "alone": {"argv": "/bin/sh", "run_as": shell["run_as"]},
            "pinned": {"argv": "/bin/sh", "sha256": f"/bin/sh {'0' * 64}"},
            "hooked": {"argv": "/bin/sh", "pre_run": "/nowhere/hook"},
        }
        found = check(company)
        assert found["wall of sh"] == found["wall of alone"] == "ok", found
        assert found["wall of open"].startswith("warning none")
        for thing in ("can read the token", "can write agent.ini", "can read the agent's own folder", "can write other files"):
            assert thing in found["wall of paper"]
        assert "does not run a command (exit 1)" in found["wall of broken"]
        assert "there is no /nowhere" in found["wall of lost"]
        assert "no account 'no-such-account'" in found["wall of nobody"]
        assert "root's" in found["wall of root"]
        assert found["sha256 of pinned"].startswith("problem /bin/sh: has SHA-256")
        assert found["pre_run of hooked"].startswith("problem")
        company.site.chmod(0o700)
        assert "cannot write its work folder as" in check(company)["wall of alone"]


def test_what_can_be_made_in_an_empty_tmp_is_not_agent_ini(tmp_path: Path) -> None:
    """Behind a wall with a /tmp of its own the folder of an agent.ini below /tmp may be there, and be writable."""
    nowhere = tmp_path / "no" / "where"
    things = (tmp_path, nowhere, tmp_path / "agent.ini", nowhere, nowhere)
    words = ["/bin/sh", "-c", checking._TRY, "probe", *things]
    assert "agent.ini" not in run(words, env=os.environ).stdout
    (tmp_path / "agent.ini").write_text("[agent]\n")
    assert "can write agent.ini" in run(words, env=os.environ).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "is not an absolute path"), (["work", "--", "id"], "is not an absolute path"), (["/tmp"], "'--' is missing"),
        (["/tmp", "--"], "there is no command"), (["/tmp", "id"], "'--' is missing"), (["--ro", "x", "/"], "absolute"),
        (["/nowhere", "--", "id"], "there is no /nowhere"), (["--x", "/tmp", "--", "id"], "absolute"),
        (["--hide", "/tmp", "--ro", "/usr", "/tmp", "--", "id"], "--ro comes before"), (["/tmp", "--", "a=b"], "with = in its"),
    ],
)  # fmt: skip
def test_the_wrapper_refuses_what_it_does_not_understand(words: list[str], told: str) -> None:
    done = run([BWRAP, *words], check=False)
    assert (done.returncode, told in done.stderr, done.stdout) == (126, True, ""), done.stderr


def test_the_wrapper_keeps_words_and_exit_codes(tmp_path: Path) -> None:
    """Blanks, quotes, newlines, empty words; 0 to 255; and a signal as a shell tells it."""
    words = ["a b", "'\"", "", "x\ny", "日本", "--", "$HOME"]
    done = run([BWRAP, tmp_path, "--", "/bin/sh", "-c", 'printf "%s|" "$@"; exit 41', "sh", *words], check=False)
    assert (done.returncode, done.stdout) == (41, "".join(f"{word}|" for word in words))
    assert run([BWRAP, tmp_path, "--", "/bin/sh", "-c", "kill -TERM $$"], check=False).returncode == 128 + 15


def test_the_wrapper_is_a_clean_script() -> None:
    assert BWRAP.stat().st_mode & 0o111 == 0o111
    run(["dash", "-n", BWRAP])
