"""etc/nginx.conf as it is shipped, in the real nginx: only names and ports are put in their place."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable

import pytest

from components.listener import Teller
from components.nginx import NginxSample, make_authority, sign
from components.rig import Rig


@pytest.fixture
def make_front(rig: Rig, tmp_path: Path) -> Iterator[Callable[..., tuple[str, ssl.SSLContext]]]:
    """`make_front(changes)`: the URL of nginx with the shipped sample in front of the rig's server, and what to trust."""
    made: list[NginxSample] = []

    def make(changes: Mapping[str, str] | None = None) -> tuple[str, ssl.SSLContext]:
        (tmp_path / "front").mkdir(exist_ok=True)
        made.append(NginxSample(rig.port, tmp_path / "front", changes))
        assert "[warn]" not in made[-1].tested, made[-1].tested
        assert "test is successful" in made[-1].tested
        return made[-1].url, ssl.create_default_context(cafile=str(made[-1].ca))

    yield make
    for front in made:
        front.close()


@pytest.fixture
def front(make_front: Callable[..., tuple[str, ssl.SSLContext]]) -> tuple[str, ssl.SSLContext]:
    return make_front()


def ask(url: str, context: ssl.SSLContext, headers: dict[str, str]) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def test_the_sample_serves_over_tls(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    rig.start_server(trusted_proxy="127.0.0.1")
    url, context = front
    assert ask(f"{url}/health", context, {})[1]["status"] == "ok"
    token = rig.token("mint", "submitter")
    status, value = ask(f"{url}/v1/jobs", context, {"Authorization": f"Bearer {token}"})
    assert (status, value["total"]) == (200, 0)


def test_a_client_cannot_forge_its_address(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    """Ten bad tries are counted together although each claims to come from somewhere else."""
    server = rig.start_server(trusted_proxy="127.0.0.1")
    url, context = front
    codes = [
        ask(f"{url}/v1/jobs", context, {"Authorization": "Bearer wrong-wrong-wrong", "X-Forwarded-For": f"10.0.0.{n}"})[0]
        for n in range(12)
    ]
    assert codes == [401] * 10 + [429] * 2
    assert "10.0.0." not in server.output()


def test_a_published_request_may_be_large(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    """Beyond the chunk that the calls of /v1 may have; those stay limited."""
    rig.start_server({"site-a": {"commands": "*"}}, trusted_proxy="127.0.0.1")
    url, context = front
    headers = {"Authorization": f"Bearer {rig.token('mint', 'submitter', 'agent')}"}
    files = {"in.dat": [base64.b64encode(bytes(60_000_000)).decode()]}
    body = json.dumps({"calc-info": {"remote-site": "site-a", "command": "x", "parameter_files": files}}).encode()
    request = urllib.request.Request(f"{url}/mi-distcomp-api/add-calcinfo", body, headers)
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        job = json.load(answer)["errors"][0]["accept_id"]
    assert rig.state(job)["inputs"][0]["size"] == 60_000_000
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/jobs", body, headers), context=context, timeout=60)


def test_a_published_poller_sees_no_page_while_the_server_is_away(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    """It repeats a request that was not answered, and gives its job up at a page."""
    server = rig.start_server({"site-a": {"commands": "*"}}, trusted_proxy="127.0.0.1")
    url, context = front
    server.stop()
    question = urllib.request.Request(f"{url}/mi-distcomp-api/calc-request?site_id=site-a", headers={"Authorization": "Bearer x"})
    with pytest.raises((urllib.error.URLError, http.client.RemoteDisconnected)) as caught:
        urllib.request.urlopen(question, context=context, timeout=20)
    assert not isinstance(caught.value, urllib.error.HTTPError)


# ---- what it lets through, and what not


def raw(url: str, context: ssl.SSLContext, request: bytes) -> bytes:
    """What is answered to those bytes, until the line ends."""
    port = int(url.rpartition(":")[2])
    plain = socket.create_connection(("127.0.0.1", port), 60)
    with context.wrap_socket(plain, server_hostname="localhost") as line:
        line.sendall(request)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_what_a_client_says_of_itself_is_not_passed_on(
    rig: Rig, make_front: Callable[..., tuple[str, ssl.SSLContext]]
) -> None:
    """Identity and address, in any spelling; on every path that is served."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    claims = (
        "X-Mint-User", "X-MINT-ROLES", "x-mint-sites", "X-Mint-Secret", "X_Mint_User", "X-Forwarded-Host", "Forwarded",
        "X-Real-IP", "X-Forwarded-By", "Proxy", "X-Forwarded-For",
    )  # fmt: skip
    with Teller(answer=answer) as server:
        url, context = make_front({f"127.0.0.1:{rig.port}": f"127.0.0.1:{server.port}"})
        for path in ("/", "/health", "/metrics", "/v1/jobs", "/mi-distcomp-api/calc-request"):
            lines = "".join(f"{name}: operator-9.9.9.9\r\n" for name in claims)
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer t\r\n{lines}\r\n"
            assert raw(url, context, head.encode()).startswith(b"HTTP/1.1 200"), path
    told = server.told.decode()
    assert told.count("Bearer t") == 5
    assert "9.9.9.9" not in told
    assert len(re.findall("X-Forwarded-For: 127.0.0.1\r\n", told)) == 5


def test_nothing_else_is_served(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    rig.start_server(trusted_proxy="127.0.0.1")
    url, context = front
    for path in ("/v2/jobs", "/healthz", "/server-status", "/v1", "/..%2f/etc/passwd", "/mi-distcomp-api"):
        answer = raw(url, context, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 301", b"HTTP/1.1 400")), (path, answer)
        assert b"nginx/" not in answer


def test_large_headers_and_old_tls(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    rig.start_server(trusted_proxy="127.0.0.1")
    url, context = front
    head = f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Large: {'x' * 20000}\r\n\r\n"
    assert raw(url, context, head.encode()).startswith(b"HTTP/1.1 400")
    old = ssl.create_default_context(cafile=None)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        raw(url, old, b"GET /health HTTP/1.0\r\n\r\n")


def test_strangers_are_slowed_and_a_company_behind_their_address_is_not(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    """Requests that show no token are counted by their address; those that show one are not."""
    rig.start_server(trusted_proxy="127.0.0.1")
    url, context = front
    pair = b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = raw(url, context, pair * 80 + b"GET /health HTTP/1.0\r\n\r\n")
    codes = [int(code) for code in re.findall(rb"HTTP/1.1 (\d{3}) ", answers)]
    assert set(codes) <= {401, 429, 200}, answers[:2000]
    assert codes.count(429) > 5
    token = rig.token("mint", "submitter")
    for _ in range(20):
        assert ask(f"{url}/v1/jobs", context, {"Authorization": f"Bearer {token}"})[0] == 200


def test_client_certificates(rig: Rig, make_front: Callable[..., tuple[str, ssl.SSLContext]], tmp_path: Path) -> None:
    """The block of the sample switched on: who shows none, an expired or a foreign one is told so, in words that agents know."""
    folder = tmp_path / "papers"
    folder.mkdir()
    for authority in ("companies", "other"):
        make_authority(folder / authority)
    for name, authority, days in (("agent", "companies", 7), ("expired", "companies", -1), ("foreign", "other", 7)):
        sign(folder / authority, folder / name, use="clientAuth", days=days)
    rig.start_server({"site-a": {"commands": "*"}}, trusted_proxy="127.0.0.1")
    switched_on = {"#(ssl_client_certificate).*": f"\\1 {folder}/companies.crt;", "#ssl_verify_client": "ssl_verify_client"}
    url, _ = make_front(switched_on)
    sh = {"sh": {"argv": "/bin/sh -c {args}", "args": ".*"}}
    for name, code in (("agent", 0), ("expired", 77), ("foreign", 77), ("", 77)):
        own = {"client_cert": folder / f"{name}.crt", "client_key": folder / f"{name}.key"} if name else {}
        agent = rig.start_agent("site-a", sh, "--once", url=url, ca_file=tmp_path / "front" / "ca.crt", **own)
        assert agent.wait(60) == code, agent.output()
    said = [line for line in agent.output().splitlines() if "event=sync_failed" in line]
    assert len(said) == 3
    assert all("valid client certificate" in line and "client_cert and client_key" in line for line in said)


def test_bodies_as_large_as_the_server_takes_them(rig: Rig, front: tuple[str, ssl.SSLContext]) -> None:
    """The proxy's limits are not below the server's own: a chunk of 16 MiB, the list of a million results."""
    rig.start_server({"site-a": {"commands": "*"}}, trusted_proxy="127.0.0.1")
    url, context = front
    headers = {"Authorization": f"Bearer {rig.token('mint', 'submitter', 'agent')}", "Content-Type": "application/json"}
    job = "00000000-0000-4000-8000-000000000000"
    for path, size, code in (
        (f"/v1/jobs/{job}/files/in/a.dat", 16 << 20, 404),
        (f"/v1/jobs/{job}/finish", 64 << 20, 404),
        (f"/v1/jobs/{job}/files/in/a.dat", 18 << 20, 413),
        (f"/v1/jobs/{job}/finish", 66 << 20, 413),
    ):
        method = "POST" if path.endswith("finish") else "PATCH"
        request = urllib.request.Request(f"{url}{path}", bytes(size), {**headers, "Upload-Offset": "0"}, method=method)
        with pytest.raises(urllib.error.URLError) as caught:  # nginx may end the line under a body that it does not take
            urllib.request.urlopen(request, context=context, timeout=60)
        assert getattr(caught.value, "code", 413) == code, (path, size)
