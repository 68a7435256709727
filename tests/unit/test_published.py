"""The small parts under the published protocol: its ini, its words, names that are patterns, scratch folders, files adopted."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.spools import SITE, USER, new_store, quick_job
from spool import published
from spool.config import LiveConfig, read_config
from spool.errors import ConfigError, Conflict, InvalidName
from spool.incoming import Digests, Incoming
from spool.manifest import matches
from spool.patterns import escape, literal
from spool.published import media_type
from spool.scratch import scratch, sweep
from spool.states import FINAL, State
from spool.store import Store
from spool.streams import Stored

INI = """\
[Server]
ipaddress = 192.168.10.231
portnumber = 8082
[RemoteSites]
remote_site_ids = nims-dev
               rme-u-tokyo
[nims-dev]
commands = /opt/Abaqus/Commands/abaqus
        /opt/fem-ccv/femccv
[rme-u-tokyo]
commands = create_inp_file.sh
"""


def ini(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mi_distributed_computing_assist.ini"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_ini_as_it_is(tmp_path: Path) -> None:
    config = read_config(ini(tmp_path, INI))
    assert (config.server["listen"], config.server["allow_http"]) == ("192.168.10.231:8082", True)
    assert {name: site.commands for name, site in config.sites.items()} == {
        "nims-dev": ("/opt/Abaqus/Commands/abaqus", "/opt/fem-ccv/femccv"),
        "rme-u-tokyo": ("create_inp_file.sh",),
    }
    assert config.sites["nims-dev"].users == ()


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("[RemoteSites]\nremote_site_ids = a b\n[a]\ncommands = sh job.sh\n", {"a": ("sh job.sh",), "b": ()}),
        ("[RemoteSites]\nREMOTE_SITE_IDS = a\n[a]\nCommands = x\n[not-listed]\ncommands = y\n", {"a": ("x",)}),
        ("[Server]\nipaddress = ::1\n[RemoteSites]\nremote_site_ids: a\n[a]\ncommands: x\n", {"a": ("x",)}),
        ("[DEFAULT]\ncommands = x\n[RemoteSites]\nremote_site_ids = a\n[a]\n[server]\nmin_free = 1G\n", {"a": ("x",)}),
        ("[RemoteSites]\nremote_site_ids = a\nremark = y\n[a]\ncommands = 100%% x\nowner = z\n", {"a": ("100% x",)}),
        (INI + "[server]\nmin_free = 1G\n[site nims-dev]\nusers = alice\ncommands = ccx\n[site new]\ncommands = z\n", None),
    ],
)
def test_other_forms_of_it(tmp_path: Path, text: str, sites: dict[str, tuple[str, ...]] | None) -> None:
    config = read_config(ini(tmp_path, text))
    if sites is not None:
        assert {name: site.commands for name, site in config.sites.items()} == sites
        assert "Server" not in text or config.server["listen"] == "[::1]:8082"
    else:
        assert config.server["min_free"] == 1 << 30
        assert config.sites["nims-dev"].commands == ("/opt/Abaqus/Commands/abaqus", "/opt/fem-ccv/femccv", "ccx")
        assert config.sites["nims-dev"].users == ("alice",)
        assert config.sites["new"].commands == ("z",)


@pytest.mark.parametrize(
    "wrong", ["[Server]\nportnumber = 1\n", "[RemoteSites]\nremote_site_ids = \n", "[RemoteSites]\nremote_site_ids = ../a\n",
              "[RemoteSites]\nremote_site_ids = a\n[site a]\ncomands = x\n"],
)  # fmt: skip
def test_what_is_wrong_in_it_is_named(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="mi_distributed"):
        read_config(ini(tmp_path, wrong))


def test_it_is_read_again_even_where_time_and_size_stay(tmp_path: Path) -> None:
    path = ini(tmp_path, INI)
    live = LiveConfig(path)
    before = path.stat()
    with open(path, "r+", encoding="utf-8") as file:
        file.write(INI.replace("femccv", "FEMCCV"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "/opt/fem-ccv/FEMCCV" in live.get().sites["nims-dev"].commands


@given(st.text("ab*?[]!^-/日", min_size=1, max_size=8))
def test_an_escaped_name_matches_itself_alone(name: str) -> None:
    assert literal(escape(name)) == name
    assert matches(name, (escape(name),))
    assert not matches(name + "x", (escape(name),))


@pytest.mark.parametrize("pattern", ["*", "a?", "[ab]", "[a-b]", "[!a]", "**/x", "a*[*]"])
def test_a_pattern_is_no_name(pattern: str) -> None:
    assert literal(pattern) is None


BINARY = ("application/octet-stream;", "charset=binary")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ("inode/x-empty;", "charset=binary")), (b"abc\n", ("text/plain;", "charset=us-ascii")),
        ("計算".encode(), ("text/plain;", "charset=utf-8")), ("計算".encode()[:-1], BINARY), (b"a\0b", BINARY),
        ("計".encode("euc-jp"), BINARY), (b"x" * 300_000 + "計".encode(), ("text/plain;", "charset=utf-8")),
    ],
)  # fmt: skip
def test_media_types(data: bytes, expected: tuple[str, str]) -> None:
    assert media_type(io.BytesIO(data)) == expected


def test_every_state_has_its_words() -> None:
    assert set(published.PROGRESS) == set(published.STATUS) == set(State)
    assert {state for state in State if published.PROGRESS[state][0] == published.GOT_RETURN} == FINAL


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "spool")


def test_scratch_is_swept_only_where_nobody_works(store: Store) -> None:
    left = store.paths.tmp / "published.left"
    left.mkdir()
    (left / "000000").write_bytes(b"x")
    kept = store.paths.tmp / "accept.other"
    kept.mkdir()
    with scratch(store.paths, "published") as folder:
        assert sweep(store.paths) == [], "all are young"
        assert sweep(store.paths, min_age_s=-1) == ["published.left"]
        assert folder.exists()
    assert sorted(path.name for path in store.paths.tmp.iterdir()) == ["accept.other"]


def stored(path: Path, data: bytes) -> Stored:
    path.write_bytes(data)
    return Stored(path, len(data), hashlib.sha256(data))


def test_adopted_files_replace_what_was_sent_before(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "incoming", Digests())
    incoming.adopt({"out/a": stored(tmp_path / "1", b"first"), "out/old": stored(tmp_path / "2", b"old")})
    incoming.append("out/b/c", 0, io.BytesIO(b"half"), 4)
    incoming.adopt({"out/a": stored(tmp_path / "3", b"second"), "log/x": stored(tmp_path / "4", b"")})
    found = {str(path.relative_to(incoming.files)): path.read_bytes() for path in incoming.files.rglob("*") if path.is_file()}
    assert found == {"out/a": b"second", "log/x": b""}
    assert incoming.entry("out/a").sha256 == hashlib.sha256(b"second").hexdigest()
    assert incoming.offset("out/b/c") == 0
    with pytest.raises(InvalidName):
        incoming.adopt({"out/../x": stored(tmp_path / "5", b"")})


def test_claim_one_and_withdraw(store: Store) -> None:
    state = quick_job(store)
    claimed = store.claim_one(state.id, agent="poller-1@host")
    assert (claimed.state, claimed.agent) == (State.CLAIMED, "poller-1@host")
    assert store.queue.waiting(SITE, [USER]) == []
    assert store.queue.active(SITE, "poller-1@host") == [state.id]
    with pytest.raises(Conflict):
        store.claim_one(state.id, agent="poller-2@host")
    store.start(state.id, claimed.run_id, by="poller-1@host")
    withdrawn = store.withdraw(state.id, by=USER)
    assert withdrawn.state == State.RUNNING
    assert withdrawn.cancel_requested_at
    assert withdrawn.withdrawn_at
    assert store.withdraw(state.id, by=USER).withdrawn_at == withdrawn.withdrawn_at
    other = quick_job(store)
    assert store.withdraw(other.id, by=USER).state == State.CANCELED
    assert store.state(other.id).withdrawn_at
