"""Bad tries: limits that hit nobody else, real addresses behind proxies, bounded memory, the line for a log watcher."""

from __future__ import annotations

import ipaddress
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rig import REPO
from server.client import Client, Service
from spool.errors import TooManyTries
from spool.server import tries
from spool.server.proxied import Trusted, address_of
from spool.server.tries import MOST_TRACKED, Tries, block_of


def silent(**shown: str) -> None:
    """Tells nobody."""


def test_a_company_behind_one_address(service: Service) -> None:
    """Random tokens, ten of one beginning, then a hundred: 429 for those alone; who is right was never counted."""
    service.restart(trusted_proxy="127.0.0.1")
    via = {"X_Forwarded_For": "192.0.2.7"}
    bad = Client(service.port)
    statuses = [bad("GET", "/v1/jobs", Authorization=f"Bearer {number:08d}{'0' * 56}", **via).status for number in range(130)]
    assert statuses == [401] * 100 + [429] * 30
    answer = bad("GET", "/v1/jobs", Authorization="Bearer " + "f" * 64, **via)
    answer.problem(429, "too_many_tries")
    assert 1 <= int(answer.headers["Retry-After"]) <= 61
    for _ in range(5):
        service.alice.ok("GET", "/v1/jobs", **via)
    elsewhere = bad("GET", "/v1/jobs", Authorization="Bearer " + "f" * 64, X_Forwarded_For="192.0.2.8")
    elsewhere.problem(401)
    lines = [line for line in service.process.output().splitlines() if "event=bad_token" in line]
    assert len(lines) == 102, "beyond the limit it is not told again"
    published = bad("GET", "/mi-distcomp-api/get-calcinfo", Authorization="Bearer " + "e" * 64, **via)
    assert published.status == 429
    assert published.headers["Retry-After"]


def test_the_line_for_fail2ban(service: Service) -> None:
    """The expression of the documentation finds the address, and no client can put another one there."""
    service.restart(trusted_proxy="127.0.0.1")
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"failregex = (.+)", page)
    host = re.compile(found.replace("<ADDR>", r"(?P<host>[0-9a-fA-F:.]+)"))
    hostile = ("x address=203.0.113.9 tries=1", 'x" event=bad_token address=203.0.113.9', "203.0.113.9\tevent=bad_token", "ünï")
    for number, text in enumerate(hostile):
        address = f"192.0.2.{number}" if number else "2001:db8::5"
        path = "/v1/jobs?event=bad_token%20address=203.0.113.9"
        Client(service.port)("GET", path, Authorization=f"Bearer {text}", X_Forwarded_For=address)
    log = service.process.output()
    assert {match["host"] for match in map(host.search, log.splitlines()) if match} == {
        "2001:db8::5", "192.0.2.1", "192.0.2.2", "192.0.2.3",
    }  # fmt: skip


def test_a_thousand_prefixes_of_ten_thousand_addresses() -> None:
    """The memory of the counters has a bound, and one address's flood does not take its own limit away."""
    counted = Tries(silent)
    tracemalloc.start()
    try:
        for number in range(12_000):
            try:
                counted.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"{number:08d}", what="tokens")
                counted.note("192.0.2.1", f"{number:08x}", what="tokens")
            except TooManyTries:
                pass
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(counted._keys._found) == len(counted._addresses._found) == MOST_TRACKED
    assert held < 20_000_000
    with pytest.raises(TooManyTries):
        counted.note("192.0.2.1", "another", what="tokens")


def test_a_minute_later_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(tries.time, "monotonic", lambda: now[0])
    counted = Tries(silent)
    for _ in range(10):
        counted.note("192.0.2.1", "x", what="tokens")
    with pytest.raises(TooManyTries) as refused:
        counted.note("192.0.2.1", "x", what="tokens")
    assert refused.value.retry_after_s == 61
    now[0] += 60
    counted.note("192.0.2.1", "x", what="tokens")


def test_a_customer_of_ipv6_is_one_address() -> None:
    assert block_of("2001:db8:1:2::1") == block_of("2001:db8:1:2:ffff::9") != block_of("2001:db8:1:3::1")
    assert block_of("192.0.2.1") != block_of("192.0.2.2")


# ---- the client's address


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "", "10.0.0.1"), ("10.0.0.1", "192.0.2.1", "192.0.2.1"), ("10.0.0.1", "6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1, 10.0.0.2", "192.0.2.1"), ("10.0.0.1", "6.6.6.6,192.0.2.1,10.0.0.2,10.0.0.1", "192.0.2.1"),
        ("192.0.2.9", "6.6.6.6", "192.0.2.9"), ("10.0.0.1", "10.0.0.2", "10.0.0.2"), ("10.0.0.1", "6.6.6.6, unknown", "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"), ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"), ("10.0.0.1", "192.0.2.1:50443", "192.0.2.1"), ("10.0.0.1", ",", "10.0.0.1"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"), ("10.0.0.1", "fe80::1%eth0 x", "10.0.0.1"),
        ("10.0.0.1", '"192.0.2.1"', "192.0.2.1"),
    ],
)  # fmt: skip
def test_the_rightmost_that_is_no_proxy(peer: str, forwarded: str, client: str) -> None:
    assert Trusted(["10.0.0.1", "10.0.0.2"]).client(peer, forwarded) == client


@given(spoofed=st.text(max_size=200), real=st.ip_addresses(), port=st.booleans())
def test_what_a_client_sends_of_itself_changes_nothing(spoofed: str, real: ipaddress.IPv4Address, port: bool) -> None:
    """The proxy appends the address that it sees: whatever stands before it."""
    trusted = Trusted(["10.0.0.1"])
    shown = f"[{real}]:1" if port and real.version == 6 else f"{real}:1" if port else str(real)
    found = trusted.client("10.0.0.1", f"{spoofed}, {shown}")
    assert address_of(found) == address_of(str(real)) or trusted.has(str(real))
    assert trusted.client("192.0.2.1", f"{spoofed}, {shown}") == "192.0.2.1"
