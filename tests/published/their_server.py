"""The published API server, `mi_dicomapi.py`, written anew from the protocol notes alone: fourteen calls, state in memory.

A stand-in for a program that cannot be shipped, so it imports nothing of the project. It is as strict as the published
one: a step that is past answers `code` 401, also to a client whose first answer was lost, unless it is made `repeatable`.
Every path but the fourteen gets an HTML page, as Flask gives it. Faults for tests are set per call: `drop_answer`,
`refuse`, `html`, `busy`. What the calls do is in `their_calls.py`.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

from published.their_calls import Answer, Call, ExternalSide, MintSide, Refusal, Shelf, envelope

BASE = "/mi-distcomp-api/"


class TheirServer:
    """The server on `host`; a context manager. `tokens` says whose each token is, `sites` which commands a site has."""

    def __init__(
        self,
        sites: dict[str, list[str]],
        tokens: dict[str, str],
        port: int = 0,
        *,
        repeatable: bool = False,
        finish_abandoned: bool = False,
        clock: Callable[[], float] = time.monotonic,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.tokens = tokens
        self.shelf = Shelf(sites, clock)
        self.jobs = self.shelf.jobs
        self.requests: list[tuple[str, str]] = []
        self._faults: dict[tuple[str, str], int] = {}
        self._busy: dict[str, tuple[Answer, bool, dict[str, str]]] = {}
        mint, external = MintSide(self.shelf), ExternalSide(self.shelf, repeatable, finish_abandoned)
        self.calls: dict[str, tuple[str, Callable[[Call], Answer]]] = {
            "add-calcinfo": ("POST", mint.add_calcinfo),
            "allow-wait-calc": ("POST", mint.allow_wait_calc),
            "cancel-wait-calc": ("POST", mint.cancel_wait_calc),
            "calc-status": ("GET", mint.calc_status),
            "calc-progress": ("GET", mint.calc_progress),
            "get-calc-result": ("GET", mint.get_calc_result),
            "get-calcinfo": ("GET", mint.get_calcinfo),
            "calc-request": ("GET", external.calc_request),
            "calc-params": ("GET", external.calc_params),
            "calc-params-complete": ("POST", external.calc_params_complete),
            "calc-start": ("POST", external.calc_start),
            "calc-end": ("POST", external.calc_end),
            "send-results": ("POST", external.send_results),
            "end-send": ("POST", external.end_send),
        }
        self._http = _Http((host, port), type("Handler", (_Handler,), {"their": self}))
        if ssl_context:
            # The handshake belongs into the request's thread: a client that stalls must not stop the others.
            self._http.socket = ssl_context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_address[1]
        self.url = f"{'https' if ssl_context else 'http'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> TheirServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def drop_answer(self, call: str, times: int = 1) -> None:
        """Do the next `times` of `call`, and close the connection without an answer."""
        self._fault("drop", call, times)

    def refuse(self, call: str, times: int = 1) -> None:
        """Close the connection of the next `times` of `call`, which are not done."""
        self._fault("refuse", call, times)

    def html(self, call: str, times: int = 1) -> None:
        """Answer the next `times` of `call`, which are not done, with a gateway's page."""
        self._fault("html", call, times)

    def busy(
        self, call: str, times: int = 1, *, status: int = 503, code: int | str = 503, done: bool = False, retry_after: str = ""
    ) -> None:
        """Answer the next `times` of `call` with a gateway's word in the envelope; they are not done unless `done`."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        self._busy[call] = envelope(code, "混雑しています。", status=status), done, headers
        self._fault("busy", call, times)

    def busy_answer(self, call: str) -> tuple[Answer, bool, dict[str, str]] | None:
        """What `busy` set, where it is due."""
        return self._busy[call] if self.due("busy", call) else None

    def due(self, kind: str, call: str) -> bool:
        """True, and once fewer to come, where a fault is set."""
        with self.shelf.lock:
            left = self._faults.get((kind, call), 0)
            self._faults[kind, call] = max(left - 1, 0)
            return left > 0

    def pending(self, kind: str, call: str) -> bool:
        """True while a fault that was set has not happened yet; one of `drop` happens after the call was done."""
        with self.shelf.lock:
            return self._faults.get((kind, call), 0) > 0

    def answer(self, name: str, call: Call) -> Answer:
        """Do a call, one at a time."""
        with self.shelf.lock:
            self.shelf.drop_unclaimed()
            try:
                return self.calls[name][1](call)
            except Refusal as e:
                return e.answer

    def _fault(self, kind: str, call: str, times: int) -> None:
        if call not in self.calls:
            raise KeyError(call)
        with self.shelf.lock:
            self._faults[kind, call] = times


class _Http(ThreadingHTTPServer):
    """Quiet about clients that go away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request per connection, as HTTP/1.0 has it."""

    their: TheirServer

    def do_GET(self) -> None:
        """Any GET."""
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names are http.server's

    def log_message(self, *_: Any) -> None:
        """Nothing: tests look at `requests`."""

    def _handle(self) -> None:
        self.their.requests.append((self.command, self.path))
        url = urlsplit(self.path)
        name = url.path[len(BASE) :] if url.path.startswith(BASE) else ""
        if self.their.due("refuse", name):
            return
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.their.due("html", name):
            self._page(502, "Bad Gateway")
        elif name not in self.their.calls:
            self._page(404, "Not Found")
        elif self.their.calls[name][0] != self.command:
            self._page(405, "Method Not Allowed")
        else:
            busy = self.their.busy_answer(name)
            answer = self._permitted(url.path, url.query, name, content) if not busy or busy[1] else busy[0]
            if not self.their.due("drop", name):
                self._answer(busy[0] if busy else answer, busy[2] if busy else {})

    def _answer(self, answer: Answer, headers: dict[str, str]) -> None:
        text = json.dumps(answer.shape, ensure_ascii=False, separators=(",", ":"))
        self._send(answer.status, "application/json", text, headers)

    def _permitted(self, path: str, query: str, name: str, content: bytes) -> Answer:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.their.tokens:
            return envelope("0005", f"{path}への実行権がありません。", status=403)
        post = self.command == "POST"
        given = {key: values[0] for key, values in parse_qs("" if post else query, keep_blank_values=True).items()}
        poller = (token, str(self.client_address[0]))
        return self.their.answer(name, Call(given, _object(content) if post else {}, self.their.tokens[token], poller))

    def _page(self, status: int, title: str) -> None:
        page = f"<!doctype html>\n<html lang=en>\n<title>{status} {title}</title>\n<h1>{title}</h1>\n"
        self._send(status, "text/html; charset=utf-8", page)

    def _send(self, status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object of a body; empty where it is none."""
    try:
        shape = json.loads(content or b"{}")
    except ValueError:
        return {}
    return shape if isinstance(shape, dict) else {}
