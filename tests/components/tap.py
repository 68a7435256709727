"""A line between a client and a server of this host that records every byte the client sends."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

BLOCK = 65536


class Tap:
    """Listens on `url` and passes everything to `port`; `sent` is what clients have sent so far, each connection whole."""

    def __init__(self, port: int) -> None:
        self._streams: list[bytearray] = []
        tap = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                stream = bytearray()
                tap._streams.append(stream)
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=_pass, args=(server, self.request, None), daemon=True)
                    back.start()
                    _pass(self.request, server, stream)
                    back.join(60)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def sent(self) -> bytes:
        return b"\n".join(bytes(stream) for stream in list(self._streams))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pass(source: Any, target: Any, record: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            if record is not None:
                record += block
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def forms(text: str) -> set[bytes]:
    """How `text` may look on a wire: as it is, in a URL, in JSON with escapes, in base64 wherever it may begin."""
    data = text.encode()
    found = {data, quote(text).encode(), json.dumps(text)[1:-1].encode(), data.hex().encode()}
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + data)
        found.add(coded[4 if shift else 0 : -4])  # without what depends on its neighbours
    return found


def found_in(data: bytes, *texts: str) -> list[str]:
    """Those of `texts` of which some form is in `data`."""
    return [text for text in texts if any(form in data for form in forms(text))]


def inside(folder: Path, *texts: str) -> list[str]:
    """Those of `texts` of which some form is in a file below `folder`, or in its name."""
    data = b"\n".join(str(path).encode() + b"\n" + path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return found_in(data, *texts)
