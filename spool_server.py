#!/usr/bin/env python3
"""spool_server.py: serves a spool of job folders to polling agents and to submitters (docs/operations.md).

    spool_server.py [--config etc/spool.ini] [--spool DIR] [--listen HOST:PORT]

What it does, in order: open the spool (an empty folder becomes one), take in drops beside the requests, serve /v1 until
SIGTERM or Ctrl+C. All state is in the spool: killing it at any moment loses nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import waitress

from spool import __version__, log
from spool.addresses import is_loopback
from spool.config import LiveConfig, find_config
from spool.creation import SPOOL_UMASK
from spool.errors import ConfigError, SpoolError
from spool.memory import keep_private
from spool.opening import open_store
from spool.server.app import auth_of, build, token_file
from spool.server.auth import Auth
from spool.server.bodies import Limits, channel_class
from spool.server.contacts import Contacts
from spool.server.proxied import Proxied, Trusted
from spool.server.tokens import TokenFile
from spool.server.upkeep import Upkeep
from spool.server.wakeups import Wakeups
from spool.store import Store

EXIT_CONFIG = 78
SPARE_CONNECTIONS = 2000
OUTGOING_BYTES = 32 << 20
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def main(argv: list[str] | None = None) -> int:
    """Run the server; return its exit code (0 after SIGTERM or Ctrl+C, 78 for a configuration that cannot work)."""
    args = _parse(argv)
    keep_private()
    os.umask(SPOOL_UMASK)
    _tame_malloc()
    _raise_file_limit()
    try:
        config = LiveConfig(find_config(args.config, args.spool))
        store = open_store(args.spool, config, "spool_server.py")
        tokens = token_file(store, config)
        auth = auth_of(config, tokens)
        listening = _listen(args.listen or config.get().server["listen"], config.get().server["allow_http"])
    except SpoolError as exc:
        print(f"spool_server.py: {exc.message}\n  {exc.hint}", file=sys.stderr)
        return EXIT_CONFIG
    log.setup(config.get().server["log"])
    with listening:
        _serve(config, store, listening, tokens, auth)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="spool_server.py", description="Serve a spool of job folders to agents and submitters.")
    parser.add_argument("--config", type=Path, metavar="INI", help="spool.ini (default: spool.ini in the spool, if there is one)")
    parser.add_argument("--spool", type=Path, metavar="DIR", help="the spool's folder; an empty one becomes a spool")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to listen (default: 127.0.0.1:8082)")
    parser.add_argument("--version", action="version", version=f"mint-spool {__version__}")
    return parser.parse_args(argv)


def _listen(text: str, allow_http: bool) -> socket.socket:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen = {text} is not HOST:PORT", hint="such as 127.0.0.1:8082")
    if not (allow_http or is_loopback(host)):
        raise ConfigError(
            f"refusing to speak plain http on {host}",
            hint="listen on 127.0.0.1 with nginx and TLS in front (etc/nginx.conf), or set allow_http = yes",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, int(port)))
    except OSError as exc:
        listening.close()
        raise ConfigError(f"cannot listen on {text}: {exc.strerror}", hint="is another server running? see: ss -ltnp") from exc
    return listening


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have: connections, and files on their way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tame_malloc() -> None:
    """Give chunks back to the system at once: glibc's arenas, one a thread, would each keep some (mallopt(3)).

    Without it three gigabytes through one server left 122 MB resident; with it 50 MB. Other C libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 256 * 1024)
        mallopt(M_ARENA_MAX, 2)


def _serve(config: LiveConfig, store: Store, listening: socket.socket, tokens: TokenFile, auth: Auth) -> None:
    options = config.get().server
    wakeups, contacts = Wakeups(options["max_waiters"]), Contacts(store)
    upkeep = Upkeep(store, config, contacts)
    app = Proxied(build(store, config, wakeups, contacts, tokens, auth), Trusted(options["trusted_proxy"]))
    server = _waitress(app, listening, options)
    limits = Limits(auth.welcome, store.paths.root, options["min_free"])
    server.channel_class = channel_class(limits)
    tempfile.tempdir = str(store.paths.tmp)  # where large bodies wait: on the spool's disk, which is watched

    def stop(signum: int, frame: FrameType | None) -> None:
        wakeups.stop()  # a waiting sync would otherwise keep its thread, and the end, for up to 25 s
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    upkeep.start()
    host, port = listening.getsockname()[:2]
    log.info("serving", spool=store.paths.root, listen=f"{host}:{port}", config=config.path, version=__version__)
    try:
        server.run()
    finally:
        wakeups.close()
        server.close()
        upkeep.stop()
    log.info("stopped")


def _waitress(app: Proxied, listening: socket.socket, options: dict[str, Any]) -> Any:
    """Return the waitress server; the numbers are explained in docs/operations.md, "Threads and buffers"."""
    logging.getLogger("waitress").setLevel(logging.ERROR)
    return waitress.create_server(
        app,
        sockets=[listening],
        threads=options["threads"] + options["max_waiters"],
        connection_limit=options["threads"] + options["max_waiters"] + SPARE_CONNECTIONS,
        channel_timeout=120,
        recv_bytes=262144,
        inbuf_overflow=options["max_chunk"] + 65536,
        outbuf_high_watermark=OUTGOING_BYTES,
        max_request_body_size=max(options["max_chunk"], 64 * 1024 * 1024) + 65536,
        max_request_header_size=65536,
        asyncore_use_poll=True,
        expose_tracebacks=False,
        ident="mint-spool",
        clear_untrusted_proxy_headers=False,  # `Proxied` does
    )


if __name__ == "__main__":
    sys.exit(main())
