"""Addresses of servers: which hosts are this one (plain http is for these alone), and what the published form means by a URL."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from spool.published import PORT


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and for addresses of the loopback range; a name that only looks like one is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def published_url(text: str, port: int = 0) -> str:
    """Return the server's address as the published programs mean it: https unless loopback, port 50443 unless named.

    `port` (0 where none was given) wins over one in the URL. ``http`` becomes ``https`` for every other host than this one, as
    the manual's command lines have it. Raises `ValueError` where `text` is no address.
    """
    parts = urlsplit(text if "//" in text else f"//{text}")
    try:
        host, own_port = parts.hostname, parts.port
    except ValueError as exc:
        raise ValueError(f"{text!r} is no address of a server: {exc}") from exc
    if not host or parts.scheme not in ("", "http", "https"):
        raise ValueError(f"{text!r} is no address of a server")
    scheme = "http" if is_loopback(host) and parts.scheme != "https" else "https"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port or own_port or PORT}{parts.path.rstrip('/')}"
