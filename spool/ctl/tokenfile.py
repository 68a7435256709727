"""`spoolctl token`: the token file of a spool, the one that the server reads (docs/security.md, "Tokens")."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from spool.config import SpoolConfig, default_config, find_config, read_config
from spool.ctl import exits
from spool.ctl.backend import Usage
from spool.ctl.folder import FolderBackend
from spool.ctl.listing import print_json, table
from spool.ctl.messages import note, say, text
from spool.errors import from_os_error
from spool.instants import to_epoch
from spool.paths import SpoolPaths
from spool.server.tokens import Token, TokenFile


def token_path(paths: SpoolPaths, config: SpoolConfig) -> Path:
    """Return the token file: ``[server] tokens`` of the spool's configuration, else tokens.json in the spool.

    A relative path counts from the folder of the ini file itself.
    """
    given = config.server["tokens"]
    if given is None or config.source is None:
        return paths.tokens
    return Path(config.source.resolve().parent / given)


def run(args: argparse.Namespace, backend: FolderBackend) -> int:
    """Run ``token add|ls|revoke``; return the exit code."""
    ini = find_config(None, backend.paths.root)
    config = read_config(ini) if ini else default_config()
    path = token_path(backend.paths, config)
    call = {"add": _add, "ls": _list, "revoke": _revoke}[args.token_command]
    try:
        code = call(args, TokenFile(path))
    except OSError as exc:
        raise from_os_error(exc, f"the token file {path}") from exc
    if args.token_command == "add":
        for site in sorted(set(args.site) - set(config.sites)):  # it may come later; or it was mistyped
            note("token_site", site=site, known=", ".join(config.sites) or "-")
    return code


def _add(args: argparse.Namespace, tokens: TokenFile) -> int:
    given = _imported(args.imported) if args.imported else ""
    if args.expires_at and to_epoch(args.expires_at) <= time.time():
        raise Usage(f"--expires-at {args.expires_at} has passed already", hint="give a later instant, or none")
    token_text, token = tokens.add(args.user, args.role, args.site, expires_at=args.expires_at, text=given)
    sites = " ".join(token.sites) or text("all_sites")
    say("token_added", id=token.id, user=token.user, roles=" ".join(token.roles), sites=sites)
    print(token_text)
    return exits.DONE


def _imported(given: str) -> str:
    if not given.startswith("@"):
        raise Usage("--import takes @FILE", hint="a token on a command line can be read by every user of this computer")
    try:
        found = Path(given[1:]).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as exc:
        raise Usage(f"{given[1:]}: {getattr(exc, 'strerror', '') or exc}", hint="name a file that holds the token") from exc
    if not found:
        raise Usage(f"{given[1:]} is empty", hint="name a file that holds the token")
    return found


def _list(args: argparse.Namespace, tokens: TokenFile) -> int:
    found = tokens.all()
    if args.json:
        print_json({"tokens": [_object(token) for token in found]})
    elif found:
        print(table(("id", "user", "roles", "sites", "last4", "expires", "counts"), [_row(token) for token in found]))
    else:
        note("token_none")
    return exits.DONE


def _object(token: Token) -> dict[str, Any]:
    value = token.encode()
    value.pop("sha256")
    return {**value, "counts": token.counts()}


def _row(token: Token) -> tuple[str, ...]:
    counts = text("revoked") if token.revoked_at else text("yes" if token.counts() else "no")
    sites = " ".join(token.sites) or text("all_sites")
    return token.id, token.user, " ".join(token.roles), sites, token.last4, token.expires_at, counts


def _revoke(args: argparse.Namespace, tokens: TokenFile) -> int:
    token = tokens.revoke(args.token_id)
    say("token_revoked", id=token.id, user=token.user)
    return exits.DONE
