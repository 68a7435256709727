"""nginx with TLS in front of a port of ours, with a certificate authority of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

from components.ports import accepts, free_port
from components.process import Process, Words, run
from components.waiting import wait_until


class NginxTls:
    """`https://localhost:PORT` passes everything to `http://127.0.0.1:upstream_port`; `ca` is the file to verify with.

    `in_http`, `in_server` and `in_location` are further lines for those blocks of its configuration.
    """

    def __init__(
        self, upstream_port: int, *, in_http: str = "", in_server: str = "", in_location: str = ""
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mint-nginx-"))
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.ca = self.folder / "ca.crt"
        self.access_log = self.folder / "access.log"
        self._process: Process | None = None
        make_certificate(self.folder)
        self._config = self.folder / "nginx.conf"
        self._config.write_text(
            f"""\
daemon off;
pid {self.folder}/nginx.pid;
error_log stderr info;
worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 512; }}
http {{
  access_log {self.access_log};
  client_body_temp_path {self.folder}/body;
  proxy_temp_path {self.folder}/proxy;
  fastcgi_temp_path {self.folder}/fastcgi;
  uwsgi_temp_path {self.folder}/uwsgi;
  scgi_temp_path {self.folder}/scgi;
  {in_http}
  server {{
    listen 127.0.0.1:{self.port} ssl;
    server_name localhost;
    ssl_certificate {self.folder}/server.crt;
    ssl_certificate_key {self.folder}/server.key;
    client_max_body_size 64m;
    {in_server}
    location / {{
      proxy_pass http://127.0.0.1:{upstream_port};
      proxy_http_version 1.1;
      proxy_set_header Host $host:$server_port;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_request_buffering off;
      proxy_buffering off;
      {in_location}
    }}
  }}
}}
"""
        )
        self.start()

    def start(self) -> None:
        """Listen (again) on the same port; returns when connections are taken."""
        assert self._process is None, "nginx runs already"
        process = Process(
            [_binary(), "-p", self.folder, "-c", self._config, "-e", "stderr"], log=self.folder / "nginx.log"
        )
        self._process = process
        wait_until(lambda: accepts(self.port) or not process.running, 10, f"nginx listens on {self.port}")
        assert process.running, process.output()

    def stop(self) -> None:
        """Gone at once, its connections too."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def reload(self) -> None:
        """Read the configuration again, as after a change of the certificate."""
        assert self._process is not None, "nginx does not run"
        self._process.signal(signal.SIGHUP)

    def close(self) -> None:
        """Stop and remove the folder. Safe to repeat."""
        self.stop()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


class NginxSample:
    """etc/nginx.conf as it is shipped, in the real nginx: only names, paths and ports are put in their place, then `changes`.

    `changes` are regular expressions and what they become; one that meets nothing fails the test.
    """

    def __init__(self, upstream_port: int, folder: Path, changes: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.ca = folder / "ca.crt"
        self.access_log = folder / "access.log"
        self.log = folder / "nginx.log"
        if not self.ca.exists():
            make_certificate(folder)
        config = folder / "nginx.conf"
        config.write_text(self._config(upstream_port, changes or {}))
        argv: Words = [_binary(), "-p", folder, "-c", config, "-e", "stderr"]
        self.tested = run([*argv, "-t"]).stderr
        self.process = Process(argv, log=self.log)
        wait_until(lambda: accepts(self.port) or not self.process.running, 60, f"nginx listens on {self.port}")
        assert self.process.running, self.process.output()

    def _config(self, upstream_port: int, changes: Mapping[str, str]) -> str:
        sample = (Path(__file__).resolve().parents[2] / "etc" / "nginx.conf").read_text(encoding="utf-8")
        places = {
            r"listen 50443": f"listen 127.0.0.1:{self.port}",
            r"mint\.example\.jp": "localhost",
            r"/etc/nginx/mint-spool/": f"{self.folder}/",
            r"127\.0\.0\.1:8082": f"127.0.0.1:{upstream_port}",
        }
        for pattern, value in {**places, **changes}.items():
            sample, count = re.subn(pattern, value, sample)
            assert count, f"{pattern} is not in the sample"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temp_paths = "".join(f"{kind}_temp_path {self.folder}/{kind}; " for kind in kinds)
        main = f"daemon off; pid {self.folder}/pid; error_log stderr info; worker_processes 1; worker_rlimit_nofile 8192;"
        return (
            f"{main} {'user root;' if os.geteuid() == 0 else ''}\nevents {{ worker_connections 4096; }}\n"
            f"http {{ access_log {self.access_log}; {temp_paths}\n{sample}\n}}\n"
        )

    def close(self) -> None:
        """Stop it. Safe to repeat."""
        self.process.close()


def _binary() -> str:
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert binary, "no nginx here: tools/test installs it"
    return binary


def make_certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> None:
    """`ca.crt`, and a `server.crt` with `server.key` for `names` signed by it; strict verifiers accept both."""
    make_authority(folder / "ca")
    sign(folder / "ca", folder / "server", names=names)


_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def make_authority(stem: Path) -> None:
    """`STEM.crt` and `STEM.key` of an authority of the tests' own."""
    out: Words = ["-keyout", f"{stem}.key", "-out", f"{stem}.crt"]
    run(
        ["openssl", "req", "-x509", *_NEW_KEY, *out, "-days", "7", "-subj", "/CN=mint-spool tests CA",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    )  # fmt: skip


def sign(authority: Path, stem: Path, *, names: str = "DNS:localhost", use: str = "serverAuth", days: int = 7) -> None:
    """`STEM.crt` and `STEM.key` (kept where it is there already), signed; fewer than no `days`: expired."""
    extensions = Path(f"{stem}.ext")
    extensions.write_text(
        f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage={use}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    key: Words = ["-key", f"{stem}.key"] if Path(f"{stem}.key").exists() else [*_NEW_KEY, "-keyout", f"{stem}.key"]
    run(["openssl", "req", "-new", *key, "-out", f"{stem}.csr", "-subj", f"/CN={stem.name}"])
    run(
        ["openssl", "x509", "-req", "-in", f"{stem}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
         "-CAcreateserial", "-days", str(days), "-out", f"{stem}.crt", "-extfile", extensions]
    )  # fmt: skip


def pin_of(certificate: Path) -> str:
    """The pin of a certificate's key, made as docs/agent.md has it."""
    command = 'openssl x509 -in "$1" -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256'
    return run(["sh", "-c", command, "sh", certificate]).stdout.split()[-1]
