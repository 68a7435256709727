"""The command line of spoolctl as one table of options (docs/operations.md, "spoolctl")."""

from __future__ import annotations

import argparse
import re
from typing import Any

from spool import __version__
from spool.ctl.messages import text
from spool.records import MAX_PRIORITY
from spool.server.tokens import ROLES
from spool.states import State
from spool.tls import read_pins

_WHERE = ("spool", "url", "token", "ca_file", "pin", "client_cert", "client_key", "allow_http")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options; ends the program with 2 (and the usage) where they make no sense, as argparse does."""
    found = _parser().parse_args(_join_args(argv))
    if getattr(found, "arg", None):
        # argparse takes "--" out of the values of an option, and leaves an empty list in its place.
        found.arg = ["--" if value == [] else value for value in found.arg]
    return found


def _join_args(argv: list[str]) -> list[str]:
    """Return `argv` with ``--arg X`` as ``--arg=X``: an argument of the solver may well start with ``-``."""
    joined: list[str] = []
    words = iter(argv)
    for word in words:
        value = next(words, None) if word == "--arg" else None
        joined.append(word if value is None else f"--arg={value}")
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spoolctl", description=text("help_program"), allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mint-spool {__version__}")
    _add_where(parser, {**dict.fromkeys(_WHERE, ""), "spool": None, "pin": (), "allow_http": False})
    commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
    # The options that name the spool may stand after the command as well; there they have no default that would undo the first.
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_where(common, dict.fromkeys(_WHERE, argparse.SUPPRESS))

    def add(name: str, help_id: str) -> argparse.ArgumentParser:
        words = text(help_id)
        return commands.add_parser(name, help=words, description=words, parents=[common], allow_abbrev=False)

    _add_submit(add("submit", "help_submit"))
    _add_ls(add("ls", "help_ls"))
    _add_of_jobs(add)
    _add_token(add("token", "help_token_cmd"), common)
    _add_user(add("user", "help_user_cmd"), common)
    login = add("login", "help_login")
    _option(login, "--user", "help_login_user", default="")
    _option(login, "--password", "help_password", default="", metavar="@FILE|-")
    _add_holding(add, common)
    check = add("check", "help_check")
    _option(check, "--repair", "help_repair", action="store_true")
    _option(check, "--json", "help_json", action="store_true")
    audit = add("audit", "help_audit")
    _option(audit, "site", "help_audit_site", metavar="SITE")
    _option(audit, "--json", "help_json", action="store_true")
    return parser


def _option(parser: argparse.ArgumentParser, name: str, help_id: str, **more: Any) -> None:
    parser.add_argument(name, help=text(help_id).replace("%", "%%"), **more)


def _add_where(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    _option(parser, "--spool", "help_spool", metavar="DIR", default=defaults["spool"])
    _option(parser, "--url", "help_url", default=defaults["url"])
    _option(parser, "--token", "help_token", metavar="@FILE", default=defaults["token"])
    _option(parser, "--ca-file", "help_ca_file", metavar="FILE", default=defaults["ca_file"])
    _option(parser, "--pin", "help_pin", metavar="SHA256", type=_pins, default=defaults["pin"])
    _option(parser, "--client-cert", "help_client_cert", metavar="FILE", default=defaults["client_cert"])
    _option(parser, "--client-key", "help_client_key", metavar="FILE", default=defaults["client_key"])
    _option(parser, "--allow-http", "help_allow_http", action="store_true", default=defaults["allow_http"])


def _add_submit(parser: argparse.ArgumentParser) -> None:
    many: dict[str, Any] = {"action": "append", "default": []}
    _option(parser, "--site", "help_site", required=True)
    _option(parser, "--command", "help_command", required=True)
    _option(parser, "--arg", "help_arg", metavar="A", **many)
    _option(parser, "--in", "help_in", metavar="[NAME=]PATH", dest="inputs", **many)
    _option(parser, "--out", "help_out", metavar="GLOB", **many)
    _option(parser, "--user", "help_user", default="")
    _option(parser, "--env", "help_env", metavar="NAME=VALUE", **many)
    _option(parser, "--priority", "help_priority", type=_priority, default=0, metavar="N")
    _option(parser, "--workflow", "help_workflow", default="")
    _option(parser, "--wall-time", "help_wall_time", type=_positive, metavar="S")
    _option(parser, "--expires-at", "help_expires_at", default="", metavar="T")
    _option(parser, "--sign", "help_sign", default="", metavar="KEY")
    _option(parser, "--max-attempts", "help_max_attempts", type=_positive, metavar="N")
    _option(parser, "--give-up-after", "help_give_up_after", type=_positive, metavar="S")
    _option(parser, "--require-all", "help_require_all", action="store_true")
    _option(parser, "--label", "help_label", metavar="K=V", **many)
    _option(parser, "--id", "help_new_id", default="", metavar="UUID")
    _option(parser, "--wait", "help_do_wait", action="store_true")
    _option(parser, "--timeout", "help_timeout", type=_seconds, metavar="S")
    _option(parser, "--into", "help_into", metavar="DIR")
    _option(parser, "--logs", "help_with_logs", action="store_true")


def _add_ls(parser: argparse.ArgumentParser) -> None:
    _option(parser, "--state", "help_state", choices=[str(state) for state in State], default="")
    _option(parser, "--site", "help_of_site", default="")
    _option(parser, "--user", "help_of_user", default="")
    _option(parser, "--limit", "help_limit", type=_positive, default=200, metavar="N")
    _option(parser, "--json", "help_json", action="store_true")


def _add_of_jobs(add: Any) -> None:
    show = add("show", "help_show")
    _option(show, "id", "help_id", metavar="ID")
    _option(show, "--json", "help_json", action="store_true")
    wait = add("wait", "help_wait")
    _option(wait, "ids", "help_id", nargs="+", metavar="ID")
    _option(wait, "--timeout", "help_timeout", type=_seconds, metavar="S")
    logs = add("logs", "help_logs")
    _option(logs, "id", "help_id", metavar="ID")
    logs.add_argument("-f", "--follow", action="store_true", help=text("help_follow"))
    _option(logs, "--err", "help_err", action="store_true")
    fetch = add("fetch", "help_fetch")
    _option(fetch, "id", "help_id", metavar="ID")
    _option(fetch, "--into", "help_into", required=True, metavar="DIR")
    _option(fetch, "--logs", "help_with_logs", action="store_true")
    for name in ("cancel", "requeue"):
        chosen = add(name, f"help_{name}")
        _option(chosen, "ids", "help_id", nargs="+", metavar="ID")
        if name == "requeue":
            _option(chosen, "--force", "help_force", action="store_true")


def _add_token(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="token_command", metavar="COMMAND", required=True)
    new = commands.add_parser("add", help=text("help_token_add"), parents=[common], allow_abbrev=False)
    _option(new, "--user", "help_token_user", required=True)
    _option(new, "--role", "help_role", action="append", choices=ROLES, required=True)
    _option(new, "--site", "help_token_site", action="append", default=[])
    _option(new, "--expires-at", "help_token_expires", default="", metavar="T")
    _option(new, "--import", "help_import", dest="imported", default="", metavar="@FILE")
    listing = commands.add_parser("ls", help=text("help_token_ls"), parents=[common], allow_abbrev=False)
    _option(listing, "--json", "help_json", action="store_true")
    revoke = commands.add_parser("revoke", help=text("help_token_revoke"), parents=[common], allow_abbrev=False)
    _option(revoke, "token_id", "help_token_id", metavar="ID")


def _add_user(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="user_command", metavar="COMMAND", required=True)

    def add(name: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text(f"help_user_{name}"), parents=[common], allow_abbrev=False)

    new, changed = add("add"), add("passwd")
    for one in (new, changed, add("remove")):
        _option(one, "name", "help_user_name", metavar="NAME")
    for one in (new, changed):
        _option(one, "--password", "help_password", default="", metavar="@FILE|-")
    _option(new, "--role", "help_user_role", action="append", choices=ROLES, required=True)
    _option(new, "--site", "help_user_site", action="append", default=[])
    _option(add("ls"), "--json", "help_json", action="store_true")
def _add_holding(add: Any, common: argparse.ArgumentParser) -> None:
    for noun in ("site", "workflow"):
        commands = add(noun, f"help_{noun}_cmd").add_subparsers(dest="holding_command", metavar="COMMAND", required=True)
        listing = commands.add_parser("ls", help=text(f"help_{noun}_ls"), parents=[common], allow_abbrev=False)
        _option(listing, "--json", "help_json", action="store_true")
        for verb in ("disable", "enable"):
            words = text(f"help_{noun}_{verb}")
            chosen = commands.add_parser(verb, help=words, description=words, parents=[common], allow_abbrev=False)
            _option(chosen, "name", f"help_{noun}_name", metavar=noun.upper())
            if verb == "disable":
                _option(chosen, "--because", "help_because", default="", metavar="WHY")
    for name in ("pause", "resume", "drain"):
        chosen = add(name, f"help_{name}")
        _option(chosen, "site_name", "help_site_name", nargs="?", default="", metavar="SITE")
        _option(chosen, "--all", "help_all", action="store_true")
        if name != "resume":
            _option(chosen, "--because", "help_because", default="", metavar="WHY")
        if name == "drain":
            _option(chosen, "--timeout", "help_timeout", type=_seconds, metavar="S")
    stop = add("stop-all", "help_stop_all")
    _option(stop, "--because", "help_because", default="", metavar="WHY")
    _option(stop, "--kill", "help_kill", action="store_true")


def _priority(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,4}", value) or abs(int(value)) > MAX_PRIORITY:
        raise argparse.ArgumentTypeError(f"must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    return int(value)


def _pins(value: str) -> tuple[str, ...]:
    try:
        return read_pins(value)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _positive(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value) or int(value) < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(value)


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return float(value)
