#!/usr/bin/env python3
"""spool_agent.py: runs at the company, fetches the jobs its site may run, runs them, returns what may leave (docs/agent.md).

    spool_agent.py SITE URL TOKEN|@FILE|login [port:N] [retry:N,S] [no_auth[:CAFILE]] [calc_base:DIR] [debug]
    spool_agent.py --config etc/agent.ini [--once]
    spool_agent.py init | check [--config etc/agent.ini]
    spool_agent.py login [--config etc/agent.ini] [--user NAME] [--password @FILE|-]
    spool_agent.py gate [--config etc/agent.ini]      the forced command at a guarded SSH site
    spool_agent.py held | show ID | release ID | refuse ID [--config etc/agent.ini]
    spool_agent.py audit [verify] [--config etc/agent.ini | --base DIR] [--head NUMBER:HASH|@FILE]

The loop, in order: sync (say what is here, be told what is wanted), and for each job fetch, run, return; those three are in
`spool.agent.carrier`. Every step is in the job's folder before it is taken, so a restart carries on where it was.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from spool import __version__, log
from spool.agent import arguments, checking, setup, shelf
from spool.agent.client import retry_delay_s
from spool.agent.config import AgentConfig
from spool.agent.folder import Base
from spool.agent.loop import Agent
from spool.agent.protocol import connect
from spool.agent.published_calls import ANSWERED
from spool.agent.verbs import VERBS, Verb
from spool.errors import Busy, ConfigError, NotAllowed, SpoolError, Unauthorized, UnknownSite, from_os_error, is_no_space
from spool.memory import keep_private
from spool.runner import LocalRunner, install

SHORT_S = 0.5  # a sync that took less did not wait at the server
EXIT_TRY_LATER, EXIT_NOT_ALLOWED, EXIT_CONFIG = 75, 77, 78


def main(argv: list[str] | None = None) -> int:
    """Run the agent; return its exit code (docs/agent.md, "Exit codes")."""
    keep_private()
    os.umask(0o077)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    program = Path(__file__).resolve()
    if words and (verb := VERBS.get(words[0])) is not None:
        return _run_verb(verb, words[1:], program)
    args = arguments.parse(words)
    try:
        if args.verb == "init":
            return setup.init(args, program)
        if args.verb == "check":
            return setup.check(args, program)
        config = arguments.configure(args, program)
        log.setup(config.agent["log"], debug=args.debug)
        base = Base(config.base)
        base.open()
        shelf.ready(config)
        with base.lock():
            checking.check_walls(config, config.commands)
            return _work(config, args, base, base.identity())
    except Busy:
        print(f"spool_agent.py: another agent works in {config.base}\n  stop it first, or set another base", file=sys.stderr)
        return EXIT_TRY_LATER
    except (SpoolError, OSError) as exc:
        return _tell(exc)


def _run_verb(verb: Verb, words: list[str], program: Path) -> int:
    try:
        return verb(words, program)
    except (SpoolError, OSError) as exc:
        return _tell(exc)


def _tell(exc: SpoolError | OSError) -> int:
    """Print what went wrong and what to do about it; return the exit code."""
    if isinstance(exc, SpoolError):
        print(f"spool_agent.py: {exc.message}\n  {exc.hint}", file=sys.stderr)
        return _exit_code(exc)
    print(f"spool_agent.py: {exc}\n  correct the path, or free space; then start it again", file=sys.stderr)
    return EXIT_TRY_LATER if is_no_space(exc) else EXIT_CONFIG


def _exit_code(exc: SpoolError) -> int:
    if isinstance(exc, (Unauthorized, NotAllowed)):
        return EXIT_NOT_ALLOWED
    return EXIT_CONFIG if isinstance(exc, ConfigError) else EXIT_TRY_LATER


def _work(config: AgentConfig, args: arguments.Arguments, base: Base, identity: tuple[str, int]) -> int:
    stop = Stop()
    server = connect(config, base, arguments.tls(config, args))
    agent = Agent(config, server, base, identity, LocalRunner(install(base.control)))
    arguments.greet(config, args)
    log.info("started_agent", site=config.agent["site"], url=config.agent["url"], base=config.base, version=__version__)
    base.clean_up()
    in_hand = agent.take_up_again()
    if in_hand:
        log.info("carrying_on", jobs=in_hand)
    code = _once(agent, stop) if args.once else _loop(agent, stop, args)
    agent.leave()
    agent.close()
    _say_goodbye(agent)
    log.info("stopped_agent", code=code)
    return code


class Stop:
    """SIGINT once: finish what is in hand. SIGINT twice, or SIGTERM: leave commands running, detached, for the next start."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.now = threading.Event()
        self._to_say = 0
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._terminate)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            self.now.set()
        self.asked.set()
        self._to_say += 1

    def say(self) -> None:
        """Print the manual's line for each Ctrl+C; not from the handler, which may come in the middle of another print."""
        while self._to_say:
            self._to_say -= 1
            with contextlib.suppress(OSError):
                print("Ctrl + C スクリプト停止要求受付", flush=True)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        self.asked.set()
        self.now.set()


def _loop(agent: Agent, stop: Stop, args: arguments.Arguments) -> int:
    """Sync until told to stop; the syncs run in a thread of their own, so that a signal is heard at once."""
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(_sync_for_ever(agent, stop, args)), name="sync", daemon=True)
    thread.start()
    while thread.is_alive() and not stop.now.is_set():
        if stop.asked.wait(0.2):
            stop.say()
            agent.close_to_new()
            if not agent.in_hand():
                break
            stop.now.wait(0.2)
    stop.say()
    return ended[0] if ended else 0 if stop.asked.is_set() else EXIT_TRY_LATER


def _sync_for_ever(agent: Agent, stop: Stop, args: arguments.Arguments) -> int:
    tries = 0
    while not stop.now.is_set():
        began = time.monotonic()
        wait_s = agent.config.agent["wait_s"]
        try:
            news = agent.sync(0 if stop.asked.is_set() else wait_s)
            tries = 0
        except Exception as caught:  # noqa: BLE001 - outermost frame of the thread: jobs in hand must not lose their agent
            exc = _told(caught)
            tries = 0 if isinstance(exc, ANSWERED) else tries + 1
            if args.retry and tries > args.retry[0] and not agent.in_hand():
                log.error("given_up", tries=tries, why=exc)
                return _exit_code(exc)
            delay_s = agent.pause_s(False, False) if isinstance(exc, ANSWERED) else _delay_s(args, tries, exc)
            log.warning("sync_failed", code=exc.code, in_s=f"{delay_s:.1f}", why=exc, hint=exc.hint)
            stop.now.wait(delay_s)
            continue
        stop.now.wait(agent.pause_s(bool(wait_s) and time.monotonic() - began >= SHORT_S, news))
    return 0


def _delay_s(args: arguments.Arguments, tries: int, exc: SpoolError) -> float:
    asked_s = float(getattr(exc, "retry_after_s", 0))
    return max(args.retry[1], asked_s) if args.retry else retry_delay_s(tries - 1, exc)


def _told(caught: Exception) -> SpoolError:
    """Return what went wrong as one of the family; what nobody foresaw is logged with its stack."""
    if isinstance(caught, SpoolError):
        return caught
    if isinstance(caught, OSError):
        return from_os_error(caught, "sync")
    log.error("sync_failed", trace=True)
    return SpoolError(f"sync failed: {caught!r}", hint="this is a defect; keep the log")


def _once(agent: Agent, stop: Stop) -> int:
    """One pass for cron: sync, carry every job as far as it goes without waiting long for its command, exit."""
    try:
        agent.sync(0)
    except (Unauthorized, NotAllowed, UnknownSite) as exc:
        log.error("sync_failed", code=exc.code, why=exc, hint=exc.hint)
        return EXIT_NOT_ALLOWED
    except Exception as caught:  # noqa: BLE001 - jobs in hand must not lose their agent
        told = _told(caught)
        log.error("sync_failed", code=told.code, why=told, hint=told.hint)
        return EXIT_TRY_LATER
    agent.closed_to_new = True
    while agent.in_hand() and not agent.waiting_for_commands_only() and not stop.asked.is_set():
        agent.settle(1.0, lambda: not agent.in_hand() or agent.waiting_for_commands_only() or stop.asked.is_set())
    agent.settle(agent.config.agent["once_wait_s"], lambda: not agent.in_hand() or stop.asked.is_set())
    stop.say()
    return 0


def _say_goodbye(agent: Agent) -> None:
    try:
        agent.say_goodbye()
    except (SpoolError, OSError) as exc:
        log.debug("goodbye_not_heard", why=exc)


if __name__ == "__main__":
    sys.exit(main())
