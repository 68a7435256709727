"""etc/nginx.conf as it is shipped, in the real nginx: only names and ports are put in their place."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from components.nginx import make_certificate
from components.ports import accepts, free_port
from components.process import Process
from components.rig import REPO, Rig
from components.waiting import wait_until


@pytest.fixture
def front(rig: Rig, tmp_path: Path) -> tuple[str, ssl.SSLContext]:
    """The URL of nginx with the shipped sample in front of the rig's server, and what to trust."""
    make_certificate(tmp_path)
    port = free_port()
    sample = (REPO / "etc" / "nginx.conf").read_text(encoding="utf-8")
    for pattern, value in {
        r"listen 50443": f"listen 127.0.0.1:{port}",
        r"mint\.example\.jp": "localhost",
        r"/etc/nginx/mint-spool/": f"{tmp_path}/",
        r"127\.0\.0\.1:8082": f"127.0.0.1:{rig.port}",
    }.items():
        sample, count = re.subn(pattern, value, sample)
        assert count, f"{pattern} is not in the sample"
    temp_paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; {temp_paths}\n{sample}\n}}\n"
    )
    argv = ["/usr/sbin/nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr"]
    process = Process(argv, log=tmp_path / "nginx.log")
    rig._processes.append(process)
    wait_until(lambda: accepts(port), 20, "nginx listens")
    return f"https://localhost:{port}", ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))


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
