"""`spool_agent.py audit`: where the audit log is and how it ends; `audit verify`: is it whole (docs/security.md, "Audit")."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from spool import jsonio
from spool.agent.audit import Head, verify
from spool.agent.config import find_config, read_config
from spool.agent.folder import Base
from spool.errors import ConfigError, InvalidRecord, SpoolError

MOST_SHOWN = 20


def run(words: list[str], program: Path) -> int:
    """Show the log's path and head, or verify it. Exit code 0, or 1 with findings; 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="spool_agent.py audit", description="the site's audit log: where it ends, is it whole")
    parser.add_argument("action", nargs="?", choices=("verify",), help="read it all and tell what was changed")
    parser.add_argument("--config", type=Path, metavar="INI", help="agent.ini, for its base")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base, in place of an agent.ini (calc_base)")
    parser.add_argument("--head", action="append", default=[], metavar="NUMBER:HASH|@FILE", help="an end that was told to MInt")
    given = parser.parse_args(words)
    base = Base(given.base or read_config(find_config(given.config, program)).base)
    if not base.audit.path.exists():
        raise ConfigError(f"there is no {base.audit.path}", hint="the agent writes it with its first job, as the same user")
    if given.action != "verify":
        print(f"{base.audit.path}\n{base.audit.head()}")
        return 0
    try:
        heads = tuple(head for word in given.head for head in _heads(word, base))
    except InvalidRecord as exc:
        parser.error(f"--head: {exc.message}: {exc.hint}")
    if given.head and not heads:
        raise ConfigError(f"{' '.join(given.head)} has no head of this agent", hint="MInt: spoolctl audit SITE --json")
    return _verify(base, heads)


def _verify(base: Base, heads: tuple[Head, ...]) -> int:
    head, findings = verify(base.audit.path, heads)
    for finding in findings[:MOST_SHOWN]:
        print(f"{base.audit.path}, {f'line {finding.line}' if finding.line else 'at its end'}: {finding.why}")
    if len(findings) > MOST_SHOWN:
        print(f"and {len(findings) - MOST_SHOWN} more")
    if not findings:
        print(f"ok: {head.seq} lines, {len(heads)} heads compared\n{head}")
    if not heads:
        print("no head was compared: what was cut off at the end is found by heads that MInt has (--head @FILE)", file=sys.stderr)
    return 1 if findings else 0


def _heads(word: str, base: Base) -> Iterator[Head]:
    """Yield the heads that `word` gives: itself, or those in the lines of @FILE, of this agent where both have names."""
    if not word.startswith("@"):
        yield Head.parse(word)
        return
    try:
        lines = Path(word[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{word[1:]} cannot be read: {exc}", hint="one head a line, as MInt's operators give them") from exc
    name = base.name()
    for line in lines:
        told: dict[str, object] = {"head": line.strip()}
        with contextlib.suppress(SpoolError):
            told = jsonio.loads(line.encode("utf-8"), "a head")
        if not line.strip() or (name and told.get("agent", name) != name):  # a base without a name is held against them all
            continue
        if not isinstance(told.get("head"), str):
            raise InvalidRecord(f"{line[:80]!r} names no head", hint="NUMBER:64 hexadecimal digits")
        yield Head.parse(str(told["head"]))
