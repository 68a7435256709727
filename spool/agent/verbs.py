"""The agent's verbs beside its loop, each with its own command line: `spool_agent.py VERB` (docs/agent.md, "Command line")."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from spool.agent import standing

Verb = Callable[[list[str], Path], int]
"""Gets the words behind the verb and the program's path; returns the exit code, raises the family's errors."""

VERBS: dict[str, Verb] = {
    "pause": standing.pause,
    "drain": standing.drain,
    "stop": standing.stop,
    "resume": standing.resume,
}
