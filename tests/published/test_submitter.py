"""tools/mi-system-wf.py as a module calls it: a real process against the published server and poller, over real sockets."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.wire import Act, Wire, once
from components.ports import free_port
from components.rig import REPO
from published.their_poller import STDERR, STDOUT
from published.their_server import TheirServer
from published.workflow_module import COMMAND, SITE, TOKEN, Module
from spool.addresses import published_url
from spool.ctl import published, published_files, published_http
from spool.ctl.messages import known
from spool.errors import InvalidName, SpoolError, TooLarge
from spool.streams import Source

SUBMITTERS = ("add-calcinfo", "allow-wait-calc", "calc-progress", "calc-status", "get-calc-result")
ALL_BYTES = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[TheirServer]:
    with TheirServer({SITE: [COMMAND], "rme": []}, {TOKEN: "user"}) as server:
        yield server


@pytest.fixture
def module(tmp_path: Path, server: TheirServer) -> Iterator[Module]:
    made = Module(tmp_path, server)
    yield made
    made.close()


def entry(content: bytes) -> dict[str, str]:
    return {"content": base64.b64encode(content).decode(), "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}


# ---- what comes back


def test_every_byte_arrives(module: Module) -> None:
    contents = {"入力 一.txt": "熱処理\n".encode(), "all.bin": ALL_BYTES, "empty": b"", "mesh/text.dat": b"1 2\r\n3"}
    (module.here / "mesh").mkdir()
    for name, content in contents.items():
        (module.here / name).write_bytes(content)
    (module.here / "out empty").write_text("replaced")
    copy = 'for f in "入力 一.txt" all.bin empty text.dat; do cp "$f" "out $f"; done; mkdir sub; cp all.bin sub/結果'
    module.script(f"{copy}; echo 標準; echo 誤り >&2")
    module.poll()
    outs = ["out 入力 一.txt", "out all.bin", "out empty", "out text.dat", "sub/結果"]
    said = module.run(":".join(["job.sh", *contents]), "::".join(outs))
    assert [(module.here / name).read_bytes() for name in outs] == [*contents.values(), ALL_BYTES]
    assert ((module.here / STDOUT).read_text(), (module.here / STDERR).read_text()) == ("標準\n", "誤り\n")
    umask = os.umask(0o077)
    os.umask(umask)
    assert stat.S_IMODE((module.here / "out all.bin").stat().st_mode) == 0o666 & ~umask
    words = re.findall(r"^progress: (.*)$", said, re.MULTILINE)
    assert words == sorted(set(words), key=words.index)
    assert words[-1] == "got return"
    job = next(iter(module.server.jobs.values())).calc
    assert job["parameters"] == "a b"
    assert {name: kind for name, (_, *kind) in job["parameter_files"].items()} == {
        "job.sh": ["text/plain;", "charset=utf-8"], "入力 一.txt": ["text/plain;", "charset=utf-8"],
        "all.bin": ["application/octet-stream;", "charset=binary"], "empty": ["inode/x-empty;", "charset=binary"],
        "text.dat": ["text/plain;", "charset=us-ascii"],
    }  # fmt: skip
    assert list(job["result_files"]) == [*outs, STDOUT, STDERR]
    assert TOKEN not in said


def test_abnormal_end(module: Module) -> None:
    module.script("echo 1 > out.dat; echo why >&2; exit 3")
    module.poll()
    assert "status: abnormal" in module.run(code=1)
    assert (module.here / "out.dat").read_text() == "1\n"
    assert (module.here / STDERR).read_text() == "why\n"


def test_a_missing_result_is_told(module: Module) -> None:
    module.script("echo 1 > out.dat")
    module.poll()
    said = module.run(outs="out.dat:no.dat", LANG="ja_JP.UTF-8")
    assert "戻らなかったファイル: no.dat: no.dat: No such file or directory" in said
    assert "進捗: got return" in said
    assert sorted(os.listdir(module.here)) == sorted(["job.sh", "out.dat", STDOUT, STDERR])


def test_only_what_was_asked_for_is_written(module: Module, tmp_path: Path) -> None:
    (module.here / "link").symlink_to(tmp_path / "target")
    (module.here / "linked").symlink_to(tmp_path)
    running = module.start(outs="out.dat:link:linked/x:nothing")
    accept_id = module.wait_for("calc-progress")
    hostile = {name: entry(b"evil") for name in ("../evil", "/tmp/evil", ".bashrc", "job.sh", "a\x1b[2J", "", "-rf")}
    nothing = {"content": "", "mimetype1": "Error", "mimetype2": "\x1b[2J"}
    files = {"out.dat": entry(b"good"), "link": entry(b"link"), "nothing": nothing}
    module.returned(accept_id, {**hostile, **files})
    assert running.wait(20) == 0
    assert (module.here / "out.dat").read_bytes() == b"good"
    assert (module.here / "link").read_bytes() == b"link"
    assert not (module.here / "link").is_symlink()
    assert sorted(os.listdir(module.here)) == sorted(["job.sh", "out.dat", "link", "linked"])
    assert not list(tmp_path.glob("*evil*"))
    assert (module.here / "job.sh").read_text() == ""
    said = running.output()
    assert "nobody asked for it: a\\x1b[2J" in said
    assert "not returned: nothing: \\x1b[2J" in said
    assert f"not returned: {STDOUT}: the answer has nothing of it" in said
    assert "\x1b" not in said


def test_a_link_on_the_way_is_not_followed(module: Module, tmp_path: Path) -> None:
    (module.here / "linked").symlink_to(tmp_path)
    running = module.start(outs="linked/x")
    module.returned(module.wait_for("calc-progress"), {"linked/x": entry(b"evil")})
    assert running.wait(20) == 2
    assert not (tmp_path / "x").exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"site": "gone"}, "remote-site(gone) is not known"), ({"command": "rm"}, "command(rm) is not registered"),
     ({"command": ""}, "There is no command")],
)  # fmt: skip
def test_refused_at_registration(module: Module, wrong: dict[str, str], message: str) -> None:
    assert message in module.run(code=1, **wrong)  # type: ignore[arg-type]
    assert [path for _, path in module.server.requests] == ["/mi-distcomp-api/add-calcinfo"]


def test_wrong_token(module: Module) -> None:
    assert "実行権がありません" in module.run(code=77, token="7" * 64)
    assert module.asked("add-calcinfo") == len(module.server.requests) == 1


def test_the_token_is_better_in_a_file(module: Module) -> None:
    module.script("echo 1 > out.dat")
    (module.home / "token").write_text(TOKEN + "\n")
    (module.home / "token").chmod(0o600)
    module.poll()
    assert "ps" not in module.run(token="@~/token")
    module.log.unlink()
    module.poll()
    assert "use @FILE" in module.run()


@pytest.mark.parametrize(
    "wrong",
    [{"ins": "gone"}, {"ins": "sub"}, {"ins": "job.sh:sub/job.sh"}, {"outs": "../out"}, {"outs": "/tmp/out"}, {"outs": "sub"},
     {"outs": "a:a/b"}, {"token": "@gone"}, {"token": "two words"}, {"url": "ftp://mint"}, {"url": "http://mint:port"},
     {"ins": "/dev/null"}, {"REQUESTS_CA_BUNDLE": "gone", "url": "https://127.0.0.1:1"},
     {"https_proxy": "http://:::", "url": "https://mint"}],
)  # fmt: skip
def test_usage(module: Module, wrong: dict[str, str]) -> None:
    (module.here / "sub").mkdir()
    (module.here / "sub" / "job.sh").write_text("")
    said = module.run(code=2, **wrong)  # type: ignore[arg-type]
    assert said.splitlines()[-2].startswith("mi-system-wf.py: ")
    assert said.splitlines()[-1].startswith("  ")
    assert module.server.requests == []


@pytest.mark.parametrize("words", [[], ["a"], ["-h"], ["--help"], ["a"] * 8])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = words[:1] in (["-h"], ["--help"])
    assert published.main(words) == (0 if asked else 2)
    shown = capsys.readouterr()
    assert (shown.out if asked else shown.err).startswith("usage: mi-system-wf.py URL SITE TOKEN|@FILE COMMAND INS OUTS [PARAMS]")


def test_what_the_protocol_cannot_carry_is_refused_here() -> None:
    with pytest.raises(TooLarge):
        published_http.Document({"a": Source(io.BytesIO, 3 << 29)})
    with pytest.raises(InvalidName):
        published_files.outputs_of("a\nb", Path())


# ---- trouble on the line


@pytest.mark.parametrize("kind", ["drop_answer", "refuse", "html"])
@pytest.mark.parametrize("call", SUBMITTERS)
def test_an_answer_is_lost(module: Module, call: str, kind: str) -> None:
    module.script("echo 1 > out.dat")
    getattr(module.server, kind)(call)
    module.poll()
    said = module.run()
    assert f"{call}: " in said
    assert "trying again" in said
    assert (module.here / "out.dat").read_text() == "1\n"
    # The command ran once: of two calculations only one was ever allowed.
    assert len(os.listdir(module.base)) == 1
    jobs = list(module.server.jobs.values())
    assert len(jobs) == (2 if (call, kind) == ("add-calcinfo", "drop_answer") else 1)
    assert [job.progress for job in jobs if job.waiting] == ["got return"]


def test_the_line_is_cut_in_the_middle(module: Module, server: TheirServer) -> None:
    (module.here / "big").write_bytes(ALL_BYTES * 100)
    module.script("cp big out.dat")
    out = once(lambda request: "add-calcinfo" in request.path, Act(cut_body=300_000))
    back = once(lambda request: "get-calc-result" in request.path, Act(cut_answer=500_000), Act(status=200), Act(cut_answer=0))
    wire = Wire(server.port, lambda request: out(request) or back(request))
    module.poll()
    try:
        module.run("job.sh:big", url=wire.url)
        assert (module.here / "out.dat").read_bytes() == ALL_BYTES * 100
        sizes = {request.body_bytes for request in wire.of("POST", "add-calcinfo")}
        assert len(sizes) == 1  # announced with its length, each time the same
        assert sizes.pop() > 1_365_000
        assert len(wire.of("GET", "get-calc-result")) == 4
    finally:
        wire.close()


def test_a_proxy_of_the_environment_is_used(module: Module, server: TheirServer) -> None:
    module.script("echo 1 > out.dat")
    wire = Wire(server.port)
    module.poll()
    try:
        module.run(url=f"127.0.0.1:{server.port}", http_proxy=wire.url)
        assert wire.of("POST", f"http://127.0.0.1:{server.port}/mi-distcomp-api/add-calcinfo")
    finally:
        wire.close()


def test_a_server_that_is_not_there_yet(module: Module) -> None:
    port = free_port()
    module.script("echo 1 > out.dat")
    running = module.start(url=f"http://127.0.0.1:{port}")
    running.wait_for_output("trying again", 20)
    with TheirServer({SITE: [COMMAND]}, {TOKEN: "user"}, port) as late:
        module.server = late
        module.poller.url = late.url
        module.poll()
        assert running.wait(30) == 0


def test_a_certificate(module: Module, nginx_tls: object) -> None:
    nginx = nginx_tls(module.server.port)  # type: ignore[operator]
    assert "REQUESTS_CA_BUNDLE" in module.run(url=nginx.url, code=75)
    assert module.server.requests == []
    module.script("echo 1 > out.dat")
    module.poll()
    module.run(url=nginx.url, REQUESTS_CA_BUNDLE=str(nginx.ca))


@pytest.mark.slow
def test_a_result_that_cannot_be_read_is_not_asked_for_without_end(module: Module) -> None:
    running = module.start()
    module.returned(module.wait_for("calc-progress"), {"out.dat": {"content": "no base64!", "mimetype1": "", "mimetype2": ""}})
    assert running.wait(60) == 1
    assert "not base64" in running.output()
    assert module.asked("get-calc-result") == published.MAX_DAMAGED


# ---- the end before the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_cut_short(module: Module, number: signal.Signals) -> None:
    running = module.start()
    module.wait_for("calc-progress", 3)
    module.server.drop_answer("cancel-wait-calc")
    running.signal(number)
    assert running.wait(20) == 128 + number
    assert module.server.jobs == {}
    assert module.server.requests[-1] == ("POST", "/mi-distcomp-api/cancel-wait-calc")
    assert f"{number.name}: canceling" in running.output()
    assert sorted(os.listdir(module.here)) == ["job.sh"]


def test_cut_short_while_nothing_answers(module: Module) -> None:
    running = module.start(url=f"http://127.0.0.1:{free_port()}")
    running.wait_for_output("trying again", 20)
    running.signal(signal.SIGTERM)
    assert running.wait(20) == 143
    assert sorted(os.listdir(module.here)) == ["job.sh"]


def test_nohup(module: Module) -> None:
    running = module.start(before=("nohup",))
    module.wait_for("calc-progress", 3)
    running.signal(signal.SIGHUP)
    module.returned(module.wait_for("calc-progress", module.asked("calc-progress") + 2), {"out.dat": entry(b"1")})
    assert running.wait(20) == 0


def test_nobody_listens_to_it(module: Module) -> None:
    """Whoever read its messages has gone: the calculation goes on, and its end is told by the exit code all the same."""
    module.script("echo 1 > out.dat")
    module.poll()
    module.run(before=("sh", "-c", 'exec 3>&1; { "$@" 2>&1 >&3; echo $? > code; } | true; exit $(cat code)', "sh"))
    assert (module.here / "out.dat").read_text() == "1\n"


@pytest.mark.parametrize("when", ["calc-progress", "get-calc-result"])
def test_a_calculation_that_is_gone(module: Module, when: str) -> None:
    if when == "get-calc-result":
        module.server.html("get-calc-result", 2)
    running = module.start()
    accept_id = module.wait_for("calc-progress")
    if when == "get-calc-result":
        module.returned(accept_id, {})
        module.wait_for(when)
    module.server.jobs.clear()
    assert running.wait(30) == 1
    assert f"There is no information for accept_id({accept_id})" in running.output()
    assert "was restarted" in running.output()
    assert module.asked("cancel-wait-calc") == 0


def test_over_before_it_was_looked_at_is_abnormal_all_the_same(module: Module) -> None:
    """Its status is asked for after its end: asked for before, such a job would look as if it had ended well."""
    module.server.html("calc-progress")
    running = module.start()
    module.returned(module.wait_for("calc-progress"), {}, "abnormal")
    assert running.wait(20) == 1
    calls = [path.partition("?")[0].rpartition("/")[2] for _, path in module.server.requests]
    assert [call for call in calls if call in SUBMITTERS][-3:] == ["calc-progress", "calc-status", "get-calc-result"]


# ---- no fixed waits


def test_it_asks_soon_and_seldom() -> None:
    assert all(published.pause_s(unchanged_s) <= 0.2 for unchanged_s in (0, 0.01, 1, 2))
    asked, now_s = 0, 0.0
    while now_s < 3600:
        now_s += published.pause_s(now_s)
        asked += 1
    assert 1800 < asked < 1900


def test_nothing_is_asked_for_twice(module: Module) -> None:
    """Once the end is seen there is one question for the status and one for the result; before, many for the progress."""
    running = module.start()
    accept_id = module.wait_for("calc-progress", 8)  # with a fixed wait of 10 s these would take more than a minute
    module.returned(accept_id, {"out.dat": entry(b"1")})
    assert running.wait(20) == 0
    assert [module.asked(call) for call in SUBMITTERS if call != "calc-progress"] == [1, 1, 1, 1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(module: Module) -> None:
    size = 64 << 20
    with open(module.here / "big", "wb") as file:
        file.truncate(size)
    module.script("cp big out.dat")
    module.poll()
    module.run("job.sh:big", before=("sh", "-c", 'ulimit -v 160000; exec "$@"', "sh"))
    assert (module.here / "out.dat").stat().st_size == size


# ---- words


@pytest.mark.parametrize(
    ("given", "meant"),
    [("http://nims.mintsys.jp", "https://nims.mintsys.jp:50443"), ("https://mint:8443/", "https://mint:8443"),
     ("mint", "https://mint:50443"), ("mint:443", "https://mint:443"), ("localhost", "http://localhost:50443"),
     ("https://localhost:1/a/", "https://localhost:1/a"), ("http://[::1]:8082", "http://[::1]:8082"),
     ("https://user:secret@mint", "https://mint:50443")],
)  # fmt: skip
def test_addresses(given: str, meant: str) -> None:
    assert published_url(given) == meant
    assert published_url("mint:1", 443) == "https://mint:443"


def test_every_message_is_there() -> None:
    used = re.findall(r'\btell\("(\w+)"', (REPO / "spool" / "ctl" / "published.py").read_text(encoding="utf-8"))
    assert len(used) > 8
    assert [key for key in used if not known(key)] == []
    assert all(issubclass(kind, SpoolError) for kind in (published_http.NoAnswer, published_http.Gone, published_http.Untrusted))
