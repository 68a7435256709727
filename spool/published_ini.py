"""A published `mi_distributed_computing_assist.ini`, accepted as it is in place of spool.ini (docs/migration.md).

    [Server]          ipaddress, portnumber      -> [server] listen
    [RemoteSites]     remote_site_ids            -> the sites there are
    [SITE]            commands, one a line       -> [site SITE] commands

Sections of our own, `[server]` and `[site NAME]`, may stand in the same file and add the options that the published form has not.
Other options of published sections are passed over, as the published server does.
"""

from __future__ import annotations

from spool.errors import ConfigError
from spool.options import Raw

_SERVER, _SITES = "Server", "RemoteSites"


def is_published(raw: Raw) -> bool:
    """True where the file has a section that only the published form has."""
    return _SERVER in raw or _SITES in raw


def translate(raw: Raw, where: str) -> tuple[Raw, dict[str, tuple[str, ...]]]:
    """Return (the same in our own sections, the commands of each published site); raise `ConfigError` naming what is wrong.

    Commands are kept apart because a published one may hold blanks: it is a line of its own, and compared as a whole.
    """
    sites = _low(raw.get(_SITES, {})).get("remote_site_ids", "").split()
    ours = {title: dict(options) for title, options in raw.items() if title not in (_SERVER, _SITES, *sites)}
    ours["server"] = {**_server(_low(raw.get(_SERVER, {}))), **ours.get("server", {})}
    commands: dict[str, tuple[str, ...]] = {}
    for name in sites:
        options = _low(raw.get(name, {}))
        commands[name] = tuple(line.strip() for line in options.get("commands", "").splitlines() if line.strip())
        ours.setdefault(f"site {name}", {})
    if not any(title.partition(" ")[0] == "site" for title in ours):  # a slip, or a file that is just being written
        raise ConfigError(f"{where}: [{_SITES}] names no site", hint="remote_site_ids = ID, one a line")
    unlisted = [title for title in ours if title.partition(" ")[0] not in ("server", "site")]
    for title in unlisted:  # the published server does not look at a section that remote_site_ids does not name
        del ours[title]
    return ours, commands


def _low(options: dict[str, str]) -> dict[str, str]:
    return {name.lower(): text for name, text in options.items()}


def _server(options: dict[str, str]) -> dict[str, str]:
    address, port = options.get("ipaddress", "127.0.0.1").strip(), options.get("portnumber", "8082").strip()
    # It names the address to speak plain http on, as the published server does behind its gateway.
    return {"listen": f"[{address}]:{port}" if ":" in address else f"{address}:{port}", "allow_http": "yes"}
