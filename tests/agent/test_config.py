"""The agent's ini, its command line and its exit codes, from the outside: what a person types and reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import requests

from agent.company import SITE, Company
from agent.wire import Act, Wire
from components.process import clean_env, run
from components.rig import REPO, Section, write_ini
from spool.addresses import published_url
from spool.agent.arguments import parse
from spool.agent.config import SECTIONS, finish_config, read_config, read_token
from spool.errors import ConfigError
from spool.options import Option

CCX: Section = {"argv": "/usr/bin/ccx {args}", "args": "[a-z]+"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program somewhere without an etc/ beside it."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copy(REPO / "spool_agent.py", folder)
    shutil.copytree(REPO / "spool", folder / "spool", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "spool_agent.py"


def agent(program: Path, home: Path, *args: object, deadline_s: float = 30) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, program, *map(str, args)], env=clean_env(home), cwd=home, check=False, deadline_s=deadline_s)


def ini(folder: Path, agent: dict[str, Any] | None = None, **sections: Section) -> Path:
    token = folder / "token"
    token.write_text("a" * 64 + "\n")
    token.chmod(0o600)
    own = {"site": SITE, "url": "http://127.0.0.1:1", "token_file": "token", "base": "base", **(agent or {})}
    return write_ini(folder / "agent.ini", {"agent": own, **{name.replace("_", " "): value for name, value in sections.items()}})


# ---- agent.ini


def test_every_option_has_its_default_and_no_other(tmp_path: Path) -> None:
    config = read_config(write_ini(tmp_path / "agent.ini", {"command ccx": CCX}))
    agent_options, release_options = ({option.name for option in section.options} for section in SECTIONS[:2])
    assert set(config.agent) == agent_options
    assert set(config.release) == release_options
    assert (config.release["allow"], config.release["logs"]) == ((), "withhold"), "by default nothing leaves"


@pytest.mark.parametrize("option", [item for section in SECTIONS for item in section.options], ids=lambda option: option.name)
def test_a_misspelled_option_is_named(tmp_path: Path, option: Option) -> None:
    kind = next(section for section in SECTIONS if option in section.options)
    title = "command ccx" if kind.titled else kind.name
    path = write_ini(tmp_path / "agent.ini", {title: {f"{option.name}x": "1"}})
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert option.name in caught.value.hint
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "section", ["Agent", "agents", "command", "release x", "releases", "command  ", "agent x", "DEFAULT", "site nims"]
)
def test_an_unknown_section_is_an_error(tmp_path: Path, section: str) -> None:
    path = tmp_path / "agent.ini"
    path.write_text(f"[{section}]\n")
    with pytest.raises(ConfigError):
        read_config(path)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("agent", "slots", "0"), ("agent", "slots", "1001"), ("agent", "slots", "two"), ("agent", "wait_s", "26"),
        ("agent", "poll_s", "0"), ("agent", "poll_s", "nan"), ("agent", "poll_s", "-1"), ("agent", "allow_http", "maybe"),
        ("agent", "chunk", "16 MB s"), ("agent", "chunk", "0"), ("agent", "chunk", "100"), ("agent", "min_free", "-1"),
        ("agent", "base", ""), ("release", "logs", "yes"), ("release", "hold", "always"), ("release", "max_files", "0"),
        ("command ccx", "argv", ""), ("command ccx", "argv", "ccx {args"), ("command ccx", "argv", "ccx -i{args}"),
        ("command ccx", "argv", "ccx {user}"), ("command ccx", "argv", "ccx 'unclosed"), ("command ccx", "args", "["),
        ("command ccx", "users", "a/b"), ("command ccx", "users", "-x"), ("command ccx", "env_allow", "A=B"),
        ("command ccx", "env.A B", "x"), ("command ccx", "env.", "x"), ("command ccx", "executor", "slurm"),
        ("command ccx", "wall_time_s", "0"), ("command ccx", "wall_time_s", "1.5"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_an_error(tmp_path: Path, section: str, option: str, value: str) -> None:
    sections: dict[str, dict[str, Any]] = {"command ccx": dict(CCX)}
    sections.setdefault(section, {})[option] = value
    with pytest.raises(ConfigError) as caught:
        read_config(write_ini(tmp_path / "agent.ini", sections))
    assert str(tmp_path) in caught.value.message


def test_arguments_need_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pattern"):
        read_config(write_ini(tmp_path / "agent.ini", {"command ccx": {"argv": "ccx {args}"}}))
    with pytest.raises(ConfigError, match="needs argv"):
        read_config(write_ini(tmp_path / "agent.ini", {"command ccx": {"args": "x"}}))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write_ini(
        tmp_path / "sub" / "agent.ini",
        {"agent": {"base": "../b", "token_file": "t", "ca_file": "/abs/ca", "log": "l"}},
    )
    found = read_config(path).agent
    assert (found["base"], found["token_file"], found["log"]) == (path.parent / "../b", path.parent / "t", path.parent / "l")
    assert str(found["ca_file"]) == "/abs/ca"


def test_a_command_may_be_a_path_and_quotes_keep_blanks(tmp_path: Path) -> None:
    sections: dict[str, Section] = {"command /opt/my solver.sh": {"argv": "'/opt/my solver.sh' --x '' {args}", "args": ".*"}}
    command = read_config(write_ini(tmp_path / "agent.ini", sections)).commands["/opt/my solver.sh"]
    assert command.argv == ("/opt/my solver.sh", "--x", "", "{args}")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o644, 0o660, 0o777])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("secret-token-1234")
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_token(path)
    assert "chmod 600" in caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"one\ntwo\n", b"\xff\xfe", "全角".encode()])
def test_a_token_file_holds_one_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_token(path)


def test_token_files_that_work(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for mode in (0o600, 0o400):
        path.write_bytes(b"  abc\n") if not path.exists() else None
        path.chmod(mode)
        assert read_token(path) == "abc"


@pytest.mark.parametrize(
    ("url", "allow_http", "good"),
    [
        ("https://mint.example.jp:50443", False, True), ("https://mint.example.jp/base", False, True),
        ("http://127.0.0.1:8082", False, True), ("http://localhost:1", False, True), ("http://[::1]:1", False, True),
        ("http://mint.example.jp", False, False), ("http://mint.example.jp", True, True), ("mint.example.jp", False, False),
        ("ftp://mint.example.jp", False, False), ("", False, False), ("https://", False, False),
        # A name is no address: whoever owns the domain would be sent the token in the clear.
        ("http://127.example.com", False, False), ("http://127.0.0.1.example.com", False, False),
        ("https://mint.example.jp:99999", False, False),
    ],
)  # fmt: skip
def test_url(tmp_path: Path, url: str, allow_http: bool, good: bool) -> None:
    config = read_config(ini(tmp_path, {"url": url, "allow_http": "yes" if allow_http else "no"}))
    if good:
        assert finish_config(config, {}).agent["url"] == url
    else:
        with pytest.raises(ConfigError):
            finish_config(config, {})


# ---- the published command line


@pytest.mark.parametrize(
    ("text", "port", "meant"),
    [
        ("mint.example.jp", 0, "https://mint.example.jp:50443"),
        ("http://mint.example.jp", 0, "https://mint.example.jp:50443"),
        ("https://mint.example.jp:8443", 0, "https://mint.example.jp:8443"),
        ("https://mint.example.jp:8443", 1234, "https://mint.example.jp:1234"),
        ("https://mint.example.jp/base/", 0, "https://mint.example.jp:50443/base"),
        ("localhost:8082", 0, "http://localhost:8082"), ("127.0.0.1", 8082, "http://127.0.0.1:8082"),
        ("https://localhost", 0, "https://localhost:50443"), ("http://[::1]:8082", 0, "http://[::1]:8082"),
        ("127.0.0.1.example.com", 0, "https://127.0.0.1.example.com:50443"),
        ("127.example.com", 0, "https://127.example.com:50443"),
    ],
)  # fmt: skip
def test_published_url(text: str, port: int, meant: str) -> None:
    assert published_url(text, port) == meant


def test_published_words() -> None:
    args = parse(["nims-dev", "https://h", "tok", "port:8443", "retry:3,1.5", "calc_base:/x y", "no_auth:/ca.pem", "debug"])
    assert (args.site, args.url, args.token) == ("nims-dev", "https://h:8443", "tok")
    assert (args.retry, args.calc_base, args.ca_file, args.no_auth, args.debug) == ((3, 1.5), "/x y", "/ca.pem", False, True)
    plain = parse(["nims-dev", "h", "tok"])
    assert (plain.retry, plain.calc_base, plain.no_auth, plain.ca_file) == ((5, 60.0), "/tmp", False, "")
    assert parse(["nims-dev", "h", "tok", "no_auth"]).no_auth
    assert parse(["--once"]).retry is None


@pytest.mark.parametrize(
    "words",
    [
        ["site"], ["site", "url"], ["site", "url", "tok", "port:x"], ["site", "url", "tok", "port:"],
        ["site", "url", "tok", "port:99999"], ["site", "url", "tok", "port:0"], ["site", "url", "tok", "retry:5"],
        ["site", "url", "tok", "retry:x,1"], ["site", "url", "tok", "retry:-1,1"], ["site", "url", "tok", "calc_base:"],
        ["site", "url", "tok", "prot:8443"], ["site", "url", "tok", "debug:yes"], ["site", "http://[", "tok"],
        ["site", "", "tok"], ["site", "h:99999", "tok"], ["--wrong"], ["check", "now"],
        # An empty variable in a script must not switch the verification off.
        ["site", "url", "tok", "no_auth:"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_words_end_with_2_and_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert "SITE URL TOKEN|@FILE" in capsys.readouterr().err


# ---- the program


def test_without_any_ini_78_names_init(bare: Path, home: Path) -> None:
    for words in ([], ["--once"], ["check"], [SITE, "127.0.0.1:1", "tok"]):
        done = agent(bare, home, *words)
        assert done.returncode == 78, (words, done)
        assert "spool_agent.py init" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_named_ini_that_is_not_there_is_78(bare: Path, home: Path) -> None:
    done = agent(bare, home, "--config", "nowhere.ini")
    assert (done.returncode, "nowhere.ini" in done.stderr) == (78, True)


def test_init_writes_once(bare: Path, home: Path) -> None:
    target = home / "a b" / "agent.ini"
    done = agent(bare, home, "init", "--config", target, "--site", SITE, "--url", "https://h:1", "--token-file", "t")
    assert done.returncode == 0, done.stderr
    assert target.stat().st_mode & 0o777 == 0o600
    config = read_config(target)
    assert (config.agent["site"], config.agent["url"], config.agent["token_file"]) == (SITE, "https://h:1", target.parent / "t")
    assert config.commands == {}
    target.write_text("mine")
    again = agent(bare, home, "init", "--config", target)
    assert again.returncode == 2
    assert target.read_text() == "mine"
    assert "not touched" in again.stderr


def test_init_without_a_name_is_found_afterwards(bare: Path, home: Path) -> None:
    assert agent(bare, home, "init").returncode == 0
    assert (home / ".config" / "mint-spool" / "agent.ini").exists()
    done = agent(bare, home)
    assert done.returncode == 78
    assert "site" in done.stderr


def test_init_into_a_file_says_why(bare: Path, home: Path) -> None:
    (home / "file").write_text("x")
    done = agent(bare, home, "init", "--config", home / "file" / "agent.ini")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def lines(done: subprocess.CompletedProcess[str], word: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(word)]


def test_check_finds_nothing(company: Company) -> None:
    company.start("--once").wait(20)
    done = run([sys.executable, REPO / "spool_agent.py", "check", "--config", company.folder / "agent.ini"],
               env=company.rig.env, check=False)  # fmt: skip
    assert (done.returncode, lines(done, "problem")) == (0, []), done.stdout
    assert len(lines(done, "ok")) >= 8
    viewer = {"Authorization": f"Bearer {company.rig.token('watcher', 'viewer')}"}
    seen = requests.get(f"{company.rig.url}/metrics", headers=viewer, timeout=30).text
    assert "contact_age_seconds{" in seen
    assert 'agent="check"' not in seen, "it is no agent, which would be late from now on"


def test_check_for_a_gate(company: Company) -> None:
    """The agent.ini of a guarded SSH site names no server."""
    company.start("--once").wait(20)
    ini = company.folder / "agent.ini"
    ini.write_text("".join(line for line in ini.read_text().splitlines(True) if not line.startswith(("url", "token_file"))))
    done = run([sys.executable, REPO / "spool_agent.py", "check", "--config", ini], env=company.rig.env, check=False)
    assert (done.returncode, lines(done, "problem")) == (0, []), done.stdout
    assert "gate" in lines(done, "warning")[-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda company: company.commands.clear(), "no command"),
        (lambda company: company.commands.update(x={"argv": "/no/such/solver"}), "/no/such/solver"),
        (lambda company: setattr(company, "release", {"logs": "return"}), "no output"),
        (lambda company: setattr(company, "release", {"allow": "*", "scrub": "/no/such/scrub"}), "/no/such/scrub"),
        (lambda company: company.options.update(min_free="900T"), "min_free"),
        (lambda company: company.options.update(url="http://127.0.0.1:1"), "127.0.0.1:1"),
    ],
    ids=["no command", "no solver", "nothing leaves", "no scrub", "no space", "no server"],
)
def test_check_finds(company: Company, change: Callable[[Company], object], told: str) -> None:
    change(company)
    url = str(company.options.pop("url", company.rig.url))
    company.start("check", url=url).wait(30)
    assert company.agent
    problems = [line for line in company.agent.output().splitlines() if line.startswith("problem")]
    assert len(problems) == 1, company.agent.output()
    assert told in problems[0]
    assert company.agent.popen.returncode == 1


def test_check_finds_a_base_below_tmp(company: Company) -> None:
    """/tmp/jobs is purged as /tmp is (design, section 6)."""
    company.start("check", base="/tmp/mint-spool-test-of-check").wait(30)
    assert company.agent
    shutil.rmtree("/tmp/mint-spool-test-of-check", ignore_errors=True)
    assert any("purges" in line for line in company.agent.output().splitlines()), company.agent.output()


def test_check_finds_a_token_that_does_not_count(company: Company) -> None:
    company.rig.start_agent(SITE, company.commands, "check", token="f" * 64).wait(30)
    text = (company.folder / "log").read_text()
    assert "problem" in text
    assert "f" * 10 not in text


@pytest.mark.slow
def test_published_form_works_and_hides_the_token(company: Company) -> None:
    """The ini says what may run; site, server, token and base come from the command line; the token shows four characters."""
    company.start("--once").wait(20)
    token = (company.folder / "token").read_text().strip()
    base = company.rig.root / "calc base"
    job = company.sh("echo hi > a.dat", outputs=("a.dat",))
    company.start(SITE, f"127.0.0.1:{company.rig.port}", token, f"calc_base:{base}", "retry:1,0.1")
    assert company.completed(job) == {"a.dat": b"hi\n"}
    assert (base / job / "state.json").exists()
    assert company.agent
    text = company.agent.output()
    assert token not in text
    assert f"********{token[-4:]}" in text
    assert f"site id = {SITE}" in text
    assert "use @FILE" in text


@pytest.mark.slow
def test_published_retry_gives_up(company: Company) -> None:
    company.start("--once").wait(20)
    for token, code in (("f" * 64, 77), ((company.folder / "token").read_text().strip(), 75)):
        port = company.rig.port if code == 77 else 1
        started = company.start(SITE, f"127.0.0.1:{port}", token, f"calc_base:{company.rig.root}/b", "retry:2,0.1")
        assert started.wait(20) == code


@pytest.mark.slow
def test_a_ca_file_that_is_not_there_is_78(company: Company) -> None:
    """It will not appear by itself: trying for ever would hide it in a log."""
    assert company.start(url="https://127.0.0.1:1", ca_file="gone.pem").wait(10) == 78


@pytest.mark.slow
def test_a_url_of_another_server_is_said(company: Company, make_wire: Callable[..., Wire]) -> None:
    wire = make_wire(company.rig.port, lambda request: Act(status=404))
    started = company.start(url=wire.url)
    started.wait_for_output("not the server", 10)
