"""Decisions: by whom the kernel says, over exactly these results, and by as many persons as are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.privilege import need_root
from spool.agent.decisions import REFUSE, RELEASE, Decision, Decisions, Rules, name_of
from spool.errors import ConfigError, Conflict, NotAllowed
from spool.names import new_id

MANIFEST = "ab" * 32
ME = name_of(os.geteuid())


@pytest.fixture
def folder(tmp_path: Path) -> Decisions:
    made = Decisions(tmp_path / "decisions")
    made.open()
    return made


def said(person: str, word: str = RELEASE) -> Decision:
    return Decision("i", "r", MANIFEST, word, "", "", person)


def test_what_is_written_is_read_with_its_owner(folder: Decisions) -> None:
    job, run = new_id(), new_id()
    folder.write(job, run, MANIFEST, REFUSE, "機密の表を含む")
    (found,) = folder.of(job, run, MANIFEST)
    assert (found.person, found.word, found.because) == (ME, REFUSE, "機密の表を含む")
    with pytest.raises(Conflict):
        folder.write(job, run, MANIFEST, RELEASE)
    assert len(list(folder.of(job, run, MANIFEST))) == 1
    assert folder.folder.stat().st_mode & 0o777 == 0o700


def test_it_counts_for_these_results_only(folder: Decisions) -> None:
    job, run = new_id(), new_id()
    folder.write(job, run, MANIFEST, RELEASE)
    assert list(folder.of(job, run, "cd" * 32)) == []
    assert list(folder.of(job, new_id(), MANIFEST)) == []
    assert list(folder.of(new_id(), run, MANIFEST)) == []


def test_what_is_no_decision_counts_for_nothing(folder: Decisions, tmp_path: Path) -> None:
    job, run, uid = new_id(), new_id(), os.geteuid()
    path = folder.folder / f"{job}.{run}.{uid}.json"
    good = Decision(job, run, MANIFEST, RELEASE, "", "").encode()
    (tmp_path / "elsewhere").write_bytes(good)
    for make in (
        lambda: path.symlink_to(tmp_path / "elsewhere"),
        lambda: os.link(tmp_path / "elsewhere", path),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.write_bytes(good[:50]),
        lambda: path.write_bytes(b" " * 20_000 + good),
        lambda: path.write_bytes(good.replace(b'"release"', b'"perhaps"')),
        lambda: path.write_bytes(b"\xff"),
        lambda: (path.write_bytes(good), path.chmod(0o666)),
    ):
        make()
        assert list(folder.of(job, run, MANIFEST)) == []
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(good)
    path.chmod(0o644)
    assert len(list(folder.of(job, run, MANIFEST))) == 1


def test_the_verdict() -> None:
    rules = Rules(("sato", "suzuki"), persons=2, not_submitter=True)
    assert rules.verdict([], "mint")[0] == ""
    assert rules.verdict([said("sato")], "mint")[0] == ""
    assert rules.verdict([said("sato"), said("sato")], "mint")[0] == "", "two words of one person are one"
    assert rules.verdict([said("sato"), said("tanaka")], "mint")[0] == "", "not one of those who decide"
    assert rules.verdict([said("sato"), said("suzuki")], "suzuki")[0] == "", "the submitter is no second person"
    word, counted = rules.verdict([said("suzuki"), said("sato"), said("tanaka", REFUSE)], "mint")
    assert (word, [one.person for one in counted]) == (RELEASE, ["sato", "suzuki"])
    assert rules.verdict([said("suzuki", REFUSE), said("sato")], "mint")[0] == REFUSE
    assert Rules().verdict([said(ME)], "mint")[0] == RELEASE
    assert Rules().verdict([said("sato")], "mint")[0] == ("" if ME != "sato" else RELEASE)


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group"):
        Decisions(tmp_path / "decisions").open("no-such-group")


# What it is made of is read before, wherever the checkout and the interpreter lie.
AS_NOBODY = f"""
import grp, os, pwd, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from spool.agent.decisions import Decisions
import encodings.idna
os.setgroups([])
os.setgid(grp.getgrnam("nogroup").gr_gid)
os.setuid(pwd.getpwnam("nobody").pw_uid)
Decisions(Path(sys.argv[1])).write(*sys.argv[2:6])
"""


def test_another_user_decides_as_himself_and_touches_no_others(tmp_path: Path) -> None:
    """By the real kernel: nobody, in the group, writes his own word; the agent's and another's he cannot remove or replace."""
    need_root()
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o711)
    folder = Decisions(tmp_path / "decisions")
    folder.open("nogroup")
    job, run = new_id(), new_id()
    folder.write(job, run, MANIFEST, RELEASE)
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, folder.folder, job, run, MANIFEST, REFUSE], cwd="/",
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one.person: one.word for one in folder.of(job, run, MANIFEST)} == {ME: RELEASE, "nobody": REFUSE}
    mine = folder.folder / f"{job}.{run}.0.json"
    for script in (f"rm -f {mine}", f"mv {mine} {mine}.x", f"echo x >{mine}", f"ls {folder.folder}"):
        assert subprocess.run([*words, "sh", "-c", script], capture_output=True, check=False).returncode != 0, script
    forged = f"cp /dev/null {folder.folder}/{new_id()}.{run}.0.json"
    assert subprocess.run([*words, "sh", "-c", forged], capture_output=True, check=False).returncode == 0
    assert len(list(folder.of(job, run, MANIFEST))) == 2
    with pytest.raises((NotAllowed, PermissionError, Conflict)):
        folder.write(job, run, MANIFEST, REFUSE)
