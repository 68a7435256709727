"""What needs root: CI has it; elsewhere such a test is passed over."""

from __future__ import annotations

import os

import pytest


def need_root() -> None:
    """Skips the test outside CI where this is not root; in CI that fails it."""
    if os.geteuid() == 0:
        return
    assert os.environ.get("CI") != "true", "this test needs root, and CI has to run it"
    pytest.skip("needs root")
