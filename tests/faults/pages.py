"""What proxies say in the place of an answer, one `Act` of `agent.wire` for each kind.

Every second kind asks for a second's pause, so that a step which meets several kinds does not take minutes.
"""

from __future__ import annotations

from dataclasses import replace

from agent.wire import Act

SOON = {"Retry-After": "1"}
JSON = {"Content-Type": "application/json; charset=utf-8"}
PROBLEM = {"Content-Type": "application/problem+json"}
HTML = {"Content-Type": "text/html; charset=utf-8"}
BINARY = {"Content-Type": "application/octet-stream"}
LOGIN = "<html><title>社内プロキシ</title><style>b{color:red}</style><body>ログインしてください</body></html>".encode()
GATEWAY = b"<html><head><title>%d from the gateway</title></head><body><hr>proxy-7</body></html>"

PAGES: dict[str, Act] = {
    "HTML with 200": Act(status=200, page=LOGIN, headers=HTML),
    "502": Act(status=502, page=GATEWAY % 502, headers={**HTML, **SOON}),
    "empty 200": Act(status=200, page=b"", headers={}),
    "503": Act(status=503, page=GATEWAY % 503, headers={**HTML, **SOON}),
    "empty 200 called JSON": Act(status=200, page=b"", headers=JSON),
    "504": Act(status=504, page=GATEWAY % 504, headers={**HTML, **SOON}),
    "an empty object": Act(status=200, page=b"{}", headers=JSON),
    "413": Act(status=413, page=GATEWAY % 413, headers={**HTML, **SOON}),
    "truncated JSON": Act(status=200, page=b'{"epoch": "0", "jobs": [{"id": "', headers=JSON),
    "429": Act(status=429, page=b"slow down", headers={"Content-Type": "text/plain", **SOON}),
    "a page called a file": Act(status=200, page=LOGIN, headers=BINARY),
    "a gateway's 403": Act(status=403, page=b'{"title": "Forbidden", "status": 403}', headers={**PROBLEM, **SOON}),
    "an empty file": Act(status=200, page=b"", headers=BINARY),
    "a gateway's 404": Act(status=404, page=b'{"title": "Not Found"}', headers={**PROBLEM, **SOON}),
    "a redirection": Act(status=302, page=b"", headers={**HTML, "Location": "https://login.example.jp/in?back=secret"}),
    "407": Act(status=407, page=LOGIN, headers={**HTML, **SOON}),
}


def page(number: int, *, after: bool = False) -> Act:
    """A fresh act of the kind of that number; with `after` the server gets the request, and its answer is replaced."""
    return replace(list(PAGES.values())[number % len(PAGES)], after=after)
