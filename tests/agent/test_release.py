"""What may leave: a folder as a command could leave it, against the site's release rules."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.rig import Section, write_ini
from spool.agent import release
from spool.agent.config import AgentConfig, read_config
from spool.errors import Busy, ConfigError, InvalidRecord, NotAllowed, Refused
from spool.paths import JobPaths
from spool.records import Job, Result
from spool.results import Outputs

LOGS_STAY = ("log/stdout.txt: withheld by the site", "log/stderr.txt: withheld by the site")


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    job = JobPaths(tmp_path / "base" / "job")
    for folder in (job.work, job.log):
        folder.mkdir(parents=True)
    (tmp_path / "token").write_text("the-secret-token")
    return job


def rules(paths: JobPaths, **options: Any) -> AgentConfig:
    section: Section = {"allow": "**", **options}
    return read_config(write_ini(paths.folder.parent / "agent.ini", {"release": section}))


def collect(paths: JobPaths, *outputs: str, **options: Any) -> Outputs:
    return release.collect(rules(paths, **options), Job(site="s", command="c", outputs=outputs), paths)


def leaves(paths: JobPaths, *names: str) -> None:
    for name in names:
        (paths.work / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.work / name).write_text(f"content of {name}")


def names(outputs: Outputs) -> list[str]:
    return [entry.path[len("out/") :] for entry in outputs.files]


def copied(paths: JobPaths) -> list[str]:
    return sorted(str(path.relative_to(paths.out)) for path in paths.out.rglob("*") if not path.is_dir())


def test_only_what_is_asked_for_and_allowed(paths: JobPaths) -> None:
    leaves(paths, "a.dat", "b.dat", "c.frd", "secret.inp", "other.txt")
    found = collect(paths, "*.dat", "*.inp", "*.sta", allow="a.dat *.frd *.inp", deny="secret.*")
    assert names(found) == ["a.dat"] == copied(paths)
    assert found.withheld == ("2 files: withheld by the site", *LOGS_STAY), "their names were not in the job"
    assert found.missing == ("*.sta",)
    assert found.found == 3


def test_entries_are_what_was_copied(paths: JobPaths) -> None:
    leaves(paths, "a.dat")
    (entry,) = collect(paths, "a.dat").files
    data = (paths.out / "a.dat").read_bytes()
    assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    (paths.work / "a.dat").write_text("changed after the snapshot")
    assert (paths.out / "a.dat").read_bytes() == data
    assert (paths.out / "a.dat").stat().st_ino != (paths.work / "a.dat").stat().st_ino


def test_nothing_leaves_by_default(paths: JobPaths) -> None:
    leaves(paths, "a.dat")
    (paths.log / "stdout.txt").write_text("x")
    config = read_config(write_ini(paths.folder.parent / "agent.ini", {"release": {}}))
    found = release.collect(config, Job(site="s", command="c", outputs=("**",)), paths)
    assert (found.files, copied(paths)) == ((), [])
    assert release.logs(config, paths) == ()


@pytest.mark.parametrize("deny", ["*.inp", "secret.inp", "*.inp **/*.inp"])
@pytest.mark.parametrize("name", ["secret.inp", "sub/secret.inp", "a/b/secret.inp"])
def test_a_denied_name_is_denied_in_every_folder(paths: JobPaths, deny: str, name: str) -> None:
    """`deny = *.inp` reads as "no input deck leaves", and gitignore(5), by which patterns go, has it so."""
    leaves(paths, name, "good.dat")
    assert names(collect(paths, "**", deny=deny)) == ["good.dat"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["a.dat"]), ("**", ["a.dat", "d/b.dat", "d/e/c.dat"]), ("d/*", ["d/b.dat"]), ("d/**", ["d/b.dat", "d/e/c.dat"]),
        ("**/*.dat", ["a.dat", "d/b.dat", "d/e/c.dat"]), ("d/**/c.dat", ["d/e/c.dat"]), ("d", []), ("*/*/*", ["d/e/c.dat"]),
    ],
)  # fmt: skip
def test_stars_and_folders(paths: JobPaths, pattern: str, found: list[str]) -> None:
    leaves(paths, "a.dat", "d/b.dat", "d/e/c.dat")
    assert names(collect(paths, pattern)) == found == copied(paths)
    assert names(collect(paths, "**", allow=pattern)) == found


# ---- what is no plain file


def test_links_and_devices_never_leave(paths: JobPaths) -> None:
    leaves(paths, "good.dat", "real/x.dat")
    token = paths.folder.parent.parent / "token"
    for name, target in (
        ("passwd.dat", "/etc/passwd"), ("token.dat", str(token)), ("up.dat", "../../../token"), ("own.dat", "good.dat"),
        ("dir", "real"),
        ("etc", "/etc"), ("broken.dat", "nowhere"), ("loop.dat", "loop.dat"),
    ):  # fmt: skip
        os.symlink(target, paths.work / name)
    os.mkfifo(paths.work / "pipe.dat")
    found = collect(paths, "**")
    assert names(found) == ["good.dat", "real/x.dat"] == copied(paths)
    said = "\n".join(found.not_carried)
    for name in ("passwd.dat", "token.dat", "up.dat", "own.dat", "dir", "etc", "broken.dat", "loop.dat", "pipe.dat"):
        assert f"{name}: " in said
    assert not any(b"secret-token" in (paths.out / name).read_bytes() for name in copied(paths))


def test_a_link_in_place_of_the_work_folder(paths: JobPaths) -> None:
    """The command owns the folder above as well: it may put a link where work/ was."""
    leaves(paths, "a.dat")
    paths.work.rename(paths.folder / "moved")
    os.symlink("/etc", paths.work)
    assert names(collect(paths, "passwd", "*.dat")) == []


def test_a_link_in_place_of_out_is_not_written_through(paths: JobPaths, tmp_path: Path) -> None:
    leaves(paths, "a.dat")
    other = tmp_path / "other"
    other.mkdir()
    (other / "keep").write_text("x")
    os.symlink(other, paths.out)
    assert names(collect(paths, "a.dat")) == ["a.dat"]
    assert os.listdir(other) == ["keep"]
    assert not paths.out.is_symlink()


def test_logs_that_are_links_do_not_leave(paths: JobPaths) -> None:
    os.symlink("/etc/passwd", paths.log / "stdout.txt")
    (paths.log / "stderr.txt").write_text("e")
    assert [entry.path for entry in release.logs(rules(paths, logs="return"), paths)] == ["log/stderr.txt"]


ODD = (
    b"new\nline.dat",
    b"esc\x1b[2J.dat",
    b"\xff\xfe.dat",
    b"-rf.dat",
    b"tab\t.dat",
    "rtl\u202etxt.dat".encode(),
    b"dir\n/x.dat",
)


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_odd_names_are_reported_not_lost(paths: JobPaths, name: bytes) -> None:
    leaves(paths, "good.dat")
    full = os.path.join(os.fsencode(paths.work), name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(b"x")
    found = collect(paths, "**")
    assert names(found) == ["good.dat"] == copied(paths)
    assert found.not_carried
    assert all(line.isprintable() for line in found.not_carried)


def test_names_that_nobody_asked_for_do_not_leave(paths: JobPaths) -> None:
    """File names are data too: only what the job asks for is spoken of, also where it is no plain file."""
    leaves(paths, "a.dat", "customer-x-secret.inp")
    os.symlink("/etc/passwd", paths.work / "customer-y-link.inp")
    found = collect(paths, "*.dat", allow="*.dat")
    assert "customer" not in " ".join((*found.withheld, *found.not_carried, *found.missing))


def test_ordinary_but_unusual_names_leave(paths: JobPaths) -> None:
    unusual = [
        "a b.dat",
        "日本 語.dat",
        "q'\"$(x).dat",
        "%s.dat",
        "[x].dat",
        "*.dat",
        ".hidden.dat",
        "é.dat",
        "e\u0301.dat",
        "d r/ö.dat",
    ]
    leaves(paths, *unusual)
    assert sorted(names(collect(paths, "**"))) == sorted(unusual)


# ---- caps and repetition


def test_caps(paths: JobPaths) -> None:
    for name, size in (("a.dat", 600), ("b.dat", 400)):
        (paths.work / name).write_bytes(bytes(size))
    assert len(collect(paths, "*", max_bytes="1000", max_files=2).files) == 2
    with pytest.raises(Refused, match="more bytes than"):
        collect(paths, "*", max_bytes="999")
    with pytest.raises(Refused, match="more files than"):
        collect(paths, "*", max_files=1)
    assert len(collect(paths, "*", max_bytes="600", deny="b.*").files) == 1, "what stays does not count"


def test_logs_count_among_the_bytes(paths: JobPaths) -> None:
    """A cap that a `cat big` to stdout walks around is none."""
    config = rules(paths, max_bytes="1000", logs="return")
    (paths.log / "stdout.txt").write_bytes(bytes(5000))
    with pytest.raises(Refused):
        release.logs(config, paths)


def test_out_is_made_afresh(paths: JobPaths) -> None:
    leaves(paths, "a.dat", "old/b.dat")
    collect(paths, "**")
    (paths.work / "old" / "b.dat").unlink()
    (paths.out / "planted.dat").write_text("x")
    assert names(collect(paths, "**")) == ["a.dat"] == copied(paths)


def test_nothing_there(paths: JobPaths) -> None:
    paths.work.rmdir()
    found = collect(paths, "*.dat")
    assert (found.files, found.missing, found.found) == ((), ("*.dat",), 0)


def test_logs_leave_when_allowed(paths: JobPaths) -> None:
    (paths.log / "stdout.txt").write_text("o")
    (paths.log / "runner.log").write_text("inner")
    found = release.logs(rules(paths, logs="return"), paths)
    assert [entry.path for entry in found] == ["log/stdout.txt"]


def test_a_log_that_is_still_written_to_is_taken_as_it_is(paths: JobPaths) -> None:
    """A process that the command left behind goes on writing while the log is hashed: what was there before counts."""
    paths.stdout.write_bytes(b"")
    os.truncate(paths.stdout, 64 * 1024 * 1024)  # long enough to hash that something is added meanwhile
    paths.stderr.write_bytes(b"")
    over = threading.Event()

    def write() -> None:
        with paths.stdout.open("ab", buffering=0) as file:
            while not over.is_set():
                file.write(b"more\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        entry = next(item for item in release.logs(rules(paths, logs="return"), paths) if item.path == "log/stdout.txt")
    finally:
        over.set()
        writer.join()
    assert paths.stdout.stat().st_size > entry.size >= 64 * 1024 * 1024
    assert entry.sha256 == hashlib.sha256(paths.stdout.read_bytes()[: entry.size]).hexdigest()


# ---- names and words


def test_a_name_that_the_job_wrote_out_is_told(paths: JobPaths) -> None:
    leaves(paths, "a.dat", "b.dat", "c.dat")
    found = collect(paths, "b.dat", "[c].dat", "a*", allow="x", logs="return")
    assert found.withheld == ("b.dat: withheld by the site", "c.dat: withheld by the site", "1 more file: withheld by the site")
    assert (names(found), found.missing, found.found) == ([], (), 3)


def test_a_name_that_a_pattern_matches_does_not_leave_and_its_file_neither(paths: JobPaths) -> None:
    leaves(paths, "good.dat", "顧客A.dat", "d/顧客A/x.dat", "顧客\uff21.dat", "e\u0301tude.dat")
    os.symlink("/etc/passwd", paths.work / "顧客A-link.dat")
    with open(os.path.join(os.fsencode(paths.work), "顧客A".encode("cp932") + b".dat"), "wb"):
        pass
    found = collect(paths, "**", "顧客A.dat", logs="return", redact=["顧客A", "étude"])
    assert names(found) == ["good.dat"] == copied(paths)
    assert found.withheld == ("6 files: withheld by the site",), "4 files by their names, a link, and one that nobody can read"
    assert (found.not_carried, found.found) == ((), 5)


PATTERNS = ["secret-[0-9]+", "顧客[A-Z]", "(?i)licen[cs]e", "x{3,}"]
WORDS = ["secret-1", "secret-", "7", "顧客", "A", "B", "LICENSE", "xx", "x", "/", ".dat", "é", "ok"]
PIECES = st.lists(st.sampled_from(WORDS), max_size=7)


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> AgentConfig:
    return read_config(write_ini(tmp_path_factory.mktemp("words") / "agent.ini", {"release": {"redact": PATTERNS}}))


@settings(max_examples=300, deadline=None)
@given(name=PIECES.map("".join), missing=PIECES.map("".join), message=PIECES.map(" ".join))
def test_no_pattern_matches_in_any_word_that_leaves(patterned: AgentConfig, name: str, missing: str, message: str) -> None:
    result = Result(
        id="a", run_id="b", attempt=1, message=message, missing=(missing,), withheld=(f"{name}: {release.WITHHELD}",),
        not_carried=(f"{name}: is a link",),
    )  # fmt: skip
    told = release.spoken(patterned, result)
    texts = [told.message, *told.missing, *told.withheld, *told.not_carried, release.words(patterned, Refused(message))]
    for text in texts:
        assert not any(re.search(pattern, text) for pattern in PATTERNS), text
    if not any(re.search(pattern, message) for pattern in PATTERNS):
        assert told.message == message


def test_what_nobody_made_for_mint_is_not_told(paths: JobPaths) -> None:
    config = rules(paths)
    secret = "/opt/company/secret"
    for exc in (OSError(13, "denied", secret), ValueError(secret), Busy(secret), InvalidRecord(secret), NotAllowed(secret)):
        assert release.words(config, exc) == release.UNTOLD
    assert release.words(config, Refused(f"{config.base}/x is not allowed")) == "BASE/x is not allowed"


@pytest.mark.parametrize("text", ["[", "a\n(?P<", "a{99999999999}"])
def test_patterns_that_are_none_are_refused(paths: JobPaths, text: str) -> None:
    with pytest.raises(ConfigError, match="redact"):
        rules(paths, redact=text)


def test_redacted_logs_need_a_pattern(paths: JobPaths) -> None:
    with pytest.raises(ConfigError, match="redact"):
        rules(paths, logs="redact")
    assert len(rules(paths, logs="redact", redact=["a b", "c"]).release["redact"]) == 2
