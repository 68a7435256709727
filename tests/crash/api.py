"""Calls of the server's API without a socket: the application itself, in the process that is to be killed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.spools import AGENT, SITE, USER
from spool.config import LiveConfig
from spool.errors import Busy
from spool.server.app import build, token_file
from spool.server.contacts import Contacts
from spool.server.tokens import TokenFile
from spool.server.wakeups import Wakeups
from spool.store import Store

ORDER = (1, 2)


class Refused(Exception):
    """The answer was not 2xx; the text is its problem document."""

    def __init__(self, status: str, body: bytes) -> None:
        super().__init__(f"{status} {body.decode()}")
        self.problem = json.loads(body)


def token(store: Store) -> str:
    """A token that may do everything."""
    return TokenFile(store.paths.tokens).add(USER, ("agent", "submitter", "operator"), ())[0]


def call(
    root: Path, case: Mapping[str, str], method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[dict[str, str], bytes]:
    """One request, answered before this returns; the answer's headers and body. `Refused` unless it is 2xx."""
    store = Store.open(root)
    config = LiveConfig(root / "spool.ini")
    wakeups = Wakeups(0)
    app = build(store, config, wakeups, Contacts(store), token_file(store, config))
    answered: list[Any] = []
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), "SERVER_NAME": "x", "SERVER_PORT": "1", "REMOTE_ADDR": "127.0.0.1",
        "HTTP_AUTHORIZATION": f"Bearer {case['token']}", **headers,
    }  # fmt: skip
    data = b"".join(app(environ, lambda status, head, exc_info=None: answered.extend((status, dict(head)))))
    wakeups.close()
    if not answered[0].startswith("2"):
        raise Refused(answered[0], data or b"{}")
    return dict(answered[1]), data


def sync(root: Path, case: Mapping[str, str], *jobs: Mapping[str, Any]) -> list[Any]:
    """One sync of the agent: what it holds, and room for one more where it holds nothing. What it is told."""
    request = {
        "site": SITE, "agent": AGENT, "generation": ORDER[0], "seq": ORDER[1], "room": 0 if jobs else 1, "wait_s": 0,
        "jobs": list(jobs),
    }  # fmt: skip
    told = list(json.loads(call(root, case, "POST", "/v1/sync", json.dumps(request).encode())[1])["jobs"])
    if any((job["want"], job["state"]) == ("run", "unknown") for job in told):
        raise Busy("a job is put off: the server cannot judge it now", hint="sync again")
    return told
