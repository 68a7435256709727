"""The same through a server: real ones for what must work, small wrong ones for what must not be believed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

import pytest
import requests

from components.process import Process
from components.rig import REPO
from spool.ctl import http, remote
from spool.ctl.http import Api, check_url, read_token, retry_delay_s
from spool.ctl.remote import RemoteBackend
from spool.errors import NotAllowed, NotFound, SpoolError, Unreachable
from spool.names import new_id
from spool.records import FileEntry, Input, Job
from spool.tls import Tls

JOB = ("submit", "--site", "s", "--command", "c")


# ---- the real server


def test_the_whole_way(ctl: Any) -> None:
    ctl.serve()
    where = ctl.remote("submitter", "operator")
    (ctl.here / "empty").write_text("")
    done = ctl(*where, *JOB, "--in", "mesh/入力 %1#.inp=a.inp", "--in", "empty", "--out", "*", "--user", "alice", spool=False)
    job_id = done.stdout.strip()
    assert "mint's, not alice's" in done.stderr
    assert (ctl.folder(job_id) / "in/mesh/入力 %1#.inp").read_text() == "input\n"
    assert [job["id"] for job in json.loads(ctl(*where, "ls", "--json", spool=False).stdout)["jobs"]] == [job_id]
    state = ctl.run(job_id)
    ctl.bring(state, {"log/stdout.txt": b"one\n"})
    assert ctl(*where, "logs", job_id[:8], spool=False).stdout == "one\n"
    ctl.finish(job_id, {"out/deep/結果": b"result", "out/none": b"", "log/stdout.txt": b"one\ntwo\n"})
    assert "completed" in ctl(*where, "wait", job_id, spool=False).stdout
    assert ctl(*where, "logs", "-f", job_id, spool=False).stdout == "one\ntwo\n"
    ctl(*where, "fetch", job_id, "--into", "got", "--logs", spool=False)
    assert (ctl.here / "got/deep/結果").read_bytes() == b"result"
    assert (ctl.here / "got/none").read_bytes() == b""
    assert (ctl.here / "got/log/stdout.txt").read_bytes() == b"one\ntwo\n"
    assert "deep/結果" in ctl(*where, "show", job_id, spool=False).stdout
    ctl(*where, "requeue", job_id, spool=False)
    ctl(*where, "cancel", job_id, spool=False)
    assert ctl.rig.state(job_id)["state"] == "canceled"
    ctl(*where, "wait", job_id, spool=False, code=1)


def test_refusals(ctl: Any, tmp_path: Path) -> None:
    ctl.serve()
    where = ctl.remote("submitter")
    assert "not registered" in ctl(*where, "submit", "--site", "s", "--command", "rm", spool=False, code=1).stderr
    ctl(*where, "submit", "--site", "nowhere", "--command", "c", spool=False, code=1)
    job_id = ctl(*where, *JOB, spool=False).stdout.strip()
    assert "operator" in ctl(*where, "requeue", job_id, spool=False, code=77).stderr
    ctl(*ctl.remote("submitter", user="other"), "show", job_id, spool=False, code=1)
    wrong = ctl.here / "wrong"
    wrong.write_text("0" * 64)
    assert "chmod 600" in ctl("--url", ctl.rig.url, "--token", "@wrong", "ls", spool=False, code=77).stderr
    ctl("--url", ctl.rig.url, "--token", "0" * 64, "ls", spool=False, code=2)
    ctl("--url", ctl.rig.url, "ls", spool=False, code=2)
    ctl("--url", "http://192.0.2.1", "--token", "@wrong", "ls", spool=False, code=2)
    ctl(*where, "ls", code=2)
    for command in (["check"], ["token", "ls"]):
        ctl(*where, *command, spool=False, code=2)


def test_netrc_does_not_replace_the_token(ctl: Any) -> None:
    ctl.serve()
    (ctl.rig.home / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (ctl.rig.home / ".netrc").chmod(0o600)
    ctl(*ctl.remote("submitter"), "ls", spool=False)


def test_a_cut_upload_goes_on_with_the_same_id(ctl: Any) -> None:
    """5 MiB of 40 are there already, as after a cut; the rest follows in chunks, nothing is sent twice."""
    ctl.serve()
    where, job_id = ctl.remote("submitter"), new_id()
    data = os.urandom(40 << 20)
    (ctl.here / "big").write_bytes(data)
    entry = Input("big", len(data), hashlib.sha256(data).hexdigest())
    headers = {"Authorization": "Bearer " + Path(where[-1][1:]).read_text()}
    job = Job(id=job_id, site="s", command="c", inputs=(entry,))
    assert requests.post(ctl.rig.url + "/v1/jobs", data=job.encode(), headers=headers, timeout=10).status_code == 201
    path = f"{ctl.rig.url}/v1/jobs/{job_id}/files/in/big"
    sent = requests.patch(path, data=data[: 5 << 20], headers={**headers, "Upload-Offset": "0"}, timeout=10)
    assert sent.status_code == 204
    assert ctl(*where, *JOB, "--in", "big", "--id", job_id, spool=False).stdout.strip() == job_id
    assert (ctl.folder(job_id) / "in/big").read_bytes() == data
    (ctl.here / "big").write_bytes(b"other")
    ctl(*where, *JOB, "--in", "big", "--id", job_id, spool=False, code=1)


def test_a_server_that_takes_smaller_chunks_only(ctl: Any) -> None:
    (ctl.rig.spool / "spool.ini").unlink()
    ctl.rig.start_server({"s": {"commands": "c"}}, max_chunk="3M")
    (ctl.here / "big").write_bytes(os.urandom(20 << 20))
    job_id = ctl(*ctl.remote("submitter"), *JOB, "--in", "big", spool=False).stdout.strip()
    assert (ctl.folder(job_id) / "in/big").read_bytes() == (ctl.here / "big").read_bytes()


def test_a_server_that_comes_later(ctl: Any) -> None:
    where = ctl.remote("submitter")
    words = [REPO / "tools" / "spoolctl", *where, *JOB, "--in", "a.inp"]
    with Process(words, log=ctl.rig.root / "later.log", env=ctl.rig.env, cwd=ctl.here) as process:
        process.wait_for_output("trying again", 20)
        ctl.serve()
        assert process.wait(60) == 0
        assert ctl.rig.state(process.output().split()[-1])["state"] == "queued"


# ---- servers that misbehave

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def wrong_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Api]]:
    """`wrong_server(answer)`: a client of a server whose every answer `answer(handler)` writes; no pauses between tries."""
    monkeypatch.setattr(http, "retry_delay_s", lambda failures: 0.0)
    servers = []

    def start(answer: Answer) -> Api:
        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    answer(self)
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Api(f"http://127.0.0.1:{server.server_address[1]}", "token")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize(
    ("status", "body", "kind", "headers"),
    [
        (200, b"<html>Please log in</html>", "text/html", {}), (200, b"[]", "application/json", {}),
        (200, b"{", "application/json", {}),
        (404, b"<html>no</html>", "text/html", {}), (401, b"proxy", "text/plain", {}), (502, b"", "text/html", {}),
        (302, b"", "text/html", {"Location": "http://127.0.0.1:1/elsewhere"}),
        (403, b'{"code": 1}', "application/problem+json", {}), (500, b"{}", "application/json", {}),
    ],
)  # fmt: skip
def test_what_is_not_this_apis_answer_is_no_answer(
    wrong_server: Any, status: int, body: bytes, kind: str, headers: dict[str, str]
) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Authorization"])
        _reply(handler, status, body, kind, **headers)

    with pytest.raises(Unreachable):
        wrong_server(answer).json("GET", "/v1/jobs")
    assert asked == ["Bearer token"] * http.TRIES


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(wrong_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        (503, {"code": "busy", "message": "later \x1b[2J", "hint": ""}, {"Retry-After": "1"}),
        (403, {"code": "not_allowed", "message": "no", "hint": "ask"}, {}),
    ]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        status, value, headers = answers.pop(0)
        _reply(handler, status, json.dumps(value).encode(), "application/problem+json", **headers)

    with pytest.raises(NotAllowed, match="no"):
        wrong_server(answer).json("GET", "/v1/jobs")
    assert answers == []
    said = capsys.readouterr().err
    assert "in 1.0 s" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_download_that_is_cut_goes_on(wrong_server: Any, ranges: bool) -> None:
    data, asked = os.urandom(1 << 20), []
    entry = FileEntry("out/x", len(data), hashlib.sha256(data).hexdigest())

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers.get("Range"))
        start = int(asked[-1][6:-1]) if asked[-1] and ranges else 0
        assert not asked[-1] or handler.headers["If-Range"] == f'"sha256-{entry.sha256}"'
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : 600_000 if len(asked) == 1 else len(data)])

    backend = RemoteBackend(wrong_server(answer), ())
    assert b"".join(backend.blocks(new_id(), entry)) == data
    assert len(asked) == 2
    assert asked[0] is None
    assert asked[1]


def test_a_wrong_range_is_not_believed(wrong_server: Any) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        _reply(handler, 206, b"abc", "application/octet-stream", Content_Range="bytes 0-2/9")

    backend = RemoteBackend(wrong_server(answer), ())
    with pytest.raises(Unreachable):
        list(backend._from("/x", 5, ""))


def test_an_answer_about_another_kind_of_thing(wrong_server: Any) -> None:
    api = wrong_server(lambda handler: _reply(handler, 200, b'{"state": "up"}', "application/json"))
    with pytest.raises(SpoolError) as refused:
        RemoteBackend(api, ()).facts(new_id())
    assert refused.value.transient


def test_head_without_the_offset_is_no_answer(wrong_server: Any) -> None:
    backend = RemoteBackend(wrong_server(lambda handler: _reply(handler, 200, b"", "text/html")), ())
    with pytest.raises(Unreachable):
        backend._offset("/x")
    backend = RemoteBackend(wrong_server(lambda handler: _reply(handler, 404, b"", "text/html")), ())
    with pytest.raises(NotFound):
        backend._offset("/x")


# ---- small rules


def test_an_explicit_ca_file_is_not_overruled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other"))
    seen: dict[str, Any] = {}
    mine = tmp_path / "mine"
    mine.write_bytes(Path(requests.certs.where()).read_bytes())

    def send(self: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        seen.update(kwargs, auth=request.headers["Authorization"])
        raise requests.ConnectionError("stop here")

    monkeypatch.setattr(requests.Session, "send", send)
    with pytest.raises(Unreachable):
        Api("https://mint.example", "t", Tls(ca_file=str(mine))).request("GET", "/x")
    assert seen["verify"] == str(mine)
    assert seen["auth"] == "Bearer t"
    assert seen["timeout"] == http.TIMEOUT_S
    assert seen["allow_redirects"] is False


def test_delays() -> None:
    for failures, full in ((0, 2), (1, 4), (5, 64), (9, 300), (1000, 300)):
        delays = [retry_delay_s(failures) for _ in range(200)]
        assert min(delays) >= full / 2
        assert max(delays) <= full
        assert max(delays) - min(delays) > full / 8


def test_urls() -> None:
    assert check_url("https://mint.example:50443/x/", allow_http=False) == "https://mint.example:50443/x"
    for fine in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:80"):
        assert check_url(fine, allow_http=False) == fine
    assert check_url("http://mint.example", allow_http=True)
    for wrong in ("http://mint.example", "mint.example", "ftp://x", "http://", "http://127.0.0.1.example"):
        with pytest.raises(SpoolError):
            check_url(wrong, allow_http=False)


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for text in ("", "two words", "日本"):
        path.write_text(text)
        with pytest.raises(SpoolError):
            read_token(f"@{path}")
    path.write_text(" abc\n")
    assert read_token(f"@{path}") == "abc"


def test_a_file_that_shrinks_while_it_is_sent(ctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl.serve()
    where = ctl.remote("submitter")
    backend = RemoteBackend(Api(ctl.rig.url, read_token(where[-1])), ())
    source = ctl.here / "shrinking"
    source.write_bytes(bytes(3 << 20))
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1 << 20)

    def shrink(what: str, done: int, total: int) -> None:
        if done:
            os.truncate(source, 1 << 20)

    job = Job(id=new_id(), site="s", command="c", inputs=(Input("shrinking"),))
    with pytest.raises(SpoolError, match="changed while it was sent"):
        backend.submit(job, {"shrinking": source}, shrink)
    assert ctl.rig.state(job.id)["state"] == "new"
