"""mi-system-wf.py: registers one calculation by the published protocol, waits, writes its results here (docs/migration.md).

    mi-system-wf.py URL SITE TOKEN|@FILE COMMAND INS OUTS [PARAMS]

A drop-in for the published program of that name, without its fixed waits: add, allow, progress until `got return`, status,
result. Progress is asked for every `POLL_S[0]` seconds at first, then whenever a tenth of the time has passed that nothing has
changed for, every `POLL_S[1]` seconds at the latest.

A call without an answer is repeated until there is one; before anything is registered for `PATIENCE_S` alone, as the address may
be a wrong one (`PATIENCE` in the environment sets another number of seconds). That is safe: an `add` whose answer was lost leaves
a calculation that is never allowed, so it never runs and expires; an `allow` that had arrived is answered as waiting already; the
others only ask. Whatever ends the program before the results are here (a signal too) ends with a forced cancel.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Callable, TypeVar

from spool.addresses import published_url
from spool.ctl import exits
from spool.ctl.backend import Rejected, Usage
from spool.ctl.http import read_token, retry_delay_s
from spool.ctl.messages import known, note, text
from spool.ctl.published_files import Landing, inputs_of, outputs_of, parameter_file, why_missing
from spool.ctl.published_http import Calculations, Document, Gone, NoAnswer, Untrusted
from spool.errors import Conflict, InvalidRecord, SpoolError, from_os_error
from spool.published import COMPLETED, GOT_RETURN

T = TypeVar("T")
POLL_S = (0.05, 2.0)
CANCEL_PAUSES_S = (0.2, 1.0)
PATIENCE, PATIENCE_S = "MI_SYSTEM_WF_PATIENCE_S", 600
LEAST_TRIES = 3  # one try may take longer than that: large inputs on a slow line
MAX_DAMAGED = 5  # answers with the result that cannot be read, before it is believed that there is no better one
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CutShort(BaseException):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Hears the signals that cut the program short, but those that it was started to ignore (nohup)."""

    def __init__(self) -> None:
        self._heard = 0
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = number
        raise CutShort(number)

    def check(self) -> None:
        """Raise for a signal whose exception was lost, as Python drops one that is raised in a finalizer."""
        if self._heard:
            raise CutShort(self._heard)


@dataclass(frozen=True)
class Asked:
    """What the command line asked for, checked. `inputs`: name -> path."""

    url: str
    site: str
    token: str
    command: str
    inputs: dict[str, Path]
    outputs: tuple[str, ...]
    parameters: str
    patience_s: int


def main(argv: list[str] | None = None) -> int:
    """Run it; return 0 completed, 1 abnormal or refused, 2 usage, 75 try later, 77 not allowed, 128 + the signal's number."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character shows it escaped instead of ending the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words[:1]):
        print(text("wf_usage"))
        return exits.DONE
    if len(words) not in (6, 7):
        tell("wf_usage")
        return exits.USAGE
    try:
        return _run(words, Path())
    except CutShort as cut:
        return 128 + cut.number
    except SpoolError as exc:
        _tell_error(exc)
        return exits.of_error(exc)


def _run(words: list[str], folder: Path) -> int:
    asked = parse(words, folder)
    signals = Signals()
    landing = Landing(folder)
    try:
        return Submission(asked, signals, landing).run()
    finally:
        landing.close()


def parse(words: list[str], folder: Path) -> Asked:
    """Return what the six or seven words ask for; `Usage` or `InvalidName` where they make no sense."""
    url, site, token, command, ins, outs = words[:6]
    parameters = words[6] if len(words) > 6 else ""
    try:
        "".join((site, command, parameters)).encode("utf-8")
        address = published_url(url)
    except UnicodeEncodeError as exc:
        raise Usage("an argument is not UTF-8 text", hint="the protocol carries UTF-8") from exc
    except ValueError as exc:
        raise Usage(str(exc), hint="such as https://mint.example:50443") from exc
    return Asked(address, site, _token(token), command, inputs_of(ins), outputs_of(outs, folder), parameters, _patience_s())


def _patience_s() -> int:
    word = os.environ.get(PATIENCE) or str(PATIENCE_S)
    if not re.fullmatch(r"[0-9]{1,9}", word):
        raise Usage(f"{PATIENCE} is {word!r}", hint="a number of seconds, such as 600")
    return int(word)


def _token(word: str) -> str:
    if word.startswith("@"):
        return read_token(word)
    tell("wf_token_seen")
    if not re.fullmatch(r"[\x21-\x7e]+", word):
        raise Usage("TOKEN is not one token", hint="one line of printable ASCII characters, or @FILE")
    return word


class Submission:
    """One calculation, from its registration to its results."""

    def __init__(self, asked: Asked, signals: Signals, landing: Landing) -> None:
        self._asked = asked
        self._signals = signals
        self._landing = landing
        self._server = Calculations(asked.url, asked.token)
        self._accept_id = ""

    def run(self) -> int:
        """Return the exit code; a calculation that does not come to its end here is canceled."""
        calc = Document({"calc-info": self._calc_info()})
        try:
            self._accept_id = accept_id = self._insist("add-calcinfo", lambda: self._server.add(calc))
            tell("wf_registered", id=accept_id)
            self._insist("allow-wait-calc", lambda: self._server.allow(accept_id))
            self._wait(accept_id)
            # Asked for after its end: a job that is over between two questions must not look as one that ended well.
            status = self._insist("calc-status", lambda: self._server.status(accept_id))
            self._insist("get-calc-result", lambda: self._fetch(accept_id))
        except Gone:
            raise
        except BaseException as exc:
            self._cancel(exc)
            raise
        tell("wf_ended", status=status)
        return exits.DONE if status == COMPLETED else exits.FAILED

    def _calc_info(self) -> dict[str, object]:
        return {
            "command": self._asked.command,
            "remote-site": self._asked.site,
            "parameters": self._asked.parameters,
            "parameter_files": {name: parameter_file(path) for name, path in self._asked.inputs.items()},
            "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in self._asked.outputs},
        }

    def _wait(self, accept_id: str) -> None:
        seen, since = "", time.monotonic()
        while True:
            progress = self._insist("calc-progress", lambda: self._server.progress(accept_id))
            if progress != seen:
                tell("wf_progress", progress=progress)
                seen, since = progress, time.monotonic()
            if progress == GOT_RETURN:
                return
            time.sleep(pause_s(time.monotonic() - since))

    def _fetch(self, accept_id: str) -> None:
        with self._landing.empty() as folder:
            try:
                found = self._server.result(accept_id, folder)
                missing = {name: why_missing(found.get(name)) for name in self._asked.outputs}
                self._landing.put({name: found[name]["content"] for name, why in missing.items() if not why})
            except (IsADirectoryError, NotADirectoryError) as exc:
                raise Conflict(f"writing the results: {exc}", hint="a folder of that name has come to be here") from exc
            except OSError as exc:
                raise from_os_error(exc, "writing the results") from exc
        for name, why in missing.items():
            if why:
                tell("wf_not_returned", name=name, why=why)
        for name in sorted(set(found) - set(missing)):
            tell("wf_not_asked", name=name)

    def _insist(self, what: str, call: Callable[[], T]) -> T:
        """Return what `call` returns, repeated while its problem may pass, each time with a line for whoever waits."""
        failures = damaged = 0
        since = time.monotonic()
        while True:
            self._signals.check()
            try:
                return call()
            except SpoolError as exc:
                damaged += isinstance(exc, InvalidRecord)
                if not self._may_pass(exc, damaged):
                    raise
                asked_s = getattr(exc, "asked_s", None)
                if asked_s is not None:  # there is a server, and it asks for time
                    since = time.monotonic() + asked_s
                if self._is_hopeless(failures + 1, time.monotonic() - since):
                    raise
                delay_s = retry_delay_s(failures) / 4 if asked_s is None else asked_s
                tell("retrying", what=what, message=exc.message, seconds=f"{delay_s:.1f}")
            failures += 1
            time.sleep(delay_s)

    def _is_hopeless(self, tries: int, silent_s: float) -> bool:
        """True, and said, where nothing is registered yet and nobody has answered for too long."""
        if self._accept_id or tries < LEAST_TRIES or silent_s < self._asked.patience_s:
            return False
        tell("wf_no_answer", url=self._asked.url, tries=tries, seconds=f"{silent_s:.0f}")
        return True

    def _may_pass(self, exc: SpoolError, damaged: int) -> bool:
        if isinstance(exc, Untrusted) and not self._accept_id:
            return False  # nothing is lost yet, and a wrong CA file stays wrong
        return exc.transient or (isinstance(exc, InvalidRecord) and damaged < MAX_DAMAGED)

    def _cancel(self, why: BaseException) -> None:
        """Take the calculation back, as far as that can be done within seconds."""
        if not self._accept_id:
            return
        if isinstance(why, CutShort):
            tell("wf_cut", signal=signal.Signals(why.number).name)
        server = Calculations(self._asked.url, self._asked.token)  # the line of the other is in the middle of something
        for pause in (*CANCEL_PAUSES_S, 0.0):
            try:
                server.cancel(self._accept_id)
            except NoAnswer:
                time.sleep(pause)
            except SpoolError:
                break
            else:
                tell("wf_canceled", id=self._accept_id)
                return
        tell("wf_not_canceled", id=self._accept_id)


def pause_s(unchanged_s: float) -> float:
    """Return the seconds until progress is asked for again, when it has not changed for `unchanged_s`."""
    return min(POLL_S[1], max(POLL_S[0], unchanged_s / 10))


def tell(key: str, **values: object) -> None:
    """Say a message on standard error; whoever read it may have gone, and the calculation goes on."""
    try:
        note(key, **values)
    except OSError:  # without this Python would end with 120, having failed to write what is left
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _tell_error(error: SpoolError) -> None:
    kind = "code_rejected" if isinstance(error, Rejected) else f"code_{error.code}"
    tell("wf_error", message=error.message, title=text(kind if known(kind) else "code_other"))
    if error.hint:
        tell("hint", hint=error.hint)
