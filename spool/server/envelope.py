"""Answers as the published programs know them: `{"errors": [...]}`, UTF-8 without escapes, and the HTTP status they expect."""

from __future__ import annotations

import json
from typing import Any, Callable

from bottle import HTTPResponse, request

from spool import log
from spool.errors import Conflict, NotAllowed, NotFound, SpoolError, TooManyTries, Unauthorized, from_os_error
from spool.published import BASE, no_permission
from spool.server.problems import RETRY_AFTER_S, STATUS
from spool.server.published_forms import printable
from spool.server.v1 import query
from spool.streams import length_of, write_document


class Told(Exception):
    """An answer other than success: HTTP status, code and message as the published programs know them."""

    def __init__(self, status: int, code: Any, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def errors(code: Any, message: str, status: int = 200, **more: Any) -> HTTPResponse:
    """Return the envelope of nearly every answer. A control character, which JSON has only as an escape, is replaced."""
    return as_json({"errors": [{"code": code, "message": printable(message), **more}]}, status)


def as_json(value: dict[str, Any], status: int = 200) -> HTTPResponse:
    """Return a bare answer."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8")
    return HTTPResponse(body, status, {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"})


def streamed(document: dict[str, Any]) -> HTTPResponse:
    """Return an answer that holds files."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}
    return HTTPResponse(write_document(document), 200, {**headers, "Content-Length": str(length_of(document))})


def parameter(name: str) -> str:
    """Return a parameter of the query string; HTTP 400 where it is missing."""
    value = query(name)
    if not value:
        raise Told(400, 400, f"there is no parameter {name}")
    return value


def word(body: dict[str, Any], *known: str) -> str:
    """Return `result` of a body, which must be one of `known`."""
    found = body.get("result")
    if found is None:
        raise Told(400, 401, "there is no result in the request")
    if found not in known:
        raise Told(400, 402, f"result({found}) is none of: {', '.join(known)}")
    return str(found)


def need(allowed: bool) -> None:
    """Raise `NotAllowed`, which becomes the published 403, unless `allowed`."""
    if not allowed:
        raise NotAllowed("another user's", hint="")


def in_envelope(call: Callable[[], HTTPResponse]) -> Callable[[], HTTPResponse]:
    """Wrap a call so that whatever it raises is answered as the published programs know it."""

    def wrapped() -> HTTPResponse:
        try:
            if request.method == "HEAD":  # bottle would make a GET of it, which claims
                return errors(405, "HEAD is none of the calls", 405)
            return call()
        except Told as told:
            return errors(told.code, told.message, told.status)
        except (Unauthorized, NotAllowed, NotFound) as exc:
            log.info("refused", call=request.path, code=exc.code, why=exc.message, address=request.environ.get("REMOTE_ADDR"))
            return errors("0005", no_permission(request.path), 403)
        except Conflict as exc:
            return errors(401, exc.message)
        except SpoolError as exc:
            return _error(exc)
        except OSError as exc:
            log.error("os_error", call=request.path, why=exc)
            return _error(from_os_error(exc, f"{request.method} {request.path}"))
        except Exception:  # noqa: BLE001 - the outermost frame of a request that answers as the published programs know it
            log.error("internal", trace=True, call=request.path)
            return errors(500, "something went wrong here (an operator finds it in the server's log)", 500)

    return wrapped


def _error(exc: SpoolError) -> HTTPResponse:
    status = STATUS[exc.code]
    log.info("refused", call=request.path, code=exc.code, why=exc.message, address=request.environ.get("REMOTE_ADDR"))
    answer = errors(status, f"{exc.message} ({exc.hint})" if exc.hint else exc.message, status)
    if isinstance(exc, TooManyTries):
        answer.set_header("Retry-After", str(exc.retry_after_s))
    elif exc.transient:
        answer.set_header("Retry-After", str(RETRY_AFTER_S))
    return answer


def check_path() -> None:
    """Refuse a path that cannot be read; a hook before every request."""
    raw = str(request.environ.get("bottle.raw_path", ""))
    if raw.startswith(f"{BASE}/") and not (raw.isascii() and raw.isprintable()):
        raise errors(400, "the path holds bytes that no call has", 400)


def route_error(status: int) -> HTTPResponse:
    """Answer a path or method that is none of the fourteen calls."""
    return errors(status, f"there is no {request.method} {request.path} here", status)
