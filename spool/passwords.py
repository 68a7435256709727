"""Asking for a password: on the terminal, from a file or standard input; never from a command line, which `ps` shows."""

from __future__ import annotations

import getpass
import stat
import sys
import warnings
from pathlib import Path

from spool.errors import ConfigError

MOST_BYTES = 4096


def ask_user(given: str) -> str:
    """Return `given`, or what a person types; `ConfigError` where nobody can be asked."""
    if given:
        return given
    try:
        return input("User: ").strip()
    except EOFError as exc:
        raise ConfigError("there is nobody to ask for the user", hint="give --user NAME") from exc


def read_password(given: str, *, twice: bool = False) -> str:
    """Return the password that `given` names: ``@FILE`` (of mode 0600), ``-`` for a line of standard input, ``""`` to ask.

    `twice` asks a second time, against slips. Raises `ConfigError`; no message holds a piece of a password.
    """
    if not given:
        return _typed(twice)
    if given == "-":
        return _one_line(sys.stdin.buffer.readline(MOST_BYTES + 1))
    if not given.startswith("@"):
        raise ConfigError("a password on a command line can be read by everybody here", hint="change it; then give @FILE or -")
    path = Path(given[1:]).expanduser()
    try:
        with open(path, "rb") as file:
            mode, data = path.stat().st_mode, file.read(MOST_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint="name a file that holds the password") from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others", hint=f"chmod 600 {path}")
    return _one_line(data)


def _typed(twice: bool) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # without a terminal it would be typed in the clear
            first = getpass.getpass("Password: ")
            if twice and getpass.getpass("Again: ") != first:
                raise ConfigError("the two are not the same", hint="type it again")
            return first
    except (EOFError, OSError, getpass.GetPassWarning):
        raise ConfigError("there is no terminal to ask for the password", hint="give --password @FILE, or - for a pipe") from None


def _one_line(data: bytes) -> str:
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeError:
        raise ConfigError("the password is not UTF-8", hint="write it in UTF-8, on one line") from None
    if not text or "\n" in text or len(data) > MOST_BYTES:
        raise ConfigError("there is no password, or more than one line", hint="write it alone on one line")
    return text
