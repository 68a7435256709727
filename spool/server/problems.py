"""The one place that maps errors to HTTP: status, headers and body (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

import json

from bottle import HTTPResponse

from spool.errors import OffsetMismatch, SpoolError, TooManyTries

STATUS: dict[str, int] = {
    "invalid_name": 400,
    "invalid_record": 400,
    "invalid_request": 400,
    "unauthorized": 401,
    "not_allowed": 403,
    "unknown_site": 404,
    "command_not_allowed": 403,
    "not_found": 404,
    "missing_inputs": 409,
    "conflict": 409,
    "duplicate": 409,
    "stale_run": 409,
    "unknown_run": 409,
    "twin": 409,
    "offset_mismatch": 409,
    "digest_mismatch": 422,
    "too_large": 413,
    "too_many_tries": 429,
    "busy": 503,
    "no_space": 507,
    "unknown_format": 400,
    "configuration": 500,
    "internal": 500,
    "unreachable": 502,
    "transfer": 500,
    "refused_by_site": 403,
}
RETRY_AFTER_S = 5


def problem(error: SpoolError) -> HTTPResponse:
    """Return the answer for `error`."""
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    headers = {"Content-Type": "application/problem+json; charset=utf-8", "Cache-Control": "no-store"}
    headers["Problem-Code"] = error.code  # for HEAD, whose answer has no body
    if isinstance(error, OffsetMismatch):
        headers["Upload-Offset"] = str(error.offset)
    if isinstance(error, TooManyTries):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.transient:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return HTTPResponse(json.dumps(body, ensure_ascii=False).encode("utf-8"), STATUS[error.code], headers)
