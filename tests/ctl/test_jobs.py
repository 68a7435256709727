"""wait, ls, show, logs, fetch, cancel, requeue on the folder."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.rig import REPO

JOB = ("submit", "--site", "s", "--command", "c", "--in", "a.inp")
HOSTILE = "\x1b[2Jgone\x07"


# ---- wait


def test_wait_tells_each_change_and_ends_with_the_jobs_code(ctl: Any) -> None:
    process = ctl.start(*JOB, "--wait", "--into", "results")
    process.wait_for_output("queued", 20)
    job_id = process.output().split()[0]
    ctl.run(job_id)
    process.wait_for_output("claimed -> running", 10)
    ctl.finish(job_id, {"out/r.dat": b"result", "log/stdout.txt": b"said"})
    assert process.wait(20) == 0
    lines = process.output().splitlines()
    assert lines[-1] == job_id
    order = [line.split()[3] for line in lines if " -> " in line]
    assert order == ["claimed", "running", "returning", "completed"]
    assert {path.name for path in (ctl.here / "results").iterdir()} == {"r.dat"}


def test_a_failed_job_ends_with_1_and_says_what_to_do(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"log/stderr.txt": b"no"}, reason="exit_nonzero", message=f"ended with {HOSTILE}", exit_code=3)
    done = ctl("wait", job_id, code=1)
    assert "exit_nonzero" in done.stdout
    assert "exit 3" in done.stdout
    assert "logs" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_wait_for_several(ctl: Any) -> None:
    good, canceled, open_one = (ctl.submit() for _ in range(3))
    ctl("cancel", canceled)
    done = ctl("wait", good, canceled, open_one, "--timeout", "0.2", code=75)
    assert open_one in done.stderr
    assert canceled not in done.stderr
    ctl("cancel", open_one)
    ctl("requeue", canceled)
    ctl.finish(good, {"out/x": b""})
    ctl.finish(canceled, {"out/x": b""})
    ctl("wait", good[:8], canceled)
    assert open_one[:8] in ctl("wait", good, canceled, open_one, code=1).stdout


def test_submit_wait_that_times_out_prints_the_id(ctl: Any) -> None:
    done = ctl(*JOB, "--wait", "--timeout", "0.3", code=75)
    assert ctl.rig.state(done.stdout.splitlines()[-1])["state"] == "queued"


def test_wait_for_a_drop_that_is_refused_later(ctl: Any) -> None:
    (ctl.rig.spool / "spool.ini").unlink()
    process = ctl.start("submit", "--site", "nowhere", "--command", "c", "--wait")
    process.wait_for_output("Waiting up to", 20)
    ctl.rig.start_server({"s": {"commands": "c"}})
    assert process.wait(30) == 1
    assert "not known" in process.output()


def test_ids_may_be_shortened(ctl: Any) -> None:
    job_id = ctl.submit("--id", "abcd1234-0000-4000-8000-000000000001")
    other = ctl.submit("--id", "abcd5678-0000-4000-8000-000000000001")
    assert job_id in ctl("show", "ABCD1").stdout
    assert other in ctl("show", "abcd", code=2).stderr
    assert "too short" in ctl("show", "abc", code=2).stderr
    assert "no job id" in ctl("wait", "ffff0", code=2).stderr
    ctl("show", "ffffffff-0000-4000-8000-000000000001", code=1)


# ---- ls and show


def test_ls(ctl: Any) -> None:
    first, second = ctl.submit("--user", "alice"), ctl.submit("--user", "鈴木")
    ctl("cancel", first)
    listed = json.loads(ctl("ls", "--json").stdout)
    assert [job["id"] for job in listed["jobs"]] == [second, first]
    assert listed["total"] == 2
    assert "inputs" not in listed["jobs"][0]
    assert [line.split()[0] for line in ctl("ls", "--state", "canceled").stdout.splitlines()] == ["ID", first]
    assert first not in ctl("ls", "--user", "鈴木").stdout
    assert "No jobs" in ctl("ls", "--site", "other").stderr
    shown = ctl("ls", "--limit", "1")
    assert len(shown.stdout.splitlines()) == 2
    assert "1 of 2" in shown.stderr
    ctl("ls", "--state", "nonsense", code=2)


def test_ls_into_a_reader_that_goes_away(ctl: Any) -> None:
    ctl.submit()
    words = [str(REPO / "tools" / "spoolctl"), "--spool", str(ctl.rig.spool), "ls", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, env=ctl.rig.env, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_show(ctl: Any) -> None:
    job_id = ctl.submit("--out", "*.dat", "--label", f"note={HOSTILE}")
    withheld = ["secret.dat: by the site"]
    ctl.finish(job_id, {"out/r.dat": b"result"}, reason="exit_nonzero", message=HOSTILE, exit_code=2, withheld=withheld)
    done = ctl("show", job_id)
    for word in ("failed", "exit_nonzero", "\\x1b[2J", "secret.dat", "out/r.dat", "a.inp", "*.dat", "accepted", "next"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    value = json.loads(ctl("show", job_id, "--json").stdout)
    assert value["state"]["message"] == HOSTILE
    assert value["result"]["exit_code"] == 2
    assert [entry["to"] for entry in value["history"]] == ["queued", "claimed", "running", "returning", "failed"]
    assert "\x1b" not in ctl("show", job_id, "--json").stdout


def test_show_of_what_was_refused_or_cannot_be_read(ctl: Any) -> None:
    ctl("submit", "--site", "s", "--command", "rm", code=1)
    (rejected,) = (path.name for path in (ctl.rig.spool / "rejected").iterdir())
    shown = ctl("show", rejected[:6]).stdout
    assert "rejected" in shown
    assert "not registered" in shown
    assert "rm" in shown
    assert json.loads(ctl("show", rejected, "--json").stdout)["rejected"]["code"] == "command_not_allowed"
    assert "not registered" in ctl("wait", rejected, code=1).stderr
    job_id = ctl.submit()
    (ctl.folder(job_id) / "state.json").write_text("{")
    shown = ctl("show", job_id).stdout
    assert "corrupt" in shown
    assert "not JSON" in shown


# ---- logs


def test_logs_follow_from_running_to_the_end(ctl: Any) -> None:
    job_id = ctl.submit()
    assert "Nothing" in ctl("logs", job_id).stderr
    state = ctl.run(job_id)
    ctl.bring(state, {"log/stdout.txt": b"one\n"})
    assert ctl("logs", job_id).stdout == "one\n"
    process = ctl.start("logs", "-f", job_id)
    process.wait_for_output("one\n", 20)
    ctl.bring(state, {"log/stdout.txt": b"one\ntwo\n"})
    process.wait_for_output("two\n", 10)
    assert process.running
    ctl.finish(job_id, {"log/stdout.txt": b"one\ntwo\nthree\n", "log/stderr.txt": b"err\n"})
    assert process.wait(20) == 0
    assert process.output() == "one\ntwo\nthree\n"
    assert ctl("logs", "--err", job_id).stdout == "err\n"


def test_logs_that_did_not_come(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"out/x": b"x"}, withheld=["log/stdout.txt: by the site"])
    assert "withheld" in ctl("logs", job_id, code=1).stderr
    canceled = ctl.submit()
    ctl("cancel", canceled)
    assert "never ran" in ctl("logs", canceled, code=1).stderr


def test_a_log_cannot_steer_the_terminal(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"log/stdout.txt": b"a\x1b[2J\xff \xe5\xbf\x9c\n"})
    main, other = pty.openpty()
    words = [str(REPO / "tools" / "spoolctl"), "--spool", str(ctl.rig.spool), "logs", job_id]
    subprocess.run(words, env=ctl.rig.env, stdout=other, check=True)
    os.close(other)
    shown = os.read(main, 4096)
    os.close(main)
    assert shown == "a\\x1b[2J\\xff 応\r\n".encode()
    raw = subprocess.run(words, env=ctl.rig.env, stdout=subprocess.PIPE, check=True).stdout
    assert raw == b"a\x1b[2J\xff \xe5\xbf\x9c\n"


# ---- fetch


def test_fetch(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl("fetch", job_id, "--into", "x", code=75)
    ctl.finish(job_id, {"out/deep/結果.dat": b"result", "out/empty": b"", "out/zeros": bytes(1 << 22), "log/stdout.txt": b"said"})
    ctl("fetch", job_id[:8], "--into", "x/y")
    found = {str(path.relative_to(ctl.here / "x/y")): path for path in (ctl.here / "x/y").rglob("*") if path.is_file()}
    assert set(found) == {"deep/結果.dat", "empty", "zeros"}
    assert found["deep/結果.dat"].read_bytes() == b"result"
    assert found["zeros"].stat().st_blocks == 0
    (ctl.here / "x/y/empty").write_text("old")
    ctl("fetch", job_id, "--into", "x/y", "--logs")
    assert (ctl.here / "x/y/empty").read_bytes() == b""
    assert (ctl.here / "x/y/log/stdout.txt").read_bytes() == b"said"


def test_fetched_files_have_the_callers_rights(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"out/a/b": b"x"})
    words = f'umask 027; exec "{REPO}/tools/spoolctl" --spool "{ctl.rig.spool}" fetch {job_id} --into got'
    subprocess.run(["sh", "-c", words], cwd=ctl.here, env=ctl.rig.env, check=True, stdout=subprocess.DEVNULL)
    modes = [oct((ctl.here / name).stat().st_mode & 0o777) for name in ("got", "got/a", "got/a/b")]
    assert modes == ["0o750", "0o750", "0o640"]


def test_fetch_verifies(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"out/r.dat": b"result"})
    (ctl.here / "x").mkdir()
    (ctl.here / "x/r.dat").write_text("before")
    (ctl.folder(job_id) / "out/r.dat").write_text("forged")
    assert "not what result.json lists" in ctl("fetch", job_id, "--into", "x", code=75).stderr
    assert [path.name for path in (ctl.here / "x").iterdir()] == ["r.dat"]
    assert (ctl.here / "x/r.dat").read_text() == "before"


def test_fetch_follows_no_link_out_of_the_folder(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl.finish(job_id, {"out/deep/r.dat": b"result", "out/r.dat": b"result"})
    outside = ctl.here / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (ctl.here / "x").mkdir()
    (ctl.here / "x/deep").symlink_to(outside)
    (ctl.here / "x/r.dat").symlink_to(outside / "file")
    ctl("fetch", job_id, "--into", "x", code=2)
    (ctl.here / "x/deep").unlink()
    ctl("fetch", job_id, "--into", "x")
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "kept"
    assert not (ctl.here / "x/r.dat").is_symlink()


def test_fetch_without_results(ctl: Any) -> None:
    job_id = ctl.submit()
    ctl("cancel", job_id)
    assert "no result" in ctl("fetch", job_id, "--into", "x", code=1).stderr


# ---- cancel and requeue


def test_cancel_and_requeue(ctl: Any) -> None:
    job_id, other = ctl.submit(), ctl.submit()
    ctl("requeue", job_id, code=1)
    assert "canceled" in ctl("cancel", job_id[:8], other).stdout
    assert ctl("cancel", job_id).stdout
    assert "attempt 2" in ctl("requeue", job_id).stdout
    assert ctl.rig.state(job_id)["state"] == "queued"
    ctl.run(job_id)
    assert "cancel requested" in ctl("cancel", job_id).stdout
    assert ctl.rig.state(job_id)["cancel_requested_by"]
    ctl.finish(job_id, {"out/x": b""})
    done = ctl("cancel", job_id, other, code=1)
    assert "completed already" in done.stderr
    assert other in done.stdout


# ---- a terminal


@pytest.mark.parametrize("into_terminal", [True, False])
def test_what_is_drawn_never_reaches_a_piped_output(ctl: Any, into_terminal: bool) -> None:
    main, other = pty.openpty()
    words = [str(REPO / "tools" / "spoolctl"), "--spool", str(ctl.rig.spool), *JOB, "--wait", "--timeout", "0.5"]
    stderr = other if into_terminal else subprocess.PIPE
    env = {**ctl.rig.env, "TERM": "xterm"}
    done = subprocess.run(words, cwd=ctl.here, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    os.close(other)
    os.close(main)
    lines = done.stdout.splitlines()
    assert done.returncode == 75
    assert len(lines) == 3
    assert "\x1b" not in done.stdout
    assert "\x1b" not in (done.stderr or "")


def test_the_launcher_from_anywhere(ctl: Any, tmp_path: Path) -> None:
    link = tmp_path / "bin" / "spoolctl"
    link.parent.mkdir()
    link.symlink_to(REPO / "tools" / "spoolctl")
    done = subprocess.run([link, "--version"], cwd="/", env=ctl.rig.env, capture_output=True, text=True, check=True)
    assert "mint-spool" in done.stdout


def test_the_launcher_names_the_command_that_helps(tmp_path: Path) -> None:
    copy = tmp_path / "a checkout"
    (copy / "tools").mkdir(parents=True)
    (copy / "tools" / "spoolctl").write_bytes((REPO / "tools" / "spoolctl").read_bytes())
    (copy / "spool").symlink_to(REPO / "spool")
    words = [sys.executable, "-S", str(copy / "tools" / "spoolctl"), "ls"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "is missing" in done.stderr
    assert f"pip install '{copy}'" in done.stderr
    assert "Traceback" not in done.stderr
