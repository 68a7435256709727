"""The agent's command lines: the published positional form, and --config (docs/agent.md, "Command line")."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from spool import __version__
from spool.addresses import published_url
from spool.agent.config import AgentConfig, find_config, finish_config, read_config, read_token
from spool.agent.login import login
from spool.errors import ConfigError, InvalidName
from spool.names import check_user
from spool.tls import Tls

PUBLISHED_BASE = "/tmp"
PUBLISHED_RETRY = (5, 60.0)
VERBS = ("init", "check")
LOGIN = "login"
USAGE = """\
  spool_agent.py SITE URL TOKEN|@FILE|login [port:N] [retry:N,S] [no_auth[:CAFILE]] [calc_base:DIR] [debug]
  spool_agent.py --config etc/agent.ini [--once]
  spool_agent.py init | check [--config etc/agent.ini]
  spool_agent.py login [--config etc/agent.ini] [--user NAME] [--password @FILE|-]
  spool_agent.py gate [--config etc/agent.ini]
  spool_agent.py pause | drain | stop [--because WHY] [--config etc/agent.ini]
  spool_agent.py resume [--config etc/agent.ini]
  spool_agent.py held [--json] | show ID | release ID [--manifest HASH] | refuse ID [--because TEXT] [--config etc/agent.ini]
  spool_agent.py audit [verify] [--config etc/agent.ini | --base DIR] [--head NUMBER:HASH|@FILE]"""


@dataclass(frozen=True)
class Arguments:
    """What the command line said. `retry` is (tries, seconds between) in the published form, else None: for ever."""

    verb: str = ""
    config: Path | None = None
    once: bool = False
    debug: bool = False
    site: str = ""
    url: str = ""
    token: str = ""
    published: bool = False
    retry: tuple[int, float] | None = None
    no_auth: bool = False
    ca_file: str = ""
    calc_base: str = ""


def parse(argv: list[str]) -> Arguments:
    """Parse; ends the process with exit code 2 and the usage where the words make no sense (argparse does so too)."""
    parser = argparse.ArgumentParser(prog="spool_agent.py", usage="\n" + USAGE)
    parser.add_argument("--config", type=Path, metavar="INI", help="agent.ini: what may run here and what may leave")
    parser.add_argument("--once", action="store_true", help="one pass, as cron wants it: sync, carry on, exit")
    parser.add_argument("--debug", action="store_true", help="log details too")
    parser.add_argument("--site", default="", help="init: the site's identifier")
    parser.add_argument("--url", default="", help="init: the server's address")
    parser.add_argument("--token-file", default="", help="init: the file that holds the token")
    parser.add_argument("--version", action="version", version=f"mint-spool {__version__}")
    parser.add_argument("words", nargs="*", help="SITE URL TOKEN|@FILE|login and options, or a verb")
    given = parser.parse_args(argv)
    common = {"config": given.config, "once": given.once, "debug": given.debug}
    if not given.words:
        return Arguments(**common)
    if given.words[0] in VERBS and len(given.words) == 1:
        return Arguments(verb=given.words[0], site=given.site, url=given.url, token="@" + given.token_file, **common)
    if len(given.words) < 3:
        parser.error("SITE, URL and TOKEN are needed, or --config")
    try:
        return _published(given.words, common)
    except ValueError as exc:
        parser.error(str(exc))


def _published(words: list[str], common: dict[str, Any]) -> Arguments:
    values: dict[str, Any] = {**common, "published": True, "retry": PUBLISHED_RETRY, "calc_base": PUBLISHED_BASE}
    values.update(site=words[0], token=words[2])
    port = 0
    for word in words[3:]:
        key, _, value = word.partition(":")
        if key == "port" and re.fullmatch(r"[0-9]{1,5}", value) and 0 < int(value) < 65536:
            port = int(value)
        elif key == "retry" and (match := re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9}(?:\.[0-9]{1,6})?)", value)):
            values["retry"] = (int(match[1]), float(match[2]))
        elif key == "no_auth" and word != "no_auth:":
            values.update(no_auth=not value, ca_file=value)
        elif key == "calc_base" and value:
            values["calc_base"] = value
        elif word == "debug":
            values["debug"] = True
        else:
            raise ValueError(f"{word!r} is no option: port:N retry:N,S no_auth[:CAFILE] calc_base:DIR debug")
    return Arguments(**values, url=published_url(words[1], port))


def configure(args: Arguments, program: Path) -> AgentConfig:
    """Read agent.ini and lay the command line over it; raise `ConfigError` where nothing can come of it."""
    config = read_config(find_config(args.config, program))
    overrides: dict[str, Any] = {}
    user = token = ""
    if args.published:
        overrides = {"site": args.site, "url": args.url, "base": Path(args.calc_base).absolute()}
        user, token = login(args.url) if args.token == LOGIN else ("", _token(args.token))
        overrides["token_file"] = Path(args.token[1:]).expanduser().absolute() if args.token[:1] == "@" else None
    if not config.commands:
        print(f"spool_agent.py: {config.source} allows no command: every job will be refused", file=sys.stderr)
    return finish_config(config, overrides, token=token, user=_checked(user))


def _checked(user: str) -> str:
    """Return the logged-in user's name where policies can name him, else none."""
    try:
        return check_user(user) if user else ""
    except InvalidName as exc:
        print(f"spool_agent.py: the user's name is not used: {exc.message}", file=sys.stderr)
        return ""


def _token(word: str) -> str:
    if word.startswith("@"):
        return read_token(Path(word[1:]).expanduser())
    print("spool_agent.py: a token on the command line can be seen by everyone on this host (ps); use @FILE", file=sys.stderr)
    if not word or len(word.split()) != 1:
        raise ConfigError("the token is empty", hint="give TOKEN or @FILE")
    return word


def tls(config: AgentConfig, args: Arguments) -> Tls:
    """Return whom TLS trusts here, and what it shows; `ConfigError` for files that cannot be used."""
    agent = config.agent
    pins, alone = agent["pin_sha256"], agent["pin_only"]
    if args.no_auth:
        rest = ", its key must be one of pin_sha256" if pins else "; use no_auth:CAFILE"
        print(f"spool_agent.py: no_auth: the server's certificate is NOT verified{rest}", file=sys.stderr)
    chosen = args.ca_file or agent["ca_file"]
    if chosen and not Path(chosen).is_file():
        raise ConfigError(f"the file of authorities {chosen} is not there", hint="correct ca_file, or no_auth:CAFILE")
    return Tls(
        ca_file=str(chosen or ""), bundle=DEFAULT_CA_BUNDLE_PATH, verify=not (args.no_auth or alone), pins=pins,
        client_cert=str(agent["client_cert"] or ""), client_key=str(agent["client_key"] or ""),
    )  # fmt: skip


def greet(config: AgentConfig, args: Arguments) -> None:
    """Print the start-up lines of the manual; of the token only its last four characters."""
    print(f"site id = {config.agent['site']}")
    print(f"base url = {config.agent['url']}")
    print(f" token = {'*' * 8}{config.token[-4:]}", flush=True)
