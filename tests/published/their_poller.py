"""The published poller, `mi-system-remote.py`, written anew from the protocol notes and the manual alone.

A stand-in for a program that cannot be shipped: it must go on working whatever the project does, so it imports nothing
of the project and knows nothing of it. It does one thing after another, as the manual's sequence has it; every step is a
method of its own as well, so that a test can send the steps out of order. All published waits are multiplied by `scale`.

    python their_poller.py SITE URL TOKEN [port:N] [retry:COUNT,SECONDS] [no_auth | no_auth:CAFILE] [calc_base:DIR] [scale:F]
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union
from urllib.parse import urlencode, urlsplit

import requests

POLL_S = 30.0
STEP_S = 10.0
SILENCE_S = 300.0  # a server that says nothing for so long has not answered
STDOUT = "計算標準出力.txt"
STDERR = "計算標準エラー出力.txt"
STOPPING = "Ctrl + C スクリプト停止要求受付"

Entry = dict[str, str]  # one file of RESULTS: content, mimetype1, mimetype2
Verify = Union[bool, str]


class NoAnswer(Exception):
    """No answer at all, after every retry: here the published program ends."""


class _BackToPolling(Exception):
    """An answer was not what the step needs; the job is left as it is."""


class Answered(NamedTuple):
    """What one request got: the call, the HTTP status and the `code` (None where there is none)."""

    call: str
    status: int
    code: object


@dataclass
class Seen:
    """What the poller saw of one job; an empty `accept_id` means that it saw none."""

    accept_id: str = ""
    exit_status: int | None = None
    word: str = ""  # what it sent with calc-end
    answers: list[Answered] = field(default_factory=list)  # from the calc-request that found the job

    @property
    def codes(self) -> list[object]:
        """The codes alone, in order."""
        return [answer.code for answer in self.answers]


class TheirPoller:
    """One poller of one site; `url` includes the port."""

    def __init__(
        self,
        url: str,
        site: str,
        token: str,
        base: Path | str,
        *,
        scale: float = 0.002,
        retry: tuple[int, float] = (5, 60.0),
        verify: Verify = True,
        after_abnormal: str = "send",
        echo: bool = False,
    ) -> None:
        self.url, self.site, self.token = url, site, token
        self.base = Path(base).absolute()
        self.scale, self.retry, self.verify = scale, retry, verify
        self.after_abnormal, self.echo = after_abnormal, echo
        self.printed: list[str] = []
        self._stopping = threading.Event()
        self._polled = False

    # ---- the steps, each by itself

    def request(self) -> requests.Response:
        """Ask for a job of this site."""
        return self._send("GET", "calc-request", {"site_id": self.site})

    def params(self, accept_id: str) -> requests.Response:
        """Claim the job and get its command and inputs."""
        return self._send("GET", "calc-params", {"accept_id": accept_id, "site_id": self.site})

    def params_complete(self, accept_id: str) -> requests.Response:
        """Say that the inputs have arrived."""
        return self._post("calc-params-complete", accept_id)

    def start(self, accept_id: str) -> requests.Response:
        """Say that the command starts."""
        return self._post("calc-start", accept_id)

    def end(self, accept_id: str, word: str) -> requests.Response:
        """Say that the command has ended: `calc end` or `abnormal`."""
        return self._post("calc-end", accept_id, result=word)

    def send_results(self, accept_id: str, files: dict[str, Entry]) -> requests.Response:
        """Return the files."""
        return self._post("send-results", accept_id, result_files=files)

    def end_send(self, accept_id: str) -> requests.Response:
        """Say that all is returned."""
        return self._post("end-send", accept_id, result="end send")

    # ---- the sequence

    def run_one(self, polls: int | None = None) -> Seen:
        """Poll until there is a job (at most `polls` times, or until `stop`), do it, and tell what was seen."""
        seen = Seen()
        try:
            if self._poll(seen, polls):
                self._do(seen)
        except _BackToPolling:
            pass
        return seen

    def run(self) -> None:
        """One job after another, until `stop`."""
        while not self._stopping.is_set():
            self.run_one()

    def stop(self) -> None:
        """Have an idle poller end now, a busy one after its job."""
        self._stopping.set()

    def _poll(self, seen: Seen, polls: int | None) -> bool:
        asked = 0
        while not self._stopping.is_set() and (polls is None or asked < polls):
            first, self._polled = not self._polled, True
            if not first and self._pause(POLL_S, self._stopping):
                break
            answer = self.request()
            asked += 1
            # The published program prints its first answer and throws it away.
            if not first and answer.status_code == 200 and code_of(answer) == 200:
                seen.accept_id = answer.json()["errors"][0]["accept_id"]
                seen.answers.append(answered(answer))
                return True
        return False

    def _do(self, seen: Seen) -> None:
        calc = self._step(seen, self.params).json()["calc-info"]
        folder = self._unpack(seen.accept_id, calc["parameter_files"])
        self._step(seen, self.params_complete)
        self._step(seen, self.start)

        wanted = [name for name in calc["result_files"] if name not in (STDOUT, STDERR)]
        seen.exit_status = run_command(calc["command"], folder)
        failed = seen.exit_status != 0 or not any((folder / name).exists() for name in wanted)
        seen.word = "abnormal" if failed else "calc end"
        self._step(seen, self.end, seen.word)
        if failed and self.after_abnormal == "poll":
            return

        try:
            self._step(seen, self.send_results, {name: entry_of(folder, name) for name in [*wanted, STDOUT, STDERR]})
        except _BackToPolling:
            if seen.answers[-1].status == 200:
                raise
            # What failed as HTTP is followed by end-send all the same.
        self._step(seen, self.end_send)

    def _step(self, seen: Seen, step: Callable[..., requests.Response], *more: object) -> requests.Response:
        """Wait as long as lies between two steps, do this one and note its answer; anything but 200 ends the job here."""
        self._pause(STEP_S)
        answer = step(seen.accept_id, *more)
        seen.answers.append(answered(answer))
        if answer.status_code != 200 or code_of(answer) != 200:
            raise _BackToPolling
        return answer

    def _unpack(self, accept_id: str, files: dict[str, list[str]]) -> Path:
        """Write the inputs under the last part of each name; a name with a folder is looked up by that part too: KeyError."""
        folder = self.base / accept_id
        folder.mkdir(parents=True, exist_ok=True)
        for name in [name.split("/")[-1] for name in files]:
            (folder / name).write_bytes(base64.b64decode(files[name][0]))
        return folder

    # ---- the wire

    def _post(self, call: str, accept_id: str, **more: object) -> requests.Response:
        return self._send("POST", call, {}, {"accept_id": accept_id, "site_id": self.site, **more})

    def _send(self, method: str, call: str, query: dict[str, str], body: dict[str, object] | None = None) -> requests.Response:
        """Send it, again where there is no answer at all, and print what came."""
        url = f"{self.url}/mi-distcomp-api/{call}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        count, interval_s = self.retry
        for tried in range(count + 1):
            if tried:
                self._pause(interval_s)
            self._say(f"{now()}:send {url}")
            try:
                answer = requests.request(method, url, data=data, headers=headers, verify=self.verify, timeout=SILENCE_S)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
                self._say(f"{now()}:no answer / reason = {e}")
                continue
            self._tell(answer)
            return answer
        raise NoAnswer(f"{method} {url}: no answer to {count + 1} requests")

    def _tell(self, answer: requests.Response) -> None:
        if answer.status_code != 200:
            self._say(f"{now()}:status code = {answer.status_code} / reason = {answer.text}")
            return
        error = first_error(answer)
        if error is not None:
            self._say(f"code = {error.get('code')} / message = {error.get('message')}")

    def _say(self, line: str) -> None:
        self.printed.append(line)
        if self.echo:
            print(line, flush=True)

    def greet(self) -> None:
        """Print what the published program prints at its start."""
        for line in (f"site id = {self.site}", f"base url = {self.url}", f" token = {self.token}"):
            self._say(line)

    def interrupted(self, *_: object) -> None:
        """Take note of Ctrl+C."""
        self._say(STOPPING)
        self.stop()

    def _pause(self, published_s: float, until: threading.Event | None = None) -> bool:
        """Wait as long as published, scaled; True where `until` was set meanwhile."""
        return (until or threading.Event()).wait(published_s * self.scale)


def now() -> str:
    """The local time as the published program prints it."""
    return datetime.now().astimezone().strftime("%Y/%m/%d %H:%M:%S")


def first_error(answer: requests.Response) -> dict[str, Any] | None:
    """The first object of the envelope; None where the answer is a bare object or no JSON."""
    try:
        errors = answer.json().get("errors")
    except (ValueError, AttributeError):
        return None
    return errors[0] if errors else None


def code_of(answer: requests.Response) -> object:
    """The answer's `code`; 200 for the bare object of calc-params, None for what is neither."""
    error = first_error(answer)
    if error is not None:
        return error.get("code")
    try:
        return 200 if "calc-info" in answer.json() else None
    except (ValueError, TypeError):
        return None


def answered(answer: requests.Response) -> Answered:
    """The note of one answer."""
    return Answered(urlsplit(answer.url).path.rpartition("/")[2], answer.status_code, code_of(answer))


def run_command(command: str, folder: Path) -> int:
    """Run it through a shell, keep its output in two files, and return the exit status."""
    environment = {**os.environ, "CALC_DIR": str(folder)}
    # A session of its own: Ctrl+C at the poller lets the job in hand finish.
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    (folder / STDOUT).write_bytes(done.stdout)
    (folder / STDERR).write_bytes(done.stderr)
    return done.returncode


def entry_of(folder: Path, name: str) -> Entry:
    """What is returned for one file: its content, or the reason why there is none."""
    try:
        content = (folder / name).read_bytes()
    except OSError as e:
        return {"content": "", "mimetype1": "Error", "mimetype2": f"{name}: {e.strerror}"}
    first, second = mime_of(folder, name, content)
    return {"content": base64.b64encode(content).decode(), "mimetype1": first, "mimetype2": second}


def mime_of(folder: Path, name: str, content: bytes) -> tuple[str, str]:
    """What `file -b -i NAME` prints, split at the space; a guess where there is no `file`."""
    if shutil.which("file"):
        said = subprocess.run(["file", "-b", "-i", "--", name], cwd=folder, capture_output=True, check=True, text=True).stdout
        first, _, second = said.strip().partition(" ")
        return first, second
    if not content:
        return "inode/x-empty;", "charset=binary"
    for charset in ("us-ascii", "utf-8"):
        try:
            content.decode(charset)
        except UnicodeDecodeError:
            continue
        return "text/plain;", f"charset={charset}"
    return "application/octet-stream;", "charset=binary"


def main(arguments: list[str]) -> int:
    """Poll until Ctrl+C; 1 where the server could not be reached, 2 for arguments that make no sense."""
    if len(arguments) < 3:
        print("usage: their_poller.py SITE URL TOKEN [port:N] [retry:N,S] [no_auth[:CAFILE]] [calc_base:DIR] [scale:F]")
        return 2
    site, url, token = arguments[:3]
    port, retry, base, scale = "50443", (5, 60.0), "/tmp", 1.0
    verify: Verify = True
    for option in arguments[3:]:
        key, _, value = option.partition(":")
        if key == "port":
            port = value
        elif key == "retry":
            count, _, interval = value.partition(",")
            retry = (int(count), float(interval))
        elif key == "no_auth":
            verify = value or False
        elif key == "calc_base":
            base = value
        elif key == "scale":
            scale = float(value)
        else:
            print(f"unknown: {option}")
            return 2
    poller = TheirPoller(f"{url}:{port}", site, token, base, scale=scale, retry=retry, verify=verify, echo=True)
    signal.signal(signal.SIGINT, poller.interrupted)
    poller.greet()
    try:
        poller.run()
    except NoAnswer as e:
        print(e, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
