"""`login` in place of a token: the published `openam_operator` asks for user and password and gives a token.

The environment variable AUTHENTICATION_OPERATOR names the folder that holds this package, which belongs to MInt's operators.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spool.errors import ConfigError, SpoolError, Unauthorized

VARIABLE = "AUTHENTICATION_OPERATOR"
PACKAGE = "openam_operator"


def login(url: str) -> tuple[str, str]:
    """Return (user id, token) for the host of `url`, after asking on the terminal.

    Raises `ConfigError` where the package is not there or not usable, `Unauthorized` where nobody was logged in.
    """
    operator = _operator()
    try:
        user, token = operator(urlsplit(url).hostname or "")
    except SpoolError:
        raise
    except Exception as exc:  # noqa: BLE001 - somebody else's package: nobody is logged in; its words may hold the password
        hint = f"see the package {PACKAGE} in {os.environ[VARIABLE]}"
        raise Unauthorized(f"login failed: {type(exc).__name__}", hint=hint) from None
    if not isinstance(token, str) or len(token.split()) != 1:
        raise Unauthorized("login failed: no token was given", hint="check user and password, then start it again")
    return str(user or ""), token.strip()


def _operator() -> Any:
    folder = os.environ.get(VARIABLE, "")
    if not folder or not Path(folder).is_dir():
        why = f"{VARIABLE} names no folder" if folder else f"{VARIABLE} is not set"
        raise ConfigError(f"login: {why}", hint=f"set it to the folder that holds the package {PACKAGE}, or give @FILE")
    sys.path.append(str(Path(folder).absolute()))  # for good: the package may import more when it is called
    try:
        package = importlib.import_module(PACKAGE)
        found = package if hasattr(package, "miLogin") else importlib.import_module(f"{PACKAGE}.{PACKAGE}")
        return found.miLogin
    except Exception as exc:  # it may fail in any way while it is imported
        raise ConfigError(f"login: {PACKAGE}.miLogin cannot be had from {folder}: {exc!r}", hint="ask MInt's operators") from exc
