"""Request lines that cannot be read: an answer in words where there is a client still, and never a stack in the log."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected

from hostile.line import ask
from server.client import Service
from spool.server.bodies import Limits, channel_class

LINES = [
    b"GET http://[ HTTP/1.1", b"GET http://[::1/v1/jobs HTTP/1.1", b"P\0ST / HTTP/1.1", b"GET", b"GET / HTTP/9", b"\xff\xff",
]  # fmt: skip
ODD = b"POST http://[x]/mi-distcomp-api/calc-end HTTP/1.1"  # an address to Python's urlsplit before 3.11.4


def test_each_is_answered_400(service: Service) -> None:
    for line in (*LINES, ODD):
        told = ask(service.rig.port, [line + b"\r\nHost: x\r\n\r\n"], methods=["GET"], wait_s=20)
        assert [one.status for one in told] in ([[400]] if line != ODD else [[400], [401], [403]]), line
        assert not told[0].is_traced()
    log = service.process.output()
    assert "uncaptured" not in log
    assert "Traceback" not in log


def test_a_client_that_left_meanwhile_is_no_defect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adj = Adjustments()
    names = {"effective_host": "x", "effective_port": 1, "server_name": "x"}
    server = SimpleNamespace(adj=adj, active_channels={}, pull_trigger=list, **names)
    ours, theirs = socket.socketpair()
    with ours, theirs, caplog.at_level(logging.INFO):
        channel = channel_class(Limits(lambda headers, peer: lambda: True, tmp_path, 0))(server, ours, ("127.0.0.1", 1), adj, {})
        request = channel.parser_class(adj)
        request.received(b"P\0ST / HTTP/1.1\r\n\r\n")
        assert request.error is not None

        def left(data: bytes) -> int:
            raise ClientDisconnected

        channel.requests, channel.write_soon = [request], left
        channel.service()
        assert channel.close_when_flushed
    assert "Client disconnected" in caplog.text
