"""The commented agent.ini: `etc/agent.ini`, and what `init` writes."""

from __future__ import annotations

from spool.agent.config import SECTIONS
from spool.sample import render

HEADING = "agent.ini: the law of this site. What is not allowed here does not run, and does not leave (docs/agent.md)."


def agent_ini(*, site: str = "", url: str = "", token_file: str = "") -> str:
    """Return agent.ini with every option shown; the given ones are set."""
    return render(HEADING, SECTIONS, {"agent.site": site, "agent.url": url, "agent.token_file": token_file})
