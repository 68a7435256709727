"""`spool_agent.py login`: user and password once, and the token that comes back into `token_file` (docs/agent.md, "Login")."""

from __future__ import annotations

import argparse
from pathlib import Path

from spool.agent.arguments import Arguments, tls
from spool.agent.client import Client
from spool.agent.config import check_url, find_config, read_config
from spool.errors import ConfigError
from spool.files import replace_file
from spool.passwords import ask_user, read_password


def run(words: list[str], program: Path) -> int:
    """Log in and replace the token file, atomically, mode 0600; a running agent reads it again. Return 0.

    Raises `ConfigError`, `Unauthorized`, `TooManyTries` or `Unreachable`; the file is then as it was.
    """
    parser = argparse.ArgumentParser(prog="spool_agent.py login", allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="INI", help="agent.ini, which names the server and the token file")
    parser.add_argument("--user", default="", help="the user; without it, it is asked for")
    parser.add_argument("--password", default="", metavar="@FILE|-", help="what holds it; without it, it is asked for")
    args = parser.parse_args(words)
    config = read_config(find_config(args.config, program))
    url, path = config.agent["url"], config.agent["token_file"]
    check_url(url, config.agent["allow_http"])
    if path is None:
        raise ConfigError("[agent] token_file is missing", hint="name the file that gets the token")
    client = Client(url, lambda: "", tls=tls(config, Arguments()))
    told = client.login(ask_user(args.user), read_password(args.password))
    try:
        replace_file(path, f"{told['token']}\n".encode("ascii"), mode=0o600)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}", hint="correct that, then log in again") from exc
    print(f"{path}: a token of {told['user']!r}, roles {' '.join(told['roles'])}, until {told['expires_at']}")
    return 0
