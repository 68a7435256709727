"""The runner, as its header promises it: real processes, killed, raced and lied to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components import proc
from components.waiting import stays, wait_until
from spool.runner import RUNNER_SH, LocalRunner, RunStatus, install, parse_status, parse_sums, signal_of, write_run

from .conftest import BOOT_ID, DEADLINE_S, Job, Jobs, session, triple

READY = "import os, signal, subprocess, sys, time; open('ready', 'w').close()\n"
STAY = READY + "while True: signal.pause()"
HOSTILE = [
    "",
    " ",
    "plain",
    "two  words",
    "trailing\n\n\n",
    "\n",
    "'single' \"double\" `touch pwned` $(touch pwned) ${HOME} $1 $@",
    "*",
    "-n",
    "--help",
    "back\\slash\\n",
    "日本語 の 入力",
    "A=B",
    ";&|<>(){}[]!#~%^",
    "\t\r\v\f\x07\x1b",
    "ー。\u3041\u3048 ",
    os.fsdecode(bytes(range(1, 256))),
    os.fsdecode(bytes(range(0x80, 0x90)) * 3 + b"\n"),
    "x" * 100_000,
]


# ---- the script as a text


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=" ".join)
def test_it_is_posix_sh(shell: list[str]) -> None:
    done = subprocess.run([*shell, "-n", str(RUNNER_SH)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_evaluates_nothing_and_has_no_bashisms() -> None:
    code = "\n".join(line for line in RUNNER_SH.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert re.findall(r"\beval\b|\blocal\b|\[\[|\bsource\b|<<<|\bfunction\b|\$'|<\(|\bpython|\bjq\b", code) == []


def test_the_header_describes_each_verb() -> None:
    text = RUNNER_SH.read_text()
    verbs = re.findall(r"^ {8}([a-z]+)\) ", text[text.index("main() {") :], re.M)
    described = text[text.index("# Verbs") : text.index("# Exit codes")]
    assert verbs == re.findall(r"^# (?:Verbs|     )       ([a-z]+)", described, re.M)
    assert len(verbs) == 7


# ---- arguments, environment, surroundings


DUMP_ARGV = "import os, sys; open('argv', 'wb').write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


def dumped(job: Job, name: str) -> list[str]:
    return [os.fsdecode(one) for one in job.work(name).read_bytes().split(b"\0")]


@pytest.mark.parametrize("language", ["C", "C.UTF-8"])
def test_arguments_arrive_byte_for_byte(jobs: Jobs, language: str) -> None:
    job = jobs.python(DUMP_ARGV, *HOSTILE)
    assert job.finish(LANG=language).exit_code == 0, job.log("stderr.txt")
    assert dumped(job, "argv") == HOSTILE
    assert not list(jobs.root.rglob("pwned"))


def test_more_than_a_thousand_arguments_keep_their_order(jobs: Jobs) -> None:
    arguments = [str(number) for number in range(1100)]
    job = jobs.python(DUMP_ARGV, *arguments)
    assert job.finish().exit_code == 0
    assert dumped(job, "argv") == arguments


# What shells keep for themselves, and what would lead the runner's own tools astray.
SHELL_OWN = ["IFS", "PATH", "UID", "EUID", "PPID", "OPTIND", "OPTARG", "LINENO", "RANDOM", "SECONDS", "PS4", "ENV", "HOME"]
SHELL_OWN += ["SHELLOPTS", "BASHOPTS", "BASH_ENV", "POSIXLY_CORRECT", "CDPATH", "LANG", "SHLVL", "PWD", "OLDPWD", "_"]
DUMP_ENV = "import os; open('env', 'wb').write(b'\\0'.join(k + b'=' + v for k, v in os.environb.items()))"


def test_the_environment_arrives_byte_for_byte(jobs: Jobs) -> None:
    asked = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    asked |= {name: f" {name}\t\n" for name in SHELL_OWN}
    job = jobs.make([sys.executable, "-c", DUMP_ENV], asked)
    assert job.finish().exit_code == 0, job.log("stderr.txt")
    arrived = dict(one.split("=", 1) for one in dumped(job, "env"))
    assert {name: arrived.get(name) for name in asked} == asked
    assert arrived["CALC_DIR"] == str(job.path / "work")


def test_what_the_runner_was_started_with_arrives_too(jobs: Jobs) -> None:
    given = {name: f"{name} kept" for name in ("dir", "line", "pid", "name", "value", "code", "file", "state")}
    job = jobs.make([sys.executable, "-c", DUMP_ENV], {"line": "overridden"})
    assert job.finish(**given).exit_code == 0
    arrived = dict(one.split("=", 1) for one in dumped(job, "env"))
    assert {name: arrived[name] for name in given} == {**given, "line": "overridden"}


def test_a_file_that_is_no_variable_is_ignored_and_logged(jobs: Jobs) -> None:
    job = jobs.make([sys.executable, "-c", DUMP_ENV], {"GOOD": "1"})
    for name in ("1BAD", "A-B", "É", ".hidden", "A=B", "two\nlines"):
        (job.run_file("env") / name).write_text("x")
    (job.run_file("argv") / "000.tmp").write_text("not an argument")
    assert job.finish().exit_code == 0
    names = {one.split("=", 1)[0] for one in dumped(job, "env")}
    assert "GOOD" in names
    assert not names & {"1BAD", "A-B", "É", ".hidden", "A", "two\nlines", "two"}
    logged = re.findall(rb" ignored: (\S+)\n", job.log("runner.log"))
    assert {b"run/env/1BAD", b"run/env/A-B", b"run/env/.hidden", b"run/env/A=B", b"run/argv/000.tmp"} <= set(logged)
    assert len(logged) == 7


def test_the_commands_surroundings(jobs: Jobs) -> None:
    job = jobs.python(
        "import os, sys, re; t = open('/proc/self/status').read()\n"
        "print(os.getsid(0) == os.getpid() == os.getpgid(0), os.path.realpath('/proc/self/fd/0'), os.getcwd(),\n"
        "      re.search('SigIgn:.*', t)[0].split()[1], oct(os.umask(0)), os.listdir('/proc/self/fd')[:-1], sep='\\n')"
    )
    assert job.finish().exit_code == 0
    leads, stdin, *cwd, ignored, umask, fds = job.output().decode().splitlines()
    assert (leads, stdin, "\n".join(cwd), umask) == ("True", "/dev/null", str(job.path / "work"), "0o77")
    # What whoever runs the tests ignores (a C library's own signal, say) is inherited; these must act as usual.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        assert not int(ignored, 16) & (1 << (number - 1)), signal.Signals(number).name
    assert fds == "['0', '1', '2']"


def test_the_command_is_found_on_the_path_of_its_own_environment(jobs: Jobs) -> None:
    tools = jobs.root / "tools"
    tools.mkdir()
    (tools / "solver").write_text("#!/bin/sh\necho solved\n")
    (tools / "solver").chmod(0o700)
    job = jobs.make(["solver"], {"PATH": str(tools).replace(":", "")})
    assert job.finish().exit_code == 0
    assert job.output() == b"solved\n"


@pytest.mark.parametrize("name", ["a=b", "-x", "日本 solver\n"])
def test_a_command_with_an_odd_name(jobs: Jobs, name: str) -> None:
    tool = jobs.root / name
    tool.write_text('#!/bin/sh\nprintf "%s:" "$@"\nexit 5\n')
    tool.chmod(0o700)
    job = jobs.make([str(tool), "", "x y"])
    assert job.finish().exit_code == 5
    assert job.output() == b":x y:"


# ---- how it ends


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 137", 137),
        ("exit 127", 127),
        ("exit 126", 126),
        ("exit 255", 255),
        ("kill -SEGV $$", 139),
        ("kill -KILL $$", 137),
        ("kill -INT $$", 130),
        ("kill -HUP $$", 129),
    ],
)
def test_exit_status(jobs: Jobs, code: str, exit_code: int) -> None:
    job = jobs.sh(code)
    status = job.finish()
    assert status == RunStatus("exited", exit_code=exit_code, started_at=status.started_at, finished_at=status.finished_at)
    assert job.run_file("exit").read_text() == f"{exit_code}\n"


def test_a_command_that_exits_127_was_executed(jobs: Jobs) -> None:
    job = jobs.sh("nosuchcommand; exit 127")
    assert not job.finish().spawn_failed
    assert b"nosuchcommand" in job.log("stderr.txt")


def missing(job: Job) -> list[str]:
    return [str(job.path / "no such\n'solver'")]


def missing_on_path(job: Job) -> list[str]:
    return ["no-such-solver", "x"]


def missing_with_equals_sign(job: Job) -> list[str]:
    return [str(job.path / "no=such")]


def empty_name(job: Job) -> list[str]:
    return [""]


def not_executable(job: Job) -> list[str]:
    (job.path / "data").write_text("x")
    return [str(job.path / "data")]


def a_folder(job: Job) -> list[str]:
    return [str(job.path)]


def bad_interpreter(job: Job) -> list[str]:
    (job.path / "script").write_text("#!/no/such/interpreter\n")
    (job.path / "script").chmod(0o700)
    return [str(job.path / "script")]


def too_long(job: Job) -> list[str]:
    return ["/bin/echo", "x" * 200_000]


def bad_wall_time(job: Job) -> list[str]:
    return ["/bin/echo"]


def no_work(job: Job) -> list[str]:
    return ["/bin/echo"]


@pytest.mark.parametrize(
    ("make", "exit_code"),
    [
        (missing, 127),
        (missing_on_path, 127),
        (missing_with_equals_sign, 127),
        (empty_name, 127),
        (not_executable, 126),
        (a_folder, 126),
        (bad_interpreter, 127),
        (too_long, 126),
        (bad_wall_time, 126),
        (no_work, 126),
    ],
)
def test_what_cannot_be_executed(jobs: Jobs, make: Callable[[Job], list[str]], exit_code: int) -> None:
    job = jobs.new()
    write_run(job.path, make(job), {})
    if make is bad_wall_time:
        job.run_file("wall_time_s").write_text("1h")
    if make is not no_work:
        job.line("prepare")
    job.ask("start")
    status = job.over()
    assert (status.word, status.exit_code, status.spawn_failed) == ("exited", exit_code, True), job.log("runner.log")
    assert job.output() == b""
    assert job.log("stderr.txt") or b"cannot spawn" in job.log("runner.log")


def test_a_large_output_is_all_there(jobs: Jobs) -> None:
    job = jobs.python("import sys\nfor i in range(400): sys.stdout.write(chr(97 + i % 26) * 99999 + '\\n')")
    assert job.finish().exit_code == 0
    expected = b"".join(bytes([97 + i % 26]) * 99999 + b"\n" for i in range(400))
    assert hashlib.sha256(job.output()).digest() == hashlib.sha256(expected).digest()


def naps(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0005\0"
    return False


def test_nothing_is_left_running_when_the_command_has_ended(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)\nsys.exit(3)", wall_time_s=3600)
    wait_until(lambda: any(map(naps, jobs.left())), DEADLINE_S, "the timer sleeps its longest")
    job.work("go").touch()
    assert job.over().exit_code == 3
    wait_until(lambda: not jobs.left(), 2, "supervisor, timer and its sleep are gone")


def test_a_full_disk_does_not_lose_the_end(dash_jobs: Jobs) -> None:
    """`mv` fails on run/exit until the disk has room again; meanwhile the job is running, never lost."""
    tools = dash_jobs.root.parent / "shim"
    tools.mkdir()
    full = tools / "full"
    full.touch()
    shim = tools / "mv"
    shim.write_text(f'#!/bin/sh\ncase "$3" in */run/exit) [ ! -e "{full}" ] || exit 1 ;; esac\nexec /bin/mv "$@"\n')
    shim.chmod(0o700)
    job = dash_jobs.sh("exit 4")
    job.line("prepare")
    job.ask("start", PATH=f"{tools}:{job.environment['PATH']}")
    wait_until(job.run_file("finished_at").exists, DEADLINE_S, "the command has ended")
    stays(lambda: job.ask().is_running, 0.5, "still running without run/exit")
    full.unlink()
    assert job.over().exit_code == 4


# ---- at most once


def runs(job: Job) -> int:
    """How often the command ran: each run adds a line."""
    path = job.work("ran")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_twenty_starts_at_once_run_it_once(jobs: Jobs) -> None:
    job = jobs.sh("echo x >>ran; sleep 0.3")
    job.line("prepare")
    starters = [job.spawn("start") for _ in range(20)]
    answers = [(starter.communicate(timeout=30), starter.returncode) for starter in starters]
    assert {code for _, code in answers} == {0}
    assert {out.split()[0] for (out, _), _ in answers} <= {b"starting", b"running", b"exited"}
    assert job.over().exit_code == 0
    assert job.ask("start").word == "exited"
    assert runs(job) == 1


CRASH = """#!/bin/sh
# {tool}: counts the calls of all tools, and at one of them kills the shell that called, before or after the act.
n=$(/usr/bin/wc -l <"$CRASH_LOG" 2>/dev/null || echo 0)
echo {tool} "$PPID" >>"$CRASH_LOG"
[ "$n" -eq "$CRASH_AT" ] && [ "$CRASH_WHEN" = before ] && kill -KILL "$PPID"
[ "$n" -eq "$CRASH_AT" ] || exec {path} "$@"
{path} "$@"
kill -KILL "$PPID"
"""
CRASH_TOOLS = ("mkdir", "mv", "sync", "setsid", "date", "cat", "env", "sleep", "rm")
CRASH_POINTS = 30


def crash_shims(folder: Path) -> Path:
    folder.mkdir()
    for tool in CRASH_TOOLS:
        path = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (folder / tool).write_text(CRASH.format(tool=tool, path=path))
        (folder / tool).chmod(0o700)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_step_it_never_runs_twice(jobs: Jobs, when: str) -> None:
    """Starter, supervisor and leader are killed at each call of a tool in turn; then others start the job again."""
    shims = crash_shims(jobs.bin.with_name("shims"))
    path = f"{shims}:{jobs.environment['PATH']}"

    def crash(at: int) -> tuple[Job, RunStatus]:
        job = jobs.make(["/bin/sh", "-c", "echo x >>ran"], name=f"job {at}")
        job.line("prepare")
        log = str(jobs.bin.with_name(f"calls{at}"))
        Path(log).touch()
        job.call("start", PATH=path, CRASH_AT=str(at), CRASH_WHEN=when, CRASH_LOG=log)
        job.ask("start")
        return job, job.over()

    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(crash, range(CRASH_POINTS)))
    wait_until(lambda: not jobs.left(), DEADLINE_S, "nobody is left who could still do something")
    words = set()
    for job, status in ended:
        words.add(status.word)
        assert job.ask("start") == status, "what is over stays as it is"
        assert runs(job) <= (1 if job.run_file("started/launched").exists() else 0)
        assert runs(job) == 1 or status.exit_code != 0
    assert words == {"exited", "lost"}, "the kills struck, and not only"


def test_what_is_lost_cannot_start_later(jobs: Jobs) -> None:
    """A supervisor that was frozen before its command was launched wakes up after the job was judged."""
    job = jobs.sh("echo x >>ran")
    job.line("prepare")
    job.run_file("started").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    job.run_file("started/by").write_text(f"{dead.pid} 1 {BOOT_ID}\n")
    assert job.line() == "lost why=vanished\n"
    subprocess.run(job.command("_supervise"), env=job.environment, capture_output=True, timeout=30, check=False)
    assert job.line() == "lost why=vanished\n"
    assert runs(job) == 0
    assert not job.run_file("exit").exists()


# ---- detached


def test_start_returns_at_once_though_its_output_is_a_pipe(jobs: Jobs) -> None:
    job = jobs.python(STAY)
    job.line("prepare")
    starter = job.spawn("start")
    out, _ = starter.communicate(timeout=10)  # returns at the end of both pipes, not of the process alone
    assert parse_status(out.decode()).is_running
    assert job.ask().is_running


def test_it_survives_its_starter_and_the_whole_group_of_that(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)\nsys.exit(6)")
    second = subprocess.Popen(
        ["/bin/sh", "-c", '"$@"; exec sleep 100', "x", *job.command("start")],
        env=job.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert second.stdout
    assert second.stdout.readline().startswith(b"running")
    for how in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(second.pid, how)
    second.communicate(timeout=10)
    assert len({session(job.pid()), session(job.pid("supervisor")), second.pid, os.getsid(0)}) == 4
    job.work("go").touch()
    assert job.over().exit_code == 6


def test_the_first_starters_group_is_killed(jobs: Jobs) -> None:
    job = jobs.python(READY + "while not os.path.exists('go'): time.sleep(0.02)")
    job.line("prepare")
    starter = job.spawn("start")
    job.wait_for("ready")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate(timeout=10)
    assert job.ask().is_running
    job.work("go").touch()
    assert job.over().exit_code == 0


def test_a_supervisor_that_is_told_to_end_still_records_the_end(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)\nsys.exit(9)")
    for how in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(job.pid("supervisor"), how)
    job.work("go").touch()
    assert job.over().exit_code == 9


# ---- status


def test_status_of_what_was_never_started(jobs: Jobs) -> None:
    job = jobs.make(["true"])
    absent = str(job.path / "nowhere")
    done = job.call("status", absent, str(job.path) + "///")
    assert done.stdout == b"new\nabsent\nnew\n"


def test_status_from_start_to_end(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)")
    started_at = int(job.run_file("started_at").read_text())
    assert job.line() == f"running pid={job.pid()} started_at={started_at}\n"
    assert job.run_file("pid").read_text() == triple(job.pid())
    assert job.run_file("supervisor").read_text() == triple(job.pid("supervisor"))
    job.work("go").touch()
    job.over()
    finished_at = int(job.run_file("finished_at").read_text())
    assert 0 <= finished_at - started_at < 60
    assert job.line() == f"exited exit=0 started_at={started_at} finished_at={finished_at}\n"


def test_wait_returns_when_one_of_several_is_over(jobs: Jobs) -> None:
    long = jobs.running(STAY)
    short = jobs.sh("exit 2", name="short")
    short.finish()
    done = long.call("wait", "30", str(short.path))
    first, second = done.stdout.decode().splitlines()
    assert (parse_status(first).exit_code, parse_status(second).is_running) == (2, True)


def test_wait_gives_up_after_its_seconds(jobs: Jobs) -> None:
    job = jobs.running(STAY)
    assert job.ask("wait", "0").is_running
    assert job.ask("wait", "1").is_running


def test_starting_while_the_starter_lives_and_lost_after_it(jobs: Jobs) -> None:
    job = jobs.make(["true"])
    latch = job.run_file("started")
    latch.mkdir()
    with subprocess.Popen(["sleep", "100"]) as starter:
        job.run_file(f".starter.{starter.pid}").write_text(triple(starter.pid))
        assert job.line() == "starting\n"
        job.run_file(f".starter.{starter.pid}").rename(latch / "by")
        assert job.line() == "starting\n"
        assert job.line("wait", "0") == "starting\n"
        starter.kill()
    assert job.line() == "lost why=vanished\n"
    assert job.line("start") == "lost why=vanished\n"


def test_a_starter_that_died_before_leaving_its_name(jobs: Jobs) -> None:
    job = jobs.make(["true"])
    job.run_file("started").mkdir()
    assert job.line() == "lost why=vanished\n"


def test_a_killed_supervisor_leaves_it_running_until_the_command_ends(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)")
    job.kill_supervisor()
    assert job.ask().is_running
    assert job.ask("start").is_running
    pid = job.pid()
    job.work("go").touch()
    wait_until(lambda: not proc.alive(pid), DEADLINE_S, "the command is gone")
    assert job.line() == "lost why=vanished\n"
    assert job.line("wait", "5") == "lost why=vanished\n"


def test_the_command_is_gone_and_the_supervisor_about_to_say_so(jobs: Jobs) -> None:
    job = jobs.running(READY + "while not os.path.exists('go'): time.sleep(0.02)")
    supervisor, pid = job.pid("supervisor"), job.pid()
    os.kill(supervisor, signal.SIGSTOP)
    job.work("go").touch()
    wait_until(lambda: not proc.alive(pid), DEADLINE_S, "the command is gone")
    assert job.line().startswith(f"running pid={pid} ")
    os.kill(supervisor, signal.SIGCONT)
    assert job.over().exit_code == 0


@pytest.mark.parametrize(
    ("forge", "line"),
    [
        (lambda pid, start, boot: f"{pid} {int(start) + 1} {boot}", "lost why=vanished\n"),
        (lambda pid, start, boot: f"{pid} {start} 00000000-0000-0000-0000-000000000000", "lost why=reboot\n"),
        (lambda pid, start, boot: f"1 {start} {boot}", "lost why=vanished\n"),
        (lambda pid, start, boot: f"-1 {start} {boot}", "lost why=vanished\n"),
        (lambda pid, start, boot: f"../{pid} {start} {boot}", "lost why=vanished\n"),
        (lambda pid, start, boot: "", "lost why=vanished\n"),
        (lambda pid, start, boot: "$(touch pwned) `x` *", "lost why=vanished\n"),
    ],
    ids=["start time", "boot id", "init", "negative", "path", "empty", "words"],
)
def test_a_pid_that_is_not_the_commands(jobs: Jobs, forge: Callable[[str, str, str], str], line: str) -> None:
    job = jobs.running(STAY)
    job.kill_supervisor()
    pid = job.pid()
    job.run_file("pid").write_text(forge(*triple(pid).split()) + "\n")
    assert job.line() == line
    assert job.line("cancel") == line
    assert proc.alive(pid), "and cancel signals nobody on its account"


def test_a_process_with_a_forged_name_is_still_known(jobs: Jobs) -> None:
    """comm may hold blanks, newlines and parentheses: ') Z 1 1' must not be taken for the state."""
    job = jobs.running("import ctypes; ctypes.CDLL(None).prctl(15, b') Z 1\\n1 1 (\\x81\\x88', 0, 0, 0)\n" + STAY, grace_s=1)
    assert job.ask().is_running
    assert job.ask("cancel").exit_code == 143


# ---- cancel


def test_cancel_before_the_start(jobs: Jobs) -> None:
    job = jobs.sh("echo x >>ran")
    job.line("prepare")
    for verb in ("cancel", "start", "cancel", "status", "start"):
        assert job.line(verb) == "canceled\n"
    assert job.run_file("started").is_dir()
    assert runs(job) == 0


def test_cancel_before_there_is_anything_to_start(jobs: Jobs) -> None:
    job = jobs.new()
    assert job.line("cancel") == "canceled\n"
    with pytest.raises(ValueError, match="canceled"):
        write_run(job.path, ["true"], {})
    assert job.line("start") == "canceled\n"


def test_a_start_that_finds_the_wish_to_cancel(jobs: Jobs) -> None:
    job = jobs.sh("echo x >>ran")
    job.run_file("cancel").touch()
    assert job.line("start") == "canceled\n"
    assert job.line() == "canceled\n"


def test_cancel_while_starting(jobs: Jobs) -> None:
    job = jobs.sh("echo x >>ran")
    job.line("prepare")
    job.run_file("started").mkdir()
    job.run_file("started/by").write_text(triple(os.getpid()))
    assert job.line() == "starting\n"
    assert job.line("cancel") == "canceled\n"
    subprocess.run(job.command("_supervise"), env=job.environment, capture_output=True, timeout=30, check=False)
    assert job.line() == "canceled\n"
    assert runs(job) == 0


def test_start_and_cancel_at_once(jobs: Jobs) -> None:
    for number in range(8):
        job = jobs.python("open('ran', 'a').write('x\\n')\n" + STAY, name=f"job {number}", grace_s=5)
        job.line("prepare")
        both = [job.spawn(verb) for verb in (("start", "cancel"), ("cancel", "start"))[number % 2]]
        for one in both:
            _, err = one.communicate(timeout=30)
            assert (one.returncode, err) == (0, b"")
        status = job.over()
        assert status.word == "canceled" or (status.word == "exited" and status.cancel)
        assert status.word == "exited" or runs(job) == 0
    wait_until(lambda: not jobs.left(), DEADLINE_S, "nothing is left running")


STUBBORN_TREE = (
    READY.replace("open('ready', 'w').close()", "signal.signal(15, signal.SIG_IGN)") + "def child(name, group):\n"
    "    if os.fork(): return\n"
    "    if group: os.setpgid(0, 0)\n"
    "    open(name, 'w').write(str(os.getpid()))\n"
    "    while True: signal.pause()\n"
    "child('same', False); child('other', True)\n"
    "while not all(os.path.exists(name) and os.path.getsize(name) for name in ('same', 'other')): time.sleep(0.01)\n"
    "open('ready', 'w').close()\n"
    "while True: signal.pause()\n"
)


def test_cancel_ends_a_tree_that_ignores_term(jobs: Jobs) -> None:
    with subprocess.Popen(["sleep", "100"]) as bystander:
        job = jobs.running(STUBBORN_TREE, grace_s=1)
        pids = [job.pid(), int(job.work("same").read_text()), int(job.work("other").read_text())]
        assert len({os.getpgid(pid) for pid in pids}) == 2
        status = job.ask("cancel")
        assert [proc.alive(pid) for pid in pids] == [False, False, False]
        assert (status.word, status.exit_code, status.cancel) == ("exited", 137, True)
        assert proc.alive(bystander.pid)
        bystander.kill()
    wait_until(lambda: not jobs.left(), DEADLINE_S, "nothing is left running")


def test_cancel_also_ends_what_outlives_its_leader(jobs: Jobs) -> None:
    """The leader obeys TERM at once; a child in another group, with an empty environment, ignores it."""
    child = (
        "import os, signal; os.setpgid(0, 0); signal.signal(15, signal.SIG_IGN)\n"
        "open('child', 'w').write(str(os.getpid())); signal.pause()"
    )
    job = jobs.running(
        f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], env={{}})\n"
        "while not (os.path.exists('child') and open('child').read()): time.sleep(0.01)\n" + STAY,
        grace_s=1,
    )
    pid = int(job.work("child").read_text())
    assert job.ask("cancel").exit_code == 143
    assert not proc.alive(pid)


def test_cancel_lets_a_command_end_in_its_own_way(jobs: Jobs) -> None:
    job = jobs.running(
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open('told', 'a').write('x'); time.sleep(0.5); open('saved', 'w').close(); sys.exit(7)\n"
        "signal.signal(15, end)\n" + STAY
    )
    status = job.ask("cancel")
    assert (status.exit_code, status.cancel) == (7, True)
    assert job.work("saved").exists()
    assert job.work("told").read_text() == "x", "one TERM only"


def test_cancel_twice_and_at_once(jobs: Jobs) -> None:
    job = jobs.running(STUBBORN_TREE, grace_s=1)
    both = [job.spawn("cancel"), job.spawn("cancel")]
    answers = [one.communicate(timeout=30)[0] for one in both]
    assert answers[0] == answers[1]
    assert job.ask("cancel") == parse_status(answers[0].decode())


def test_cancel_with_a_dead_supervisor(jobs: Jobs) -> None:
    job = jobs.running(STUBBORN_TREE, grace_s=0)
    pid = job.pid()
    job.kill_supervisor()
    assert job.line("cancel") == "lost why=vanished\n"
    assert not proc.alive(pid)
    wait_until(lambda: not jobs.left(), DEADLINE_S, "nothing is left running")


def test_cancel_of_what_has_ended_changes_nothing(jobs: Jobs) -> None:
    job = jobs.sh("exit 0")
    status = job.finish()
    assert job.ask("cancel") == status
    assert not status.cancel
    assert not job.run_file("cancel").exists()


def test_cancel_repeated_finds_what_the_first_left(jobs: Jobs) -> None:
    """The first cancel is killed in the grace time; the leader is dead by then, its stubborn child is not."""
    job = jobs.running(
        "import os, signal, sys\n"
        "if not os.fork():\n"
        "    signal.signal(15, signal.SIG_IGN); open('child', 'w').write(str(os.getpid()))\n"
        "    while True: signal.pause()\n"
        "import time\n"
        "while not (os.path.exists('child') and open('child').read()): time.sleep(0.01)\n" + STAY,
        grace_s=2,
    )
    child = int(job.work("child").read_text())
    first = job.spawn("cancel")
    assert job.over().exit_code == 143
    first.kill()
    first.communicate()
    assert proc.alive(child)
    assert job.ask("cancel").exit_code == 143
    assert not proc.alive(child)


def test_a_session_of_somebody_else_with_the_same_number_is_left_alone(jobs: Jobs) -> None:
    """The job's leader is gone, its number leads to a session whose members know nothing of this job."""
    code = "import os\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\nimport signal; signal.pause()"
    stranger = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert stranger.stdout
    member = int(stranger.stdout.readline())
    stranger.wait()
    try:
        assert session(member) == stranger.pid
        job = jobs.make(["true"])
        job.run_file("started").mkdir()
        job.run_file("started/launched").write_text(f"{stranger.pid} 5 {BOOT_ID}\n")
        job.run_file("pid").write_text(f"{stranger.pid} 5 {BOOT_ID}\n")
        assert job.line("cancel") == "lost why=vanished\n"
        assert proc.alive(member)
    finally:
        proc.kill([member])
        stranger.stdout.close()


# ---- wall time


def test_the_wall_time_ends_the_session(jobs: Jobs) -> None:
    job = jobs.running(STUBBORN_TREE, wall_time_s=1, grace_s=1)
    other = int(job.work("other").read_text())
    status = job.over()
    assert (status.exit_code, status.wall_time, status.cancel) == (137, True, False)
    wait_until(lambda: not proc.alive(other), DEADLINE_S, "the whole session is gone")
    wait_until(lambda: not jobs.left(), DEADLINE_S, "the timer too")


def test_the_wall_time_is_kept_without_a_supervisor(jobs: Jobs) -> None:
    job = jobs.running(STAY, wall_time_s=2)
    job.kill_supervisor()
    assert job.over() == RunStatus("lost", why="vanished")
    assert job.run_file("wall_time_hit").exists()


# ---- prepare


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def fill(job: Job) -> dict[str, bytes]:
    (job.path / "in/sub/空 き").mkdir(parents=True)
    for name in ("beam.inp", ".hidden", "sub/a\nb", "sub/空 き/-x"):
        (job.path / "in" / name).write_bytes(os.urandom(5000))
    return tree(job.path / "in")


def test_prepare_copies_and_repeats(jobs: Jobs) -> None:
    job = jobs.new()
    files = fill(job)
    assert job.line("prepare") == ""
    assert tree(job.path / "work") == files
    job.work("beam.inp").write_bytes(b"changed")
    assert job.line("prepare") == ""
    assert job.work("beam.inp").read_bytes() == b"changed"
    assert tree(job.path / "in") == files, "no hard links"
    assert sorted(p.name for p in job.path.iterdir()) == ["in", "log", "work"]


def test_prepare_without_inputs(jobs: Jobs) -> None:
    job = jobs.new()
    (job.path / "in").rmdir()
    job.line("prepare")
    assert list((job.path / "work").iterdir()) == []


def test_prepare_follows_no_link(jobs: Jobs) -> None:
    job = jobs.new()
    secret = jobs.root / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (job.path / "in/link").symlink_to(secret)
    job.line("prepare")
    assert job.work("link").is_symlink()
    other = jobs.new("other")
    (other.path / "in").rmdir()
    (other.path / "in").symlink_to(secret)
    assert other.call("prepare").returncode == 1
    assert not other.work("key").exists()


@pytest.mark.parametrize("fails_at", ["cp", "sync", "mv"])
def test_prepare_killed_in_the_middle(jobs: Jobs, fails_at: str) -> None:
    shims = jobs.bin.with_name("shims")
    shims.mkdir()
    (shims / fails_at).write_text(f"#!/bin/sh\necho >{shims}/reached\nexec /bin/sleep 100\n")
    (shims / fails_at).chmod(0o700)
    job = jobs.new()
    files = fill(job)
    (job.path / "work.part").mkdir()
    (job.path / "work.part/old").touch()
    first = job.spawn("prepare", PATH=f"{shims}:{job.environment['PATH']}")
    wait_until((shims / "reached").exists, DEADLINE_S, f"prepare gets to {fails_at}")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (job.path / "work").exists()
    assert list(job.path.glob("work.part*"))
    job.line("prepare")
    assert tree(job.path / "work") == files
    assert not list(job.path.glob("work.part*"))


def test_prepare_many_times_at_once(jobs: Jobs) -> None:
    job = jobs.new()
    files = fill(job)
    for one in [job.spawn("prepare") for _ in range(8)]:
        out, err = one.communicate(timeout=30)
        assert (one.returncode, out, err) == (0, b"", b"")
    assert tree(job.path / "work") == files
    assert sorted(p.name for p in job.path.iterdir()) == ["in", "log", "work"]


def test_prepare_that_cannot_copy_says_so(dash_jobs: Jobs) -> None:
    shims = dash_jobs.bin.with_name("shims")
    shims.mkdir()
    (shims / "cp").write_text("#!/bin/sh\nexit 1\n")
    (shims / "cp").chmod(0o700)
    job = dash_jobs.new()
    fill(job)
    done = job.call("prepare", PATH=f"{shims}:{job.environment['PATH']}")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert str(job.path).replace("\n", "?").encode() in done.stderr
    assert sorted(p.name for p in job.path.iterdir()) == ["in", "log"]


# ---- sums

ODD_NAMES = [b"plain", b"two  words", "日本語".encode(), b"-n", b"back\\slash", b"new\nline", b"ret\rurn", b"\xff\xfe\n", b"\\"]
ODD_NAMES += [b"other x", b"*", b"a\n" + b"0" * 64 + b"  .", b"end\n", b"dir/.hidden", b"x" * 200]


def sums(job: Job, folder: str = "in") -> tuple[dict[str, str], list[str]]:
    return parse_sums(os.fsdecode(checked(job, folder)))


def checked(job: Job, folder: str) -> bytes:
    done = job.call("sums", folder)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_sums_of_odd_names(jobs: Jobs) -> None:
    job = jobs.new()
    folder = os.fsencode(job.path / "in")
    os.mkdir(folder + b"/dir")
    expected = {}
    for number, name in enumerate(ODD_NAMES):
        data = b"x" * number
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
        expected[os.fsdecode(name)] = hashlib.sha256(data).hexdigest()
    assert sums(job) == (expected, [])


def test_sums_are_what_gnu_sha256sum_writes(dash_jobs: Jobs) -> None:
    job = dash_jobs.new()
    for name in ("plain", "back\\slash", "new\nline"):
        (job.path / "in" / name).write_text(name)
    command = ["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"]
    gnu = subprocess.run(command, cwd=job.path / "in", capture_output=True, check=True)
    assert sorted(checked(job, "in").splitlines()) == sorted(gnu.stdout.splitlines())


def test_sums_of_what_is_no_file(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.new()
    folder = job.path / "in"
    (folder / "file").write_text("x")
    (folder / "link").symlink_to("file")
    (folder / "a\nother .").symlink_to("/")
    os.mkfifo(folder / "fifo")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        found, others = sums(job)
    assert list(found) == ["file"]
    assert sorted(others) == ["a\nother .", "fifo", "link", "socket"]


@pytest.mark.parametrize("name", ["..", "../x", "in/..", "/etc", "", ".", "in//x"])
def test_sums_stay_in_the_job(jobs: Jobs, name: str) -> None:
    assert jobs.new().call("sums", name).returncode == 2


def test_sums_follow_no_link_and_need_a_folder(jobs: Jobs) -> None:
    job = jobs.new()
    (job.path / "out").symlink_to("/etc")
    for name in ("out", "out/ssl", "nothing"):
        done = job.call("sums", name)
        assert (done.returncode, done.stdout) == (1, b""), name
        assert done.stderr.count(b"\n") == 1


def test_sums_that_cannot_read_say_so(dash_jobs: Jobs) -> None:
    """As somebody else than root, whom no mode keeps from reading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "in").mkdir(mode=0o755)
        (folder / "in/open").write_text("x")
        (folder / "in/closed").write_text("x")
        (folder / "in/open").chmod(0o644)
        (folder / "in/closed").chmod(0o000)
        script = folder / "runner.sh"
        script.write_bytes(RUNNER_SH.read_bytes())
        script.chmod(0o644)
        done = subprocess.run(
            ["sh", str(script), "sums", name, "in"],
            capture_output=True,
            user=65534 if os.getuid() == 0 else None,
            cwd="/",
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"runner: " + name.encode())


# ---- the command line


def test_version(jobs: Jobs) -> None:
    done = subprocess.run(["sh", str(jobs.script), "version"], env=jobs.environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"mint-spool-runner 1\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["status"],
        ["status", "relative/job"],
        ["start"],
        ["start", "/a", "/b"],
        ["wait", "/a"],
        ["wait", "x", "/a"],
        ["wait", "-1", "/a"],
        ["cancel", ""],
        ["prepare", "job"],
        ["sums", "/a"],
    ],
    ids=" ".join,
)
def test_usage(jobs: Jobs, arguments: list[str]) -> None:
    command = ["sh", str(jobs.script), *arguments]
    done = subprocess.run(command, env=jobs.environment, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("verb", ["prepare", "start", "cancel"])
def test_a_missing_folder_is_named(jobs: Jobs, verb: str) -> None:
    job = jobs.new()
    done = subprocess.run([*job.command(verb)[:-1], "/no/such/job"], env=jobs.environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"/no/such/job" in done.stderr


def test_a_start_without_a_command_takes_nothing(jobs: Jobs) -> None:
    job = jobs.new()
    assert job.call("start").returncode == 1
    assert job.line() == "new\n"
    write_run(job.path, ["true"], {})
    assert job.finish().exit_code == 0


def test_it_finds_itself_by_a_relative_path(jobs: Jobs) -> None:
    job = jobs.sh("exit 8")
    job.line("prepare")
    command = ["sh", jobs.script.name, "start", str(job.path)]
    done = subprocess.run(command, cwd=jobs.script.parent, env=jobs.environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert job.over().exit_code == 8


# ---- the Python face


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("absent\n", RunStatus("absent")),
        ("new", RunStatus("new")),
        ("canceled\n", RunStatus("canceled")),
        ("starting\n", RunStatus("starting")),
        ("running pid=7 started_at=8\n", RunStatus("running", pid=7, started_at=8)),
        ("exited exit=0 started_at=1 finished_at=2\n", RunStatus("exited", exit_code=0, started_at=1, finished_at=2)),
        (
            "exited exit=137 started_at=1 finished_at=2 spawn_failed=1 wall_time=1 cancel=1\n",
            RunStatus("exited", exit_code=137, started_at=1, finished_at=2, spawn_failed=True, wall_time=True, cancel=True),
        ),
        ("lost why=reboot\n", RunStatus("lost", why="reboot")),
        ("lost why=vanished\n", RunStatus("lost", why="vanished")),
    ],
)
def test_parse_status(line: str, status: RunStatus) -> None:
    assert parse_status(line) == status
    assert status.is_over == (status.word in {"exited", "lost", "canceled"})
    assert status.is_running == (status.word == "running")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "New",
        "new ",
        "new\n\n",
        "new\nnew\n",
        "running",
        "running pid=-1 started_at=2",
        "running pid=１ started_at=2",
        "running pid=1 started_at=2 x=1",
        "exited exit=256 started_at=1 finished_at=2",
        "exited exit= started_at=1 finished_at=2",
        "exited exit=1 started_at=1 finished_at=2 cancel=1 spawn_failed=1",
        "exited exit=" + "9" * 5000 + " started_at=1 finished_at=2",
        "lost",
        "lost why=aliens",
        "<html>502 Bad Gateway</html>",
    ],
)
def test_parse_status_refuses_anything_else(line: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_status(line)


@pytest.mark.parametrize(
    "text",
    [
        "0" * 64 + "  ./cut",
        "0" * 63 + "  ./short\n",
        "0" * 64 + "  no-dot\n",
        "0" * 64 + "  ./\n",
        "\\" + "0" * 64 + "  ./bad\\x\n",
        "\\" + "0" * 64 + "  ./end\\\n",
        ("0" * 64 + "  ./twice\n") * 2,
        "other nothing\n",
        "\n",
    ],
)
def test_parse_sums_refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"cut|not a line|escape|twice"):
        parse_sums(text)


def test_parse_sums_undoes_escapes_only_where_announced() -> None:
    text = f"{'a' * 64}  ./x\\n\n\\{'b' * 64}  ./x\\n\\\\y\\r\nother ./l\\n\n\\other ./l\\n\n"
    assert parse_sums(text) == ({"x\\n": "a" * 64, "x\n\\y\r": "b" * 64}, ["l\\n", "l\n"])


def test_signal_of() -> None:
    assert [signal_of(code) for code in (0, 1, 127, 128, 129, 137, 139, 193, 255)] == [
        *[None] * 4,
        1,
        9,
        11,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("argv", "env", "limits"),
    [
        ([], {}, {}),
        (["a\0b"], {}, {}),
        (["a"], {"A": "\0"}, {}),
        (["a"], {"A B": ""}, {}),
        (["a"], {"1": ""}, {}),
        (["a"], {"É": ""}, {}),
        (["a"], {"": ""}, {}),
        (["a"], {"../x": ""}, {}),
        (["a"], {"A\n": ""}, {}),
        (["a"], {}, {"wall_time_s": 0}),
        (["a"], {}, {"grace_s": -1}),
        (["a"], {}, {"wall_time_s": 10**9}),
    ],
)
def test_write_run_refuses(tmp_path: Path, argv: list[str], env: dict[str, str], limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"argv|NUL|name|must be"):
        write_run(tmp_path, argv, env, **limits)
    assert list(tmp_path.iterdir()) == []


def test_write_run_replaces_whole_until_the_start(tmp_path: Path) -> None:
    write_run(tmp_path, ["a", "b", "c"], {"X": "1"}, wall_time_s=5, grace_s=0)
    assert (tmp_path / "run/wall_time_s").read_text() == "5\n"
    (tmp_path / "run.part").mkdir()
    (tmp_path / "run/cancel").touch()
    write_run(tmp_path, ["d"], {})
    assert tree(tmp_path) == {"run/argv/000": b"d", "run/cancel": b"1\n"}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    (tmp_path / "run/started").mkdir()
    with pytest.raises(ValueError, match="started"):
        write_run(tmp_path, ["e"], {})
    assert (tmp_path / "run/argv/000").read_text() == "d"


def test_write_run_killed_between_its_renames(tmp_path: Path) -> None:
    write_run(tmp_path, ["old"], {})
    (tmp_path / "run/started").mkdir()
    (tmp_path / "run").rename(tmp_path / "run.old")
    with pytest.raises(ValueError, match="started"):
        write_run(tmp_path, ["new"], {})
    assert (tmp_path / "run/argv/000").read_text() == "old"


@pytest.mark.parametrize(("count", "last"), [(1, "000"), (1000, "999"), (1001, "1000"), (10001, "10000")])
def test_argument_files_sort_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, last: str) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    write_run(tmp_path, [str(number) for number in range(count)], {})
    names = sorted(p.name for p in (tmp_path / "run/argv").iterdir())
    assert names[-1] == last
    assert [int(name) for name in names] == list(range(count))


def test_write_run_syncs_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    write_run(tmp_path, ["a"], {"X": "1"})
    names = ["run.part/argv/000", "run.part/env/X", "run.part/argv", "run.part/env", "run.part", ""]
    assert synced == [str(tmp_path / name) for name in names]


def test_install(tmp_path: Path) -> None:
    path = install(tmp_path)
    digest = hashlib.sha256(RUNNER_SH.read_bytes()).hexdigest()
    assert path == tmp_path / f".mint-spool/runner-{digest[:16]}.sh"
    assert path.stat().st_mode & 0o7777 == 0o500
    before = path.stat().st_ino
    assert install(tmp_path) == path
    assert path.stat().st_ino == before, "one in use is left alone"
    path.chmod(0o700)
    path.write_text("damaged")
    assert install(tmp_path).read_bytes() == RUNNER_SH.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_local_runner(dash_jobs: Jobs) -> None:
    runner = LocalRunner(dash_jobs.script, shell=str(dash_jobs.bin / "sh"))
    job = dash_jobs.python(DUMP_ENV + "\n" + STAY)
    assert runner.prepare(job.path).word == "new"
    assert runner.start(job.path, env={**dash_jobs.environment, "ONLY": "日本"}).is_running
    job.wait_for("ready")
    assert runner.wait(job.path, 0).is_running
    assert "ONLY=日本" in dumped(job, "env")
    assert not [one for one in dumped(job, "env") if one.startswith("PYTEST")], "the environment given is the complete one"
    assert runner.cancel(job.path).exit_code == 143
    assert runner.status(job.path).cancel


def test_local_runner_raises_with_the_runners_line(dash_jobs: Jobs) -> None:
    runner = LocalRunner(dash_jobs.script)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        runner.start(dash_jobs.root / "nowhere")
    assert "no such folder" in caught.value.stderr


@pytest.fixture(autouse=True)
def _nothing_was_evaluated(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("pwned"))
