"""SSH mode from the drop to the result: what a user of it sees, over a real sshd and a real rsync."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from components import proc
from components.process import run
from components.rig import REPO, Rig
from components.sshd import Sshd
from components.waiting import wait_until

from .conftest import MakePush, Pushed, lines


def test_a_job_end_to_end(push: Pushed) -> None:
    push.start()
    job_id = push.drop(
        "sh", "-c", "cat 入力.txt; echo err >&2; tr a-z A-Z <入力.txt >'結果 1.dat'; : >sub_empty; mkdir d; cp x d/y.frd; exit 0",
        inputs={"入力.txt": b"abc\n", "x": b"", "sub/deep.txt": b"deep"},
        outputs=["*.dat", "sub_empty", "d/*.frd", "*.missing"],
    )  # fmt: skip
    state = push.ended(job_id)
    assert (state["state"], state["exit_code"], state["agent"]) == ("completed", 0, "ssh-push"), state
    assert push.out(job_id) == {"結果 1.dat": b"ABC\n", "sub_empty": b"", "d/y.frd": b""}
    assert (push.log(job_id), push.log(job_id, "stderr.txt")) == ("abc\n", "err\n")
    result = push.result(job_id)
    assert result["missing"] == ["*.missing"]
    assert {entry["path"] for entry in result["files"]} == {
        "out/結果 1.dat", "out/sub_empty", "out/d/y.frd", "log/stdout.txt", "log/stderr.txt", "log/runner.log",
    }  # fmt: skip
    path, wanted = push.rig.job(job_id) / "history.jsonl", ["queued", "claimed", "running", "returning", "completed"]
    wait_until(lambda: [json.loads(line)["to"] for line in lines(path)] == wanted, 5, f"the history is {wanted}")
    wait_until(lambda: not (push.rig.job(job_id) / "incoming").exists(), 5, "what was on its way is cleared away")
    assert stat.S_IMODE(push.there(job_id).stat().st_mode) == 0o700
    wait_until((push.there(job_id) / "delivered").exists, 5, "the folder at the site is marked")
    assert sorted(path.name for path in push.there(job_id).iterdir()) == [
        "delivered", "in", "job.json", "log", "run", "run_id", "work",
    ]  # fmt: skip
    assert push.rig.state(job_id)["run_id"] == (push.there(job_id) / "run_id").read_text().strip()


def test_the_sites_program_gets_the_command_first(make_push: MakePush, sshd: Sshd, tmp_path: Path) -> None:
    program = tmp_path / "program c.sh"
    program.write_text(
        """#!/bin/sh
printf "[%s]" "$@"
echo made >made.txt
rm -f secret
printf %s "$OK-$NO-$MINT_SPOOL_JOB" >env.txt
"""
    )
    program.chmod(0o755)
    push = make_push(sshd, program=program, env_allow="OK")
    push.start()
    inputs = {"keep.txt": b"k", "secret": b"s"}
    job_id = push.drop("plate", "a b", "", "$(x)\n", inputs=inputs, outputs=["**"], env={"OK": "yes 'x'", "NO": "no"})
    assert push.ended(job_id)["state"] == "completed"
    assert push.log(job_id) == "[plate][a b][][$(x)\n]"
    assert push.out(job_id) == {
        "made.txt": b"made\n", "keep.txt": b"k", "env.txt": f"yes 'x'--{job_id}".encode(),
    }  # fmt: skip


@pytest.fixture
def odd(odd_dir: Path, sshd: Sshd, make_push: MakePush) -> Pushed:
    """Spool, ini, ssh_config and base below a name that trips shells up."""
    config = odd_dir / "ssh_config"
    config.write_bytes(sshd.ssh_config.read_bytes())
    # An ini value holds no newline; test_parts.py has a base with one.
    base = sshd.home / odd_dir.name.replace("\n", "")
    push = make_push(sshd, root=odd_dir, base=base)
    # Relative to the working folder of the push, for the same reason.
    push.options["ssh_config"] = "../ssh_config"
    return push


def test_odd_folders_on_both_sides(odd: Pushed, tmp_path: Path) -> None:
    odd.start()
    job_id = odd.sh("cat '入 力'; pwd; cp '入 力' out.dat", inputs={"入 力": b"x"}, outputs=["out.dat"])
    assert odd.ended(job_id)["state"] == "completed"
    assert odd.out(job_id) == {"out.dat": b"x"}
    assert odd.log(job_id) == f"x{odd.there(job_id)}/work\n"
    assert not list(tmp_path.rglob("pwned"))
    assert not list(odd.sshd.home.rglob("pwned"))


@pytest.mark.parametrize(
    ("script", "more", "reason", "code"),
    [
        ("echo part >a.dat; exit 3", {}, "exit_nonzero", 3),
        ("exit 0", {}, "no_outputs", 0),
        ("echo x >a.dat; sleep 100", {"wall_time_s": 1}, "wall_time", 143),
        ("kill -KILL $$", {}, "signal", 137),
        ("echo x >a.dat", {"require_all": True, "outputs": ["a.dat", "b.dat"]}, "missing_outputs", 0),
    ],
)
def test_how_a_command_may_fail(push: Pushed, script: str, more: dict[str, object], reason: str, code: int) -> None:
    push.start()
    job_id = push.sh(script, **{"outputs": ["*.dat"], **more})
    state = push.ended(job_id)
    assert (state["state"], state["reason"], state["exit_code"]) == ("failed", reason, code), state
    assert ("a.dat" in push.out(job_id)) == ("a.dat" in script)


def test_a_command_that_is_not_there(push: Pushed) -> None:
    push.start()
    state = push.ended(push.drop("/no/such command"))
    assert (state["state"], state["reason"]) == ("failed", "spawn"), state


def test_a_relative_command_is_refused(push: Pushed) -> None:
    """It would be looked for among the job's own files."""
    push.start()
    state = push.ended(push.drop("bin/x", inputs={"bin/x": b"#!/bin/sh\n"}))
    assert (state["state"], state["reason"]) == ("failed", "refused_by_site"), state


def test_a_running_command_is_canceled(push: Pushed) -> None:
    push.start()
    job_id = push.sh("echo $$ >pid; exec sleep 300", outputs=["**"])
    pid = push.there(job_id) / "work" / "pid"
    wait_until(lambda: pid.exists() and pid.read_text().strip(), 20, "the command runs")
    push.store().cancel(job_id, by="operator")
    state = push.ended(job_id)
    assert (state["state"], state["cancel_requested_by"]) == ("canceled", "operator")
    assert not proc.alive(int(pid.read_text()))


def test_logs_follow_the_running_command(push: Pushed) -> None:
    push.start()
    job_id = push.sh("echo first; while ! [ -e go ]; do sleep 0.1; done; echo second")
    wait_until(lambda: list(push.rig.job(job_id).glob("incoming/*/files/log/stdout.txt")), 20, "the log comes")
    [log] = push.rig.job(job_id).glob("incoming/*/files/log/stdout.txt")
    wait_until(lambda: log.read_text() == "first\n", 20, "its first line")
    with open(log) as reader:
        (push.there(job_id) / "work" / "go").touch()
        assert push.ended(job_id)["state"] == "completed"
        assert reader.read() == "first\nsecond\n"
    assert push.log(job_id) == "first\nsecond\n"


def test_the_folder_at_the_site_is_removed(push: Pushed) -> None:
    push.start()
    job_id = push.sh("exec sleep 300")
    push.rig.wait_state(job_id, "running")
    wait_until((push.there(job_id) / "run" / "pid").exists, 20, "the command runs")
    pid = int((push.there(job_id) / "run" / "pid").read_text().split()[0])
    push.there(job_id).rename(push.sshd.home / "moved away")  # at one instant: the runner still writes there
    state = push.ended(job_id)
    assert (state["state"], state["reason"]) == ("failed", "lost")
    assert "gone at the site" in state["message"]
    proc.kill([pid])


def test_a_killed_command_is_lost_not_guessed(push: Pushed) -> None:
    push.start()
    job_id = push.sh("exec sleep 300")
    wait_until((push.there(job_id) / "run" / "pid").exists, 20, "the command runs")
    proc.kill([int((push.there(job_id) / "run" / name).read_text().split()[0]) for name in ("supervisor", "pid")])
    state = push.ended(job_id)
    assert (state["state"], state["reason"]) == ("failed", "lost"), state


def test_a_requeue_starts_in_a_clean_folder(push: Pushed) -> None:
    push.start()
    job_id = push.sh("ls >seen.dat; echo x >left; exit 1", inputs={"in.txt": b"i"}, outputs=["seen.dat"])
    assert push.ended(job_id)["attempt"] == 1
    first = (push.there(job_id) / "run_id").read_text().strip()
    push.store().requeue(job_id, by="operator")
    wait_until(lambda: push.rig.state(job_id)["attempt"] == 2 and push.rig.state(job_id)["state"] == "failed", 30, "attempt 2")
    assert push.out(job_id)["seen.dat"] == b"in.txt\nseen.dat\n"
    assert (push.rig.job(job_id) / "attempts" / "1" / "out" / "seen.dat").exists()
    old = push.there(job_id) / "attempts" / first
    assert (old / "work" / "left").exists()
    assert (old / "run_id").read_text().strip() == first


def test_hostile_names_and_links_stay_outside(push: Pushed, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    push.start()
    script = f"""
        ln -s {secret} link.dat; ln -s {tmp_path} dir; ln -s ../in up
        printf a >'-rf.dat'; printf b >"$(printf 'new\\nline.dat')"; printf c >"$(printf 'bad\\377.dat')"
        mkfifo pipe.dat; printf d >'#comment.dat'; printf e >';semi.dat'; printf f >' blank.dat'; printf g >'back\\slash.dat'
        printf h >'*.dat'; printf i >'日本.dat'; mkdir -- -d .hidden; printf j >./-d/x.dat; printf k >.hidden/y.dat
    """
    job_id = push.sh(script, outputs=["**"])
    assert push.ended(job_id)["state"] == "completed"
    assert push.out(job_id) == {
        "#comment.dat": b"d", ";semi.dat": b"e", " blank.dat": b"f", "back\\slash.dat": b"g", "*.dat": b"h", "日本.dat": b"i",
        ".hidden/y.dat": b"k",
    }  # fmt: skip
    kept = " ".join(push.result(job_id)["not_carried"])
    for name in ("-rf.dat", "new\\nline.dat", "bad\\xff.dat", "pipe.dat", "link.dat", "-d/x.dat", "dir", "up"):
        assert name in kept, kept
    assert secret.read_text() == "secret"
    # os.walk passes over what goes away meanwhile: incoming/ is removed after the job has ended.
    found = [Path(folder) / name for folder, folders, names in os.walk(push.rig.job(job_id)) for name in (*folders, *names)]
    assert not [path for path in found if path.is_symlink()]


def test_one_connection_serves_all(push: Pushed) -> None:
    push.options["slots"] = "8"
    push.start()
    jobs = [push.sh(f"echo {number} >a.dat", outputs=["a.dat"]) for number in range(12)]
    for number, job_id in enumerate(jobs):
        assert push.ended(job_id)["state"] == "completed"
        assert push.out(job_id) == {"a.dat": f"{number}\n".encode()}
    assert (push.sshd.folder / "sshd.log").read_text().count("Accepted publickey") == 1


@pytest.mark.slow
def test_once_ends_by_itself_and_tells_how(push: Pushed) -> None:
    assert push.once() == 0
    good, bad, other = push.sh("exit 0"), push.sh("exit 1"), push.sh("exit 0")
    assert push.once(good) == 0
    assert push.rig.state(good)["state"] == "completed"
    assert push.once(bad) == 1
    assert push.rig.state(other)["state"] == "queued"
    assert push.once() == 0
    assert push.rig.state(other)["state"] == "completed"
    assert push.once("11111111-1111-4111-8111-111111111111") == 1


def test_a_second_push_says_so(push: Pushed) -> None:
    first = push.start()
    first.wait_for_output("event=pushing", 10)
    second = push.start()
    assert second.wait(10) == 75
    assert "another ssh_push.py is at work" in second.output()
    assert first.stop() == 0


def test_inputs_that_changed_at_mint_are_not_sent_off(push: Pushed) -> None:
    push.once()
    job_id = push.sh("exit 0", inputs={"a": b"frozen"})
    push.sshd.stop()
    assert push.once(job_id) == 75
    (push.rig.job(job_id) / "in" / "a").write_bytes(b"changed")
    push.sshd.start()
    assert push.once(job_id) == 1
    state = push.rig.state(job_id)
    assert (state["reason"], "changed or gone at MInt" in state["message"]) == ("transfer", True), state


def test_what_was_delivered_is_cleaned_away(make_push: MakePush, sshd: Sshd) -> None:
    push = make_push(sshd, keep_days="0")
    push.start()
    job_id = push.sh("exit 0")
    assert push.ended(job_id)["state"] == "completed"
    wait_until(lambda: not push.there(job_id).exists(), 10, "the folder is gone")


def test_solver_log_has_three_kinds_of_lines(make_push: MakePush, sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "solver_execute.log"
    push = make_push(sshd, solver_log=path, solver_log_format="{event}|{id}|{site}|{user}|{workflow}|{command}|{reason}")
    push.start()
    good = push.sh("exit 0", workflow="W1\nforged line")
    assert push.ended(good)["state"] == "completed"
    bad = push.sh("exit 9")
    assert push.ended(bad)["state"] == "failed"
    head = f"{good}|site|mint|W1\\nforged line|sh|"
    wait_until(lambda: len(lines(path)) == 4, 5, "four lines")
    assert lines(path) == [
        f"start|{head}-",
        f"normal end|{head}-",
        f"start|{bad}|site|mint|-|sh|-",
        f"abnormal end|{bad}|site|mint|-|sh|exit_nonzero",
    ]


def test_an_unknown_placeholder_is_a_clear_error(make_push: MakePush, sshd: Sshd, tmp_path: Path) -> None:
    push = make_push(sshd, solver_log=tmp_path / "log", solver_log_format="{at} {nonsense}")
    process = push.start()
    assert process.wait(10) == 78
    assert "no placeholder {nonsense}" in process.output()


def test_a_file_of_zeros_arrives_whole_and_sparse(push: Pushed) -> None:
    push.start()
    job_id = push.sh("truncate -s 64M big.dat; echo end >>big.dat", outputs=["big.dat"])
    assert push.ended(job_id)["state"] == "completed"
    path = push.rig.job(job_id) / "out" / "big.dat"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(bytes(64 << 20) + b"end\n").hexdigest()
    assert path.stat().st_blocks * 512 < 4 << 20


def test_the_program_is_called_as_documented(rig: Rig) -> None:
    done = run([REPO / "ssh_push.py", "--once", "no-id"], env=rig.env, check=False)
    assert (done.returncode, "not a job id" in done.stderr) == (2, True)
    done = run([REPO / "ssh_push.py", "authorize", "nowhere", "--spool", rig.spool], env=rig.env, check=False)
    assert (done.returncode, "not a site" in done.stderr) == (78, True)
