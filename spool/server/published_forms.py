"""The documents of the published protocol: CALC, what is registered and given to a poller, and RESULTS, what comes back.

Files are `spool.streams.Source`s, so that an answer of any size is written as a stream.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spool import jsonio
from spool.errors import InvalidRecord, InvalidRequest, SpoolError
from spool.files import open_beneath
from spool.names import check_name
from spool.paths import JobPaths
from spool.patterns import escape, literal
from spool.published import ERROR, LOGS, MAX_BODY_BYTES, last_part, media_type
from spool.records import FileEntry, Job, JobState, Result
from spool.states import State
from spool.streams import Place, Source, Stored

MAX_MEDIA_CHARS = 200
MAX_FILES_BYTES = MAX_BODY_BYTES - (16 << 20)  # of one answer, encoded; the rest is names and words
_NO_REASON = "not written by the command, or kept at the site (コマンドが書かなかったか、外部計算機側に留められた)"
_TOO_LARGE = "beyond the 2 GiB of an answer; spoolctl fetch brings it (応答の上限2GiBを超える。spoolctl fetchで取り出せる)"


def is_input(place: Place) -> bool:
    """True for the base64 of an input in the body of add-calcinfo."""
    return len(place) == 4 and place[:2] == ("calc-info", "parameter_files") and place[3] == 0


def is_result(place: Place) -> bool:
    """True for the base64 of a result in the body of send-results."""
    return len(place) == 3 and place[0] == "result_files" and place[2] == "content"


# What is registered


def job_of(calc: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return (the job.json that CALC asks for, its inputs by name); raise `InvalidRecord` or `InvalidName`.

    Of an input's name the last part is kept, as pollers do; the two logs need not be asked for. The media types that the
    submitter told, and `parameters`, stay in job.json, to be given to a published poller as they came.
    """
    inputs: dict[str, Stored] = {}
    media: dict[str, list[str]] = {}
    for given, triple in _mapping(calc, "parameter_files").items():
        name = check_name(last_part(given))
        if name in inputs:
            raise InvalidRecord(f"two inputs would both be {name!r} at the site", hint="pollers keep the last part of a name")
        if not isinstance(triple, list) or not triple or not isinstance(triple[0], Stored):
            raise InvalidRecord(f"parameter_files: {given!r} must be [BASE64, MIMETYPE, CHARSET]", hint="send the file in base64")
        if triple[0].damaged:
            raise InvalidRecord(f"parameter_files: the content of {given!r} is not base64", hint="send it again")
        inputs[name] = triple[0]
        media[name] = _media(triple[1:])
    wanted = [name[2:] if name.startswith("./") else name for name in _mapping(calc, "result_files")]
    outputs = [escape(check_name(name)) for name in dict.fromkeys(wanted) if name not in LOGS]
    asked = {"site": str(calc["remote-site"]), "command": str(calc["command"]), "inputs": list(inputs), "outputs": outputs}
    parameters = calc.get("parameters")
    return {**asked, "parameters": parameters if isinstance(parameters, str) else "", "media": media}, inputs


def _mapping(calc: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = calc.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidRecord(f"{key} must be an object", hint="file name -> content")
    return value


def _media(given: list[Any]) -> list[str]:
    return [printable(item[:MAX_MEDIA_CHARS]) if isinstance(item, str) else "" for item in (*given[:2], "", "")][:2]


def printable(text: str) -> str:
    """Return `text` with a mark for each control character: JSON has them only as escapes, and terminals obey them."""
    return "".join(char if char >= " " and char != "\x7f" else "\ufffd" for char in text)


def encoded_size(size: int) -> int:
    """Return how many bytes a file of `size` bytes has in base64."""
    return (size + 2) // 3 * 4


# What a poller gets


def why_not_for_a_poller(job: Job, state: JobState) -> str:
    """Return why a published poller cannot run the job, or ``""`` where it can."""
    parts = [last_part(item.path) for item in job.inputs]
    if len(set(parts)) < len(parts):
        return "two of its inputs have the same last part, and a published poller keeps no folders"
    if any(literal(pattern) is None for pattern in job.outputs):
        return "its outputs are patterns, and a published poller knows names only"
    if sum(encoded_size(entry.size) for entry in state.inputs) > MAX_FILES_BYTES:
        return "its inputs, encoded, are beyond the 2 GiB that an answer may have"
    return ""


def calc_of(job: Job, state: JobState, paths: JobPaths) -> dict[str, Any]:
    """Return CALC for a poller, the inputs as sources under the last part of their names."""
    told = job.extra.get("media")
    files = {}
    for entry in state.inputs:
        media = told.get(entry.path) if isinstance(told, dict) else None
        kind = tuple(_media(media)) if isinstance(media, list) else _sniffed(paths.inputs, entry.path)
        files[last_part(entry.path)] = [Source(_opener(paths.inputs, entry.path), entry.size), *kind]
    parameters = job.extra.get("parameters")
    names = [*filter(None, map(literal, job.outputs)), *LOGS]
    return {
        "command": command_line(job),
        "remote-site": job.site,
        "parameters": parameters if isinstance(parameters, str) else " ".join(job.args),
        "parameter_files": files,
        "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in names},
    }


def command_line(job: Job) -> str:
    """Return what a poller hands to a shell: the command, and quoted the arguments and variables that only /v1 knows."""
    if not job.args and not job.env:
        return job.command
    variables = [f"{name}={shlex.quote(value)}" for name, value in job.env.items()]
    return " ".join([*variables, job.command, *map(shlex.quote, job.args)])  # the command is shell text, as it was registered


def _opener(folder: Path, name: str) -> Any:
    def opened() -> BinaryIO:
        return os.fdopen(open_beneath(folder, name, os.O_RDONLY), "rb")

    return opened


def _sniffed(folder: Path, name: str) -> tuple[str, str]:
    with _opener(folder, name)() as file:
        return media_type(file)


# What comes back


def results_sent(document: Mapping[str, Any], job: Job) -> tuple[dict[str, Stored], dict[str, list[str]]]:
    """Return (the files by their name in the job, the media types by the same) of a body of send-results.

    An entry of mimetype1 `Error` brings no file. What was not asked for is left out. Raises `InvalidRequest` or `InvalidName`.
    """
    sent = document.get("result_files")
    if not isinstance(sent, dict):
        raise InvalidRequest("there are no result_files", hint="name -> {content, mimetype1, mimetype2}")
    asked = {name: f"out/{name}" for name in map(literal, job.outputs) if name}
    asked.update((name, f"log/{file}") for name, file in LOGS.items())
    files: dict[str, Stored] = {}
    media: dict[str, list[str]] = {}
    for name, entry in sent.items():
        if name not in asked or not isinstance(entry, dict):
            continue
        kind = _media([entry.get("mimetype1"), entry.get("mimetype2")])
        media[asked[name]] = kind
        if kind[0] != ERROR:
            if not isinstance(entry.get("content"), Stored):
                raise InvalidRequest(f"result_files: {name!r} has no content", hint="base64, or mimetype1 Error and why")
            if entry["content"].damaged:
                raise InvalidRequest(f"result_files: the content of {name!r} is not base64", hint="send it again")
            files[asked[name]] = entry["content"]
    return files, media


def results_of(job: Job, state: JobState, result: Result | None, paths: JobPaths) -> dict[str, Any]:
    """Return RESULTS of a job that has ended: every file that came back, and an `Error` entry for every other asked for."""
    found: dict[str, Any] = {}
    left = MAX_FILES_BYTES
    told = result.extra.get("media") if result else None
    media = told if isinstance(told, dict) else {}
    for entry in result.files if result else ():
        if entry.path.startswith("out/"):
            left -= encoded_size(entry.size)
            fits = left >= 0
            found[entry.path[4:]] = _entry(paths, entry, media, state) if fits else _error(_TOO_LARGE)
            left += 0 if fits else encoded_size(entry.size)
    for name in filter(None, map(literal, job.outputs)):
        if name not in found:
            found[name] = _error(_why_missing(f"out/{name}", name, result, media, state))
    logs = {entry.path: entry for entry in (result.files if result else ()) if entry.path.startswith("log/")}
    for name, file in LOGS.items():
        log = logs.get(f"log/{file}")
        missing = _why_missing(f"log/{file}", file, result, media, state)
        found[name] = _entry(paths, log, media, state) if log else _error(missing)
    return found


def _entry(paths: JobPaths, entry: FileEntry, media: Mapping[str, Any], state: JobState) -> dict[str, Any]:
    kind = media.get(entry.path)
    try:
        with contextlib.closing(_opener(paths.folder, entry.path)()) as file:
            if os.fstat(file.fileno()).st_size != entry.size:
                return _error("is no longer the file that came back")
            told = _media(kind) if isinstance(kind, list) else list(media_type(file))
    except (OSError, SpoolError) as exc:
        return _error(f"cannot be read any more: {exc.strerror if isinstance(exc, OSError) else exc}")
    return {"content": Source(_opener(paths.folder, entry.path), entry.size), "mimetype1": told[0], "mimetype2": told[1]}


def _error(why: str) -> dict[str, Any]:
    return {"content": "", "mimetype1": ERROR, "mimetype2": why}


def _why_missing(path: str, name: str, result: Result | None, media: Mapping[str, Any], state: JobState) -> str:
    told = media.get(path)
    if isinstance(told, list) and _media(told)[0] == ERROR:
        return _media(told)[1] or _NO_REASON
    for remark in (*result.withheld, *result.not_carried) if result else ():
        if remark.startswith((f"{name}: ", f"{path}: ")):
            return remark.partition(": ")[2]
    if state.state != State.COMPLETED:
        return state.message or state.reason or str(state.state)
    return _NO_REASON


def known_of(state: JobState, progress: str, status: str) -> dict[str, Any]:
    """Return what get-calcinfo tells of a job."""
    return {
        "remote-site": state.site, "command": state.command, "user": state.user, "status": status, "progress": progress,
        "state": str(state.state), "registered": state.submitted_at, "changed": state.changed_at, "message": state.message,
    }  # fmt: skip


def body_of(data: bytes) -> dict[str, Any]:
    """Return the small JSON object of a call's body."""
    return jsonio.loads(data, "the body")
