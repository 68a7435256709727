"""nginx with TLS in front of a port of ours, with a certificate authority of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
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
        binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert binary, "no nginx here: tools/test installs it"
        process = Process(
            [binary, "-p", self.folder, "-c", self._config, "-e", "stderr"], log=self.folder / "nginx.log"
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


def make_certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> None:
    """`ca.crt`, and a `server.crt` with `server.key` for `names` signed by it; strict verifiers accept both."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca: Words = ["-keyout", folder / "ca.key", "-out", folder / "ca.crt"]
    server: Words = ["-keyout", folder / "server.key", "-out", folder / "server.csr"]
    extensions = folder / "server.ext"
    extensions.write_text(
        f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    run(
        ["openssl", "req", "-x509", *new_key, *ca, "-days", "7", "-subj", "/CN=mint-spool tests CA",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    )  # fmt: skip
    run(["openssl", "req", *new_key, *server, "-subj", "/CN=localhost"])
    run(
        ["openssl", "x509", "-req", "-in", folder / "server.csr", "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key",
         "-CAcreateserial", "-days", "7", "-out", folder / "server.crt", "-extfile", extensions]
    )  # fmt: skip
