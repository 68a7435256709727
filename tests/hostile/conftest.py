"""Fixtures of the SSH tests, for the names that a hostile site leaves."""

from ssh.conftest import make_push, push

__all__ = ["make_push", "push"]
