"""Lines that break, programs that are killed, keys that are wrong: the job is never lost and its command runs once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from components import proc
from components.process import Process
from components.sshd import Sshd
from components.waiting import stays, wait_until

from .conftest import MakePush, Pushed, lines


class Counted:
    """A job whose command counts its starts and goes on when it is told to."""

    def __init__(self, push: Pushed) -> None:
        self.push = push
        self.counter = push.sshd.home / "counter"
        self.go = push.sshd.home / "go"
        waiting = f"while ! [ -e {self.go} ]; do sleep 0.05; done"
        self.id = push.sh(f"echo started >>{self.counter}; echo begin; {waiting}; echo done >a.dat", outputs=["a.dat"])

    def wait_started(self) -> None:
        wait_until(self.counter.exists, 30, "the command runs")
        self.push.rig.wait_state(self.id, "running")

    def check(self) -> None:
        """The command ran once, and its result is there."""
        state = self.push.ended(self.id)
        assert state["state"] == "completed", state
        assert self.push.out(self.id) == {"a.dat": b"done\n"}
        assert lines(self.counter) == ["started"]


def test_the_site_goes_away_while_the_command_runs(push: Pushed) -> None:
    process = push.start()
    job = Counted(push)
    job.wait_started()
    push.sshd.stop()
    process.wait_for_output("event=trouble", 30)
    job.go.touch()
    stays(lambda: push.rig.state(job.id)["state"] == "running", 1, "no answer is not a failure")
    push.sshd.start()
    job.check()


def test_a_cut_connection_is_made_again(push: Pushed) -> None:
    push.start()
    job = Counted(push)
    job.wait_started()
    assert push.sshd.kill_connections()
    job.go.touch()
    job.check()


def test_the_push_is_killed_while_the_command_runs(push: Pushed) -> None:
    first = push.start()
    job = Counted(push)
    job.wait_started()
    first.kill()
    push.start()
    job.go.touch()
    job.check()


def test_the_push_is_stopped_while_the_command_runs(push: Pushed) -> None:
    first = push.start()
    job = Counted(push)
    job.wait_started()
    assert first.stop(deadline_s=8) == 0
    assert push.rig.state(job.id)["state"] == "running"
    assert proc.alive(int((push.there(job.id) / "run" / "pid").read_text().split()[0]))
    push.start()
    job.go.touch()
    job.check()


@pytest.mark.slow
def test_killed_again_and_again_the_command_runs_once(push: Pushed) -> None:
    """From the drop to the result, killed after one line of its log, after two, …: whatever step that is, it is carried on."""
    push.once()
    job = Counted(push)
    job.go.touch()
    for number in range(12):
        process = push.start()
        process.wait_for_output("event=pushing", 10)
        wanted = process.output().count("\n") + number % 6

        def far_enough(process: Process = process, wanted: int = wanted) -> bool:
            return process.output().count("\n") >= wanted or push.rig.state(job.id).get("state") == "completed"

        wait_until(far_enough, 20, f"{wanted} lines", every_s=0.002)
        children = [one.pid for one in proc.descendants(process.pid)]
        process.kill()
        proc.kill(children)
    push.start()
    job.check()


@pytest.mark.slow
@pytest.mark.parametrize("orphan_lives", [True, False])
def test_killed_while_a_large_file_is_fetched(push: Pushed, orphan_lives: bool) -> None:
    """An rsync that outlives the push is waited for; one that is killed as well is begun again."""
    first = push.start()
    job_id = push.sh("head -c 200000000 /dev/urandom >big.dat", outputs=["big.dat"])
    folder = push.rig.job(job_id) / "incoming"
    wait_until(lambda: list(folder.glob("*/files/out/.big.dat.*")), 60, "the file is on its way", every_s=0.002)
    children = [one.pid for one in proc.descendants(first.pid)]
    first.kill()
    if not orphan_lives:
        proc.kill(children)
    assert push.rig.state(job_id)["state"] == "returning"
    push.start()
    assert push.ended(job_id)["state"] == "completed"
    out = push.rig.job(job_id) / "out"
    assert [path.name for path in out.iterdir()] == ["big.dat"]
    there = push.there(job_id) / "work" / "big.dat"
    assert hashlib.sha256((out / "big.dat").read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()


def test_a_wrong_host_key_is_told_and_the_job_stays(push: Pushed) -> None:
    right = push.sshd.known_hosts.read_text()
    port_and_type = " ".join(right.split()[:2])
    other = (push.sshd.key.with_suffix(".pub")).read_text().split()[1]
    push.sshd.known_hosts.write_text(f"{port_and_type} {other}\n")
    process = push.start()
    job_id = push.sh("exit 0")
    process.wait_for_output("Host key verification failed", 20)
    assert "never accept it unseen" in process.output()
    stays(lambda: push.rig.state(job_id)["state"] == "claimed", 0.5, "the job waits")
    push.sshd.known_hosts.write_text(right)
    assert push.ended(job_id)["state"] == "completed"


@pytest.mark.slow
def test_giving_up_is_an_operators_choice(make_push: MakePush, sshd: Sshd) -> None:
    push = make_push(sshd, give_up_after_s="2")
    push.start()
    job = Counted(push)
    job.wait_started()
    pid = int((push.there(job.id) / "run" / "pid").read_text().split()[0])
    sshd.stop()
    state = push.ended(job.id)
    assert (state["state"], state["reason"]) == ("failed", "unreachable")
    assert proc.alive(pid)
    sshd.start()
    push.store().requeue(job.id, by="operator")
    wait_until(lambda: not proc.alive(pid), 30, "the run that was given up is stopped")
    job.go.touch()
    assert push.ended(job.id)["attempt"] == 2
    assert lines(job.counter) == ["started"] * 2


def test_a_cancel_reaches_the_site_when_it_is_back(push: Pushed) -> None:
    push.start()
    job = Counted(push)
    job.wait_started()
    push.sshd.stop()
    push.store().cancel(job.id, by="operator")
    stays(lambda: push.rig.state(job.id)["state"] == "running", 1, "a cancel is an intent until the site confirms it")
    push.sshd.start()
    assert push.ended(job.id)["state"] == "canceled"


def test_once_says_when_a_site_is_unreachable(push: Pushed) -> None:
    assert push.once() == 0
    job_id = push.sh("exit 0")
    push.sshd.stop()
    assert push.once() == 75
    push.sshd.start()
    assert push.once() == 0
    assert push.rig.state(job_id)["state"] == "completed"


def test_one_bad_job_does_not_stop_the_others(push: Pushed) -> None:
    push.sshd.stop()
    process = push.start()
    bad, good = push.sh("exit 0"), push.sh("exit 0")
    push.rig.wait_state(bad, "claimed")
    process.wait_for_output("event=trouble", 20)
    (push.rig.job(bad) / "job.json").unlink()
    push.sshd.start()
    assert push.ended(good)["state"] == "completed"


@pytest.mark.slow
def test_a_base_that_cannot_be_made_fails_in_the_end(make_push: MakePush, sshd: Sshd) -> None:
    (sshd.home / "file").touch()
    push = make_push(sshd, base=sshd.home / "file" / "base")
    process = push.start()
    job_id = push.sh("exit 0")
    process.wait_for_output("installing the runner", 20)
    assert push.rig.state(job_id)["state"] == "claimed"
    state = push.ended(job_id, deadline_s=100)
    assert (state["state"], state["reason"]) == ("failed", "transfer")


# ---- ways to get there


def test_through_a_jump_host(make_push: MakePush, make_sshd: Callable[..., Sshd]) -> None:
    jump = make_sshd("jump")
    far = make_sshd("far", jump=jump)
    push = make_push(far)
    push.start()
    job_id = push.sh("echo there >a.dat", outputs=["a.dat"])
    assert push.ended(job_id)["state"] == "completed"
    assert "Accepted publickey" in (jump.folder / "sshd.log").read_text()


def test_through_a_socks_proxy(push: Pushed, tmp_path: Path) -> None:
    script, port = Path(__file__).with_name("socks.py"), tmp_path / "port"
    with Process([sys.executable, script, "serve", port], log=tmp_path / "socks.log") as proxy:
        wait_until(lambda: port.exists() or not proxy.running, 10, "the proxy listens")
        way = f"{sys.executable} {script} connect {port.read_text()} %h %p"
        push.sshd.ssh_config.write_text(f"{push.sshd.ssh_config.read_text()}  ProxyCommand {way}\n")
        push.start()
        job_id = push.sh("echo there >a.dat", outputs=["a.dat"])
        assert push.ended(job_id)["state"] == "completed"
        assert f"to 127.0.0.1:{push.sshd.port}" in proxy.output()


# ---- letting the push in, and looking whether all is well


def _ask(push: Pushed, *words: str) -> tuple[int, str]:
    process = push.rig.start_push({"site": push.options}, *words)
    code = process.wait(60)
    text = process.output()
    process.log.unlink()
    return code, text


def test_the_line_of_authorize_lets_the_push_in(push: Pushed) -> None:
    push.sshd.authorized_keys.write_text("")
    code, said = _ask(push, "check", "site")
    assert (code, "Permission denied" in said, "authorize" in said) == (1, True, True), said
    push.sshd.key.with_suffix(".pub").unlink()  # the public half is worked out from the key then
    code, said = _ask(push, "authorize", "site", "--from", "127.0.0.1,192.0.2.0/24")
    assert code == 0, said
    assert 'restrict,from="127.0.0.1,192.0.2.0/24" ssh-ed25519 ' in said
    push.sshd.authorized_keys.write_text(said)
    push.start()
    assert push.ended(push.sh("exit 0"))["state"] == "completed"
    _, said = _ask(push, "authorize", "site", "--from", "192.0.2.7")
    push.sshd.authorized_keys.write_text(said)
    assert push.sshd.ssh("true", check=False).returncode == 255
    assert _ask(push, "authorize", "site", "--from", '"x')[0] == 78


def test_check_finds_nothing_wrong(push: Pushed) -> None:
    push.options["commands"] = ["sh", "/bin/cat"]
    code, said = _ask(push, "check", "site")
    assert (code, "problem" in said) == (0, False), said
    for word in ("command: sh found", "command: /bin/cat found", "rsync there: rsync", "is writable", "free space"):
        assert word in said
    assert not list(push.base.glob(".mint-probe*"))


def test_check_says_what_to_do(push: Pushed) -> None:
    push.options["commands"] = ["no-such-solver"]
    (push.sshd.home / "file").touch()
    push.options["base"] = push.sshd.home / "file" / "base"
    code, said = _ask(push, "check", "site")
    assert code == 1
    assert "problem  command: no-such-solver missing" in said
    assert "is not writable" in said
    push.options["ssh_config"] = push.rig.root / "none"
    assert _ask(push, "check", "site")[0] == 1
    push.sshd.stop()
    push.options["ssh_config"] = push.sshd.ssh_config
    code, said = _ask(push, "check", "site")
    assert (code, "Connection refused" in said, "nothing listens on that port" in said) == (1, True, True), said


def test_a_noisy_login_shell_is_named(push: Pushed) -> None:
    """bash run by sshd reads .bashrc; another login shell does not, so the server is made to run bash."""
    (push.sshd.home / ".bashrc").write_text("echo welcome\n")
    key = push.sshd.authorized_keys.read_text()
    push.sshd.authorized_keys.write_text(f'command="bash -c \'. ~/.bashrc; eval \\"$SSH_ORIGINAL_COMMAND\\"\'" {key}')
    code, said = _ask(push, "check", "site")
    assert (code, "prints 'welcome" in said) == (1, True), said


@pytest.fixture
def small_disk(push: Pushed) -> Iterator[Path]:
    """The site's base as a file system of its own, of 3 MB."""
    push.base.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", push.base], check=True)
    yield push.base
    push.rig.close()
    subprocess.run(["umount", "--lazy", push.base], check=True)


def test_a_full_disk_at_the_site_is_waited_for(push: Pushed, small_disk: Path) -> None:
    data = os.urandom(8_000_000)
    process = push.start()
    job = push.sh("cp big.bin out.bin", inputs={"big.bin": data}, outputs=["out.bin"])
    process.wait_for_output("No space left", 30)
    assert push.rig.state(job)["state"] == "claimed", "a full disk has ended the job"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert push.ended(job)["state"] == "completed"
    assert push.out(job) == {"out.bin": data}
