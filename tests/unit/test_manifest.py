"""Listing, patterns and hashes of what strangers leave in a folder."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.crashing import in_child
from spool import manifest
from spool.errors import Busy, InvalidName
from spool.manifest import list_files, match_outputs, matches

YES = [
    ("a.dat", "*.dat"),
    ("a.dat", "a.dat"),
    ("a.dat", "?.dat"),
    ("a.dat", "[ab].dat"),
    ("c.dat", "[!ab].dat"),
    ("c.dat", "[^ab].dat"),
    ("b.dat", "[a-c].dat"),
    ("d/a.dat", "d/*.dat"),
    ("a.dat", "**/*.dat"),
    ("d/e/a.dat", "**/*.dat"),
    ("d/e/a.dat", "d/**"),
    ("d/a.dat", "**"),
    ("a.dat", "**"),
    ("x/d/a", "**/d/a"),
    ("d/a", "**/d/a"),
    ("d/x/y/a", "d/**/a"),
    ("d/a", "d/**/a"),
    ("[", "["),
    ("[x", "[x"),
    ("a]", "a]"),
    ("]", "[]]"),
    ("結果.dat", "*.dat"),
    ("結果.dat", "結?.dat"),
    ("a b", "a b"),
    (".x", "*"),
    ("a.b", "a.b"),
    ("[z-a]", "[z-a]"),
    ("a\\b", "a\\b"),
    ("*", "[*]"),
    ("a+b(c)", "a+b(c)"),
    ("$x^", "$x^"),
    ("a-b", "a[a-]b"),
    ("[!]", "[!]"),
    ("A", "[A-Z]"),
]
NO = [
    ("d/a.dat", "*.dat"),
    ("a.dat", "*.frd"),
    ("a.dat", "A.dat"),
    ("a.dat", ""),
    ("d/a", "d?a"),
    ("d/a", "d[/]a"),
    ("d/a", "d[!x]a"),
    ("axdat", "a.dat"),
    ("a.dat2", "a.dat"),
    ("xa.dat", "a.dat"),
    ("a.dat\n", "a.dat"),
    ("d/e/a", "*/a"),
    ("da", "d/**/a"),
    ("a", "[!a]"),
    ("xd/a", "**/d/a"),
    ("b", "[a-]"),
    ("ab", "?"),
    ("", "?"),
]


@pytest.mark.parametrize(("name", "pattern"), YES)
def test_matches(name: str, pattern: str) -> None:
    assert matches(name, [pattern])


@pytest.mark.parametrize(("name", "pattern"), NO)
def test_does_not_match(name: str, pattern: str) -> None:
    assert not matches(name, [pattern])


@given(st.text(max_size=12), st.text("ab*?[]!^-/\\&~|.", max_size=12))
def test_any_pattern_is_a_pattern(name: str, pattern: str) -> None:
    assert matches(pattern, [pattern])
    assert matches(name, [pattern]) in (True, False)


@given(st.text("ab/", max_size=8), st.text("ab*?/", max_size=8))
def test_a_star_stays_in_its_folder(name: str, pattern: str) -> None:
    if "**" not in pattern and matches(name, [pattern]):
        assert name.count("/") == pattern.count("/")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a" * 200, "*a" * 30 + "b"),
        ("a" * 200, "?*" * 40 + "b"),
        ("a/" * 200 + "a", "**/" * 60 + "b"),
        ("a" * 200, "**a" * 30 + "b"),
        ("a/" * 100 + "a", "*/**/" * 30 + "b"),
        ("a" * 200, "[a-z]*" * 40 + "!"),
    ],
)
def test_no_pattern_takes_for_ever(name: str, pattern: str) -> None:
    """The submitter writes the pattern, the company's agent matches it: a job must not be able to stop the agent."""

    def look() -> None:
        assert not matches(name, [pattern])

    assert in_child(look, deadline_s=3) == 0


def test_match_outputs() -> None:
    names = ["a.dat", "d/b.frd", "log"]
    assert match_outputs(names, ["*.dat", "d/*", "*.sta", "log"]) == (("a.dat", "d/b.frd", "log"), ("*.sta",))
    assert match_outputs(names, []) == ((), ())
    assert match_outputs([], ["a"]) == ((), ("a",))


# ---- listing


def test_an_absent_folder_is_an_empty_one(tmp_path: Path) -> None:
    listing = list_files(tmp_path / "absent")
    assert (dict(listing.files), listing.odd) == ({}, ())


def test_what_is_there_is_listed_and_what_cannot_be_carried_is_told(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    folder = tmp_path / "in"
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "b.dat").write_bytes(b"12345")
    (folder / "d" / "e" / "梁.inp").write_bytes(b"1")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "folder_link").symlink_to(outside)
    (folder / "gone").symlink_to("absent")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)
        server.bind("sock")
    (folder / "-rf").write_bytes(b"")
    (folder / "line\nbreak").write_bytes(b"")
    (folder / "\x1b[31mred").write_bytes(b"")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"\xff.dat"))).write_bytes(b"")
    (folder / "bad\nfolder").mkdir()
    (folder / "bad\nfolder" / "x").write_bytes(b"")
    listing = list_files(folder)
    assert dict(listing.files) == {"b.dat": 5, "d/e/梁.inp": 1}
    assert list(listing.files) == sorted(listing.files)
    told = "\n".join(listing.odd)
    for word in (
        "link: is a symbolic",
        "folder_link: is a symbolic",
        "gone: is a symbolic",
        "fifo: is not",
        "sock: is not",
        "-rf: has",
        "line\\nbreak",
    ):
        assert word in told, word
    assert "\\xff.dat: is not UTF-8" in told
    assert "secret" not in told
    assert all(line.isprintable() for line in listing.odd)
    told.encode("utf-8")


@pytest.mark.parametrize("kind", ["fifo", "file", "link", "socket"])
def test_what_is_no_folder_at_all_neither_blocks_nor_escapes(tmp_path: Path, kind: str) -> None:
    """`in` and `drop/UUID` are made by strangers; up to Python 3.11 os.fwalk opens a FIFO without O_NONBLOCK and waits."""
    path = tmp_path / "in"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.write_bytes(b"")
    elif kind == "link":
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").touch()
        path.symlink_to(tmp_path / "outside")
    else:
        os.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("in")

    def look() -> None:
        try:
            listing = list_files(path)
        except InvalidName:
            return
        assert not listing.files
        assert listing.odd, "it must be told apart from an empty folder"

    assert in_child(look, deadline_s=3) == 0


def test_a_very_deep_tree_is_told_not_died_of(tmp_path: Path) -> None:
    depth = 1100
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    try:
        listing = list_files(tmp_path)
        assert not listing.files
        assert listing.odd
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree recurses too


# ---- hashes


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) * 2 + 17)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    entry = manifest.hash_file(tmp_path, "d/a")
    assert (entry.path, entry.size, entry.sha256) == ("d/a", len(data), hashlib.sha256(data).hexdigest())
    assert [item.path for item in manifest.hash_files(tmp_path, ["empty", "d/a"])] == ["empty", "d/a"]
    assert manifest.hash_file(tmp_path, "empty").sha256 == hashlib.sha256().hexdigest()


def test_a_link_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(InvalidName):
        manifest.hash_file(tmp_path, "x")


def test_a_file_that_changes_meanwhile_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    real = manifest.hash_fd

    def slow(fd: int) -> tuple[str, int]:
        found = real(fd)
        with open(path, "ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(manifest, "hash_fd", slow)
    with pytest.raises(Busy):
        manifest.hash_file(tmp_path, "a")
