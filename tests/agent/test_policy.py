"""What may run: every rule of the site against jobs that keep it and jobs that break it, without any process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from components.rig import Section, write_ini
from spool.agent import policy
from spool.agent.config import AgentConfig, finish_config, read_config
from spool.errors import Refused
from spool.names import new_id
from spool.records import FileEntry, Input, Job, JobState
from spool.states import State

SITE = "site-a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    token = tmp_path / "token"
    token.write_text("abcdefgh")
    token.chmod(0o600)
    return tmp_path


def law(folder: Path, **command: Any) -> AgentConfig:
    own: Section = {"site": SITE, "url": "http://127.0.0.1:1", "token_file": "token", "base": "base"}
    section: Section = {"argv": "/usr/bin/ccx {args}", "args": r"-?[A-Za-z0-9_.]+", **command}
    return finish_config(read_config(write_ini(folder / "agent.ini", {"agent": own, "command ccx": section})), {})


def order(config: AgentConfig, *, inputs: tuple[str, ...] = (), user: str = "mint", site: str = SITE, **job: Any) -> policy.Order:
    asked = Job(**{"site": site, "command": "ccx", "inputs": tuple(map(Input, inputs)), **job})
    entries = tuple(FileEntry(name, 1, "0" * 64) for name in inputs)
    state = JobState(id=new_id(), site=site, command=asked.command, user=user, revision=1, state=State.CLAIMED, inputs=entries)
    return policy.allow(config, asked, state, folder_of(config) / "work")


def folder_of(config: AgentConfig) -> Path:
    assert config.source
    return config.source.parent


def refused(config: AgentConfig, why: str, **job: Any) -> None:
    with pytest.raises(Refused, match=why) as caught:
        order(config, **job)
    assert caught.value.code == "refused_by_site"


def test_arguments_take_the_place_of_args(folder: Path) -> None:
    config = law(folder, argv="/bin/run 'a b' {args} -- end")
    assert order(config, args=("x", "-y")).argv == ("/bin/run", "a b", "x", "-y", "--", "end")
    assert order(config).argv == ("/bin/run", "a b", "--", "end")


@pytest.mark.parametrize("command", ["", "CCX", "ccx ", " ccx", "/usr/bin/ccx", "sh", "ccx\u200b", "ccx2", "../ccx"])
def test_only_listed_commands(folder: Path, command: str) -> None:
    refused(law(folder), "is not allowed", command=command)


def test_only_its_own_site(folder: Path) -> None:
    refused(law(folder), "this is site-a", site="site-b")


@pytest.mark.parametrize("user", ["bob", "Alice", "alice2", "alic", ""])
def test_only_listed_users(folder: Path, user: str) -> None:
    refused(law(folder, users="alice carol"), "may not run", user=user)
    assert order(law(folder, users="alice carol"), user="carol")
    assert order(law(folder), user=user), "no list: every user"


@pytest.mark.parametrize(
    "arg", ["", "a b", "a;b", "$(x)", "ok\n", "\nok", "ok\nok", "ok ", "a/b", "日本", "--x", "a\x00", "ok\r", "ok\u2028"]
)
def test_each_argument_matches_as_a_whole(folder: Path, arg: str) -> None:
    refused(law(folder), "argument 2", args=("ok", arg))


def test_an_anchored_pattern_does_not_let_a_newline_in(folder: Path) -> None:
    refused(law(folder, args="^ok$"), "argument 1", args=("ok\n",))


def test_an_alternative_is_matched_as_a_whole(folder: Path) -> None:
    refused(law(folder, args="a|b"), "argument 1", args=("ab",))
    refused(law(folder, args="a|b"), "argument 1", args=("bx",))


def test_no_arguments_where_none_are_taken(folder: Path) -> None:
    config = law(folder, argv="/usr/bin/ccx -i fixed", args=".*")
    refused(config, "takes no arguments", args=("x",))
    assert order(config).argv == ("/usr/bin/ccx", "-i", "fixed")


def test_braces_of_a_job_stay_what_they_are(folder: Path) -> None:
    assert order(law(folder, args="(?s).*"), args=("{args}", "{user}", "%s")).argv[1:] == ("{args}", "{user}", "%s")


# ---- inputs


def test_any_ordinary_name_by_default(folder: Path) -> None:
    assert order(law(folder), inputs=("beam.inp", "mesh/入力 1.inc", "a.b.c", "env", "x.env.txt"))


SPECIAL = (".bashrc", "abaqus_v6.env", "a/abaqus_v6.env", "a/.hidden", ".ssh/config", "a/.b/c", ".env", ".a/x.inp")


@pytest.mark.parametrize(
    "patterns", ["**", "*", "* **", "**/*", "*.*", "*/*", "**/*.*", "?*", "[!x]*", "***", "**/**", "a/*", "a/**"]
)
def test_files_that_solvers_execute_need_a_pattern_of_their_own(folder: Path, patterns: str) -> None:
    """A pattern is one of their own where it writes the dot, or `.env`, itself; a wildcard never stands for them."""
    let_in = []
    config = law(folder, inputs_allow=patterns)
    for name in SPECIAL:
        with contextlib.suppress(Refused):
            order(config, inputs=(name,))
            let_in.append(name)
    assert let_in == []


@pytest.mark.parametrize(
    ("patterns", "name"),
    [
        ("** .bashrc", ".bashrc"),
        ("*.env", "abaqus_v6.env"),
        ("** **/*.env", "a/abaqus_v6.env"),
        (".*", ".x"),
        (".ssh/config", ".ssh/config"),
    ],
)
def test_a_pattern_of_their_own_lets_them_in(folder: Path, patterns: str, name: str) -> None:
    assert order(law(folder, inputs_allow=patterns), inputs=(name,))


@pytest.mark.parametrize("name", ["beam.sh", "sub/beam.inp", "beam.inp.bak", "BEAM.INP", "xbeam.inp/x"])
def test_only_listed_inputs(folder: Path, name: str) -> None:
    refused(law(folder, inputs_allow="*.inp"), re.escape(repr(name)), inputs=("good.inp", name))


def test_the_record_decides_not_the_wish(folder: Path) -> None:
    """The manifest that is fetched is the one that is judged, whatever job.json says."""
    config = law(folder, inputs_allow="*.inp")
    entries = (FileEntry("evil.sh", 1, "0" * 64),)
    state = JobState(id=new_id(), site=SITE, command="ccx", user="mint", revision=1, state=State.CLAIMED, inputs=entries)
    with pytest.raises(Refused):
        policy.allow(config, Job(site=SITE, command="ccx", inputs=(Input("good.inp"),)), state, folder)


# ---- environment and limits


def test_environment_is_from_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    config = law(folder, **{"env.LM_LICENSE_FILE": "27000@lic = x", "env.PATH": "/opt/bin"})
    site_env = order(config).site_env
    assert set(site_env) == {"PATH", "HOME", "LANG", "MINT_SPOOL_JOB", "MINT_SPOOL_COMMAND", "LM_LICENSE_FILE"}
    assert site_env["LM_LICENSE_FILE"] == "27000@lic = x"
    assert site_env["PATH"] == "/opt/bin"
    assert site_env["HOME"] == str(folder / "work")


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PATH", "omp_num_threads", "OMP_NUM_THREADS2"])
def test_only_listed_variables(folder: Path, name: str) -> None:
    config = law(folder, env_allow="OMP_NUM_THREADS B")
    refused(config, name, env={name: "1", "OMP_NUM_THREADS": "2"})
    assert order(config, env={"OMP_NUM_THREADS": "2"}).job_env == {"OMP_NUM_THREADS": "2"}
    refused(law(folder), name, env={name: ""})


@pytest.mark.parametrize(("site", "job", "limit"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (7, 5, 5)])
def test_the_shorter_wall_time_holds(folder: Path, site: int | None, job: int | None, limit: int | None) -> None:
    config = law(folder, **({"wall_time_s": site} if site else {}))
    assert order(config, wall_time_s=job).wall_time_s == limit
