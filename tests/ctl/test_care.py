"""token and check: looking after a spool."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from components.privilege import need_root
from components.process import run
from components.rig import REPO
from spool.ctl import surroundings
from spool.ctl.house import house
from spool.names import new_id
from spool.paths import SpoolPaths

# ---- tokens


def test_tokens(ctl: Any) -> None:
    done = ctl("token", "add", "--user", "alice", "--role", "submitter", "--role", "agent", "--site", "s")
    token = done.stdout.splitlines()[-1]
    assert len(token) == 64
    assert set(token) <= set("0123456789abcdef")
    assert (ctl.rig.spool / "tokens.json").stat().st_mode & 0o777 == 0o600
    (listed,) = json.loads(ctl("token", "ls", "--json").stdout)["tokens"]
    assert listed["roles"] == ["submitter", "agent"]
    assert listed["sites"] == ["s"]
    assert listed["counts"] is True
    shown = ctl("token", "ls").stdout
    assert listed["id"] in shown
    assert token[-4:] in shown
    assert token not in shown
    assert "sha256" not in json.dumps(listed)
    ctl("token", "revoke", listed["id"])
    assert "revoked" in ctl("token", "ls").stdout
    ctl("token", "revoke", "nonsense", code=1)
    ctl("token", "add", "--user", "alice", "--role", "king", code=2)
    ctl("token", "add", "--user", "alice", code=2)
    ctl("token", "add", "--user", "a b", "--role", "agent", code=2)
    past = ctl("token", "add", "--user", "bob", "--role", "agent", "--expires-at", "2020-01-01T00:00:00Z", code=2)
    assert "passed" in past.stderr
    assert "[site elsewhere]" in ctl("token", "add", "--user", "bob", "--role", "agent", "--site", "elsewhere").stderr


def test_a_mode_that_the_system_does_not_set(tmp_path: Path) -> None:
    """An owner who is no member of the folder's group cannot set its setgid bit, and chmod(2) says nothing."""
    folder = tmp_path / "drop"
    folder.mkdir(0o700)
    folder.chmod(0o770)
    program = (
        "import os, pathlib, sys\nfrom spool.ctl.house import chmod\nfrom spool.errors import ConfigError\n"
        "os.chown(sys.argv[1], 65001, 65002)\nos.chdir(sys.argv[1])\nos.setgroups([])\nos.setgid(65001)\nos.setuid(65001)\n"
        "try:\n    chmod(pathlib.Path(), 0o2770)\nexcept ConfigError as exc:\n    print(exc.hint)\n"
    )
    need_root()
    done = run([sys.executable, "-c", program, folder], env={"PYTHONPATH": str(REPO)})
    assert "member of the folder's group" in done.stdout


def test_a_token_counts_at_once_and_no_more_when_revoked(ctl: Any) -> None:
    ctl.serve()
    (ctl.here / "old").write_text("an-old-token-of-another-system\n")
    (ctl.here / "old").chmod(0o600)
    where = ["--url", ctl.rig.url, "--token", "@old"]
    ctl(*where, "ls", spool=False, code=77)
    done = ctl("token", "add", "--user", "alice", "--role", "viewer", "--import", "@old")
    assert done.stdout.splitlines()[-1] == "an-old-token-of-another-system"
    ctl(*where, "ls", spool=False)
    ctl("token", "add", "--user", "alice", "--role", "viewer", "--import", "an-old-token-of-another-system", code=2)
    token_id = json.loads(ctl("token", "ls", "--json").stdout)["tokens"][0]["id"]
    ctl("token", "revoke", token_id)
    ctl(*where, "ls", spool=False, code=77)


def test_the_token_file_of_the_configuration(ctl: Any) -> None:
    path = ctl.rig.root / "elsewhere.json"
    text = (ctl.rig.spool / "spool.ini").read_text()
    (ctl.rig.spool / "spool.ini").write_text(text.replace("[server]", f"[server]\ntokens = {path}"))
    ctl("token", "add", "--user", "alice", "--role", "viewer")
    assert path.exists()
    assert not (ctl.rig.spool / "tokens.json").exists()


# ---- check

Break = Callable[[Any, SpoolPaths, str], Any]


def test_a_new_spool_and_a_used_one_are_healthy(ctl: Any) -> None:
    ctl.serve()
    assert "Healthy: 0 jobs" in ctl("check").stdout
    waiting, running, done, canceled = (ctl.submit() for _ in range(4))
    ctl("cancel", canceled)
    ctl.finish(done, {"out/x": b"x"})
    ctl.run(running)
    value = json.loads(ctl("check", "--json").stdout)
    assert value == {"healthy": True, "jobs": 4, "findings": []}
    assert waiting


def _rewrite(paths: SpoolPaths, job_id: str, **changes: Any) -> None:
    path = paths.job(job_id).state
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _entry(paths: SpoolPaths) -> Path:
    return next(path for path in paths.queue.rglob("*") if path.is_file())


def _add_to_ini(paths: SpoolPaths, text: str) -> None:
    paths.ini.write_text(paths.ini.read_text() + text)


PROBLEMS: dict[str, tuple[Break, str]] = {
    "folder missing": (lambda ctl, paths, job: shutil.rmtree(paths.journal), "journal/ is missing"),
    "folder mode": (lambda ctl, paths, job: paths.queue.chmod(0o755), "queue/ has the mode 0755"),
    "lock missing": (lambda ctl, paths, job: (paths.locks / "7f").unlink(), "lock files are missing: 7f"),
    "lock mode": (lambda ctl, paths, job: (paths.locks / "7f").chmod(0o600), "wrong mode: 7f"),
    "state unreadable": (lambda ctl, paths, job: paths.job(job).state.write_text("{"), "cannot be read"),
    "state missing": (lambda ctl, paths, job: paths.job(job).state.unlink(), "has no state.json"),
    "job missing": (lambda ctl, paths, job: paths.job(job).job.unlink(), "has no job.json"),
    "result unreadable": (lambda ctl, paths, job: paths.job(job).result.write_text("{}"), "cannot be read"),
    "another's state": (lambda ctl, paths, job: _rewrite(paths, job, id=new_id()), "someone copied"),
    "queued without entry": (lambda ctl, paths, job: _entry(paths).unlink(), "no entry in queue/"),
    "running without entry": (lambda ctl, paths, job: (ctl.run(job), (paths.active / "s" / "agent" / job).unlink()),
                              "no entry in active/"),
    "wrong ini": (lambda ctl, paths, job: _add_to_ini(paths, "[nonsense]\n"), "configuration: "),
    "tokens open": (lambda ctl, paths, job: (paths.tokens.write_text('{"format": 1, "tokens": []}'), paths.tokens.chmod(0o644)),
                    "can be read by others"),
    "tokens unreadable": (lambda ctl, paths, job: (paths.tokens.write_text("{"), paths.tokens.chmod(0o600)), "token file: "),
    "unknown format": (lambda ctl, paths, job: paths.spool_json.write_text('{"format": 2, "id": "x", "epoch": "y"}'),
                       "another format"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_fail_the_check(ctl: Any, name: str) -> None:
    job_id, (break_it, words) = ctl.submit(), PROBLEMS[name]
    ctl("check")
    break_it(ctl, ctl.store.paths, job_id)
    before = sorted(str(path) for path in ctl.rig.spool.rglob("*"))
    shown = ctl("check", code=1).stdout
    assert words in shown
    assert "PROBLEM" in shown
    value = json.loads(ctl("check", "--json", code=1).stdout)
    found = [item for item in value["findings"] if item["level"] == "problem"]
    assert not value["healthy"]
    assert len(found) == 1
    assert found[0]["do"]
    assert sorted(str(path) for path in ctl.rig.spool.rglob("*")) == before, "check changed something"


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _touch_entry(paths: SpoolPaths, name: str) -> None:
    _entry(paths).with_name(name).touch()


def _old(path: Path) -> None:
    path.mkdir()
    os.utime(path, (1e9, 1e9))


REMARKS: dict[str, tuple[Break, str]] = {
    "stale queue entry": (lambda ctl, paths, job: _touch_entry(paths, f"1000.20260101T000000000000Z.{new_id()}.1"), "is stale"),
    "entry of another attempt": (lambda ctl, paths, job: _touch_entry(paths, f"1000.20260101T000000000000Z.{job}.9"), "stale"),
    "strange entry": (lambda ctl, paths, job: _touch_entry(paths, "strange"), "strange, and ignored"),
    "stale active entry": (lambda ctl, paths, job: _touch(paths.active / "s" / "agent" / job), "active/s/agent"),
    "leftover": (lambda ctl, paths, job: _old(paths.tmp / "submit.x"), "rm -r"),
    "late drop": (lambda ctl, paths, job: _old(paths.drop / new_id()), "waits to be accepted"),
    "rejected": (lambda ctl, paths, job: ctl("submit", "--site", "s", "--command", "rm", code=1), "not registered"),
    "corrupt": (lambda ctl, paths, job: (paths.job(job).state.write_text("{"), ctl("show", job), _entry(paths).unlink()),
                "not JSON"),
    "no ini": (lambda ctl, paths, job: paths.ini.unlink(), "no spool.ini"),
    "strange folder": (lambda ctl, paths, job: (paths.jobs / "notes").mkdir(), "jobs/notes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REMARKS)
def test_remarks_do_not(ctl: Any, name: str) -> None:
    job_id, (make_it, words) = ctl.submit(), REMARKS[name]
    make_it(ctl, ctl.store.paths, job_id)
    done = ctl("check")
    assert words in done.stdout
    assert "remark" in done.stdout
    assert "1 remarks" in done.stdout


def test_someone_else_is_told_that_only_the_owner_accepts(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(house(ctl.store.paths)) == []
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert [("remark", "12345" in item.what) for item in house(ctl.store.paths)] == [("remark", True)]


def test_a_full_disk_and_few_inodes(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ctl.store.paths.ini.read_text()
    ctl.store.paths.ini.write_text(text.replace("[server]", "[server]\nmin_free = 1000000T"))
    assert "nothing new is taken" in ctl("check", code=1).stdout
    monkeypatch.setattr(surroundings, "_FEW_INODES", 10**18)
    monkeypatch.setattr(surroundings, "_NEARLY_FULL", -1.0)
    found = [item.what for item in surroundings._disk(ctl.rig.spool, 0)]
    assert any("full" in what for what in found)
    assert any("inodes" in what for what in found) or os.statvfs(ctl.rig.spool).f_files == 0


def test_locks_that_guard_nothing(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp = ctl.store.paths.tmp
    assert list(surroundings._locking(tmp)) == []
    monkeypatch.setattr(surroundings, "_another_gets", lambda path: True)
    assert ["two processes" in item.what for item in surroundings._locking(tmp)] == [True]
    monkeypatch.setattr(surroundings, "_another_gets", lambda path: path.unlink())
    assert ["unlinks the lock file" in item.what for item in surroundings._locking(tmp)] == [True]
    assert not list(tmp.iterdir())


def test_hostile_names_in_a_finding(ctl: Any) -> None:
    (ctl.rig.spool / "jobs" / "x\x1b[2J\n").mkdir()
    assert "\x1b" not in ctl("check").stdout + ctl("check", "--json").stdout
