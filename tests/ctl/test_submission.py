"""`submit`: what the command line means, and what it makes of it."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components.waiting import wait_until
from spool import drops
from spool.ctl.backend import Rejected, Usage
from spool.ctl.folder import FolderBackend
from spool.ctl.progress import silent
from spool.ctl.submission import inputs_of, pairs
from spool.names import new_id
from spool.records import Job

JOB = ("submit", "--site", "s", "--command", "c")


def _files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


# ---- what --in means


def test_in_takes_a_path_or_a_name_and_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _files(tmp_path, "deep/a.inp", "b=c", "x=y/z", "z", "入力.inp", "k=l")
    (tmp_path / "link").symlink_to("z")
    given = ["deep/a.inp", "b=c", "x=y/z", "mesh/q.inp=z", "./入力.inp", "e=k=l", "link", f"abs={tmp_path}/z"]
    assert inputs_of(given) == {
        "a.inp": Path("deep/a.inp"), "b=c": Path("b=c"), "z": Path("x=y/z"), "mesh/q.inp": Path("z"),
        "入力.inp": Path("入力.inp"), "e": Path("k=l"), "link": Path("link"), "abs": tmp_path / "z",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a/x", "b/x"], "two inputs"), (["nowhere"], "no file nowhere"), (["n=nowhere"], "no file"), (["=a/x"], "no file"),
        (["a"], "is a folder"), (["../up=a/x"], "'..'"), (["/abs=a/x"], "absolute"), (["pipe"], "regular"), (["-=a/x"], "'-'"),
    ],
)  # fmt: skip
def test_in_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    _files(tmp_path, "a/x", "b/x")
    os.mkfifo("pipe")
    with pytest.raises(Exception, match=words) as refused:
        inputs_of(given)
    assert refused.value.hint  # type: ignore[attr-defined]


def test_pairs() -> None:
    assert pairs(["A=b=c", "D="], "--env") == {"A": "b=c", "D": ""}
    for wrong in (["A"], ["=b"], ["A=1", "A=2"]):
        with pytest.raises(Usage):
            pairs(wrong, "--env")


@pytest.mark.parametrize(
    "args",
    [
        ["--in", "nowhere"], ["--in", "a.inp", "--in", "./a.inp"], ["--env", "1X=2"], ["--out", "../x"], ["--id", "x"],
        ["--expires-at", "tomorrow"], ["--expires-at", "2020-01-01T00:00:00Z"], ["--priority", "5000"], ["--wall-time", "0"],
        ["--into", "x"], ["--user", "a b"], ["--unknown"], ["--arg", b"\xff"],
    ],
)  # fmt: skip
def test_usage_errors_hand_nothing_in(ctl: Any, args: list[Any]) -> None:
    done = ctl(*JOB, *map(os.fsdecode, args), code=2)
    assert done.stderr
    assert not done.stdout
    for folder in ("drop", "tmp", "jobs", "rejected"):
        assert not list((ctl.rig.spool / folder).iterdir())


# ---- the folder


def test_accepted_at_once_without_any_server(ctl: Any) -> None:
    done = ctl(*JOB, "--in", "mesh/a.inp=a.inp", "--arg", "-i", "--arg=--x", "--out", "*.dat", "--env", "N=4", "--priority", "7",
               "--workflow", "W1", "--wall-time", "60", "--expires-at", "2099-01-01T00:00:00Z", "--give-up-after", "99",
               "--require-all", "--label", "k=値", "--user", "alice")  # fmt: skip
    job_id = done.stdout.splitlines()[-1]
    assert done.stdout == f"{job_id}\n"
    assert not done.stderr
    assert json.loads((ctl.folder(job_id) / "job.json").read_bytes()) == {
        "format": 1, "id": job_id, "site": "s", "command": "c", "args": ["-i", "--x"], "inputs": ["mesh/a.inp"],
        "outputs": ["*.dat"], "user": "alice", "priority": 7, "workflow": "W1", "env": {"N": "4"}, "wall_time_s": 60,
        "expires_at": "2099-01-01T00:00:00Z", "give_up_after_s": 99, "require_all": True, "labels": {"k": "値"},
    }  # fmt: skip
    assert (ctl.folder(job_id) / "in" / "mesh" / "a.inp").read_text() == "input\n"
    state = ctl.rig.state(job_id)
    assert (state["state"], state["user"]) == ("queued", "alice")
    for left in ("drop", "tmp"):
        assert not list((ctl.rig.spool / left).iterdir())


def test_in_a_folder_with_any_name(ctl: Any, odd_dir: Path) -> None:
    (odd_dir / "入力 1.inp").write_text("x")
    job_id = ctl.submit("--in", str(odd_dir / "入力 1.inp"))
    assert (ctl.folder(job_id) / "in" / "入力 1.inp").read_text() == "x"


@pytest.mark.parametrize(("args", "words"), [(("--command", "rm"), "not registered"), (("--site", "nowhere"), "not known")])
def test_a_refusal_is_shown_at_once(ctl: Any, args: tuple[str, ...], words: str) -> None:
    done = ctl(*JOB, *args, "--in", "a.inp", code=1)
    (rejected,) = (ctl.rig.spool / "rejected").iterdir()
    assert words in done.stderr
    assert str(rejected) in done.stderr
    assert "operator" in done.stderr
    assert not done.stdout
    assert not list((ctl.rig.spool / "drop").iterdir())


def test_somebody_without_a_login_name_is_refused_at_once(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FolderBackend(ctl.rig.spool)
    monkeypatch.setattr(drops.pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(Rejected, match="no login name"):
        backend.submit(Job(id=new_id(), site="s", command="c"), {}, silent)


def test_the_same_id_again(ctl: Any) -> None:
    job_id = new_id()
    for _ in range(2):
        assert ctl.submit("--id", job_id) == job_id
    assert ctl.rig.state(job_id)["revision"] == 1
    (ctl.here / "a.inp").write_text("other\n")
    done = ctl(*JOB, "--in", "a.inp", "--id", job_id, code=1)
    assert "other contents" in done.stderr
    assert (ctl.folder(job_id) / "in" / "a.inp").read_text() == "input\n"


def test_without_anyone_to_accept_it_stays_in_drop(ctl: Any) -> None:
    (ctl.rig.spool / "spool.ini").unlink()
    done = ctl(*JOB, "--in", "a.inp")
    job_id = done.stdout.strip()
    assert (ctl.rig.spool / "drop" / job_id / "job.json").exists()
    assert "nobody has accepted" in done.stderr
    assert "drop" in ctl("show", job_id[:8]).stdout
    ctl.rig.start_server({"s": {"commands": "c"}})
    ctl.rig.wait_state(job_id, "queued")


def test_an_unusable_ini_leaves_it_to_the_server(ctl: Any) -> None:
    ctl.serve()
    (ctl.rig.root / "spool.ini").write_text("[server]\nnonsense = 1\n")
    done = ctl(*JOB, "--in", "a.inp")
    assert "nonsense" in done.stderr
    assert ctl.rig.state(done.stdout.split()[-1])["state"] == "queued"


def test_many_at_once_beside_a_server(ctl: Any) -> None:
    """spoolctl and the server race for each drop; one accepts it, both tell the same."""
    ctl.serve()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: ctl.submit(), range(16)))
    assert len(set(ids)) == 16
    assert {ctl.rig.state(job_id)["state"] for job_id in ids} == {"queued"}
    for folder in ("drop", "rejected"):
        assert not list((ctl.rig.spool / folder).iterdir())


def test_a_sparse_input_stays_sparse(ctl: Any) -> None:
    with open(ctl.here / "big", "wb") as file:
        file.truncate(1 << 28)
    job_id = ctl.submit("--in", "big")
    info = (ctl.folder(job_id) / "in" / "big").stat()
    assert (info.st_size, info.st_blocks * 512 < 1 << 20) == (1 << 28, True)


def test_where_there_is_no_spool(ctl: Any, tmp_path: Path) -> None:
    assert "MINT_SPOOL" in ctl("ls", spool=False, code=78).stderr
    ctl("--spool", tmp_path / "none", "ls", spool=False, code=78)
    ctl("ls", spool=False, env={"MINT_SPOOL": str(ctl.rig.spool)})
    assert "not a spool" in ctl("submit", "--spool", tmp_path, "--site", "s", "--command", "c", spool=False, code=78).stderr


def test_ctrl_c_while_waiting_leaves_the_job(ctl: Any) -> None:
    process = ctl.start(*JOB, "--in", "a.inp", "--wait")
    process.wait_for_output("queued", 20)
    process.signal(signal.SIGINT)
    assert process.wait(10) == 130
    job_id = process.output().splitlines()[-1]
    assert f"wait {job_id}" in process.output()
    assert f"cancel {job_id}" in process.output()
    assert ctl.rig.state(job_id)["state"] == "queued"


def test_killed_while_copying_nothing_is_handed_in(ctl: Any) -> None:
    with open(ctl.here / "big", "wb") as file:
        for _ in range(256):
            file.write(os.urandom(1 << 20))
    process = ctl.start(*JOB, "--in", "big")
    wait_until(lambda: list((ctl.rig.spool / "tmp").glob("submit.*/in/big")), 20, "the copy has begun")
    process.signal(signal.SIGINT)
    code = process.wait(30)
    handed_in = [*(ctl.rig.spool / "drop").iterdir(), *(ctl.rig.spool / "jobs").iterdir()]
    assert (code, handed_in) == (130, []) or (code == 0 and len(handed_in) == 1)
    assert not list((ctl.rig.spool / "tmp").iterdir())
