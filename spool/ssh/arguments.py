"""The push's command line, and the two verbs that ask about a site (docs/operations.md, "ssh_push.py")."""

from __future__ import annotations

import argparse
from pathlib import Path

from spool import __version__
from spool.config import SpoolConfig
from spool.errors import ConfigError
from spool.names import is_id
from spool.ssh import authorize, check

EXIT_FAILED = 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; wrong usage exits with 2."""
    parser = argparse.ArgumentParser(
        prog="ssh_push.py", description="Push the jobs of ssh sites there, have them run, fetch them back.",
        usage="ssh_push.py --config INI [--spool DIR] [--once] [ID ...] | authorize SITE | check SITE",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="ID", help="only these jobs; or `authorize SITE`, `check SITE`")
    parser.add_argument("--config", type=Path, metavar="INI", help="spool.ini (default: spool.ini in the spool, if there is one)")
    parser.add_argument("--spool", type=Path, metavar="DIR", help="the spool's folder; an empty one becomes a spool")
    parser.add_argument("--once", action="store_true", help="one pass over what is there, then end")
    parser.add_argument("--from", dest="source", metavar="PATTERNS", default="", help="authorize: MInt's addresses, see sshd(8)")
    parser.add_argument("--gate", metavar="COMMAND", default="", help="authorize: a guarded site's forced command")
    parser.add_argument("--version", action="version", version=f"mint-spool {__version__}")
    args = parser.parse_intermixed_args(argv)
    if args.words[:1] in (["authorize"], ["check"]):
        if len(args.words) != 2:
            parser.error(f"{args.words[0]} takes one site")
    elif wrong := [word for word in args.words if not is_id(word)]:
        parser.error(f"{wrong[0]!r} is not a job id")
    return args


def ask(args: argparse.Namespace, config: SpoolConfig) -> int:
    """`authorize SITE` and `check SITE`."""
    site = config.sites.get(args.words[1])
    if site is None or site.mode != "ssh":
        known = " ".join(name for name, item in config.sites.items() if item.mode == "ssh") or "none"
        raise ConfigError(f"{args.words[1]!r} is not a site with mode = ssh", hint=f"those are: {known}")
    if args.words[0] == "check":
        return 0 if check.report(site) else EXIT_FAILED
    print(authorize.line(site, args.source, args.gate))
    return 0
