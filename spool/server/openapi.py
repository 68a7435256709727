"""The description of /v1 for machines, OpenAPI 3.0; `python -m spool.server.openapi` prints what docs/openapi.json holds.

docs/protocol.md is for people and says more; the routes, the methods and the words of both are checked against the code.
"""

from __future__ import annotations

import json
import re
from typing import Any

from spool import __version__
from spool.server.pages import Pages
from spool.server.problems import STATUS
from spool.server.v1 import V1
from spool.states import State

_ID = {"type": "string", "format": "uuid"}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FILE = {
    "type": "object", "required": ["path", "size", "sha256"],
    "properties": {"path": _TEXT, "size": _COUNT, "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
}  # fmt: skip
_INPUT = {
    "oneOf": [_TEXT, {"type": "object", "required": ["path"], "properties": _FILE["properties"]}],
}
SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object", "required": ["code", "message", "hint"],
        "properties": {"code": {"type": "string", "enum": sorted(STATUS)}, "message": _TEXT, "hint": _TEXT},
    },
    "Job": {
        "type": "object", "required": ["site", "command"],
        "properties": {
            "format": {"type": "integer", "enum": [1]}, "id": _ID, "site": _TEXT, "command": _TEXT, "args": _NAMES,
            "inputs": {"type": "array", "items": _INPUT}, "outputs": _NAMES, "user": _TEXT, "priority": {"type": "integer"},
            "workflow": _TEXT, "env": {"type": "object", "additionalProperties": _TEXT}, "wall_time_s": _COUNT,
            "expires_at": {"type": "string", "format": "date-time"}, "give_up_after_s": _COUNT,
            "require_all": {"type": "boolean"},
            "labels": {"type": "object", "additionalProperties": _TEXT}, "resources": {"type": "object"}, "notify_url": _TEXT,
        },
    },
    "Sync": {
        "type": "object", "required": ["site", "agent"],
        "properties": {
            "site": _TEXT, "agent": _TEXT, "instance": _TEXT, "generation": _COUNT, "seq": _COUNT, "room": _COUNT,
            "wait_s": {"type": "integer", "minimum": 0, "maximum": 25}, "version": _TEXT, "leaving": {"type": "boolean"},
            "epoch": _TEXT,
            "jobs": {"type": "array", "items": {
                "type": "object", "required": ["id", "run_id", "state"],
                "properties": {
                    "id": _ID, "run_id": _ID, "state": {"type": "string", "enum": ["claimed", "running", "held", "returning"]},
                    "ready": {"type": "boolean"}, "told": _TEXT, "attempt": _COUNT, "exit_code": _COUNT,
                },
            }},
        },
    },
    "Result": {
        "type": "object", "required": ["id", "run_id", "attempt"],
        "properties": {
            "format": {"type": "integer", "enum": [1]}, "id": _ID, "run_id": _ID, "attempt": _COUNT, "exit_code": _COUNT,
            "signal": _COUNT,
            "reason": _TEXT, "message": _TEXT, "files": {"type": "array", "items": _FILE}, "missing": _NAMES, "withheld": _NAMES,
            "not_carried": _NAMES,
        },
    },
}  # fmt: skip
_QUERIES: dict[str, list[tuple[str, Any]]] = {
    "list": [("state", {"type": "string", "enum": [str(state) for state in State]}), ("site", _TEXT), ("user", _TEXT),
        ("limit", _COUNT)],
    "requeue": [("force", {"type": "string", "enum": ["0", "1"]})],
    "get_tar": [("max_bytes", _COUNT), ("after", _TEXT)],
    "put_tar": [("run_id", _ID)],
    "head_output": [("run_id", _ID)],
    "put_output": [("run_id", _ID)],
}  # fmt: skip
_BODIES = {"sync": "Sync", "register": "Job", "finish": "Result"}
_CHUNKS = ("put_input", "put_output")


def document() -> dict[str, Any]:
    """Return the description, made of the routes that are mounted."""
    paths: dict[str, Any] = {}
    for method, rule, call in V1.routes(object.__new__(V1)):
        paths.setdefault(_path(rule), {})[method.lower()] = _operation(method, rule, call)
    for rule, page in Pages.routes(object.__new__(Pages)):
        paths.setdefault(_path(rule), {})["get"] = _operation("GET", rule, page)
    return {
        "openapi": "3.0.3",
        "info": {"title": "mint-spool", "version": __version__, "description": "See docs/protocol.md."},
        "security": [{"token": []}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": SCHEMAS},
    }


def _path(rule: str) -> str:
    return re.sub(r"<(\w+)[^>]*>", r"{\1}", rule)


def _operation(method: str, rule: str, call: Any) -> dict[str, Any]:
    name = call.__name__
    parts = [(word, _path_schema(word)) for word in re.findall(r"<(\w+)", rule)]
    asked = [*((word, "path", True, schema) for word, schema in parts)]
    asked += [(word, "query", False, schema) for word, schema in _QUERIES.get(name, ())]
    if name in _CHUNKS:
        asked.append(("Upload-Offset", "header", True, _COUNT))
        asked.append(("Content-Digest", "header", False, _TEXT))
        if method == "POST":
            asked.append(("X-HTTP-Method-Override", "header", True, {"type": "string", "enum": ["PATCH"]}))
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    value: dict[str, Any] = {
        "operationId": f"{method.lower()}_{name}",
        "summary": str(call.__doc__ or "").strip().partition("\n")[0],
        "parameters": [{"name": word, "in": where, "required": needed, "schema": schema} for word, where, needed,
            schema in asked],
        "responses": {"2XX": {"description": "done"}, "default": {"description": "an error", "content": problem}},
    }
    if name in _BODIES:
        schema = {"$ref": f"#/components/schemas/{_BODIES[name]}"}
        value["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif name in _CHUNKS:
        value["requestBody"] = {"required": True, "content": _BYTES}
    elif name == "put_tar":
        value["requestBody"] = {"required": True, "description": "a tar", "content": _BYTES}
    if rule == "/health":
        value["security"] = []
        value["responses"]["503"] = {"description": "degraded: `problems` says why"}
    return value


def _path_schema(word: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {"job_id": _ID, "part": {"type": "string", "enum": ["out", "log"]}}
    return known.get(word, {"type": "string", "minLength": 1})


def text() -> str:
    """Return the file's text."""
    return json.dumps(document(), ensure_ascii=False, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(text(), end="")
