"""`spoolctl user`: who may log in and what the tokens he gets are for (docs/operations.md, "Tokens and users")."""

from __future__ import annotations

import argparse
from typing import Any

from spool.config import default_config, find_config, read_config
from spool.ctl import exits
from spool.ctl.folder import FolderBackend
from spool.ctl.listing import print_json, table
from spool.ctl.messages import note, say, text
from spool.ctl.tokenfile import token_path
from spool.errors import from_os_error
from spool.passwords import read_password
from spool.server.tokens import TokenFile
from spool.server.users import User, UserFile


def run(args: argparse.Namespace, backend: FolderBackend) -> int:
    """Run ``user add|passwd|remove|ls``; return the exit code."""
    ini = find_config(None, backend.paths.root)
    config = read_config(ini) if ini else default_config()
    path = config.server["users"] or backend.paths.users
    call = {"add": _add, "passwd": _passwd, "remove": _remove, "ls": _list}[args.user_command]
    try:
        return call(args, UserFile(path), TokenFile(token_path(backend.paths, config)))
    except OSError as exc:
        raise from_os_error(exc, f"the file of users {path}") from exc


def _add(args: argparse.Namespace, users: UserFile, tokens: TokenFile) -> int:
    made = users.add(args.name, read_password(args.password, twice=True), args.role, args.site)
    say("user_added", user=made.user, roles=" ".join(made.roles), sites=_sites(made))
    return exits.DONE


def _passwd(args: argparse.Namespace, users: UserFile, tokens: TokenFile) -> int:
    changed = users.set_password(args.name, read_password(args.password, twice=True))
    say("user_changed", user=changed.user, count=tokens.revoke_logins(changed.user))
    return exits.DONE


def _remove(args: argparse.Namespace, users: UserFile, tokens: TokenFile) -> int:
    removed = users.remove(args.name)
    say("user_removed", user=removed.user, count=tokens.revoke_logins(removed.user))
    return exits.DONE


def _list(args: argparse.Namespace, users: UserFile, tokens: TokenFile) -> int:
    found = users.all()
    if args.json:
        print_json({"users": [_object(user) for user in found]})
    elif found:
        rows = [(user.user, " ".join(user.roles), _sites(user), user.changed_at) for user in found]
        print(table(("user", "roles", "sites", "changed"), rows))
    else:
        note("user_none")
    return exits.DONE


def _object(user: User) -> dict[str, Any]:
    return {"user": user.user, "roles": list(user.roles), "sites": list(user.sites), "changed_at": user.changed_at}


def _sites(user: User) -> str:
    return " ".join(user.sites) or text("all_sites")
