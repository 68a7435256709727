"""What monitors and browsers ask: /health, /metrics and a page of the jobs, within the sites of the token."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from typing import Callable

from bottle import Bottle, HTTPResponse, request

from spool import __version__
from spool.config import LiveConfig
from spool.files import free_bytes
from spool.room import why_no_room
from spool.server.auth import Asker, Auth
from spool.server.contacts import AgentKey, Contacts
from spool.server.v1 import answer
from spool.states import State
from spool.store import Store

LATE_S = 180.0
UNREACHABLE_S = 600.0


class Pages:
    """The calls beside /v1. /health needs no token; the others need operator or viewer."""

    def __init__(self, store: Store, config: LiveConfig, auth: Auth, contacts: Contacts) -> None:
        self._store = store
        self._config = config
        self._auth = auth
        self._contacts = contacts

    def mount(self, app: Bottle) -> None:
        """Add the routes to `app`."""
        for path, call in self.routes():
            app.route(path, "GET", call)

    def routes(self) -> Iterator[tuple[str, Callable[[], HTTPResponse]]]:
        """Yield (path, function)."""
        yield "/health", self.health
        yield "/metrics", self.metrics
        yield "/", self.jobs

    def _watcher(self) -> Asker:
        asker = self._auth.asker(request.environ)
        asker.need("operator", "viewer")
        return asker

    def _contacts_of(self, asker: Asker) -> list[tuple[AgentKey, float]]:
        return [(key, age_s) for key, age_s in sorted(self._contacts.known().items()) if asker.token.covers(key[0])]

    def health(self) -> HTTPResponse:
        """GET /health: 200 where the spool can be written to and the configuration is good, 503 otherwise."""
        problems = [self._config.problem] if self._config.problem else []
        problems += [self._auth.problem] if self._auth.problem else []
        why = why_no_room(self._store.paths.root, self._config.get().server["min_free"])
        if why:
            problems.append(f"nothing new is taken: {why}")
        value = {"status": "degraded" if problems else "ok", "version": __version__, "problems": problems}
        return answer(value, 503 if problems else 200)

    def metrics(self) -> HTTPResponse:
        """GET /metrics: Prometheus text format 0.0.4."""
        asker = self._watcher()
        counts = Counter(state.state for state in self._store.states() if asker.may_see(state))
        lines = ["# HELP mint_spool_jobs Jobs by state.", "# TYPE mint_spool_jobs gauge"]
        lines += [f'mint_spool_jobs{{state="{state}"}} {counts[state]}' for state in State]
        lines += ["# HELP mint_spool_free_bytes Free bytes on the spool's disk.", "# TYPE mint_spool_free_bytes gauge"]
        lines += [f"mint_spool_free_bytes {free_bytes(self._store.paths.root)}"]
        lines += ["# HELP mint_spool_contact_age_seconds Time since an agent's last sync."]
        lines += ["# TYPE mint_spool_contact_age_seconds gauge"]
        for (site, user, agent), age_s in self._contacts_of(asker):
            lines.append(f'mint_spool_contact_age_seconds{{site="{site}",user="{user}",agent="{agent}"}} {age_s:.0f}')
        body = "\n".join(lines) + "\n"
        return HTTPResponse(body.encode("utf-8"), 200, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def jobs(self) -> HTTPResponse:
        """GET /: a page of the newest jobs for people; no script, nothing fetched from elsewhere."""
        asker = self._watcher()
        seen = [state for state in self._store.states() if asker.may_see(state)]
        states = sorted(seen, key=lambda state: state.submitted_at, reverse=True)[:200]
        cells = [
            (
                state.id,
                state.state,
                state.site,
                state.user,
                state.command,
                state.changed_at,
                state.reason or state.message,
            )
            for state in states
        ]
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in cells)
        standings = self._contacts.standings()
        contacts = "".join(f"<li><b>{html.escape(line)}</b></li>" for line in self._store.controls.get().lines())
        contacts += "".join(
            f"<li>{html.escape(site)}: {html.escape(agent)} of {html.escape(user)}, {age_s:.0f} s"
            f" ({_word(age_s)}{', ' + standings[site, user, agent] if standings.get((site, user, agent)) else ''})</li>"
            for (site, user, agent), age_s in self._contacts_of(asker)
        )
        page = _PAGE.format(contacts=contacts or "<li>none yet</li>", rows=rows)
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "Cache-Control": "no-store",
        }
        return HTTPResponse(page.encode("utf-8"), 200, headers)


def _word(age_s: float) -> str:
    if age_s > UNREACHABLE_S:
        return "unreachable"
    return "late" if age_s > LATE_S else "in contact"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>mint-spool</title><style>
body {{ font-family: sans-serif; margin: 2em }} table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left }}
</style></head><body><h1>mint-spool</h1><h2>Agents</h2><ul>{contacts}</ul><h2>Jobs</h2>
<table><tr><th>id</th><th>state</th><th>site</th><th>user</th><th>command</th><th>changed</th><th>why</th></tr>{rows}</table>
</body></html>
"""
