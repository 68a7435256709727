"""Hostile requests: refused before they cost anything, answered in the envelope, and nothing of them is kept."""

from __future__ import annotations

import base64
import gzip
import json
import time
import unicodedata
from functools import partial
from typing import Any

import pytest

from components.rig import Rig
from published.conftest import COMMAND, SITE, Institute, first
from published.raw_calls import BASE, Answer, Caller, at_once, parsed, raw
from published.their_poller import STDERR, STDOUT

GIB = 1 << 30
LARGE = ("add-calcinfo", "send-results")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def entry(data: bytes) -> dict[str, str]:
    return {"content": b64(data), "mimetype1": "text/plain;", "mimetype2": "charset=us-ascii"}


@pytest.fixture
def caller(institute: Institute) -> Caller:
    return Caller(institute.rig.port, institute.token, SITE)


def head(call: str, token: str = "", method: str = "POST", **headers: str) -> bytes:
    given = {"Host": "x", **({"Authorization": f"Bearer {token}"} if token else {}), **headers}
    lines = [f"{method} {BASE}/{call} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def nothing_kept(rig: Rig) -> bool:
    return [*rig.spool.glob("jobs/*"), *rig.spool.glob("tmp/*"), *rig.spool.glob("new/*"), *rig.spool.glob("corrupt/*")] == []


# ---- before the body


@pytest.mark.parametrize("call", LARGE)
@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}], ids=["", "expect"])
@pytest.mark.parametrize("sent", [0, 3 << 20], ids=["", "sending on"])
def test_too_large_a_body_is_refused_before_it_comes(institute: Institute, call: str, expect: dict[str, str], sent: int) -> None:
    start = time.monotonic()
    headers = head(call, institute.token, Content_Length=str(2 * GIB + 1), **expect)
    answer = parsed(call, raw(institute.rig.port, [headers, *[bytes(65536)] * (sent // 65536)]))
    assert answer.told == (413, 413)
    assert "2147483648" in answer.error["message"]
    assert time.monotonic() - start < 5
    assert nothing_kept(institute.rig)


@pytest.mark.parametrize("call", LARGE)
@pytest.mark.parametrize("token", ["", "0" * 64])
@pytest.mark.parametrize("how", [{"Content_Length": "1000000000"}, {"Transfer_Encoding": "chunked"}], ids=["length", "chunked"])
def test_without_a_token_no_body_is_taken_in(institute: Institute, call: str, token: str, how: dict[str, str]) -> None:
    for expect in ({}, {"Expect": "100-continue"}):
        answer = parsed(call, raw(institute.rig.port, [head(call, token, **how, **expect)]))
        assert answer.told == (403, "0005")
        assert answer.error["message"] == f"{BASE}/{call}への実行権がありません。"


def test_bad_tokens_are_counted_for_large_calls_too(institute: Institute) -> None:
    """Else these two calls would be the place to try tokens, unseen."""
    for _ in range(12):
        raw(institute.rig.port, [head("add-calcinfo", "f" * 64, Content_Length="1000")])
    institute.rig._processes[-1].wait_for_output("event=bad_token", 5)
    answer = Caller(institute.rig.port, "f" * 64, SITE).request()
    assert answer.told == (429, 429)
    assert institute.submitter().calcinfo().status_code == 200, "a token that counts is never kept out"


def test_a_client_that_expects_to_be_told_is_told_to_go_on(institute: Institute) -> None:
    body = json.dumps({"calc-info": {"remote-site": SITE, "command": COMMAND}}).encode()
    headers = head("add-calcinfo", institute.token, Content_Length=str(len(body)), Expect="100-continue", Connection="close")
    answer = raw(institute.rig.port, [headers, body])
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert parsed("add-calcinfo", answer.partition(b"\r\n\r\n")[2]).told == (200, 200)


@pytest.mark.parametrize("call", ["calc-start", "calc-end", "allow-wait-calc", "cancel-wait-calc"])
def test_a_small_call_takes_no_large_body(institute: Institute, call: str) -> None:
    for length in (5 * GIB, 2 << 20):
        sent = [head(call, institute.token, Content_Length=str(length), Connection="close")]
        sent += [bytes(65536)] * (length // 65536) if length < GIB else []
        assert parsed(call, raw(institute.rig.port, sent)).told == (413, 413)


# ---- how it is sent


def pieces(data: bytes, size: int) -> list[bytes]:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts] + [b"0\r\n\r\n"]


@pytest.mark.parametrize("size", [1, 1000])
def test_chunked_transfer(institute: Institute, size: int) -> None:
    files = {"a": [b64(b"x" * 500), "text/plain;", "charset=us-ascii"]}
    body = json.dumps({"calc-info": {"remote-site": SITE, "command": COMMAND, "parameter_files": files}}).encode()
    headers = head("add-calcinfo", institute.token, Transfer_Encoding="chunked", Connection="close")
    answer = parsed("add-calcinfo", raw(institute.rig.port, [headers, *pieces(body, size)]))
    assert answer.told == (200, 200)
    assert (institute.rig.job(answer.error["accept_id"]) / "in" / "a").read_bytes() == b"x" * 500


@pytest.mark.parametrize("call", ["add-calcinfo", "calc-end"])
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Transfer_Encoding": "chunked"}, b"zz\r\nno chunk\r\n", 400),
        ({"Transfer_Encoding": "gzip, chunked"}, b"0\r\n\r\n", 501),
        ({"Content_Length": "-5"}, b"", 400), ({"Content_Length": "1e3"}, b"", 400), ({"Content_Length": "5, 6"}, b"", 400),
    ],
)  # fmt: skip
def test_a_malformed_request_is_answered_in_the_envelope(
    institute: Institute, call: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = parsed(call, raw(institute.rig.port, [head(call, institute.token, **headers) + body]))
    assert answer.told == (status, status)


@pytest.mark.parametrize("call", LARGE)
def test_a_body_that_ends_early_is_nothing(institute: Institute, call: str) -> None:
    for length, chunked in ((10000, False), (5_000_000, False), (0, True)):
        how = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": str(length)}
        part = b'7d0\r\n{"calc-info": ' if chunked else b'{"calc-info": ' + bytes(length // 2)
        assert raw(institute.rig.port, [head(call, institute.token, **how), part], shut=True) == b""
    assert institute.call("GET", "get-calcinfo").json() == {}
    assert nothing_kept(institute.rig)


def test_a_compressed_body_is_no_json(institute: Institute, caller: Caller) -> None:
    body = gzip.compress(b'{"calc-info": {}}')
    assert caller.call("POST", "add-calcinfo", body, Content_Encoding="gzip").told == (202, 400)
    assert caller.call("POST", "calc-start", body, Content_Encoding="gzip").told == (400, 400)


# ---- what is in it


CALC: dict[str, Any] = {"remote-site": SITE, "command": COMMAND}
ODD_TRIPLES: list[Any] = [[], [None], [5], [["eA=="]], [{}], {"0": "eA=="}, ["eA"], ["eA==="], ["e=A="], ["ああ"], ["eA==eA=="]]
BODIES: list[tuple[str, Any]] = [
    ("no object", []), ("null", None), ("number", 5), ("calc-info null", {"calc-info": None}),
    ("calc-info list", {"calc-info": []}),
    ("site list", {"calc-info": {**CALC, "remote-site": [SITE]}}), ("site dict", {"calc-info": {**CALC, "remote-site": {}}}),
    ("command null", {"calc-info": {**CALC, "command": None}}), ("command number", {"calc-info": {**CALC, "command": 1}}),
    *((f"inputs {value!r}", {"calc-info": {**CALC, "parameter_files": value}}) for value in ("x", 5, True, [1], {"a": None})),
    *((f"outputs {value!r}", {"calc-info": {**CALC, "result_files": value}}) for value in ("x", 5, True, [1])),
    *((f"input {value!r}", {"calc-info": {**CALC, "parameter_files": {"a": value}}}) for value in ODD_TRIPLES),
    *(
        (f"input name {name!r}", {"calc-info": {**CALC, "parameter_files": {name: ["eA==", "", ""]}}})
        for name in ("", ".", "..", "a/", "a/..", "/", "a\0b", "a\nb", "-rf", "x" * 256, "あ" * 100, "a\\..", "\u202eexe.a")
    ),
    *(
        (f"output name {name!r}", {"calc-info": {**CALC, "result_files": {name: {}}}})
        for name in ("", "..", "../a", "a/../b", "/a", "a//b", "a\0b", "x" * 256, "あ" * 100, "/".join("d" * 600), "-a")
    ),
]  # fmt: skip


def test_no_such_body_registers_anything(institute: Institute, caller: Caller) -> None:
    for what, body in BODIES:
        answer = caller.call("POST", "add-calcinfo", json.dumps(body).encode())
        assert answer.told == (202, 400), what
        assert len(answer.error["message"]) > 10
    assert nothing_kept(institute.rig)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\0", b"\xff\xfe{\0}\0", b'{"calc-info": {"command": "\xff"}}', b'{"calc-info": {"command": "\\ud800"}}',
        b'{"calc-info": {}, "calc-info": {}}', b'{"calc-info":' * 5000, b"[" * 100000, b'{"calc-info": NaN}',
        b'{"calc-info": {"a": 1e99999, "b": ' + b"9" * 5000 + b"}}", b'{"calc-info": {"result_files": {"a": {}, "a": {}}}}',
        b'{"calc-info": {"parameter_files": {"a": ["eA=="], "a": ["eQ=="]}}}',
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_json_is_refused(institute: Institute, caller: Caller, body: bytes) -> None:
    assert caller.call("POST", "add-calcinfo", body).told == (202, 400)
    job = institute.registered()
    steps = ("calc-params-complete", "calc-start", "calc-end", "send-results", "end-send")
    for call in (*steps, "allow-wait-calc", "cancel-wait-calc"):
        assert caller.call("POST", call, body).told == (400, 400)
    assert institute.rig.state(job)["state"] == "queued"


def test_ids_and_sites_of_every_type(institute: Institute, caller: Caller) -> None:
    job = institute.registered()
    for odd in (None, 5, True, [], [job], {}, {"a": job}, 1.5, "", job.upper(), f" {job}", f"{job}\n", "あ", "\0", "x" * 100000):
        for step in ("calc-params-complete", "calc-start", "calc-end", "end-send", "send-results"):
            rest = {"result": "calc end", "result_files": {}}
            assert caller.post(step, accept_id=odd, site_id=SITE, **rest).told == (400, 400)
            if odd not in (job, SITE):
                assert caller.post(step, accept_id=job, site_id=odd, **rest).told == (400, 400)
        for call in ("allow-wait-calc", "cancel-wait-calc"):
            assert caller.post(call, accept_id=odd).told == (400, 400)
    words: list[Any] = [5, [], {}, True, "", "CALC END", "calc end "]
    for word in words:
        answer = caller.post("calc-end", accept_id=job, site_id=SITE, result=word)
        assert answer.told == (400, 402)
    assert caller.post("calc-end", accept_id=job, site_id=SITE).told == (400, 401)
    assert caller.post("cancel-wait-calc", accept_id=job, delete=["force"]).told == (200, 200), "it waits: no force needed"


def test_queries_of_every_kind(institute: Institute, caller: Caller) -> None:
    job = institute.registered()
    for query in ("", "site_id", "site_id=", "site_id=%ff", "site_id=%ed%a0%80", "site_id=&site_id=" + SITE, "Site_id=" + SITE):
        assert caller.call("GET", f"calc-request?{query}").told == (400, 400), query
    for query in (f"site_id={SITE}&site_id=nowhere", f"site_id={SITE}&accept_id=x", f"a=b&site_id={SITE}" + "&c=d" * 5000):
        assert caller.call("GET", f"calc-request?{query}").error["accept_id"] == job
    assert caller.call("GET", f"calc-request?site_id=nowhere&site_id={SITE}").told == (200, "400")
    for odd in ("あ", "\"'", "x" * 20000, "<b>", "a\tb"):
        assert caller.get("calc-request", site_id=odd).told == (200, "400")
        assert caller.get("calc-status", accept_id=odd).told == (200, 400)
    assert caller.call("GET", "calc-request?" + "x" * 70000).status == 431


def test_control_characters_in_an_answer_are_no_escapes(institute: Institute, caller: Caller) -> None:
    """JSON could only write them as escapes, and the published programs print what comes."""
    for odd in ("\0", "\x01\x1f", "\x7f"):
        answer = caller.get("calc-request", site_id=odd)
        assert answer.told == (200, "400")
    job = institute.registered()
    caller.up_to(job, "end")
    files = {"out.dat": {"content": "", "mimetype1": "Error", "mimetype2": "\x00\x1b[31m"}}
    assert caller.send_results(job, files).told == (200, 200)
    assert caller.end_send(job).told == (200, 200)
    assert "[31m" in caller.get("get-calc-result", accept_id=job).error["result-info"]["result_files"]["out.dat"]["mimetype2"]


# ---- results


@pytest.mark.parametrize(
    "files",
    [
        None, [], "x", 5, True, {"out.dat": {}}, {"out.dat": {"content": None}}, {"out.dat": {"content": 5}},
        {"out.dat": {"content": "*"}}, {"out.dat": {"content": ["eA=="]}}, {"out.dat": {"content": "eA"}},
    ],
)  # fmt: skip
def test_results_that_are_none(institute: Institute, caller: Caller, files: Any) -> None:
    job = institute.registered()
    caller.up_to(job, "end")
    assert caller.send_results(job, files).told == (400, 400)
    assert caller.post("send-results", accept_id=job, site_id=SITE).told == (400, 400)
    assert first(institute.submitter().progress(job))["message"] == "status:calc end"
    assert caller.end_send(job).told == (200, 200)
    assert institute.rig.state(job)["reason"] == "transfer"
    assert list(institute.rig.spool.glob("tmp/*")) == []


def test_results_that_nobody_asked_for_are_not_kept(institute: Institute, caller: Caller) -> None:
    job = institute.registered()
    caller.up_to(job, "end")
    names = ["../../../tokens.json", "/etc/passwd", "state.json", "a\0b", "x" * 5000, "", "out.dat/", "./out.dat", "stdout.txt"]
    odd: list[Any] = [5, None, [], "eA==", {"content": {}}, {"content": 5}]
    files: dict[str, Any] = {name: entry(b"evil") for name in names}
    files.update({f"odd{number}": value for number, value in enumerate(odd)})
    assert caller.send_results(job, {**files, "out.dat": entry(b"good")}).told == (200, 200)
    assert caller.end_send(job).told == (200, 200)
    kept = {str(path.relative_to(institute.rig.job(job))) for path in institute.rig.job(job).rglob("*") if path.is_file()}
    assert kept == {"job.json", "state.json", "history.jsonl", "result.json", "out/out.dat"}
    assert b"evil" not in b"".join(path.read_bytes() for path in institute.rig.job(job).rglob("*") if path.is_file())


def test_names_that_look_alike_stay_apart(institute: Institute, caller: Caller) -> None:
    composed, apart = (unicodedata.normalize(form, "ガ.dat") for form in ("NFC", "NFD"))
    names = [composed, apart, "A.dat", "a.dat", "d/out", "e/out"]
    files = {name: [b64(name.encode()), "", ""] for name in names[:4]}
    job = institute.registered(parameter_files=files, result_files={name: {} for name in names})
    assert caller.params(job).document["calc-info"]["parameter_files"] == files
    caller.up_to(job, "results", {name: entry(name.encode()) for name in names})
    assert caller.end_send(job).told == (200, 200)
    found = caller.get("get-calc-result", accept_id=job).error["result-info"]["result_files"]
    assert {name: found[name]["content"] for name in names} == {name: b64(name.encode()) for name in names}


def test_results_that_are_file_and_folder_at_once(institute: Institute, caller: Caller) -> None:
    job = institute.registered(result_files={"a": {}, "a/b": {}})
    caller.up_to(job, "end")
    assert caller.send_results(job, {"a": entry(b"1"), "a/b": entry(b"2")}).told == (400, 400)
    assert caller.end_send(job).told == (200, 200)
    assert institute.rig.state(job)["state"] == "failed"
    assert caller.request().told == (200, "0300")


# ---- how much of it


@pytest.mark.slow
def test_very_many_entries(institute: Institute, caller: Caller) -> None:
    many = {f"f{number}": {"content": "", "mimetype1": "", "mimetype2": ""} for number in range(100_000)}
    assert caller.call("POST", "add-calcinfo", {"calc-info": {**CALC, "result_files": many}}).told == (202, 400)
    job = institute.registered()
    caller.up_to(job, "end")
    assert caller.send_results(job, many).told == (400, 400)
    files = {f"f{number}": ["", "", ""] for number in range(20_000)}
    answer = caller.call("POST", "add-calcinfo", {"calc-info": {**CALC, "parameter_files": files}})
    assert answer.told in ((200, 200), (202, 400))
    assert list(institute.rig.spool.glob("tmp/*")) == []


@pytest.mark.parametrize("key", ["parameters", "mimetype"])
def test_what_can_be_registered_can_be_read_again(institute: Institute, caller: Caller, key: str) -> None:
    """job.json has a limit: what is beyond it is refused at once, and not accepted to be lost."""
    media = {"parameter_files": {f"f{number}": ["", "あ" * 200, "あ" * 200] for number in range(4500)}}
    more = {"parameters": "x" * (4 << 20)} if key == "parameters" else media
    answer = caller.call("POST", "add-calcinfo", {"calc-info": {**CALC, **more}})
    assert answer.told == (202, 400)
    assert nothing_kept(institute.rig)


def test_escapes_take_no_quadratic_time(institute: Institute, caller: Caller) -> None:
    for text in ('\\"' * 2_000_000, "\\\\" * 2_000_000 + '\\"', "\\u0022" * 600_000):
        start = time.monotonic()
        body = f'{{"calc-info": {{"remote-site": "{text}", "command": "x"}}}}'.encode()
        answers = at_once([partial(caller.call, "POST", "add-calcinfo", body), partial(caller.get, "get-calcinfo")])
        assert answers[0].told == (202, 400)
        assert time.monotonic() - start < 15


def test_blanks_take_little_time(caller: Caller) -> None:
    start = time.monotonic()
    assert caller.call("POST", "add-calcinfo", b" " * 50_000_000 + b"{}").told == (202, 400)
    assert time.monotonic() - start < 10


# ---- every answer is the envelope


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 404), ("GET", "nothing", 404), ("POST", "calc-request/", 404), ("GET", "%00", 400), ("GET", "%ff", 400),
        ("GET", "あ".encode().decode("latin-1"), 400), ("DELETE", "calc-start", 405), ("GET", "send-results", 405),
        ("PATCH", "add-calcinfo", 405), ("POST", "get-calcinfo", 405), ("FROB", "calc-status", 405), ("PUT", "nothing", 404),
    ],
)  # fmt: skip
def test_no_such_path_or_method(institute: Institute, method: str, path: str, status: int) -> None:
    answer = parsed(path, raw(institute.rig.port, [head(path, institute.token, method, Connection="close")]))
    assert answer.told == (status, status)


def test_a_broken_token_file_is_told_in_the_envelope(institute: Institute, caller: Caller) -> None:
    tokens = institute.rig.spool / "tokens.json"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[: len(whole) // 2])
    for call in ("calc-start", "add-calcinfo", "send-results"):
        assert caller.call("POST", call, {}).told == (500, 500)
    assert caller.request().told == (500, 500)
    tokens.write_bytes(whole)
    assert caller.request().told == (200, "0300")


def test_a_record_that_cannot_be_read_is_told_and_stops_no_other(institute: Institute, caller: Caller) -> None:
    jobs = [institute.registered() for _ in range(3)]
    for job in jobs:
        caller.params(job)
    trace = institute.rig.job(jobs[0]) / "incoming" / institute.rig.state(jobs[0])["run_id"] / "poller.json"
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.write_bytes(b'{"received": tr')
    assert set(caller.get("get-calcinfo").document) == set(jobs)
    assert caller.get("calc-status", accept_id=jobs[0]).told == (200, 200)
    for job in jobs[1:]:
        assert caller.params_complete(job).told == (200, 200)
    (institute.rig.job(jobs[1]) / "job.json").write_bytes(b"{")
    (institute.rig.job(jobs[2]) / "state.json").write_bytes(b"{")
    assert {answer.status for answer in map(caller.start, jobs)} <= {200, 400, 403}
    assert caller.request().told[0] == 200


def test_every_answer_is_utf8(institute: Institute, caller: Caller) -> None:
    job = institute.registered(outputs=["出力.dat"], parameters="計算")
    for answer in (caller.params(job), caller.get("get-calcinfo"), caller.get("calc-status", accept_id="計算")):
        assert isinstance(answer, Answer)
        assert answer.document
    assert STDOUT.encode() in caller.params(job).raw
    assert STDERR.encode() in caller.params(job).raw
