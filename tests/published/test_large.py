"""Large files through the published protocol: as streams, in constant memory, and not beyond its limit."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import proc
from published.conftest import COMMAND, SITE, Institute, first, told

BLOCK = hashlib.shake_256(b"block").digest(3 << 18)
BLOCKS = 342  # 256 MiB and a little
SIZE = len(BLOCK) * BLOCKS
LIMIT_BYTES = 2 * 1024**3
RESIDENT_LIMIT_MB = 150


def stream(head: bytes, tail: bytes) -> Iterator[bytes]:
    """A document with the large file in base64 between `head` and `tail`, never whole in memory."""
    yield head
    encoded = base64.b64encode(BLOCK)
    for _ in range(BLOCKS):
        yield encoded
    yield tail


def post(institute: Institute, call: str, head: bytes, tail: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", institute.rig.port, timeout=300)
    length = len(head) + len(tail) + SIZE // 3 * 4
    headers = {"Authorization": f"Bearer {institute.token}", "Content-Length": str(length)}
    connection.request("POST", f"/mi-distcomp-api/{call}", stream(head, tail), headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def get(institute: Institute, call: str) -> tuple[str, int]:
    """(SHA-256 of the first long base64 string in the answer, bytes of the answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", institute.rig.port, timeout=300)
    connection.request("GET", f"/mi-distcomp-api/{call}", headers={"Authorization": f"Bearer {institute.token}"})
    answer = connection.getresponse()
    assert answer.status == 200
    head = answer.read(4096)
    match = re.search(rb'"([A-Za-z0-9+/]{400,})', head)
    assert match, head[:300]
    digest, left, total = hashlib.sha256(), head[match.start(1) :], len(head)
    while True:
        text, quote, _ = left.partition(b'"')
        whole = len(text) - len(text) % 4
        digest.update(base64.b64decode(text[:whole]))
        left = text[whole:]
        if quote:
            break
        block = answer.read(1 << 20)
        total += len(block)
        left += block
    rest = answer.read()
    assert answer.headers["Content-Length"] == str(total + len(rest))
    return digest.hexdigest(), total


@pytest.fixture
def resident(institute: Institute) -> Iterator[None]:
    """Fails where the server's memory ever went beyond the limit."""
    yield
    used = proc.peak_rss_mb(institute.rig.pid_of("spool_server.py"))
    print(f"\npublished protocol: server at most {used:.0f} MB resident")
    assert used < RESIDENT_LIMIT_MB


@pytest.mark.slow
@pytest.mark.usefixtures("resident")
def test_256_megabytes_in_and_out(institute: Institute) -> None:
    expected = hashlib.sha256()
    for _ in range(BLOCKS):
        expected.update(BLOCK)
    calc = json.dumps({"remote-site": SITE, "command": COMMAND, "result_files": {"out.dat": {}}})[:-1].encode()
    began = time.monotonic()
    status, body = post(institute, "add-calcinfo", b'{"calc-info": ' + calc + b', "parameter_files": {"in.dat": ["', b'"]}}}')
    assert status == 200, body
    job = json.loads(body)["errors"][0]["accept_id"]
    institute.submitter().allow(job)
    poller = institute.poller()
    poller.request()
    assert get(institute, f"calc-params?accept_id={job}&site_id={SITE}")[0] == expected.hexdigest()
    went_in = time.monotonic()
    for step in (poller.params_complete, poller.start):
        assert told(step(job)) == (200, 200)
    poller.end(job, "calc end")
    head = json.dumps({"accept_id": job, "site_id": SITE})[:-1].encode() + b', "result_files": {"out.dat": {"content": "'
    status, body = post(institute, "send-results", head, b'", "mimetype1": "a", "mimetype2": "b"}}}')
    assert status == 200, body
    assert told(poller.end_send(job)) == (200, 200)
    assert get(institute, f"get-calc-result?accept_id={job}")[0] == expected.hexdigest()
    came_out = time.monotonic()
    print(f"\npublished protocol: {SIZE / 1e6 / (went_in - began):.0f} MB/s in, {SIZE / 1e6 / (came_out - went_in):.0f} MB/s out")
    assert list((institute.rig.spool / "tmp").iterdir()) == []


def test_beyond_the_limit_is_refused_before_it_is_sent(institute: Institute, tmp_path: Path) -> None:
    for token, expected in ((institute.token, (413, 413)), ("0" * 64, (403, "0005"))):
        connection = http.client.HTTPConnection("127.0.0.1", institute.rig.port, timeout=30)
        connection.putrequest("POST", "/mi-distcomp-api/add-calcinfo")
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("Content-Length", str(LIMIT_BYTES + 1))
        connection.endheaders()
        answer = connection.getresponse()
        (error,) = json.loads(answer.read())["errors"]
        assert (answer.status, error["code"]) == expected
        assert len(error["message"]) > 10
    assert told(institute.submitter().add({"remote-site": SITE, "command": COMMAND})) == (200, 200)
    assert first(institute.poller().request())["code"] == "0300"
