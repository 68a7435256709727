"""A published ini as people have it: odd, broken, half written, mixed with sections of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.waiting import stays, wait_until
from published.conftest import COMMAND, SITE, Institute, told
from spool.config import LiveConfig, SpoolConfig, read_config
from spool.errors import ConfigError

WHOLE = """\
# 外部計算機の設定（日本語の注釈）
[Server]
ipaddress = 192.168.10.231
portnumber = 8082
; もう一つ
[RemoteSites]
remote_site_ids = nims-dev
               rme-u-tokyo

[nims-dev]
commands = /opt/Abaqus/Commands/abaqus
        # 古い: /opt/old
        /opt/fem-ccv/femccv -i a.inp 計算

[rme-u-tokyo]
commands = create_inp_file.sh
"""


def read(folder: Path, text: str | bytes) -> SpoolConfig:
    path = folder / "mi_distributed_computing_assist.ini"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path)


def judge(config: SpoolConfig) -> None:
    assert config.server["listen"] == "192.168.10.231:8082"
    assert set(config.sites) == {"nims-dev", "rme-u-tokyo"}
    assert config.sites["nims-dev"].commands == ("/opt/Abaqus/Commands/abaqus", "/opt/fem-ccv/femccv -i a.inp 計算")


@pytest.mark.parametrize(
    "text",
    [
        WHOLE, WHOLE.replace("\n", "\r\n"), "\ufeff" + WHOLE, "\ufeff" + WHOLE.replace("\n", "\r\n"),
        WHOLE + "\n\n[unlisted]\nx = y\n", WHOLE.replace("[nims-dev]\n", "[nims-dev]\nx = y\n"), WHOLE.replace(" = ", ": "),
        WHOLE.replace("rme-u-tokyo\n\n", "rme-u-tokyo\n               nims-dev rme-u-tokyo\n\n"), WHOLE.replace("    ", "\t"),
        WHOLE.replace("commands", "Commands").replace("ipaddress", "IPADDRESS"), WHOLE.replace(" = ", "="), WHOLE + "\f\n",
    ],
    ids=[
        "whole", "crlf", "bom", "bom crlf", "unlisted", "unknown", "colons", "ids twice", "tabs", "capitals", "no blanks",
        "form feed",
    ],
)  # fmt: skip
def test_what_published_files_look_like(tmp_path: Path, text: str) -> None:
    judge(read(tmp_path, text))


def test_sections_of_ours_add_to_it(tmp_path: Path) -> None:
    more = "[server]\nunclaimed_s = 60\n[site nims-dev]\nusers = alice\ncommands = ccx\n[site ours]\ncommands = *\nenabled = no\n"
    config = read(tmp_path, WHOLE + more)
    assert config.server["listen"] == "192.168.10.231:8082"
    assert config.server["unclaimed_s"] == 60
    assert config.sites["nims-dev"].users == ("alice",)
    assert config.sites["nims-dev"].commands == ("/opt/Abaqus/Commands/abaqus", "/opt/fem-ccv/femccv -i a.inp 計算", "ccx")
    assert not config.sites["ours"].enabled
    assert read(tmp_path, WHOLE + "[server]\nlisten = 127.0.0.1:1\n").server["listen"] == "127.0.0.1:1"


def test_a_site_without_a_section_takes_no_command(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE.partition("[rme-u-tokyo]")[0])
    assert config.sites["rme-u-tokyo"].commands == ()


@pytest.mark.parametrize(
    "text",
    [
        "[Server]\nipaddress = 1.2.3.4\n", "[Server]\n[RemoteSites]\n", "[Server]\n[RemoteSites]\nremote_site_ids =\n",
        "[Server]\n[RemoteSite]\nremote_site_ids = a\n[a]\ncommands = x\n", WHOLE.replace("[RemoteSites]", "[remotesites]"),
        WHOLE.replace("nims-dev\n", "nims-dev,\n"), WHOLE.replace("nims-dev", "計算"), WHOLE + WHOLE,
        "[Server\n", "ipaddress = 1\n",
        WHOLE + "[server]\nunclamed_s = 60\n", WHOLE + "[site nims-dev]\nuser = alice\n",
        WHOLE.encode("shift_jis"), WHOLE.encode("euc_jp"), WHOLE.encode("utf-16"), b"\0" * 100,
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_wrong_is_said_and_never_means_no_sites(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert "mi_distributed_computing_assist.ini" in error.value.message
    assert error.value.hint


def test_half_a_file_leaves_the_whole_one_in_force(tmp_path: Path) -> None:
    """Wherever a slow writer stands before it has named the sites."""
    path = tmp_path / "mi_distributed_computing_assist.ini"
    path.write_text(WHOLE)
    config = LiveConfig(path)
    judge(config.get())
    for word in ("ipaddress", "8082", "emoteSites", "nims-dev"):
        path.write_text(WHOLE[: WHOLE.index(word)])
        judge(config.get())
        assert config.problem
    path.write_text(WHOLE)
    judge(config.get())
    assert not config.problem


def test_a_running_server_keeps_its_sites_while_the_file_is_broken(institute: Institute) -> None:
    ini = institute.rig.root / "spool.ini"
    whole = ini.read_text()
    job = institute.registered()
    ini.write_text(whole[: whole.index("remote_site_ids") + 5])
    stays(lambda: told(institute.poller().request()) == (200, 200), 1, "the site is known", every_s=0.1)
    assert told(institute.submitter().add({"remote-site": SITE, "command": COMMAND})) == (200, 200)
    ini.write_text(whole.replace(COMMAND, "other.sh"))
    other = {"remote-site": SITE, "command": "other.sh"}
    wait_until(lambda: told(institute.submitter().add(other)) == (200, 200), 5, "the file is read again")
    assert institute.poller().params(job).status_code == 200, "what is registered goes on"
