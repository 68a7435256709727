"""spool.ini: checked as a whole, read again when it changes, and a slip of an editor stops nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from spool.config import LiveConfig, default_config, find_config, read_config
from spool.errors import CommandNotAllowed, ConfigError, NotAllowed, UnknownSite

GOOD = """
[server]
listen = 127.0.0.1:1
trusted_uids = 1000 1001
min_free = 1G
[site nims-dev]
commands = ccx /opt/x.sh
users = alice 山田
[site far]
mode = ssh
host = far
[site off]
enabled = no
"""


def write(path: Path, text: str) -> Path:
    """As an editor saves: by rename."""
    temp = path.with_suffix(".new")
    temp.write_text(text, encoding="utf-8")
    os.replace(temp, path)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    config = read_config(write(tmp_path / "spool.ini", GOOD))
    assert config.server["trusted_uids"] == (1000, 1001)
    assert config.server["min_free"] == 1 << 30
    assert config.server["drop_quiet_s"] == 60
    site = config.site("nims-dev")
    assert site.commands == ("ccx", "/opt/x.sh")
    site.check_command("ccx")
    site.check_user("山田")
    with pytest.raises(CommandNotAllowed) as caught:
        site.check_command("rm")
    assert "ccx /opt/x.sh" in caught.value.hint
    with pytest.raises(NotAllowed):
        site.check_user("bob")
    with pytest.raises(NotAllowed, match="disabled"):
        config.site("off")
    with pytest.raises(UnknownSite) as missing:
        config.site("elsewhere")
    assert "nims-dev" in missing.value.hint
    config.site("far").check_user("anybody")
    with pytest.raises(CommandNotAllowed):
        config.site("far").check_command("ccx")


def test_the_default_allows_nothing() -> None:
    with pytest.raises(UnknownSite):
        default_config().site("any")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\ntrusted_uids = root", ["trusted_uids", "root", "id -u"]),
        ("[site a/b]\n", ["[site a/b]"]),
        ("[site ..]\n", ["[site ..]"]),
        ("[site a]\nusers = a/b", ["[site a]", "a/b"]),
        ("[site a]\nenv_allow = A=B", ["[site a]", "A=B"]),
        ("[site a]\nmode = ssh", ["[site a]", "host"]),
        ("[site a]\nmode = ssh\nhost = -oProxyCommand=x", ["host"]),
        ("[site a]\nmode = ssh\nhost = h\nbase = tmp", ["base"]),
        ("[site a]\nmode = ftp", ["mode = ftp", "webapi, ssh"]),
        ("[server]\ndrop_quiet = 5", ["drop_quiet", "'drop_quiet_s'"]),
        ("[site a]\ncommand = ccx", ["command", "'commands'"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path / "spool.ini", text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    told = caught.value.message + caught.value.hint
    assert [word for word in [str(path), *words] if word not in told] == []


def test_read_again_when_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "spool.ini", GOOD)
    live = LiveConfig(path)
    first = live.get()
    assert live.get() is first
    write(path, GOOD + "[site new]\ncommands = *\n")
    assert "new" in live.get().sites
    assert live.problem == ""


def test_half_of_a_file_is_not_read(tmp_path: Path) -> None:
    """Some editors write into the file itself, in pieces; the first piece is a valid file without the site."""
    path = write(tmp_path / "spool.ini", GOOD)
    live = LiveConfig(path)
    begun = threading.Event()

    def save() -> None:
        with open(path, "w", encoding="utf-8") as file:
            for line in GOOD.splitlines(keepends=True):
                file.write(line)
                file.flush()
                begun.set()
                threading.Event().wait(0.02)

    writer = threading.Thread(target=save)
    writer.start()
    assert begun.wait(10)
    seen = live.get().sites.keys()
    writer.join()
    assert seen == read_config(path).sites.keys()


@pytest.mark.parametrize("broken", ["[server]\nlissten = 1", "[server", "\x00", "[site a]\nmode = ftp"])
def test_a_broken_file_keeps_the_last_good_one(tmp_path: Path, broken: str) -> None:
    path = write(tmp_path / "spool.ini", GOOD)
    live = LiveConfig(path)
    good = live.get()
    write(path, broken)
    assert live.get() is good
    assert str(path) in live.problem
    assert live.get() is good
    assert live.problem, "the problem stays told until it is mended"
    path.unlink()
    assert live.get() is good
    assert live.problem
    write(path, GOOD)
    assert live.get().sites.keys() == good.sites.keys()
    assert live.problem == ""


def test_broken_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        LiveConfig(write(tmp_path / "spool.ini", "[x]"))
    with pytest.raises(ConfigError):
        LiveConfig(tmp_path / "absent.ini")
    assert LiveConfig(None).get().sites == {}


def test_which_file(tmp_path: Path) -> None:
    given = write(tmp_path / "given.ini", GOOD)
    spool = tmp_path / "spool"
    spool.mkdir()
    assert find_config(None, None) is None
    assert find_config(None, spool) is None
    assert find_config(given, spool) == given
    (spool / "spool.ini").symlink_to(given)
    assert find_config(None, spool) == spool / "spool.ini"


def test_a_link_to_a_configuration_that_is_gone_is_not_no_configuration(tmp_path: Path) -> None:
    """With the defaults in force every drop would be rejected as for an unknown site."""
    (tmp_path / "spool.ini").symlink_to(tmp_path / "moved.ini")
    with pytest.raises(ConfigError):
        LiveConfig(find_config(None, tmp_path))
