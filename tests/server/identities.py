"""The three sources of identity, each as a server has it, and clients of any user with any roles."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, Callable

from server.client import Client, Service

SECRET = "s" * 40
# What an operators' program may look like: it reads the token, and knows whose it is from a folder.
WHOSE = """#!/bin/sh
read -r token
echo asked >>"{folder}/asked"
[ -e "{folder}/slow" ] && sleep 60
[ -e "{folder}/broken" ] && exit 3
[ -e "{folder}/$token" ] || exit 1
cat "{folder}/$token"
"""


class Known:
    """A client of a server whose `auth` is one of the three."""

    def __init__(self, service: Service, source: str, **options: Any) -> None:
        self.service = service
        self.source = source
        self.folder = Path(service.rig.root / "whose")
        self.folder.mkdir()
        if source == "gateway":
            secret = service.rig.root / "secret"
            secret.write_text(SECRET)
            secret.chmod(0o600)
            service.restart(auth="gateway", trusted_proxy="127.0.0.1", gateway_secret=secret, **options)
        elif source == "command":
            program = service.rig.root / "whose.sh"
            program.write_text(WHOSE.format(folder=self.folder))
            program.chmod(0o755)
            service.restart(auth="command", auth_command=program, **options)

    def client(self, user: str, *roles: str, sites: tuple[str, ...] = (), expires_at: str = "") -> Callable[..., Any]:
        """What sends requests as that user."""
        if self.source == "file":
            token, _ = self.service.tokens.add(user, roles, sites, expires_at=expires_at)
            return Client(self.service.port, token)
        if self.source == "command":
            token = secrets.token_hex(32)
            whose = {"user": user, "roles": roles, "sites": sites, "expires_at": expires_at}
            (self.folder / token).write_text(json.dumps(whose))
            return Client(self.service.port, token)
        plain = Client(self.service.port)
        headers = identity(user, " ".join(roles), " ".join(sites) or "*")
        return lambda method, path, body=None, **more: plain(method, path, body, **{**headers, **more})

    def asked(self) -> int:
        """How often the program was asked."""
        path = self.folder / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0


def identity(user: str, roles: str, sites: str, secret: str = SECRET) -> dict[str, str]:
    """The headers of a gateway, as this test's client takes them."""
    return {"X_Mint_User": _raw(user), "X_Mint_Roles": roles, "X_Mint_Sites": sites, "X_Mint_Secret": secret}


def _raw(text: str) -> str:
    return text.encode("utf-8").decode("latin-1")  # http.client sends latin-1
