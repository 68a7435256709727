"""Figures of the suites, for docs/reliability.md: what a test tells here is printed at the run's end, also under xdist."""

from __future__ import annotations

_told: list[str] = []


def tell(text: str) -> None:
    """Tell a line of figures, from a test or from a fixture's end."""
    _told.append(text.strip())


def take() -> list[str]:
    """Return what was told since the last call."""
    taken, _told[:] = list(_told), []
    return taken
