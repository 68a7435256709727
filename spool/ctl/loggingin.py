"""`spoolctl login`: user and password once, and the token that comes back into the file that `--token` names."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from spool import jsonio
from spool.ctl import exits
from spool.ctl.backend import Usage
from spool.ctl.http import Api, check_url, is_token
from spool.ctl.messages import say
from spool.errors import SpoolError, Unreachable
from spool.fields import Fields
from spool.files import replace_file
from spool.passwords import ask_user, read_password


def run(args: argparse.Namespace) -> int:
    """Log in at ``--url`` and write the token, atomically, mode 0600; return the exit code. Not repeated by itself."""
    if not args.url or not args.token.startswith("@"):
        raise Usage("login needs --url URL and --token @FILE", hint="FILE gets the token, and is given so to other commands")
    url, path = check_url(args.url, allow_http=args.allow_http), Path(args.token[1:]).expanduser()
    asked = {"user": ask_user(args.user), "password": read_password(args.password)}
    answer = Api(url, "", args.ca_file).request(
        "POST", "/v1/login", data=jsonio.dumps_line(asked), headers={"Content-Type": "application/json"}
    )
    try:
        fields = Fields(jsonio.loads(answer.content, "the answer"), "the answer")
        token, user, until = (fields.string(key) for key in ("token", "user", "expires_at"))
        roles = fields.strings("roles")
    except SpoolError:
        raise Unreachable(f"{url} answered something else than a token", hint="is that a mint-spool server?") from None
    if not is_token(token):
        raise Unreachable(f"{url} answered something else than a token", hint="is that a mint-spool server?")
    before = os.umask(0o077)
    try:
        replace_file(path, f"{token}\n".encode("ascii"), mode=0o600)
    finally:
        os.umask(before)
    say("logged_in", path=path, user=user, roles=" ".join(roles), at=until)
    return exits.DONE
