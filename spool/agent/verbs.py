"""The agent's verbs beside its loop, each with a command line of its own: `spool_agent.py VERB …` (docs/agent.md, "Verbs")."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from spool.agent import auditing

Verb = Callable[[list[str], Path], int]
"""Gets the words behind the verb and the program's path; returns the exit code, raises the family's errors."""

VERBS: dict[str, Verb] = {
    "audit": auditing.run,
}
