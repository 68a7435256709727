"""The published submitter, `mi-system-wf.py`, written anew from the protocol notes alone.

Registers one calculation, waits for its end and writes the results to its current directory (`into`). A stand-in for a
program that cannot be shipped, so it imports nothing of the project. It is as credulous as the published one: it looks at
the HTTP status and at `message.split(":")[1]`, never at `code`. All published waits are multiplied by `scale`.

    python their_submitter.py URL SITE TOKEN COMMAND IN1:IN2 OUT1:OUT2 [PARAMETERS] [scale:F]
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

SETTLE_S = 2.0
ASK_S = 10.0
SILENCE_S = 300.0
ALWAYS = ("計算標準出力.txt", "計算標準エラー出力.txt")


class Refused(Exception):
    """The server answered with an HTTP status other than 200 and 201."""


class TheirSubmitter:
    """The seven calls of the MInt side, each by itself; `url` includes the port."""

    def __init__(self, url: str, token: str, *, verify: bool | str = True) -> None:
        self.url, self.token, self.verify = url, token, verify

    def add(self, calc: dict[str, Any] | None) -> requests.Response:
        """Register a calculation; None sends a body without `calc-info`."""
        return self._send("POST", "add-calcinfo", body={} if calc is None else {"calc-info": calc})

    def allow(self, accept_id: str) -> requests.Response:
        """Let the pollers have it."""
        return self._send("POST", "allow-wait-calc", body={"accept_id": accept_id})

    def cancel(self, accept_id: str, *, force: bool = False) -> requests.Response:
        """Take it back, also when it runs where forced."""
        more = {"delete": "force"} if force else {}
        return self._send("POST", "cancel-wait-calc", body={"accept_id": accept_id, **more})

    def status(self, accept_id: str) -> requests.Response:
        """Ask how it ended."""
        return self._send("GET", "calc-status", accept_id)

    def progress(self, accept_id: str) -> requests.Response:
        """Ask how far it is."""
        return self._send("GET", "calc-progress", accept_id)

    def result(self, accept_id: str) -> requests.Response:
        """Ask for the files; this GET carries a JSON body as well."""
        return self._send("GET", "get-calc-result", accept_id, {"accept_id": accept_id})

    def calcinfo(self) -> requests.Response:
        """Ask for all that is known."""
        return self._send("GET", "get-calcinfo")

    def _send(self, method: str, call: str, accept_id: str = "", body: dict[str, Any] | None = None) -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/mi-distcomp-api/{call}",
            params={"accept_id": accept_id} if accept_id else None,
            data=None if body is None else json.dumps(body, ensure_ascii=False).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            verify=self.verify,
            timeout=SILENCE_S,
        )


def calc_info(site: str, command: str, inputs: list[Path], outputs: list[str], parameters: str, folder: Path) -> dict[str, Any]:
    """The CALC to register: inputs are named as they were given and read from `folder`."""
    return {
        "command": command,
        "remote-site": site,
        "parameters": parameters,
        "parameter_files": {str(path): _content(folder / path) for path in inputs},
        "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in [*outputs, *ALWAYS]},
    }


def submit(
    url: str,
    site: str,
    token: str,
    command: str,
    inputs: list[Path],
    outputs: list[str],
    parameters: str = "",
    *,
    scale: float,
    into: Path,
    verify: bool | str = True,
    status_again: bool = False,
) -> int:
    """Run one calculation from registration to results; returns the exit status, 1 where it ended abnormally.

    Relative inputs are read from `into`, where the results are written. `status_again` asks for the status once more after
    `got return`, which the published program does not: without it a job that is over between the two questions of one
    round counts as one that ended well.
    """
    server = TheirSubmitter(url, token, verify=verify)
    added = _good(server.add(calc_info(site, command, inputs, outputs, parameters, into)))
    accept_id = added.json()["errors"][0]["accept_id"]
    print(f"accept_id = {accept_id}", flush=True)
    try:
        _pause(SETTLE_S * scale)
        _good(server.allow(accept_id))
        _pause(SETTLE_S * scale)
        status = _until_returned(server, accept_id, scale)
        if status_again:
            status = _word(server.status(accept_id))
        _write(_good(server.result(accept_id)).json()["errors"][0]["result-info"]["result_files"], into)
    except BaseException:
        with contextlib.suppress(requests.RequestException):
            server.cancel(accept_id, force=True)
        raise
    return 1 if status == "abnormal" else 0


def _until_returned(server: TheirSubmitter, accept_id: str, scale: float) -> str:
    """Ask for status and progress until the results are there; returns the last status."""
    while True:
        status = _word(server.status(accept_id))
        progress = _word(server.progress(accept_id))
        print(f"status = {status} / progress = {progress}", flush=True)
        if progress == "got return":
            return status
        _pause(ASK_S * scale)


def _word(answer: requests.Response) -> str:
    message: str = _good(answer).json()["errors"][0]["message"]
    return message.split(":")[1]


def _good(answer: requests.Response) -> requests.Response:
    if answer.status_code not in (200, 201):
        raise Refused(f"status code = {answer.status_code} / reason = {answer.text}")
    return answer


def _write(files: dict[str, dict[str, str]], into: Path) -> None:
    for name, entry in files.items():
        if entry["mimetype1"] == "Error":
            print(f"{name}: {entry['mimetype2']}", flush=True)
            continue
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(base64.b64decode(entry["content"]))


def _content(path: Path) -> list[str]:
    """The content in base64 and the two parts of what `file -b -i` says; a guess where there is no `file`."""
    content = path.read_bytes()
    if shutil.which("file"):
        said = subprocess.run(["file", "-b", "-i", "--", str(path)], capture_output=True, check=True, text=True).stdout
    else:
        said = "text/plain; charset=us-ascii" if content.isascii() else "application/octet-stream; charset=binary"
    first, _, second = said.strip().partition(" ")
    return [base64.b64encode(content).decode(), first, second]


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def main(arguments: list[str]) -> int:
    """Submit from the current directory."""
    scale = 1.0
    for option in [option for option in arguments if option.startswith("scale:")]:
        scale = float(option.partition(":")[2])
        arguments = [one for one in arguments if one != option]
    if len(arguments) not in (6, 7):
        print("usage: their_submitter.py URL SITE TOKEN COMMAND IN1:IN2 OUT1:OUT2 [PARAMETERS] [scale:F]")
        return 2
    url, site, token, command, inputs, outputs = arguments[:6]
    if urlsplit(url).port is None:
        url += ":50443"
    # A workflow that is stopped ends this program with SIGTERM: it is cut short as by Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return submit(
            url,
            site,
            token,
            command,
            [Path(name) for name in inputs.split(":") if name],
            [name for name in outputs.split(":") if name],
            arguments[6] if len(arguments) == 7 else "",
            scale=scale,
            into=Path.cwd(),
        )
    except Refused as e:
        print(e, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
