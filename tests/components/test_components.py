"""The components do what the tests that stand on them rely on."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import filelock
import pytest

from components import proc
from components.decks import deck, reference
from components.nginx import NginxTls
from components.ports import accepts, free_port
from components.process import Process, Words, clean_env, run
from components.rig import REPO, write_ini
from components.sshd import Sshd
from components.waiting import stays, wait_until

# ---- waiting, ports, processes


def test_waiting_names_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.3 s: the moon"):
        wait_until(lambda: False, 0.1, "the moon")
    assert wait_until(iter([0, "", "there"]).__next__, 1, "the third") == "there"


def test_staying_fails_at_the_first_no() -> None:
    with pytest.raises(AssertionError, match="did not stay"):
        stays(iter([True, False]).__next__, 1, "up")


def test_ports_are_given_once() -> None:
    ports = [free_port() for _ in range(50)]
    code = "from components.ports import free_port\nfor _ in range(50): print(free_port())"
    other = run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO / "tests")})
    ports += [int(line) for line in other.stdout.split()]
    assert len(set(ports)) == 100


def test_a_process_dies_with_its_group(tmp_path: Path) -> None:
    with Process(["sh", "-c", "sleep 300 & echo child $!; wait"], log=tmp_path / "log") as process:
        process.wait_for_output("child", 5)
        child = int(process.output().split()[1])
        assert proc.alive(child)
        assert [one.pid for one in proc.descendants(process.pid)] == [child]
    wait_until(lambda: not proc.alive(child), 5, "the child is gone")


def test_a_process_that_ends_early_is_told_at_once(tmp_path: Path) -> None:
    with Process(["sh", "-c", "echo no such thing; exit 3"], log=tmp_path / "log") as process, pytest.raises(
        AssertionError, match=r"ended with 3(.|\n)*no such thing"
    ):
        process.wait_for_output("ready", 30)


def test_strays_are_found_by_where_they_work(odd_dir: Path, tmp_path: Path) -> None:
    """A job has a session of its own, so killing the group of its starter does not reach it."""
    with Process(["setsid", "-f", "sh", "-c", "pwd; exec sleep 300"], log=tmp_path / "log", cwd=odd_dir) as process:
        assert process.wait(5) == 0
        wait_until(lambda: "入力" in process.output(), 5, "the stray has started")
    [stray] = wait_until(lambda: proc.working_in(odd_dir), 5, "the stray is found")
    proc.kill([stray])
    wait_until(lambda: not proc.alive(stray), 5, "the stray is gone")


def test_peak_memory_is_seen(tmp_path: Path) -> None:
    code = "print('small', flush=True); input_ = bytearray(b'x') * (200 << 20); del input_; print('big', flush=True)"
    code += "\nimport signal; signal.pause()"
    with Process([sys.executable, "-c", code], log=tmp_path / "log", env=clean_env(tmp_path)) as process:
        process.wait_for_output("big", 10)
        assert 200 < proc.peak_rss_mb(process.pid) < 260


def test_an_ini_holds_lists_and_newlines(tmp_path: Path) -> None:
    path = write_ini(tmp_path / "x.ini", {"server": {"workers": 2}, "site a": {"commands": ["ccx", "/opt/x.sh"]}})
    assert path.read_text() == "[server]\nworkers = 2\n\n[site a]\ncommands = ccx\n    /opt/x.sh\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_filelock_leaves_its_file(tmp_path: Path) -> None:
    """Some releases unlink it, which lets two in at once; pyproject.toml excludes them."""
    path = tmp_path / "lock"
    with filelock.FileLock(path):
        before = path.stat().st_ino
    assert path.stat().st_ino == before


def test_ccx_solves_a_reference_deck(tmp_path: Path) -> None:
    (tmp_path / "beam.inp").write_bytes(deck("simplebeampipe2"))
    run(["ccx", "-i", "beam"], cwd=tmp_path)
    assert len((tmp_path / "beam.dat").read_bytes().split()) == len(reference("simplebeampipe2").split())


# ---- sshd


def test_sshd_runs_commands_in_a_home_of_its_own(sshd: Sshd) -> None:
    assert sshd.ssh('echo "$HOME"').stdout.strip() == str(sshd.home)


def test_sshd_comes_back_on_its_port(sshd: Sshd) -> None:
    sshd.stop()
    assert sshd.ssh("true", check=False).returncode == 255
    sshd.start()
    assert sshd.ssh("echo back").stdout == "back\n"


def test_connections_can_be_cut_without_touching_the_command(sshd: Sshd, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    script = f"setsid -f sleep 300 & echo $$ > {marker}; echo started; exec sleep 300"
    with Process(["ssh", "-F", sshd.ssh_config, "site", script], log=tmp_path / "log") as client:
        client.wait_for_output("started", 10)
        assert sshd.kill_connections() >= 1
        assert client.wait(10) == 255
        assert sshd.ssh("echo new").stdout == "new\n"
    assert proc.alive(int(marker.read_text()))


def test_a_frozen_server_is_silent_and_thaws(sshd: Sshd, tmp_path: Path) -> None:
    sshd.freeze()
    with Process(["ssh", "-F", sshd.ssh_config, "site", "echo late"], log=tmp_path / "log") as client:
        stays(lambda: client.running, 0.5, "the client waits")
        sshd.thaw()
        assert client.wait(10) == 0
        assert client.output() == "late\n"


def test_a_second_server_is_reached_through_the_first(make_sshd: Callable[..., Sshd]) -> None:
    jump = make_sshd("jump")
    far = make_sshd("far", jump=jump)
    assert far.ssh('echo "$HOME"').stdout.strip() == str(far.home)
    jump.stop()
    assert far.ssh("true", check=False).returncode == 255


def test_a_forced_command_is_all_that_a_key_may(sshd: Sshd) -> None:
    sshd.authorize('restrict,command="echo only this"')
    assert sshd.ssh("echo that").stdout == "only this\n"


def test_rsync_travels_over_it(sshd: Sshd, odd_dir: Path) -> None:
    (odd_dir / "入力 1.inp").write_text("x")
    run(["rsync", "-a", "-s", "-e", f"ssh -F {sshd.ssh_config}", f"{odd_dir}/", f"site:{sshd.home}/job/"])
    assert (sshd.home / "job" / "入力 1.inp").read_text() == "x"


# ---- nginx


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.headers['X-Forwarded-Proto']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr belongs to pytest."""


@pytest.fixture
def upstream() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Hello)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_nginx_speaks_tls_that_its_ca_verifies(nginx_tls: Callable[..., NginxTls], upstream: int) -> None:
    front = nginx_tls(upstream)
    trusted = ssl.create_default_context(cafile=str(front.ca))
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("localhost", "127.0.0.1"):
        with urllib.request.urlopen(f"https://{host}:{front.port}/health", context=trusted, timeout=5) as answer:
            assert answer.read() == b"https /health"
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{front.url}/health", context=ssl.create_default_context(), timeout=5)


def test_nginx_goes_and_comes_back(nginx_tls: Callable[..., NginxTls], upstream: int) -> None:
    front = nginx_tls(upstream, in_location="limit_except GET { deny all; }")
    front.stop()
    assert not accepts(front.port)
    front.start()
    assert accepts(front.port)


# ---- what conftest.py promises


def inner_pytest(folder: Path, test: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own over one file, with our conftest.py."""
    (folder / "test_inner.py").write_text(test)
    (folder / "conftest.py").write_text((REPO / "tests" / "conftest.py").read_text())
    options: Words = ["-p", "no:cacheprovider", "--rootdir", folder, "-c", "/dev/null"]
    everything = {**clean_env(folder), "PYTHONPATH": f"{REPO}{os.pathsep}{REPO}/tests", **env}
    return run([sys.executable, "-m", "pytest", *options, folder], env=everything, cwd=folder, check=False)


SKIPPING = {
    "mark": "@pytest.mark.{}\ndef test_it(): assert False".format("skip"),
    "call": "def test_it(): pytest.{}('no')".format("skip"),
    "module": "pytest.{}('no', allow_module_level=True)".format("skip"),
    "import": "pytest.{}('no_such_module')".format("import" + "orskip"),
    "expected": "@pytest.mark.{}\ndef test_it(): assert False".format("xfail"),
    "unexpected": "@pytest.mark.{}\ndef test_it(): pass".format("xfail"),
}


@pytest.mark.parametrize("how", SKIPPING)
def test_a_skip_fails_in_ci(tmp_path: Path, how: str) -> None:
    test = f"import pytest\ndef test_other(): pass\n{SKIPPING[how]}\n"
    assert "not allowed in CI" not in inner_pytest(tmp_path, test, CI="").stdout
    done = inner_pytest(tmp_path, test, CI="true")
    assert done.returncode != 0
    assert "not allowed in CI" in done.stdout


def test_a_failure_shows_the_logs(tmp_path: Path) -> None:
    test = "\n".join([
        "from components.process import Process",
        "def test_it(tmp_path):",
        "    with Process(['sh', '-c', 'echo what went $((40 + 2))'], log=tmp_path / 'log') as process:",
        "        assert process.wait(5) == 1",
    ])  # fmt: skip
    assert "what went 42" in inner_pytest(tmp_path, test).stdout
