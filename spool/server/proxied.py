"""Who is at the other end: the address of a client behind trusted proxies, and whether a request came from one of them.

The outermost layer of the application. Of `X-Forwarded-For` the rightmost address that is no trusted proxy counts, and only where
the connection itself comes from a trusted one; every other forwarding header is taken away, because nothing here believes it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Callable, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
TRUSTED = "mint_spool.from_trusted_proxy"
PEER = "mint_spool.peer"
_NAMES = ("X_FORWARDED_HOST", "X_FORWARDED_PROTO", "X_FORWARDED_PORT", "X_FORWARDED_BY", "FORWARDED")
_TAKEN_AWAY = tuple(f"HTTP_{name}" for name in _NAMES)


def address_of(text: str) -> Address | None:
    """Return the address that `text` names, with or without a port or brackets; None where it names none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class Trusted:
    """The addresses of the proxies in front."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._known = {address_of(text) for text in addresses} - {None}

    def has(self, text: str) -> bool:
        """True for the address of a trusted proxy."""
        return address_of(text) in self._known

    def client(self, peer: str, forwarded: str) -> str:
        """Return the client's address: that of the connection, or what trusted proxies told of it."""
        if not self.has(peer):
            return peer
        for text in reversed(forwarded.split(",")):
            found = address_of(text)
            if found is None:
                break
            peer = str(found)
            if found not in self._known:
                break
        return peer


class Proxied:
    """WSGI middleware around `app` that sets REMOTE_ADDR to the client's address."""

    def __init__(self, app: Callable[..., Any], trusted: Trusted) -> None:
        self._app = app
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        peer = str(environ.get("REMOTE_ADDR") or "")
        forwarded = environ.pop("HTTP_X_FORWARDED_FOR", "")
        for name in _TAKEN_AWAY:
            environ.pop(name, None)
        environ[PEER], environ[TRUSTED] = peer, self._trusted.has(peer)
        environ["REMOTE_ADDR"] = self._trusted.client(peer, forwarded)
        return self._app(environ, start_response)
