"""The words of the published protocol, and how this project's states look in them (docs/protocol.md, "The published protocol").

Pure facts shared by all who speak it: the server's routes below `BASE`, the agent's client, and `mi-system-wf.py`.
"""

from __future__ import annotations

import codecs
from typing import BinaryIO

from spool.records import JobState
from spool.states import State

BASE = "/mi-distcomp-api"
VIA = "mi-distcomp-api"  # `via` in state.json of a job that came in by this protocol
PORT = 50443
MAX_BODY_BYTES = 2 * 1024**3  # the manual's limit of a request or an answer, files encoded
UNCLAIMED_LIMIT_S = 30 * 60  # of observed waiting, for a job registered by this protocol

STDOUT, STDERR = "計算標準出力.txt", "計算標準エラー出力.txt"
LOGS = {STDOUT: "stdout.txt", STDERR: "stderr.txt"}  # the entry's name -> the file in log/
WITHHELD = "withheld by the site"  # the reason that our agents give, in both protocols, for what may not leave
ERROR = "Error"  # mimetype1 of an entry whose file is not there; mimetype2 says why

NOT_START, SENDING_PARAMS, COMPLETE_SEND = "not start", "sending params", "complete send"
RUNNING, CALC_END, GETTING_RETURN, GOT_RETURN = "running", "calc end", "getting return", "got return"
NONE, COMPLETED, ABNORMAL = "none", "completed", "abnormal"

# A job's state -> its progress, before and after the step within the state that `further` stands for.
PROGRESS: dict[State, tuple[str, str]] = {
    State.NEW: (NOT_START, NOT_START),
    State.QUEUED: (NOT_START, NOT_START),
    State.CLAIMED: (SENDING_PARAMS, COMPLETE_SEND),  # further: the poller says that it has the inputs
    State.RUNNING: (RUNNING, RUNNING),
    State.HELD: (CALC_END, CALC_END),
    State.RETURNING: (CALC_END, GETTING_RETURN),  # further: results are arriving
    State.COMPLETED: (GOT_RETURN, GOT_RETURN),
    State.FAILED: (GOT_RETURN, GOT_RETURN),
    State.CANCELED: (GOT_RETURN, GOT_RETURN),
    State.EXPIRED: (GOT_RETURN, GOT_RETURN),
}
STATUS: dict[State, str] = {
    **dict.fromkeys((State.NEW, State.QUEUED, State.CLAIMED, State.RUNNING), NONE),
    **dict.fromkeys((State.HELD, State.RETURNING, State.COMPLETED), COMPLETED),  # returning: ABNORMAL where it ended so
    **dict.fromkeys((State.FAILED, State.CANCELED, State.EXPIRED), ABNORMAL),
}


POLLER = "poller-"  # how the names begin under which published pollers claim


def is_poller(agent: str) -> bool:
    """True where `agent` is a published poller: silent by its protocol while its command runs."""
    return agent.startswith(POLLER)


def no_permission(path: str) -> str:
    """Return the message of a 403, code "0005", for the call at `path`."""
    return f"{path}への実行権がありません。"


def progress(state: JobState, *, further: bool) -> str:
    """Return the job's progress; `further`: the step within its state was taken."""
    return PROGRESS[state.state][further]


def status(state: JobState, *, abnormal: bool) -> str:
    """Return the job's status; `abnormal`: a job that is returning ended so."""
    return ABNORMAL if abnormal and state.state == State.RETURNING else STATUS[state.state]


def media_type(file: BinaryIO) -> tuple[str, str]:
    """Return what ``file -b -i`` prints of the open file, split at the blank, as far as receivers tell it apart.

    That is text in ASCII, text in UTF-8, nothing, or anything else (``charset=binary``). Reads the file to its end, or to the
    first byte that makes it binary; constant memory.
    """
    decoder, plain, empty = codecs.getincrementaldecoder("utf-8")(), True, True
    try:
        while block := file.read(1 << 18):
            empty = False
            plain = plain and block.isascii()
            if b"\0" in block:
                return "application/octet-stream;", "charset=binary"
            decoder.decode(block)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return "application/octet-stream;", "charset=binary"
    if empty:
        return "inode/x-empty;", "charset=binary"
    return "text/plain;", "charset=us-ascii" if plain else "charset=utf-8"


def last_part(name: str) -> str:
    """Return the last part of a name as pollers keep it: ``/`` and, from Windows, ``\\`` separate."""
    return name.replace("\\", "/").rpartition("/")[2]
