"""The agent's line: whom it trusts, what it says to others (nothing), and what it says of them."""

from __future__ import annotations

import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from agent.company import Company, noise
from components.listener import ConnectProxy, Teller
from components.nginx import NginxTls, make_authority, pin_of, sign
from components.ports import free_port
from components.process import clean_env, run
from components.rig import REPO
from spool import tls as tls_module
from spool.agent.client import Client
from spool.errors import ConfigError, Unreachable
from spool.tls import Tls, hushed, key_pin, proxies_for, read_pin

TOKEN = "5ecret" * 10 + "abcd"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 30\r\n\r\n<html>Please log in here</html"
PORTAL = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/login\r\nContent-Length: 0\r\n\r\n"
SYNC = {"site": "site-a", "agent": "a", "room": 1, "wait_s": 0, "jobs": []}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two authorities: `good` and its kind by `ca`, `foreign` by `other`."""
    folder = tmp_path_factory.mktemp("papers")
    make_authority(folder / "ca")
    make_authority(folder / "other")
    sign(folder / "ca", folder / "good")
    sign(folder / "ca", folder / "expired", days=-1)
    sign(folder / "ca", folder / "elsewhere", names="DNS:mint.example.jp")
    sign(folder / "other", folder / "foreign")
    for name, authority, days in (("me", "ca", 7), ("me-expired", "ca", -1), ("me-foreign", "other", 7)):
        sign(folder / authority, folder / name, use="clientAuth", days=days)
    (folder / "self.crt").write_bytes((folder / "other.crt").read_bytes())
    (folder / "self.key").write_bytes((folder / "other.key").read_bytes())
    return folder


def server_context(papers: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers / f"{name}.crt", papers / f"{name}.key")
    return context


def refused(port: int, tls: Tls, host: str = "localhost") -> Unreachable:
    """What a sync says that must not come through."""
    with pytest.raises(Unreachable) as caught:
        Client(f"https://{host}:{port}", lambda: TOKEN, tls=tls).sync(SYNC)
    assert caught.value.hint
    assert TOKEN not in str(caught.value)
    return caught.value


# ---- who is not spoken to, and what is said about it


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("expired", "expired", "renew"),
        ("elsewhere", "localhost", "names in it"),
        ("self", "self.signed", "something in between"),
        ("foreign", "issuer|self.signed", "ca_file"),
    ],
)
def test_a_certificate_that_does_not_hold(papers: Path, name: str, says: str, hint: str) -> None:
    with Teller(server_context(papers, name), PAGE) as server:
        error = refused(server.port, Tls(ca_file=str(papers / "ca.crt")))
        assert server.calls == 1
    assert server.told == b"", "a byte of the request went to somebody else"
    assert any(word in error.message.replace("-", ".") for word in says.split("|")), error.message
    assert "nothing was sent" in error.message
    assert hint in error.hint


def test_tls_of_yesterday(papers: Path) -> None:
    context = server_context(papers, "good")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    with Teller(context, PAGE) as server:
        error = refused(server.port, Tls(ca_file=str(papers / "ca.crt")))
    assert (server.told, server.shaken) == (b"", 0)
    assert "older than 1.2" in error.message
    assert "ssl_protocols" in error.hint


def test_no_tls_on_that_port(papers: Path) -> None:
    with PlainHttp() as server:
        error = refused(server.port, Tls())
    assert server.told[:1] == b"\x16", "a ClientHello"
    assert TOKEN.encode() not in server.told
    assert "speaks no TLS" in error.message
    assert "right port" in error.hint


class PlainHttp(Teller):
    """Answers whatever comes as a plain http server answers a ClientHello."""

    def serve(self, line: socket.socket) -> None:
        self.told += line.recv(65536)
        line.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_a_captive_portal(papers: Path) -> None:
    """Its pages are no answers, its redirections are not followed; where it stands in the line, its certificate stops it."""
    with Teller(answer=PAGE) as elsewhere:
        for answer in (PAGE, PORTAL % elsewhere.port):
            with Teller(server_context(papers, "good"), answer) as portal:
                error = refused(portal.port, Tls(ca_file=str(papers / "ca.crt")))
            assert "not the server" in error.message
            assert "wants a login" in error.hint
        assert elsewhere.calls == 0


# ---- pins


def test_pins(papers: Path) -> None:
    """The key counts: another one is not spoken to, a renewed certificate over the same key is; openssl and we agree on it."""
    ca, pin = str(papers / "ca.crt"), pin_of(papers / "good.crt")
    certificate = ssl.PEM_cert_to_DER_cert((papers / "good.crt").read_text().partition("-----BEGIN")[2].join(["-----BEGIN", ""]))
    assert key_pin(certificate) == pin
    with Teller(server_context(papers, "good"), PAGE) as server:
        assert "not the server" in refused(server.port, Tls(ca_file=ca, pins=[pin])).message
        assert TOKEN.encode() in server.told, "the right key is spoken to"
        assert "not the server" in refused(server.port, Tls(ca_file=ca, pins=["0" * 64, pin])).message
    with Teller(server_context(papers, "good"), PAGE) as server:
        wrong = refused(server.port, Tls(ca_file=ca, pins=["0" * 64]))
        assert (server.calls, server.told) == (1, b"")
    assert pin in wrong.message
    assert "pin_sha256" in wrong.hint
    sign(papers / "ca", papers / "good", days=3)  # renewed
    assert pin_of(papers / "good.crt") == pin


def test_a_pin_in_the_place_of_the_authorities(papers: Path) -> None:
    """And a pin beside them does not replace them."""
    pin = pin_of(papers / "expired.crt")
    with Teller(server_context(papers, "expired"), PAGE) as server:
        assert "certificate" in refused(server.port, Tls(ca_file=str(papers / "ca.crt"), pins=[pin])).message
        assert server.told == b""
        assert "not pinned" in refused(server.port, Tls(verify=False, pins=["1" * 64])).message
        assert server.told == b""
        assert "not the server" in refused(server.port, Tls(verify=False, pins=[pin])).message


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "sha256//short", "sha256//" + "A" * 44, "sha1//xx"])
def test_what_is_no_pin(text: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        read_pin(text)


def test_forms_of_a_pin() -> None:
    digest = bytes(range(32))
    assert read_pin(digest.hex().upper()) == read_pin(digest.hex(":")) == digest.hex()
    assert read_pin("sha256//AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == digest.hex()


# ---- what is shown


def test_mutual_tls(papers: Path) -> None:
    context = server_context(papers, "good")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(papers / "ca.crt")
    ca = str(papers / "ca.crt")

    def shown(name: str) -> Tls:
        return Tls(ca_file=ca, client_cert=str(papers / f"{name}.crt"), client_key=str(papers / f"{name}.key"))

    with Teller(context, PAGE) as server:
        assert "not the server" in refused(server.port, shown("me")).message
        assert TOKEN.encode() in server.told
    with Teller(context, PAGE) as server:
        for name in ("me-expired", "me-foreign"):
            assert "client_cert" in refused(server.port, shown(name)).hint, name
        assert "client certificate" in refused(server.port, Tls(ca_file=ca)).message
        assert server.told == b""


def test_a_key_that_cannot_be_used(papers: Path, tmp_path: Path) -> None:
    cert, key = str(papers / "me.crt"), tmp_path / "key"
    for text, mode, why in (
        ((papers / "me.key").read_bytes(), 0o640, "read by others"),
        ((papers / "good.key").read_bytes(), 0o600, "cannot be used"),
        (b"nonsense", 0o600, "cannot be used"),
    ):
        key.write_bytes(text)
        key.chmod(mode)
        with pytest.raises(ConfigError, match=why):
            Tls(client_cert=cert, client_key=str(key))
    run(["openssl", "pkey", "-in", papers / "me.key", "-aes128", "-passout", "pass:x", "-out", key])
    with pytest.raises(ConfigError, match="has a password"):
        Tls(client_cert=cert, client_key=str(key))
    with pytest.raises(ConfigError, match="cannot be used"):
        Tls(client_cert=cert, client_key=str(tmp_path / "gone"))


# ---- what the environment may decide, and what not


def test_the_environment_adds_no_authority(papers: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither over an agent.ini that names its own, nor over one that means the system's; nor does it get the session's keys."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(papers / "ca.crt"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Teller(server_context(papers, "good"), PAGE) as server:
        assert "certificate" in refused(server.port, Tls()).message
        assert "certificate" in refused(server.port, Tls(ca_file=str(papers / "other.crt"))).message
        assert server.told == b""
        assert "not the server" in refused(server.port, Tls(ca_file=str(papers / "ca.crt"))).message
    assert not (tmp_path / "keys").exists()


def test_the_environment_takes_no_authority_away(papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    with Teller(server_context(papers, "good"), PAGE) as server:
        assert "not the server" in refused(server.port, Tls(ca_file=str(papers / "ca.crt"))).message


def test_the_system_s_authorities(papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of OpenSSL as it was built; where it has none, the bundle that came with the program."""
    class Paths:
        openssl_cafile, openssl_capath = str(papers / "ca.crt"), "/nowhere"

    monkeypatch.setattr(tls_module.ssl, "get_default_verify_paths", Paths)
    with Teller(server_context(papers, "good"), PAGE) as server:
        assert "not the server" in refused(server.port, Tls(bundle=str(papers / "other.crt"))).message
        Paths.openssl_cafile = "/nowhere"
        assert "not the server" in refused(server.port, Tls(bundle=str(papers / "ca.crt"))).message


@pytest.mark.parametrize(
    "address",
    ["http://u:hush/hush@host:1", "http://u:hush#hush@host:1", "http://u:hush?x@host:1", "http://u:hush@", "http://u:hush@a..b:1",
     "u:hush@host:port", "http://u:hush@host:99999", "http://u:hush hush@host:1", "http://u:hush@[::1:1"],
)  # fmt: skip
def test_a_proxy_s_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password with signs that mean something in an address: it is refused, and not shown."""
    monkeypatch.setenv("https_proxy", address)
    error = refused(1, Tls(), "mint.example.jp")
    assert "https_proxy" in error.message
    cause: BaseException | None = error
    while cause is not None:
        assert "hush" not in str(cause)
        cause = cause.__cause__
    assert "USER:PASSWORD" in error.hint


def test_plain_http_to_this_host_goes_through_no_proxy(company: Company) -> None:
    """The token would go to the proxy as it is."""
    with ConnectProxy() as proxy:
        company.start(env={"http_proxy": proxy.url, "all_proxy": proxy.url})
        company.completed(company.sh("true"))
    assert proxy.asked == []
    assert proxies_for("http://127.0.0.1:1", {"http": "http://p:1"}) == {}
    assert proxies_for("https://127.0.0.1:1", {"https": "http://p:1"})


def test_hushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://alice:p%40ss@proxy:3128")
    for text in ("to http://alice:p%40ss@proxy:3128/", "p@ss", "as p%40ss", "//x:y@z"):
        assert not any(word in hushed(text) for word in ("p%40ss", "p@ss", "x:y"))


# ---- the whole agent, through nginx and a proxy


@pytest.fixture
def front(company: Company, nginx_tls: Callable[..., NginxTls]) -> Iterator[NginxTls]:
    return nginx_tls(company.rig.port)  # type: ignore[return-value]


@pytest.mark.slow
def test_through_a_proxy_that_wants_a_password_and_cuts(company: Company, front: NginxTls) -> None:
    """A job's megabytes arrive whole although the proxy cuts in the middle; its password is in no log and no argv."""
    with ConnectProxy(demand="alice:p@ss w0rd", cut_after=[700_000, 900_000]) as proxy:
        address = f"http://alice:p%40ss%20w0rd@127.0.0.1:{proxy.port}"
        agent = company.start("--debug", url=front.url, ca_file=front.ca, pin_sha256=pin_of(front.folder / "server.crt"),
                              stall_s=8, env={"https_proxy": address, "no_proxy": "elsewhere.example"})  # fmt: skip
        inputs = {"a.bin": noise(3_000_000)}
        job = company.sh("cp a.bin b.bin", inputs=inputs, outputs=("b.bin",))
        assert company.completed(job, 100) == {"b.bin": inputs["a.bin"]}
        assert proxy.cuts == 2
        assert all(head.startswith(b"CONNECT localhost:") for head in proxy.asked)
        token = (company.folder / "token").read_bytes().strip()
        assert all(token not in head and b"Bearer" not in head for head in proxy.asked)
        for secret in ("p@ss", "p%40ss"):
            assert secret not in agent.output()
            assert secret not in Path(f"/proc/{agent.pid}/cmdline").read_text()


@pytest.mark.slow
def test_a_proxy_that_refuses(company: Company, front: NginxTls) -> None:
    """Each refusal says what to do, and commands go on; a host in no_proxy is reached without it."""
    gone = f"http://alice:hush@127.0.0.1:{free_port()}"
    with ConnectProxy(demand="alice:right") as strict, ConnectProxy(answer="403 Forbidden") as closed:
        for address, says in (
            (f"http://alice:hush@127.0.0.1:{strict.port}", "407.*USER:PASSWORD"),
            (f"http://alice:hush@127.0.0.1:{closed.port}", "403.*allow CONNECT"),
            (gone, "no way through the proxy.*https_proxy"),
        ):
            agent = company.start("--once", url=front.url, ca_file=front.ca, env={"https_proxy": address})
            assert agent.wait(60) == 75
            last = agent.output().splitlines()[-6:]
            assert any(all(part in line for part in says.split(".*")) for line in last), last
        before = len(strict.asked)
        free = company.start("--once", url=front.url, ca_file=front.ca,
                             env={"https_proxy": strict.url, "no_proxy": "localhost"})  # fmt: skip
        assert free.wait(60) == 0
        assert len(strict.asked) == before
    assert "hush" not in free.output()


@pytest.mark.slow
def test_agent_ini_decides_not_the_environment(company: Company, front: NginxTls) -> None:
    """A ~/.netrc entry does not replace the token, a CA bundle of the environment opens nothing; a wrong pin stops all."""
    (company.rig.home / ".netrc").write_text("machine localhost login somebody password else\n")
    (company.rig.home / ".netrc").chmod(0o600)
    odd = {"REQUESTS_CA_BUNDLE": str(front.ca), "SSL_CERT_FILE": str(front.ca)}
    untrusting = company.start("--once", url=front.url, env=odd)
    assert untrusting.wait(60) == 75
    assert "certificate cannot be trusted" in untrusting.output()
    assert company.start("--once", url=front.url, ca_file=front.ca, env={"REQUESTS_CA_BUNDLE": "/nowhere"}).wait(60) == 0
    before = front.access_log.read_text()
    pinned = company.start("--once", url=front.url, ca_file=front.ca, pin_sha256="0" * 64)
    assert pinned.wait(60) == 75
    assert "not pinned; nothing was sent" in pinned.output()
    assert "/v1/" in before
    assert front.access_log.read_text() == before
    assert company.start("--once", url=front.url, pin_sha256=pin_of(front.folder / "server.crt"), pin_only="yes").wait(60) == 0
    lawless = company.start("--once", url=front.url, pin_only="yes")
    assert lawless.wait(60) == 78
    assert "pin_only without pin_sha256" in lawless.output()
    assert all(" 200 " in line for line in front.access_log.read_text().splitlines())


@pytest.mark.slow
def test_spoolctl_has_the_same_line(company: Company, nginx_tls: Callable[..., NginxTls], papers: Path) -> None:
    front = nginx_tls(company.rig.port, in_server=f"ssl_client_certificate {papers}/ca.crt; ssl_verify_client on;")
    token = company.rig.root / "submitter"
    token.write_text(company.rig.token("mint", "submitter"))
    token.chmod(0o600)
    pin = pin_of(front.folder / "server.crt")
    own = ["--client-cert", papers / "me.crt", "--client-key", papers / "me.key"]
    env = {**clean_env(company.rig.home), "REQUESTS_CA_BUNDLE": "/nowhere"}
    (company.rig.home / ".netrc").write_text("machine localhost login somebody password else\n")
    os.chmod(company.rig.home / ".netrc", 0o600)

    def ls(*more: str | os.PathLike[str]) -> tuple[int, str]:
        words = ["--url", front.url, "--token", f"@{token}", *more, "ls"]
        done = run([REPO / "tools" / "spoolctl", *words], env=env, check=False, deadline_s=100)
        return done.returncode, done.stdout + done.stderr

    assert ls("--ca-file", front.ca, "--pin", pin, *own)[0] == 0
    code, text = ls("--ca-file", front.ca, "--pin", "0" * 64, *own)
    assert (code, "not pinned; nothing was sent" in text) == (75, True), text
    assert "retrying" not in text
    assert front.access_log.read_text().count("GET") == 1, "only the one that may"
