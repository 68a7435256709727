"""Tests that need root: they run in CI, and are left out where an ordinary user runs the suite."""

from __future__ import annotations

import os

import pytest


def need_root() -> None:
    """Skip the test without root; in CI that is a failure."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("CI must run this test as root")
    pytest.skip("needs root: namespaces, mounts or other users")
