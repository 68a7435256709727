"""A bar or a spinner on standard error for a person who waits: only where that is a terminal and `rich` is installed.

The one place that imports `rich`, which is an extra: without it nothing is drawn and everything else is the same.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from spool.ctl.backend import Progress


def silent(what: str, done: int, total: int) -> None:
    """Draw nothing."""


@contextlib.contextmanager
def drawing() -> Iterator[Progress]:
    """Yield a function that shows (what is being done, bytes done, bytes in all); 0 in all is a spinner."""
    bar = _rich_bar() if sys.stderr.isatty() else None
    if bar is None:
        yield silent
        return
    with bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


def _rich_bar() -> Any:
    try:
        console, bars = importlib.import_module("rich.console"), importlib.import_module("rich.progress")
    except ImportError:
        return None
    return bars.Progress(
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TimeElapsedColumn(),
        console=console.Console(stderr=True, highlight=False, markup=False),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a piped standard output must not be drawn into the terminal
    )
