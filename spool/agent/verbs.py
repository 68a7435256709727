"""The agent's verbs beside its loop, each with a command line of its own: `spool_agent.py VERB …` (docs/agent.md, "Verbs")."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from spool.agent import auditing, gate, reviewing, signing_in, standing

Verb = Callable[[list[str], Path], int]
"""Gets the words behind the verb and the program's path; returns the exit code, raises the family's errors."""

VERBS: dict[str, Verb] = {
    "gate": gate.run,
    "login": signing_in.run,
    "pause": standing.pause,
    "drain": standing.drain,
    "stop": standing.stop,
    "resume": standing.resume,
    "held": reviewing.held,
    "show": reviewing.show,
    "release": reviewing.release,
    "refuse": reviewing.refuse,
    "audit": auditing.run,
}
