"""The documents and the program agree, in both directions: options, routes, errors, states, keys, verbs, commands, samples."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spool_agent
import spool_server
import ssh_push
from components.process import Process
from components.rig import REPO, Rig
from components.waiting import wait_until
from server.spools import config, new_store, quick_job, result_of
from spool import config as spool_config
from spool import errors, jsonio, published, sample
from spool.agent import arguments
from spool.agent import config as agent_config
from spool.agent import sample as agent_sample
from spool.agent.client import retry_delay_s
from spool.config import LiveConfig
from spool.ctl import commandline, exits
from spool.errors import SpoolError
from spool.options import Section
from spool.paths import JobPaths, SpoolPaths
from spool.records import HistoryEntry, Job, JobState, Result
from spool.runner import RUNNER_SH
from spool.server import contacts, pages, problems, sync
from spool.server import request as sync_request
from spool.server.auth import Asker
from spool.server.login import Login
from spool.server.published import Published
from spool.server.tokens import ROLES, Token
from spool.server.v1 import V1
from spool.server.wakeups import Wakeups
from spool.ssh import solver_log
from spool.states import MEANING, REASON_MEANING, TRANSITIONS, Reason, State

DOCS = REPO / "docs"
Row = list[str]


# ---- reading Markdown


def text_of(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next heading of its level or above."""
    found: list[str] = []
    level = 0
    for line, in_code in _lines(text_of(page)):
        marks = 0 if in_code else len(line) - len(line.lstrip("#"))
        if level and marks and marks <= level:
            break
        if level:
            found.append(line)
        elif marks and line.lstrip("# ") == heading:
            level = marks
    assert level, f"{page} has no heading {heading!r}"
    return "\n".join(found)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        yield line, in_code or line.startswith("```")


def headings(page: str) -> list[tuple[int, str]]:
    found = [line for line, in_code in _lines(text_of(page)) if line.startswith("#") and not in_code]
    return [(len(line) - len(line.lstrip("#")), line.lstrip("# ")) for line in found]


def tables(text: str) -> list[list[Row]]:
    """The tables of a text as rows of cells, without their titles; backticks around a whole cell are taken off."""
    found: list[list[Row]] = []
    rows: list[Row] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([_bare(cell.strip()) for cell in cells])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def _bare(cell: str) -> str:
    return cell[1:-1] if re.fullmatch(r"`[^`]+`", cell) else cell


def table(page: str, heading: str, number: int = 0) -> list[Row]:
    return tables(section(page, heading))[number]


def column(rows: Iterable[Row], number: int = 0) -> list[str]:
    found = [row[number] for row in rows]
    assert len(set(found)) == len(found), f"named twice: {sorted(name for name in found if found.count(name) > 1)}"
    return found


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of that language, in order; ``""`` for those without one."""
    found: list[str] = []
    inside: list[str] | None = None
    kind = ""
    for line in text.splitlines():
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, kind = [], line[3:]
        else:
            found += ["\n".join([*inside, ""])] if kind == language else []
            inside = None
    return found


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- options

SECTIONS = [
    ("docs/operations.md", "spool.ini [server]", spool_config.SERVER),
    ("docs/operations.md", "spool.ini [site NAME]", spool_config.SITE),
    ("docs/agent.md", "agent.ini [agent]", agent_config.AGENT),
    ("docs/agent.md", "agent.ini [release]", agent_config.RELEASE),
    ("docs/agent.md", "agent.ini [signatures]", agent_config.SIGNATURES),
    ("docs/agent.md", "agent.ini [command NAME]", agent_config.COMMAND),
    ("docs/agent.ja.md", "agent.ini [agent]", agent_config.AGENT),
    ("docs/agent.ja.md", "agent.ini [release]", agent_config.RELEASE),
    ("docs/agent.ja.md", "agent.ini [signatures]", agent_config.SIGNATURES),
    ("docs/agent.ja.md", "agent.ini [command NAME]", agent_config.COMMAND),
]


@pytest.mark.parametrize(("page", "heading", "options"), SECTIONS)
def test_option_tables(page: str, heading: str, options: Section) -> None:
    """Name and default of every option, in the order of the ini; the English meaning is the code's own."""
    written = table(page, heading)
    shown = [[option.name, sample._shown(option), option.meaning] for option in options.options]
    assert [row[:2] for row in written] == [row[:2] for row in shown]
    if not page.endswith(".ja.md"):
        assert [row[2] for row in written] == [row[2] for row in shown]
    assert all(row[2] for row in written)


def test_samples_are_those_that_the_programs_write(tmp_path: Path) -> None:
    assert text_of("etc/spool.ini") == spool_config.spool_ini()
    assert text_of("etc/agent.ini") == agent_sample.agent_ini()
    assert spool_config.read_config(REPO / "etc" / "spool.ini").sites == {}
    assert agent_config.read_config(REPO / "etc" / "agent.ini").commands == {}


@pytest.mark.parametrize("name", ["spool.ini", "agent.ini"])
def test_samples_can_be_filled_in(name: str, tmp_path: Path) -> None:
    """Every option line that the samples show commented out is one that the programs take."""
    text = re.sub(r"(?m)^#(\[[a-z]+ NAME\])$", lambda match: match[1].replace("NAME", "x"), text_of(f"etc/{name}"))
    text = re.sub(r"(?m)^#([a-z_]+ = \S.*)$", r"\1", text)
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    if name == "spool.ini":
        made = spool_config.read_config(path)
        assert list(made.sites) == ["x"]
        assert made.server["trusted_uids"] == (1001, 1002)
    else:
        path.write_text(text.replace("argv = /usr/bin/ccx {args}", "argv = /usr/bin/ccx"), encoding="utf-8")
        assert list(agent_config.read_config(path).commands) == ["x"]


def test_the_words_of_the_published_command_line() -> None:
    port, retry, base = published.PORT, arguments.PUBLISHED_RETRY, arguments.PUBLISHED_BASE
    defaults = {"port": str(port), "retry": f"{retry[0]},{retry[1]:g}", "calc_base": base}
    given = [f"{word}:{value}" for word, value in (("port", "1"), ("retry", "1,2"), ("no_auth", "f"), ("calc_base", "/x"))]
    made = arguments._published(["s", "http://localhost", "@f", *given, "debug"], {})
    assert made.debug
    told = re.findall(r"([a-z_]+)(?:\[?:\S+)?", arguments.USAGE.splitlines()[0].partition("@FILE|login")[2])
    for page, heading in (("docs/agent.md", "Command line"), ("docs/agent.ja.md", "コマンドライン")):
        written = {row[0]: row[1] for row in table(page, heading, 1)}
        assert {name: value for name, value in written.items() if name in defaults} == defaults
        assert set(written) == set(told) == {"port", "retry", "no_auth", "calc_base", "debug"}
        assert [line.strip() for line in arguments.USAGE.splitlines()] == blocks(section(page, heading), "")[0].splitlines()


def test_the_solver_log_line() -> None:
    assert f"`{solver_log.DEFAULT_FORMAT}`" in section("docs/operations.md", "spool.ini [site NAME]")


# ---- command lines


def options_of(*command: str) -> set[str]:
    """The options that a program's own usage names."""
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=REPO, capture_output=True, text=True, check=True,
        env={**os.environ, "LC_ALL": "C", "COLUMNS": "120"},
    )  # fmt: skip
    return _options_in(done.stdout)


def _options_in(usage: str) -> set[str]:
    listed = usage[usage.index("options:" if "options:" in usage else "optional arguments:") :]
    found = [re.match(r"  (-.*?)(?:  |$)", line) for line in listed.splitlines()]
    return {word for match in found if match for word in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", match[1])} - {"-h"}


@pytest.mark.parametrize(
    ("program", "page", "heading"),
    [
        ("spool_server.py", "docs/operations.md", "spool_server.py"),
        ("ssh_push.py", "docs/operations.md", "ssh_push.py"),
        ("spool_agent.py", "docs/agent.md", "Command line"),
        ("spool_agent.py", "docs/agent.ja.md", "コマンドライン"),
        ("tools/spoolctl", "docs/operations.md", "spoolctl"),
    ],
)
def test_options_of_the_programs(program: str, page: str, heading: str) -> None:
    assert set(column(table(page, heading))) == options_of(program)


def _spoolctl_commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command with the options that its usage names."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield before, _options_in(parser.format_help())
    for action in below:
        for name, more in action.choices.items():
            yield from _spoolctl_commands(more, f"{before} {name}".strip())


def test_commands_of_spoolctl() -> None:
    common, written = tables(section("docs/operations.md", "spoolctl"))
    taken = {name: options - set(column(common)) for name, options in _spoolctl_commands(commandline._parser())}
    assert {row[0]: set(words(row[1] if " " in row[1] else f"`{row[1]}`")) - {""} for row in written} == taken
    assert len(written) == len(taken)


def test_verbs_of_the_agent_and_the_push() -> None:
    assert arguments.VERBS == ("init", "check")
    assert all(f"spool_agent.py {verb}" in text_of("docs/agent.md") for verb in arguments.VERBS)
    verbs = re.findall(r"words\[:1\] in (\(.*?\]\))", inspect.getsource(ssh_push))
    assert {tuple(word for (word,) in ast.literal_eval(found)) for found in verbs} == {("authorize", "check")}
    verbs = ["authorize", "check"]
    assert all(f"ssh_push.py {verb} SITE" in text_of("docs/operations.md") for verb in verbs)


def test_exit_codes() -> None:
    def codes(module: Any) -> set[int]:
        return {0, 2, *(value for name, value in vars(module).items() if name.startswith("EXIT_"))}

    rows = table("docs/operations.md", "Exit codes")
    told = {name: {int(row[0]) for row in rows if row[place]} for place, name in enumerate(("server", "push", "ctl"), 1)}
    assert told["server"] == codes(spool_server)
    assert told["push"] == codes(ssh_push)
    assert told["ctl"] == {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    for page, heading in (("docs/agent.md", "Exit codes"), ("docs/agent.ja.md", "終了コード")):
        assert {int(code) for code in column(table(page, heading))} == codes(spool_agent) | {1}


# ---- the API


def _documented(path: str) -> str:
    for pattern, word in ((r"<job_id>", "ID"), (r"<part:[^>]*>", "PART"), (r"<name:path>", "NAME")):
        path = re.sub(pattern, word, path)
    return path


def test_routes() -> None:
    routes = [(method, _documented(path)) for method, path, _ in V1.routes(object.__new__(V1))]
    routes += [(method, path) for method, path, _ in Login.routes(object.__new__(Login))]
    routes += [("GET", path) for path, _ in pages.Pages.routes(object.__new__(pages.Pages))]
    assert [(row[0], row[1]) for row in table("docs/protocol.md", "Routes")] == routes
    roles = {word for row in table("docs/protocol.md", "Routes") for word in row[2].split(", ")}
    assert roles == {*ROLES, "all", "everybody", "no token"}
    assert column(table("docs/security.md", "Tokens")) == list(ROLES)


def test_calls_of_the_published_protocol() -> None:
    _, words = tables(section("docs/protocol.md", "The published protocol"))
    calls = [(row[0], row[1]) for row in table("docs/protocol.md", "The published protocol")]
    assert calls == [(method, name) for method, name, _ in Published.routes(object.__new__(Published))]
    assert len(calls) == 14
    expected = []
    for state in State:
        first, then = published.PROGRESS[state]
        status = published.STATUS[state] + (", or `abnormal` where the command ended so" if state == State.RETURNING else "")
        expected.append([str(state), first, then if then != first else "", status])
    assert [[cell.replace("`", "") for cell in row] for row in words] == [
        [cell.replace("`", "") for cell in row] for row in expected
    ]


def _kinds(base: type[SpoolError]) -> Iterator[type[SpoolError]]:
    """The errors that can reach the server: those of the rooms it stands on."""
    for kind in base.__subclasses__():
        if not kind.__module__.startswith(("spool.ssh", "spool.agent", "spool.ctl")):
            yield kind
        yield from _kinds(kind)


def test_errors() -> None:
    kinds = set(_kinds(SpoolError)) | {SpoolError}
    assert {kind.code for kind in kinds} == set(problems.STATUS)
    rows = table("docs/protocol.md", "Errors")
    assert {row[0]: int(row[1]) for row in rows} == problems.STATUS
    family = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SpoolError)]
    again = {kind.code: "yes" if kind.transient else "no" for kind in family}
    assert {row[0]: row[2] for row in rows} == again


@pytest.fixture
def told(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A real answer to a sync that claims one job."""
    store = new_store(tmp_path / "spool")
    job = quick_job(store)
    live = LiveConfig(config(tmp_path / "ini").source)
    wakeups = Wakeups(1)
    asker = Asker(Token("1", "", "", job.user, ("agent",), (), ""))
    body = jsonio.dumps({"site": job.site, "agent": "a", "room": 1})
    try:
        yield sync.Sync(store, live, wakeups, contacts.Contacts(store)).answer(asker, body)
    finally:
        wakeups.close()


def test_sync_fields(told: dict[str, Any]) -> None:
    request, held, answer, job, wants = tables(section("docs/protocol.md", "sync"))
    assert column(request) == [field.name for field in dataclasses.fields(sync_request.Request)]
    assert column(held) == [field.name for field in dataclasses.fields(sync_request.Held)]
    assert column(answer) == list(told)
    assert column(job) == list(told["jobs"][0])
    assert sorted(column(wants)) == sorted(_wants())


def _wants() -> set[str]:
    """Every `want` that `spool.server.sync` can say."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(sync))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_told":
            found |= _constants(node.args[1])
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "want":
            found |= _constants(node.value)
        elif isinstance(node, ast.Dict):
            said = [value for key, value in zip(node.keys, node.values) if _constants(key) == {"want"}]
            found |= {word for value in said for word in _constants(value)}
        elif isinstance(node, ast.FunctionDef) and node.name == "_after_end":
            found |= {word for line in ast.walk(node) if isinstance(line, ast.Return) for word in _constants(line.value)}
    return found


def _constants(node: ast.AST | None) -> set[str]:
    if isinstance(node, ast.IfExp):
        return _constants(node.body) | _constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_numbers_of_the_protocol() -> None:
    agent = {option.name: option.default for option in agent_config.AGENT.options}
    server = {option.name: option.default for option in spool_config.SERVER.options}
    assert sync_request.MAX_WAIT_S == 25
    assert sync_request.MAX_ROOM == 1000
    assert (agent["poll_s"], agent["heartbeat_s"], server["claim_return_s"]) == (15, 60, 600)
    assert (pages.LATE_S, pages.UNREACHABLE_S) == (180, 600)
    assert problems.RETRY_AFTER_S == 5
    for tries in (0, 3, 30):
        most = min(300.0, 2 * 2.0**tries)
        assert most / 2 <= retry_delay_s(tries) <= most
    page = text_of("docs/protocol.md")
    said = ("`poll_s` (15 s)", "`heartbeat_s` (60 s)", "3 min", "10 min", "`claim_return_s` (600 s)", "most 25", "at most 1000")
    assert [phrase for phrase in said if phrase not in page] == []


# ---- the format


def _names(rows: list[Row]) -> list[str]:
    return column(rows)


def test_names_of_a_spool() -> None:
    files = {"spool.json", "spool.ini", "tokens.json", "users.json", "controls.json"}
    assert set(_names(table("docs/format.md", "Layout"))) == files | {f"{name}/" for name in SpoolPaths.FOLDERS}
    paths = SpoolPaths(Path("/s"))
    known = {str(path.relative_to("/s")) for path in vars(paths).values()} - {"."}
    assert known == files | set(SpoolPaths.FOLDERS)


def test_names_of_a_job_folder() -> None:
    written = {name.rstrip("/") for name in _names(table("docs/format.md", "The job folder"))} - {"user"}
    known = {path.relative_to("/j") for name, path in vars(JobPaths(Path("/j"))).items() if name != "folder"}
    assert written == {str(path) for path in known if len(path.parts) == 1}
    moved = section("docs/format.md", "The job folder").partition("At MInt a requeue moves")[2].partition("to `attempts")[0]
    assert [word.rstrip("/") for word in words(moved)] == list(JobPaths.OF_AN_ATTEMPT)


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name != "extra"]


def test_keys_of_the_records(tmp_path: Path) -> None:
    assert sorted(column(table("docs/format.md", "job.json"))) == sorted(["format", *_fields(Job)])
    assert sorted(column(table("docs/format.md", "state.json"))) == sorted(["format", *_fields(JobState)])
    assert sorted(column(table("docs/format.md", "result.json"))) == sorted(["format", *_fields(Result)])
    line = HistoryEntry(1, "", "", "new", "").encode()
    assert column(table("docs/format.md", "history.jsonl")) == list(line)
    store = new_store(tmp_path / "spool")
    state = quick_job(store)
    result = jsonio.loads(result_of(state).encode(), "result.json")
    assert set(column(table("docs/format.md", "result.json"))) == set(result)
    journal = words(section("docs/format.md", "journal"))
    store.cancel(state.id, by="t")
    (path,) = store.paths.journal.iterdir()
    assert journal == list(jsonio.loads(path.read_bytes().splitlines()[0], "journal"))


def test_defaults_and_required_keys_of_job_json() -> None:
    rows = {row[0]: row[2] for row in table("docs/format.md", "job.json")}
    required = {
        field.name for field in dataclasses.fields(Job)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }  # fmt: skip
    assert {name for name, default in rows.items() if default == "required"} == required
    (smallest,) = re.findall(r"Smallest useful: `(\{.*\})`", text_of("docs/format.md"))
    assert Job.parse(smallest.encode()).outputs == ("beam.dat", "*.frd")


def test_the_state_tables_and_the_diagram() -> None:
    meanings, moves = tables(section("docs/format.md", "States").partition("### Reasons")[0])
    assert {row[0]: row[1] for row in meanings} == {str(state): text for state, text in MEANING.items()}
    header = re.search(r"^\| from \\ to (\|.*)$", text_of("docs/format.md"), re.MULTILINE)
    assert header is not None
    targets = words(header[1])
    assert targets == [str(state) for state in State] == column(moves)
    allowed = {(row[0], target) for row in moves for target, mark in zip(targets, row[1:]) if mark == "+"}
    assert {mark for row in moves for mark in row[1:]} == {"+", "−"}
    table_of_code = {(str(source), str(target)): why for source, more in TRANSITIONS.items() for target, why in more.items()}
    assert allowed == set(table_of_code)
    (diagram,) = blocks(section("docs/format.md", "States"), "mermaid")
    edges = re.findall(r"^    ([a-z]+) --> ([a-z]+): (.+)$", diagram, re.MULTILINE)
    assert {(source, target): why for source, target, why in edges} == table_of_code
    assert len(edges) == len(table_of_code)


def test_reasons_and_what_to_do() -> None:
    meanings = {str(reason): text for reason, text in REASON_MEANING.items()}
    assert {row[0]: row[1] for row in table("docs/format.md", "Reasons")} == meanings
    states, reasons = tables(section("docs/operations.md", "States and what to do"))
    assert column(states) == [str(state) for state in State]
    assert column(reasons) == [str(reason) for reason in Reason]


def test_the_runner() -> None:
    """Verbs and files of `run/` are those of runner.sh: its header, and what its `main` takes."""
    script = RUNNER_SH.read_text(encoding="utf-8")
    files, verbs = tables(section("docs/format.md", "run"))
    taken = re.findall(r"^        ([a-z]+)\) ", script[script.index("\nmain() {") :], re.MULTILINE)
    assert column(verbs) == taken
    header = script[script.index("# It reads") : script.index("# Each file but the latch")]
    named = {re.sub(r"\.\.\.$", "", name) for name in re.findall(r"run/[a-zA-Z_]+(?:/[A-Z0-9a-z.]+|/)?", header)}
    assert {words(f"`{row[0]}`" if "`" not in row[0] else row[0])[0] for row in files} == named


# ---- logs


def test_warnings_and_errors_of_the_log() -> None:
    """Every event of level warning and error that the MInt side can log is explained, with its level."""
    known: dict[str, set[str]] = {}
    for path in [*REPO.glob("s*.py"), *(REPO / "spool").rglob("*.py")]:
        if path.name == "spool_agent.py" or "agent" in path.parts:
            continue
        for level, event in re.findall(r"log\.(warning|error)\(\s*\"([a-z_]+)\"", path.read_text(encoding="utf-8")):
            known.setdefault(event, set()).add(level)
    written = table("docs/operations.md", "Logs")
    assert column(written) == sorted(column(written))
    assert {row[0]: {row[1]} for row in written} == known


def test_variables_of_a_command() -> None:
    """What the programs set for a command, by mode."""
    modules = {"agent": ("agent/policy", "agent/prerun"), "operations": ("ssh/command",)}
    for page, heading in (("agent", "What may run"), ("operations", "SSH sites")):
        told = set(re.findall(r"`(MINT_SPOOL_\w+)`", section(f"docs/{page}.md", heading)))
        texts = "".join(text_of(f"spool/{module}.py") for module in modules[page])
        assert told == set(re.findall(r'"(MINT_SPOOL_\w+)"', texts))


# ---- references


def test_sections_that_the_code_names_are_there() -> None:
    """A docstring that says `docs/format.md, "Drops"` leads to a heading of that name."""
    lost = []
    files = [*REPO.glob("*.py"), *(path for path in (REPO / "spool").rglob("*") if path.suffix in (".py", ".sh"))]
    for path in files:
        text = path.read_text(encoding="utf-8").replace("\n#", " ")
        for page, name, more in re.findall(r"docs/([a-z.]+\.md), \"([^\"\\]+)\"(?: and \"([^\"\\]+)\")?", text):
            known = {title.lower() for _, title in headings(f"docs/{page}")}
            lost += [f"{path.name}: {page}, {title}" for title in (name, more) if title and title.lower() not in known]
        lost += [f"{path.name}: {page}" for page in re.findall(r"docs/([a-z.]+\.md)", text) if not (DOCS / page).exists()]
    assert lost == []


# ---- two languages


@pytest.mark.parametrize(
    ("english", "japanese"),
    [("README.md", "README.ja.md"), ("docs/agent.md", "docs/agent.ja.md"), ("docs/migration.md", "docs/migration.ja.md")],
)
def test_the_japanese_page_is_the_same_page(english: str, japanese: str) -> None:
    """The same sections, the same tables by shape, the same names, commands and samples in them; and it is Japanese."""
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(japanese)]
    for language in ("", "sh", "ini", "json"):
        given, twins = blocks(text_of(english), language), blocks(text_of(japanese), language)
        assert len(given) == len(twins)
        assert given == twins or (language, english) == ("", "README.md")  # the picture has words in it
    here, there = tables(text_of(english)), tables(text_of(japanese))
    assert [[len(row) for row in one] for one in here] == [[len(row) for row in other] for other in there]
    for one, other in zip(here, there):
        pairs = [(row[0], twin[0].replace(".ja.md", ".md")) for row, twin in zip(one, other)]
        # Where both say it in plain words, the words differ; a name, an option or a code is the same in both.
        assert [pair for pair in pairs if pair[0] != pair[1] and not re.search(r"[ぁ-んァ-ヶ一-龠]", pair[1])] == []
        assert [pair for pair in pairs if words(pair[0]) != words(pair[1])] == []
    for part in section(japanese, headings(japanese)[0][1]).split("\n## "):
        assert re.search(r"[ぁ-ん]", part), part[:60]


# ---- the samples work


SOLVER = """#!/bin/sh
[ "$1" = beam ] && [ -f beam.inp ] || exit 1
echo solved; echo 1 >beam.dat; echo 2 >beam.frd; echo 3 >confidential.txt
"""


@pytest.mark.slow
def test_the_quick_start_and_the_job_by_hand(rig: Rig) -> None:
    """README.md, from its own text: operator, administrator, author, then a job with nothing but mkdir, cp and mv."""
    place = rig.root / "reader"
    place.mkdir()
    solver = place / "ccx"
    solver.write_text(SOLVER)
    solver.chmod(0o755)
    (place / "beam.inp").write_text("*NODE\n1, 0, 0, 0\n")
    for name in ("spool_server.py", "spool_agent.py", "tools"):
        (place / name).symlink_to(REPO / name)
    own = {
        "/var/spool/mint-spool": str(rig.spool), "https://mint.example.jp:50443": rig.url,
        "/var/lib/mint-spool": str(place / "base"), "/usr/bin/ccx": str(solver),
    }  # fmt: skip

    def mine(text: str) -> str:
        for shown, real in own.items():
            text = text.replace(shown, real)
        return text

    env = {**rig.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(text: str) -> str:
        command = ["sh", "-eu", "-c", mine(text)]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(text: str, log: str, *more: str) -> Process:
        return rig._run_program(shlex.split(mine(text))[0], [*shlex.split(mine(text))[1:], *more], place, place / log, env)

    operator, admin = section("README.md", "MInt's operator"), section("README.md", "The site's administrator")
    serve, add_token = blocks(operator, "sh")
    (place / "spool.ini").write_text(mine(blocks(operator, "ini")[0]))
    start(serve, "server.log", "--listen", f"127.0.0.1:{rig.port}")
    wait_until(lambda: rig.health() == 200, 20, "the server answers")
    token = place / "token"
    token.write_text(run(add_token).splitlines()[-1])
    token.chmod(0o600)

    (place / "agent.ini").write_text(mine(blocks(admin, "ini")[0]))
    check, agent = blocks(admin, "sh")
    assert "problem" not in run(check)
    start(agent, "agent.log")

    said = run(blocks(section("README.md", "The module's author"), "sh")[0])
    assert re.fullmatch(r"[0-9a-f-]{36}", said.splitlines()[-1])
    assert sorted(path.name for path in (place / "result").iterdir()) == ["beam.dat", "beam.frd"]

    by_hand = section("README.md", "A job by hand")
    (place / "job.json").write_text(blocks(by_hand, "json")[0])
    (recipe,) = blocks(by_hand, "sh")
    assert set(re.findall(r"(?m)^(\w+)(?= )", recipe)) == {"umask", "mkdir", "cp", "mv"}
    job_id = run(recipe + "echo $id\n").strip()
    state = rig.wait_state(job_id, "completed", "failed")
    assert (state["state"], state["user"]) == ("completed", "alice")
    assert sorted(path.name for path in (rig.job(job_id) / "out").iterdir()) == ["beam.dat", "beam.frd"]


def test_the_recipes_of_the_agents_page(tmp_path: Path) -> None:
    """`init` as it stands there, with the additions that stand there, gives a configuration that holds together."""
    install, init, run = blocks(section("docs/agent.md", "Install"), "sh")
    words_of_init = [sys.executable, str(REPO / "spool_agent.py"), *shlex.split(init)[1:]]
    done = subprocess.run(words_of_init, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (more,) = blocks(section("docs/agent.md", "Install"), "ini")
    path = tmp_path / "agent.ini"
    text = path.read_text(encoding="utf-8")
    release, _, command = more.partition("\n\n")
    path.write_text(text.replace("[release]", release, 1) + command, encoding="utf-8")
    made = agent_config.read_config(path)
    assert (made.agent["site"], made.release["allow"], made.release["logs"]) == ("nims-dev", ("*.dat", "*.frd"), "return")
    assert made.commands["ccx"].argv == ("/usr/bin/ccx", "{args}")
    assert "venv" in install
    assert [line.split()[0] for line in run.splitlines()] == ["./spool_agent.py"] * 2


def test_the_examples_that_the_pages_name_are_read(tmp_path: Path) -> None:
    """The ini samples in README.md are those of one site, on both sides."""
    spool_ini, agent_ini = blocks(text_of("README.md"), "ini")
    (tmp_path / "spool.ini").write_text(spool_ini)
    (tmp_path / "agent.ini").write_text(agent_ini)
    here, there = spool_config.read_config(tmp_path / "spool.ini"), agent_config.read_config(tmp_path / "agent.ini")
    assert there.agent["site"] in here.sites
    assert set(here.sites["nims-dev"].commands) == set(there.commands)
    (job_json,) = blocks(text_of("README.md"), "json")
    job = Job.parse(job_json.encode())
    here.site(job.site).check_command(job.command)
