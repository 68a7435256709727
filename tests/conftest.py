"""Fixtures over the components, and two rules for all tests: logs are shown on failure, CI skips nothing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import settings

from components import figures, process
from components.nginx import NginxTls
from components.rig import Rig
from components.sshd import Sshd

# A machine that stalls makes no example a wrong one; pytest's own timeout ends what hangs.
settings.register_profile("mint", deadline=None)
settings.load_profile("mint")

_LOG_TAIL_BYTES = 8192


@pytest.fixture
def odd_dir(tmp_path: Path) -> Path:
    """A folder whose name holds what shells, ini files and format strings trip over."""
    folder = tmp_path / "a b  'c' \"d\" $(touch pwned) `e` %s 入力\n;& #*?[x] \\t"
    folder.mkdir()
    return folder


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """The product, in a folder with an ordinary name; for another use `Rig(odd_dir)` and close it."""
    made = Rig(tmp_path / "rig")
    yield made
    made.close()


@pytest.fixture
def make_sshd() -> Iterator[Callable[..., Sshd]]:
    """`make_sshd(name="site", jump=None)`: as many servers as a test needs, e.g. `make_sshd("far", jump=sshd)`."""
    made: list[Sshd] = []

    def make(name: str = "site", jump: Sshd | None = None) -> Sshd:
        made.append(Sshd(name, jump))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A running sshd: `ssh -F sshd.ssh_config site …`."""
    return make_sshd()


@pytest.fixture
def nginx_tls() -> Iterator[Callable[..., NginxTls]]:
    """`nginx_tls(port, in_http="", in_server="", in_location="")`: TLS in front of `http://127.0.0.1:port`."""
    made: list[NginxTls] = []

    def make(upstream_port: int, **blocks: str) -> NginxTls:
        made.append(NginxTls(upstream_port, **blocks))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    report.user_properties += [("told", text) for text in figures.take()]
    if report.failed:
        report.sections += [(f"log of {name}", text) for name, text in _logs()]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have told or recorded as `figures`, for docs/reliability.md: with xdist their output is not seen."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "told" or (name == "figures" and report.when == "call"):
                    terminalreporter.write_line(str(value))


def pytest_runtest_logfinish() -> None:
    process.started[:] = [one for one in process.started if one.running]


def _forbid_skip(report: Any) -> None:
    """In CI every test runs and passes: a skip, an expected failure or an unexpected success fails."""
    if os.environ.get("CI") != "true" or not (report.skipped or hasattr(report, "wasxfail")):
        return
    why = getattr(report, "wasxfail", "") or report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skip and xfail are not allowed in CI: {why}"
    if hasattr(report, "wasxfail"):
        del report.wasxfail


def _logs() -> Iterator[tuple[str, str]]:
    for one in process.started:
        if one.log.exists():
            yield one.name, one.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


@pytest.fixture(autouse=True)
def _back_to_where_it_started() -> Iterator[None]:
    """A test may change the current folder; the next one must not find itself in a folder that is gone."""
    before = os.getcwd()
    yield
    os.chdir(before)
