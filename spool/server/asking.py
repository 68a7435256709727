"""``auth = command``: a program of the operators' is asked whose a token is (docs/operations.md, "Who is asked").

It gets the token as a line on its standard input, never in its arguments or environment, and answers with JSON and exit status 0;
1 says that the token does not count. Anything else is trouble: 503, and nobody gets in. An answer holds for `auth_cache_s`, which
is how long a revoked token may still count. Tokens are kept as SHA-256 only.

A slow program holds at most half as many threads again as `at_a_time`. Half of the places are kept for tokens that have counted
before, and the address of a stranger gets one: whoever sends tokens that do not count cannot keep those from being asked about
that do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spool import jsonio, log
from spool.errors import Busy, SpoolError
from spool.fields import Fields
from spool.instants import from_epoch, to_epoch
from spool.names import check_site, check_user
from spool.server.auth import Asker, Auth, Welcome, bearer, no_such_token
from spool.server.tokens import Token, check_roles
from spool.server.tries import Tries, block_of

MOST_KEPT = 10_000  # answers of either kind
MOST_BYTES = 65_536
SOON = 0.75  # from this part of an answer's life on one request asks again, while the others go on with it
EXIT_UNKNOWN = 1
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class _Answer:
    """What the program said, at which time of the monotonic clock; no token: it does not count."""

    token: Token | None
    at: float

    def counts(self) -> bool:
        return self.token is not None and self.token.counts()


class Command(Auth):
    """Asks `argv`."""

    has_tokens = False

    def __init__(self, argv: tuple[str, ...], *, timeout_s: float, cache_s: float, at_a_time: int) -> None:
        self._argv = argv
        self._timeout_s = timeout_s
        self._cache_s = cache_s
        self._places = at_a_time
        self._changed = threading.Condition()
        self._joining = 0
        self._good: OrderedDict[str, _Answer] = OrderedDict()
        self._bad_answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asked: dict[str, str] = {}  # SHA-256 of the token under way -> address where a stranger's, else ""
        self._bad = Tries(lambda **shown: log.warning("bad_token", **shown))
        self._trouble = ""

    @property
    def problem(self) -> str:
        """What /health says of it, or ``""``."""
        return self._trouble

    def asker(self, environ: Mapping[str, Any]) -> Asker:
        """Return who asks; raise `Unauthorized`, `TooManyTries`, or `Busy` where that cannot be found out now."""
        text, address = bearer(environ.get("HTTP_AUTHORIZATION", "")), str(environ.get("REMOTE_ADDR", ""))
        token = self._find(text, address)
        if token is None:
            self._bad.note(address, text[:8], what="tokens")
            raise no_such_token()
        return Asker(token, lambda: self._anew(text, address))

    def _anew(self, text: str, address: str) -> Token:
        token = self._find(text, address)
        if token is None:
            raise no_such_token()
        return token

    def welcome(self, headers: Mapping[str, str], peer: str) -> Welcome:
        """Return what is known; otherwise the program is asked aside, since whoever takes bodies in must not wait for it."""
        text = bearer(headers.get("AUTHORIZATION", ""))
        known, stale = self._known(_digest(text))
        if known is not None and not stale:
            return known.counts
        found: list[bool] = []

        def ask() -> None:
            try:
                found.append(self._find(text, peer) is not None)
            except SpoolError:
                found.append(False)

        threading.Thread(target=ask, name="auth", daemon=True).start()
        return lambda: found[0] if found else None

    def _find(self, text: str, address: str) -> Token | None:
        digest = _digest(text)
        known, stale = self._known(digest)
        if known is None and self._joined(digest):
            known, stale = self._known(digest)
        if known is None or (stale and digest not in self._asked):
            known = self._ask(text, digest, address, known)
        return known.token if known.counts() else None

    def _joined(self, digest: str) -> bool:
        """Wait for the answer that another request asks for; False where none does, or enough requests wait already."""
        with self._changed:
            if digest not in self._asked or self._joining >= self._places // 2:
                return False
            self._joining += 1
            try:
                return self._changed.wait_for(lambda: digest not in self._asked, self._timeout_s)
            finally:
                self._joining -= 1

    def _known(self, digest: str) -> tuple[_Answer | None, bool]:
        """Return (the answer that still holds, whether it is time to ask again)."""
        with self._changed:
            known = self._good.get(digest) or self._bad_answers.get(digest)
        age_s = time.monotonic() - known.at if known else 0.0
        if known is None or age_s >= self._cache_s:
            return None, True
        return known, known.token is not None and age_s >= SOON * self._cache_s

    def _ask(self, text: str, digest: str, address: str, known: _Answer | None) -> _Answer:
        try:
            with self._place(digest, address):
                answer = _Answer(self._run(text, digest), time.monotonic())
                self._keep(digest, answer)
                return answer
        except Busy:
            if known is not None:  # it holds on; somebody else, or the next request, asks
                return known
            raise

    def _keep(self, digest: str, answer: _Answer) -> None:
        with self._changed:
            kept, other = (self._bad_answers, self._good) if answer.token is None else (self._good, self._bad_answers)
            other.pop(digest, None)
            kept[digest] = answer
            kept.move_to_end(digest)
            if len(kept) > MOST_KEPT:
                kept.popitem(last=False)

    @contextlib.contextmanager
    def _place(self, digest: str, address: str) -> Iterator[None]:
        """Hold one of the places; `Busy` at once where none is free for this token."""
        with self._changed:
            stranger = "" if digest in self._good else block_of(address)
            strangers = [one for one in self._asked.values() if one]
            full = len(self._asked) >= self._places or digest in self._asked
            if full or (stranger and (stranger in strangers or len(strangers) >= self._places // 2)):
                raise Busy("who asks cannot be found out just now", hint="too many are being asked about; it is tried again")
            self._asked[digest] = stranger
        try:
            yield
        finally:
            with self._changed:
                del self._asked[digest]
                self._changed.notify_all()

    def _run(self, text: str, digest: str) -> Token | None:
        """Ask the program; None where it says that the token does not count. `Busy` for whatever else goes wrong."""
        try:
            status, said = run(self._argv, text.encode("utf-8", "replace") + b"\n", self._timeout_s)
            if status == EXIT_UNKNOWN:
                return self._well(None)
            if status != 0:
                raise Busy(f"it ended with {status}")
            return self._well(_parse(said, digest))
        except (SpoolError, OSError, subprocess.SubprocessError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else getattr(exc, "message", type(exc).__name__)
            self._trouble = f"auth_command cannot be asked: {why}"
            log.error("auth_command", why=why, hint="nobody whose answer is not kept gets in until it works")
            raise Busy("who asks cannot be found out just now", hint="an operator finds why in the server's log") from exc

    def _well(self, token: Token | None) -> Token | None:
        self._trouble = ""
        return token


def run(argv: tuple[str, ...], data: bytes, timeout_s: float) -> tuple[int, bytes]:
    """Run a program with `data` on its standard input; return (exit status, what it wrote). It and its children are killed late.

    What it says on its standard error is thrown away: it may hold the token.
    """
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(data, timeout=timeout_s)
    except subprocess.TimeoutExpired as exc:
        raise Busy(f"it did not answer within {timeout_s:g} s") from exc
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    return process.returncode, said


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _parse(said: bytes, digest: str) -> Token:
    if len(said) > MOST_BYTES:
        raise Busy(f"it said more than {MOST_BYTES} bytes")
    fields = Fields(jsonio.loads(said, "the answer"), "the answer")
    if not fields.has("sites"):
        raise Busy("its answer has no sites; [] means every site")
    expires_at, sites = fields.string("expires_at", ""), fields.strings("sites")
    return Token(
        id="c" + digest[:8], sha256=digest, last4="", user=check_user(fields.string("user")),
        roles=check_roles(fields.strings("roles")), sites=tuple(map(check_site, sites)), created_at="",
        expires_at=from_epoch(to_epoch(expires_at)) if expires_at else "", via="command",
    )  # fmt: skip
