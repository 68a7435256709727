"""The converters, and that nothing in an ini file is silently without effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spool import options as o
from spool.config import SECTIONS as PRODUCT
from spool.errors import ConfigError
from spool.options import Option, Section, parse_ini, read_ini

SECTIONS = (
    Section("server", (Option("listen", o.text, "x", "where"), Option("threads", o.integer(1, 9), 4, "how many"))),
    Section("site", (Option("commands", o.words, (), "which"),), titled=True, free="env."),
)


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (o.text, "a b = c # d", "a b = c # d"),
        (o.words, "a  b\n c\t日本", ("a", "b", "c", "日本")),
        (o.words, "", ()),
        (o.argv, "/opt/x 'a b' {args} \"c d\"", ("/opt/x", "a b", "{args}", "c d")),
        (o.path, "~/x", Path("~/x").expanduser()),
        (o.boolean, "yes", True),
        (o.boolean, "No", False),
        (o.boolean, "on", True),
        (o.boolean, "FALSE", False),
        (o.boolean, "1", True),
        (o.integer(-5, 5), "-5", -5),
        (o.integer(0, 9), "007", 7),
        (o.seconds(0.05, 9), "0.05", 0.05),
        (o.seconds(0, 9), "9", 9.0),
        (o.size, "0", 0),
        (o.size, "16M", 16 << 20),
        (o.size, "16 MiB", 16 << 20),
        (o.size, "2k", 2048),
        (o.size, "1T", 1 << 40),
        (o.size, "7B", 7),
        (o.choice("a", "b"), "b", "b"),
        (o.pattern, "[a-z]+", re.compile("[a-z]+")),
    ],
)
def test_converters(convert: Any, text: str, value: Any) -> None:
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text"),
    [
        (o.text, "a\nb"),
        (o.argv, ""),
        (o.argv, "'open"),
        (o.path, ""),
        (o.boolean, ""),
        (o.boolean, "maybe"),
        (o.boolean, "y"),
        (o.integer(1, 5), "0"),
        (o.integer(1, 5), "6"),
        (o.integer(1, 5), "1.0"),
        (o.integer(1, 5), ""),
        (o.integer(1, 5), "1_0"),
        (o.integer(1, 5), "0x1"),
        (o.integer(1, 5), "9" * 5000),
        (o.seconds(1, 5), "-1"),
        (o.seconds(1, 5), "nan"),
        (o.seconds(1, 5), "inf"),
        (o.seconds(1, 5), "1e0"),
        (o.seconds(1, 5), "5.1"),
        (o.size, "-1"),
        (o.size, "1P"),
        (o.size, "M"),
        (o.size, ""),
        (o.size, "1.5G"),
        (o.size, "16iB"),
        (o.choice("a"), "A"),
        (o.choice("a"), ""),
        (o.pattern, "["),
        (o.pattern, "a{99999999999999}"),
    ],
)
def test_converters_refuse(convert: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        convert(text)


def test_defaults_and_values() -> None:
    ini = parse_ini("[server]\nListen = 1\n[site a]\ncommands = x\n  y\nenv.FOO = bar\n[site  b]\n", SECTIONS, "f.ini")
    assert ini.one("server") == {"listen": "1", "threads": 4}
    assert ini.titled("site") == {"a": {"commands": ("x", "y"), "env": {"FOO": "bar"}}, "b": {"commands": (), "env": {}}}
    assert parse_ini("", SECTIONS, "f.ini").one("server") == {"listen": "x", "threads": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nlissten = 1", ["f.ini", "[server]", "lissten", "'listen'"]),
        ("[site a]\ncomands = x", ["[site a]", "comands", "'commands'"]),
        ("[server]\nqqqq = 1", ["qqqq", "listen, threads"]),
        ("[sever]\nlisten = 1", ["[sever]", "[server]", "[site NAME]"]),
        ("[site]\ncommands = x", ["[site]", "[site NAME]"]),
        ("[server x]\nlisten = 1", ["[server x]"]),
        ("[server]\nthreads = 10", ["threads = 10", "1 to 9"]),
        ("[server]\nlisten", ["f.ini"]),
        ("listen = 1", ["f.ini"]),
        ("[server]\nlisten = 1\nlisten = 2", ["f.ini", "listen"]),
        ("[server]\n[server]", ["f.ini"]),
        ("[DEFAULT]\nlisten = 1", ["[DEFAULT]"]),
    ],
)
def test_a_slip_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_ini(text, SECTIONS, "f.ini")
    told = caught.value.message + caught.value.hint
    assert [word for word in words if word not in told] == []
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[site a]\ncommands = x\n[site  a]\ncommands = y",
        "[site a]\ncommands = x\n[site a ]\ncommands = y",
        "[server]\nlisten = 1\n[server ]\nthreads = 2",
        "[site a]\ncommands = x\nCommands = y",
    ],
)
def test_what_is_given_twice_in_two_spellings_is_a_slip_too(text: str) -> None:
    """Otherwise one of the two rules silently does not hold."""
    with pytest.raises(ConfigError):
        parse_ini(text, SECTIONS, "f.ini")


def test_values_are_taken_as_they_stand() -> None:
    ini = parse_ini("[server]\nlisten = %(x)s ${y} %% ; no comment # either\n", SECTIONS, "f.ini")
    assert ini.one("server")["listen"] == "%(x)s ${y} %% ; no comment # either"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for make, word in (
        (lambda path: None, "does not exist"),
        (Path.mkdir, "cannot be read"),
        (lambda path: path.write_bytes(b"\xff"), "cannot be read"),
    ):
        path = tmp_path / word.replace(" ", "_") / "x.ini"
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            path.rmdir()
        make(path)  # type: ignore[operator]
        with pytest.raises(ConfigError, match=word) as caught:
            read_ini(path, SECTIONS)
        assert str(path) in caught.value.message
    (tmp_path / "bom.ini").write_bytes(b"\xef\xbb\xbf[server]\nlisten = 1\n")
    assert read_ini(tmp_path / "bom.ini", SECTIONS).one("server")["listen"] == "1"


def test_every_option_of_the_product_has_a_meaning_and_a_default_that_holds() -> None:
    for section in PRODUCT:
        for option in section.options:
            assert option.meaning, option.name
            if option.sample:
                option.convert(option.sample)
