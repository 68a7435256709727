"""Every other use of a guarded site's key is refused: over a real sshd, and at the gate with what sshd would hand it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.figures import tell
from components.ports import free_port
from components.process import Process, run
from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until
from spool import gate
from spool.errors import SpoolError
from spool.names import new_id

from .guarded import Guarded

JOB, RUN = new_id(), new_id()
SECRET = "top-secret-of-the-site"

# What a broken-into MInt might ask for. {base} is the gate's base; none of these is the product's.
HOSTILE = [
    "", " ", "sh", "/bin/sh", "bash -i", "sh -c 'echo pwned'", "true", "cat {base}/../agent.ini", "ls -la {base}",
    "id; id", "$(id)", "`id`", "env", "python3 -c 'print(1)'", "cat /etc/passwd", "cat </etc/passwd",
    "touch {base}/pwned", "echo x >{base}/pwned", "exec sh", "command -v sh", "&", "|", ";", "||true", "\\\n", "\n",
    "mint-gate", "mint-gate 1", "mint-gate 1 ", "mint-gate 2 hello", "mint-gate 1 hello ", " mint-gate 1 hello",
    "mint-gate 1  hello", "mint-gate 1 hello\n", "mint-gate 1 hello\nid", "mint-gate 1 hello;id",
    "mint-gate 1 hello $(id)", "mint-gate 1 hello `id`", "mint-gate 1 hello x", "mint-gate\t1\thello",
    "MINT-GATE 1 HELLO", "'mint-gate' 1 hello", "mint-gate 1 'hello'", "mint-gate 1 run {job} {run}", "mint-gate 1 init",
    "mint-gate 1 audit {job} {run}", "mint-gate 1 release {job} {run}", "mint-gate 1 status", "mint-gate 1 status {job}",
    "mint-gate 1 status {job} {run} {run}", "mint-gate 1 status ../{job} {run}", "mint-gate 1 status {job}/.. {run}",
    "mint-gate 1 status .. {run}", "mint-gate 1 status {job}\n{run}", "mint-gate 1 status {job} {run}\n",
    "mint-gate 1 status {JOB} {run}", "mint-gate 1 status * *", "mint-gate 1 get {job} {run} /etc/passwd",
    "mint-gate 1 get {job} {run} out/../../agent.ini", "mint-gate 1 get /etc/passwd {run}",
    "mint-gate 1 put {job} {run} --config /tmp/x", "mint-gate 1 --config {run} {run}", "--config /tmp/x", "-c id",
    "gate --config /tmp/x", "spool_agent.py gate", "spool_agent.py --config x", "spool_agent.py release {job}",
    "ssh_push.py", "scp -t {base}", "scp -f /etc/passwd", "scp -r -t .", "internal-sftp", "/usr/lib/openssh/sftp-server",
    "sftp-server -R", "git-upload-pack x", "tar cf - {base}", "rsync --server --sender -logDtpre.iLsfxCIvu . {base}/",
    "rsync --server --sender -r . {base}/{job}/out/", "rsync --server --sender -r . {base}/{job}/work/",
    "rsync --server --sender -s", "rsync --server -logDtpre.iLsfxCIvu . {base}/{job}/in/",
    "rsync --server -r . {base}/{job}/in/", "rsync --server -r . {base}/{job}/out/",
    "rsync --server -r . {base}/{job}/run/", "rsync --server -r . /etc/", "rsync --server -r . ../",
    "rsync --server --daemon .", "rsync --server --sender --remove-source-files -r . .",
    "rsync --server --sender -L -r . .", "rsync --server --sender --copy-links -r . .",
    "rsync --server --sender --files-from=/etc/passwd . /", "rsync --server --log-file={base}/pwned -r . .",
    "rsync --server -e sh -r . .", "rsync --server --rsync-path=sh -r . .", "rsync --server --rsh=sh . .",
    "rsync --server --partial-dir=/tmp -r . .", "rsync --server --temp-dir=/tmp -r . .",
    "rsync --server --backup-dir=/tmp -b -r . .", "rsync --server --delete -r . .",
    "rsync --server --link-dest=/etc -r . .", "rsync --server --write-devices . .",
    "rsync --server --sender -r . /etc/passwd", "rsync --daemon --config=/dev/null", "rsync",
    "rsync --server --sender -r '.' '{base}/{job}/out/'", "rsync --server --sender -r . {base}/{job}/log/ /etc", "lsyncd",
    "rrsync -wo /", "mint-gate 1 hello #", "mint-gate 1 hello \\", "mint-gate 1 hello%00", "mint-gate 1 hello\r",
    "mint-gate 1 hello\x0b", "ｍint-gate 1 hello", "mint-gate 1 hellо", "mint-gate 1 ステータス {job} {run}",
    "mint-gate 1 status {job} {run}" + " " * 90000, "A" * 100_000,
]  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    made = Guarded(rig, sshd)
    (made.site_folder / "token").write_text(SECRET)
    yield made
    rig.close()


def filled(site: Guarded, text: str) -> bytes:
    for key, value in {"{base}": str(site.base), "{job}": JOB, "{run}": RUN, "{JOB}": JOB.upper()}.items():
        text = text.replace(key, value)
    return text.encode()


def told(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The gate's one line of refusal."""
    assert (done.returncode, done.stdout) == (gate.REFUSED, b""), done
    [line] = done.stderr.splitlines()
    return dict(json.loads(line)["gate_error"])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "gate.log" not in path.name}


def test_hostile_commands_match_nothing(site: Guarded) -> None:
    """All of them at the parser; each kind of them at the gate itself, started as sshd starts it."""
    asked = [filled(site, text) for text in HOSTILE]
    assert len(set(asked)) >= 100
    assert [text for text in asked if gate.parse(text) is not None] == []
    before = snapshot(site.site_folder)
    for text in asked[::9]:
        assert told(site.original(text))["code"] == "not_allowed", text
    assert snapshot(site.site_folder) == before
    tell(f"guarded ssh: {len(asked)} hostile commands refused")


@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
                 st.builds(lambda a, b, c: a + b"mint-gate 1 " + b + c, st.binary(max_size=3),
                           st.sampled_from([b"hello", b"status " + JOB.encode() + b" " + RUN.encode(), b"get"]),
                           st.binary(max_size=40))))  # fmt: skip
def test_the_parser_takes_its_own_words_alone(command: bytes) -> None:
    asked = gate.parse(command)
    if asked is not None:
        assert b" ".join(word.encode() for word in gate.words(asked.verb, asked.job_id, asked.run_id)) == command
        assert re.fullmatch(rb"[a-z0-9 -]+", command)


def listed(path: str) -> bytes:
    return json.dumps({"files": [{"path": path, "offset": 0}]}).encode()


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(listed)))
def test_lists_of_files_are_refused_or_safe(line: bytes) -> None:
    try:
        parts = gate.parse_parts(line, "offset")
    except SpoolError:
        return
    for path, _ in parts:
        assert ".." not in path.split("/")
        assert not path.startswith("/")


def test_the_key_over_sshd_is_for_jobs_alone(site: Guarded, tmp_path: Path) -> None:
    """Shell, exec, scp, sftp, rsync, terminal, forwardings, a tunnel, variables: with the real programs."""
    sshd, secret = site.sshd, site.site_folder / "agent.ini"
    assert json.loads(site.ask("mint-gate 1 hello").stdout)["site"] == "site", "the gate itself must answer"
    before = snapshot(site.site_folder)
    for command in (b"sh -c 'echo pwned'", filled(site, "cat {base}/../agent.ini"), b"mint-gate 1 hello\nid"):
        assert told(site.ask(command))["code"] == "not_allowed"
    shell = run(["ssh", "-F", sshd.ssh_config, "-T", sshd.name], check=False)
    assert (shell.returncode, shell.stdout) == (gate.REFUSED, "")
    terminal = run(["ssh", "-F", sshd.ssh_config, "-tt", sshd.name, "sh"], check=False)
    assert terminal.returncode != 0
    assert "PTY allocation request failed" in terminal.stderr
    sent = site.ask("env", "-o", "SetEnv=LC_ALL=x XDG_CONFIG_HOME=/tmp PYTHONPATH=/tmp LD_PRELOAD=/x")
    assert told(sent)["code"] == "not_allowed"
    target = tmp_path / "got"
    for words in (
        ["scp", "-F", sshd.ssh_config, f"{sshd.name}:{secret}", target],
        ["scp", "-O", "-F", sshd.ssh_config, f"{sshd.name}:{secret}", target],
        ["scp", "-O", "-F", sshd.ssh_config, sshd.ssh_config, f"{sshd.name}:{site.base}/pwned"],
        ["sftp", "-F", sshd.ssh_config, "-b", "/dev/null", sshd.name],
        ["rsync", "-r", "-e", f"ssh -F {sshd.ssh_config}", f"{sshd.name}:{site.site_folder}/", target],
        ["rsync", "-r", "-e", f"ssh -F {sshd.ssh_config}", f"{sshd.ssh_config}", f"{sshd.name}:{site.base}/"],
    ):  # fmt: skip
        assert run(words, check=False).returncode != 0, words
    assert not target.exists()
    assert snapshot(site.site_folder) == before


def test_no_forwarding_through_that_key(site: Guarded, tmp_path: Path) -> None:
    sshd, port, listening = site.sshd, free_port(), socket.create_server(("127.0.0.1", 0))
    inner = listening.getsockname()[1]
    through = run(["ssh", "-F", sshd.ssh_config, "-W", f"127.0.0.1:{inner}", sshd.name], check=False)
    assert through.returncode != 0
    assert "prohibited" in through.stderr
    ssh = ["ssh", "-F", sshd.ssh_config, "-o", "ExitOnForwardFailure=yes", "-N"]
    far = run([*ssh, "-R", f"{port}:127.0.0.1:{inner}", sshd.name], check=False)
    assert far.returncode != 0
    assert "remote port forwarding failed" in far.stderr
    tunnel = run([*ssh, "-o", "Tunnel=yes", "-w", "any:any", sshd.name], check=False)
    assert tunnel.returncode != 0
    words = ["ssh", "-F", sshd.ssh_config, "-N", "-L", f"{port}:127.0.0.1:{inner}", sshd.name]
    with Process(words, log=tmp_path / "forward.log") as forward:
        def answered() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                    return line.recv(1) == b""
            except ConnectionRefusedError:
                return False
        wait_until(answered, 30, "the forwarded port is closed at once")
        wait_until(lambda: "prohibited" in forward.output(), 30, "and ssh says why")
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()
    agent = run(["ssh", "-F", sshd.ssh_config, "-A", "-X", sshd.name, "sh -c 'echo $SSH_AUTH_SOCK $DISPLAY'"], check=False)
    assert (agent.returncode, agent.stdout) == (gate.REFUSED, "")
    assert "SSH_AUTH_SOCK" not in os.environ or os.environ["SSH_AUTH_SOCK"] not in agent.stderr
