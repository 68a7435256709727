"""Tests that need root: mounts, immutable files. In CI they run; on a desk without root they are left out."""

from __future__ import annotations

import os

import pytest


def need_root() -> None:
    """Go on as root; else skip, but fail in CI, where nothing may be skipped."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("this test needs root, and CI runs every test")
    pytest.skip("needs root: mounts a file system of its own")
