"""What leaves, judged at the socket: canaries everywhere, none on the wire; redacted logs while they are streamed; scrub."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.abroad import STDERR, STDOUT, Abroad
from agent.company import Company
from agent.wire import Request, Wire
from components.rig import Section
from components.tap import Tap, found_in, inside
from components.waiting import wait_until
from spool import __version__
from spool.agent import scrub
from spool.agent.redaction import REDACTED
from spool.agent.release import WITHHELD

Make = Callable[..., Wire]
slow = pytest.mark.slow

PLACES = ("STDOUT", "STDERR", "NAME", "ODD", "LINK", "CONTENT", "ENV", "SITEENV", "PATH", "ARGV", "TEXT", "LOST", "SCRUB")
CANARIES = {place: f"カナリア-{place}-7f3a" for place in PLACES}
LEAVES = (
    f"echo {CANARIES['STDOUT']}; echo {CANARIES['STDERR']} >&2; echo {CANARIES['CONTENT']} > secret.dat; echo 42 > result.txt; "
    f"mkdir d; echo x > 'd/{CANARIES['NAME']}.dat'; ln -s /etc/passwd '{CANARIES['LINK']}.dat'; "
    f"printf x > \"$(printf '{CANARIES['ODD']}\\nx.dat')\"; env > env.dat; pwd > pwd.dat; "
)
SPOILS = f"{LEAVES} rm -rf ../run/pid ../run/exit ../run/started; echo '{CANARIES['LOST']}' > ../run; kill -9 $PPID"


def site_commands(folder: Path) -> dict[str, Section]:
    script = folder / f"{CANARIES['ARGV']}.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text('eval "$1"\n')
    site = {"env.LICENCE": CANARIES["SITEENV"], "args": "(?s).*"}
    return {
        "sh": {"argv": f"/bin/sh '{script}' {{args}}", **site},
        "gone": {"argv": f"'{folder}/{CANARIES['TEXT']}' {{args}}", **site},
    }


def secrets(root: Path) -> tuple[str, ...]:
    """What must not leave: the canaries, where the site works, the host, and this release's way of naming itself."""
    return (*CANARIES.values(), str(root), socket.gethostname() if len(socket.gethostname()) > 6 else str(root))


# ---- nothing leaves by default


@slow
def test_no_canary_is_on_the_wire(tmp_path: Path) -> None:
    """Every kind of end, each with canaries in all that a site has; the policy names result.txt alone."""
    company = Company(tmp_path / CANARIES["PATH"])
    try:
        company.serve()
        tap = Tap(company.rig.port)
        company.commands = site_commands(company.folder / "bin")
        company.release = {"allow": "result.txt"}
        company.start(url=tap.url, env={"CANARY": CANARIES["ENV"]}, slots=3)
        good = company.sh(LEAVES, outputs=("**",))
        ends = {
            "exit_nonzero": company.sh(f"{LEAVES} exit 3", outputs=("**", "secret.dat")),
            "signal": company.sh(f"{LEAVES} kill -9 $$", outputs=("**",)),
            "no_outputs": company.sh("true", outputs=("*.frd",)),
            "spawn": company.drop("gone", "x", outputs=("**",)),
            "refused_by_site": company.drop("unknown", outputs=("**",)),
            "lost": company.sh(SPOILS, outputs=("**",)),
        }
        assert company.completed(good, 90) == {"result.txt": b"42\n"}
        for reason, job in ends.items():
            company.failed(job, reason, 90)
        company.interrupt()
        assert company.agent
        company.agent.wait(30)
        tap.close()
        assert b"/finish" in tap.sent
        assert found_in(tap.sent, *secrets(company.folder)) == []
        assert b"result.txt" in tap.sent, "the tap hears"
        assert inside(company.local(good), *CANARIES.values()), "the canaries were there"
        result = company.result(good)
        assert set(result["withheld"]) >= {f"log/stdout.txt: {WITHHELD}", f"log/stderr.txt: {WITHHELD}"}
        assert f"4 files: {WITHHELD}" in result["withheld"]
        assert company.result(ends["exit_nonzero"])["withheld"][:2] == [f"secret.dat: {WITHHELD}", f"3 more files: {WITHHELD}"]
        print(f"canaries: {len(secrets(company.folder))} in {1 + len(ends)} jobs, {len(tap.sent)} bytes on the wire, 0 found")
    finally:
        company.close()


@slow
def test_no_canary_is_on_the_wire_to_a_published_server(tmp_path: Path) -> None:
    abroad = Abroad(tmp_path / CANARIES["PATH"])
    try:
        tap = Tap(int(abroad.server.url.rpartition(":")[2]))
        abroad.release = {"allow": "result.txt"}
        abroad.start(url=tap.url, env={"CANARY": CANARIES["ENV"]})
        good = abroad.submit(LEAVES, "result.txt", "secret.dat", "none.dat")
        assert abroad.ended(good, 60) == "completed"
        spoiled = abroad.submit(SPOILS, "result.txt", "secret.dat")
        assert abroad.ended(spoiled, 60) == "abnormal"
        found = abroad.results(good)
        assert found["result.txt"][0] == b"42\n"
        for name in ("secret.dat", STDOUT, STDERR):
            assert found[name] == (b"", "Error", WITHHELD)
        assert found["none.dat"] == (b"", "Error", "the command did not write it")
        tap.close()
        # The script itself came from there, under its own name; it is nobody's secret.
        assert found_in(tap.sent, *secrets(abroad.base.parent)) == []
        assert b"send-results" in tap.sent
    finally:
        abroad.close()


@slow
def test_the_release_is_told_only_where_the_site_says_so(company: Company) -> None:
    for options, told in (({}, False), ({"tell_version": "yes"}, True)):
        tap = Tap(company.rig.port)
        company.start(url=tap.url, **options)
        company.completed(company.sh("true"))
        company.kill_agent()
        tap.close()
        assert (f"mint-spool-agent/{__version__}".encode() in tap.sent) is told
        assert (f'"version":"{__version__}"'.encode() in tap.sent) is told


# ---- redaction

SECRET = "単結晶-7731"
REDACT: Section = {"allow": "**", "logs": "redact", "redact": ["単結晶-[0-9]+", "license=[^ ]*"]}
PIECES = (
    "printf 'one 単結晶'; {wait} printf -- '-7731 license=270'; {wait} printf '00@host x\\ntwo\\nhalf 単結晶-'; {wait} "
    "printf '7731\\nlast license=1'; printf 'error 単結晶-7731 end\\n' >&2; echo done > 'out.dat'; echo x > 'out-単結晶-7731.dat'"
)
EXPECTED = f"one {REDACTED} {REDACTED} x\ntwo\nhalf {REDACTED}\nlast {REDACTED}"


def steps(script: str) -> str:
    """`script`, which goes on at each {wait} when the next file `go N` is there."""
    parts = script.split("{wait}")
    waits = [f" while [ ! -e go{number} ]; do sleep 0.05; done;" for number in range(1, len(parts))]
    return "".join(part + wait for part, wait in zip(parts, [*waits, ""]))


def so_far(company: Company, job: str) -> bytes:
    (path, *_) = [*company.rig.job(job).glob("incoming/*/files/log/stdout.txt"), Path(os.devnull)]
    return path.read_bytes()


def patches(wire: Wire, part: str) -> list[Request]:
    return [request for request in wire.of("PATCH", part) if request.body_bytes]


@slow
def test_redacted_while_it_is_streamed_and_over_a_kill(company: Company, make_wire: Make) -> None:
    """Pieces of a secret in several writes, a kill -9 in between: no raw byte leaves, and what was sent is not sent again."""
    wire = make_wire(company.rig.port)
    company.release = REDACT
    tap = Tap(int(wire.url.rpartition(":")[2]))
    company.start(url=tap.url)
    job = company.sh(steps(PIECES), outputs=("out*",))
    work = company.local(job) / "work"
    log = company.local(job) / "log" / "stdout.txt"
    wait_until(lambda: log.exists() and log.read_bytes(), 40, "the command writes")
    (work / "go1").touch()
    (work / "go2").touch()
    two = EXPECTED.encode().partition(b"half")[0]
    wait_until(lambda: so_far(company, job) == two, 60, "the whole lines are at MInt")
    company.kill_agent()
    company.start(url=tap.url)
    (work / "go3").touch()
    assert company.completed(job, 90) == {"out.dat": b"done\n"}
    came = company.rig.job(job) / "log"
    assert (came / "stdout.txt").read_text() == EXPECTED
    assert (came / "stderr.txt").read_text() == f"error {REDACTED} end\n"
    assert company.result(job)["withheld"] == [f"1 file: {WITHHELD}"], "its name neither"
    assert sum(request.body_bytes for request in patches(wire, "stdout.txt")) == len(EXPECTED.encode()), "each byte once"
    tap.close()
    # job.json, which holds the script, came from MInt and does not go back
    assert found_in(tap.sent, SECRET, "license=27000@host", "license=1") == []
    folder = next(company.folder.glob(f"base/.mint-spool-*/logs/{job}/*"))
    assert (folder / "log" / "stdout.txt").read_text() == EXPECTED
    assert folder.stat().st_mode & 0o077 == 0


@slow
def test_a_log_that_is_written_anew_never_leaves_raw(company: Company) -> None:
    """The command cuts its log and writes others over it: MInt gets the last one, redacted, whole."""
    company.release = REDACT
    tap = Tap(company.rig.port)
    company.start(url=tap.url)
    script = (
        "echo first line that is long enough; echo more lines; {wait} : > ../log/stdout.txt; "
        "printf 'a 単結晶-7731 b\\n'; {wait} : > ../log/stdout.txt; "
        "printf 'x単結晶-7731 単結晶-7731 単結晶-7731 単結晶-7731\\n単結晶-7731'; {wait} true"
    )
    job = company.sh(steps(script))
    wait_until(lambda: b"more" in so_far(company, job), 60, "the first lines are at MInt")
    work = company.local(job) / "work"
    (work / "go1").touch()
    copy = wait_until(lambda: next(company.folder.glob(f"base/.mint-spool-*/logs/{job}/*/log/stdout.txt"), None), 20, "a copy")
    wait_until(lambda: copy.read_text() == f"a {REDACTED} b\n", 40, "the copy is made anew")
    (work / "go2").touch()
    (work / "go3").touch()
    company.completed(job, 90)
    assert (company.rig.job(job) / "log" / "stdout.txt").read_text() == f"x{' '.join([REDACTED] * 4)}\n{REDACTED}"
    tap.close()
    assert found_in(tap.sent, SECRET) == []


@slow
def test_redaction_to_a_published_server(tmp_path: Path) -> None:
    abroad = Abroad(tmp_path / "rig")
    try:
        tap = Tap(int(abroad.server.url.rpartition(":")[2]))
        abroad.release = REDACT
        abroad.start(url=tap.url)
        job = abroad.submit(steps(PIECES.replace("{wait}", "")), "out.dat", "out-単結晶-7731.dat", "none-単結晶-1.dat")
        assert abroad.ended(job, 60) == "completed"
        found = abroad.results(job)
        assert found["out.dat"][0] == b"done\n"
        assert found[STDOUT][0].decode() == EXPECTED
        assert found[STDERR][0].decode() == f"error {REDACTED} end\n"
        for name in ("out-単結晶-7731.dat", "none-単結晶-1.dat"):
            assert found[name] == (b"", "Error", WITHHELD), "not even whether it is there"
        tap.close()
        body = tap.sent.partition(b"send-results")[2]
        assert b"license=" not in body
    finally:
        abroad.close()


# ---- scrub


def scrubbed(company: Company, program: str, **options: Any) -> Path:
    script = company.folder / "scrub.sh"
    script.write_text(program)
    company.release = {"allow": "**", "logs": "return", "scrub": f"/bin/sh '{script}' 'an argument'", **options}
    return script


@slow
def test_scrub_runs_before_anything_is_measured(company: Company) -> None:
    scrubbed(
        company,
        'env > "$MINT_SPOOL_LOG/../scrub.env"; pwd > where; printf %s "$1" > arg; rm secret.dat; sed -i s/secret/-/ '
        '"$MINT_SPOOL_LOG/stdout.txt"; tr a-z A-Z < out.dat > t; mv t out.dat\n',
    )
    company.start(env={"OTHER": "x"})
    job = company.sh("echo secret; echo abc > out.dat; echo s > secret.dat; exit 3", outputs=("**",))
    assert company.failed(job, "exit_nonzero")["exit_code"] == 3
    work = company.local(job) / "work"
    assert company.out(job) == {"out.dat": b"ABC\n", "where": f"{work}\n".encode(), "arg": b"an argument"}
    assert (company.rig.job(job) / "log" / "stdout.txt").read_text() == "-\n"
    variables = dict(line.split("=", 1) for line in (company.local(job) / "scrub.env").read_text().splitlines())
    assert set(scrub.VARIABLES) == set(variables) - {"PWD", "SHLVL", "_", "OLDPWD"}
    assert (variables["MINT_SPOOL_EXIT"], variables["MINT_SPOOL_JOB"]) == ("3", job)


FAILING = {
    "fails": ("rm -f out.dat; echo カナリア >&2; exit 1\n", {}),
    "crashes": ("kill -9 $$\n", {}),
    "too slow": ("sleep 600 & sleep 600\n", {"scrub_timeout_s": 1}),
    "not there": ("", {"scrub": "/nonexistent/scrub"}),
}


@slow
@pytest.mark.parametrize("how", FAILING)
def test_without_its_scrub_nothing_leaves(company: Company, how: str) -> None:
    program, options = FAILING[how]
    scrubbed(company, program, **options)
    tap = Tap(company.rig.port)
    company.start(url=tap.url)
    job = company.sh("echo canary-1; echo canary-2 > out.dat; exit 4", outputs=("**",))
    state = company.failed(job, "refused_by_site", 60)
    assert (state["exit_code"], state["message"]) == (4, scrub.FAILED)
    result = company.result(job)
    assert (result["files"], result["withheld"], result["missing"]) == ([], [], [])
    assert company.out(job) == {}
    assert not (company.rig.job(job) / "log").exists() or not any((company.rig.job(job) / "log").iterdir())
    tap.close()
    assert found_in(tap.sent, "canary-1", "canary-2", "カナリア", "out.dat") == []
    assert company.agent
    assert "event=scrub_failed" in company.agent.output()


@slow
def test_scrub_is_repeated_after_a_kill_and_never_twice_at_a_time(company: Company) -> None:
    scrubbed(
        company,
        "[ -e busy ] && touch ../twice; touch busy; echo x >> ../scrubs; while [ ! -e ../go ]; do sleep 0.05; done; rm busy\n",
    )
    company.start()
    job = company.sh("echo 1 > out.dat", outputs=("out.dat",))
    scrubs = company.local(job) / "scrubs"
    wait_until(scrubs.exists, 40, "scrub runs")
    company.kill_agent()
    company.start()
    assert company.agent
    company.agent.wait_for_output("event=taken_up_again", 30)
    (company.local(job) / "go").touch()
    assert company.completed(job, 60) == {"out.dat": b"1\n"}
    assert scrubs.read_text() == "x\nx\n"
    assert not (company.local(job) / "twice").exists()
