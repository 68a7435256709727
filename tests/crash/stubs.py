"""Programs in front of the real ones on PATH: each call is written down, and one of them may fail instead."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

_STUB = """#!/bin/sh
{{ printf '{name}'; for word in "$@"; do printf '\\t%s' "$word"; done; printf '\\n'; }} >>{log}
if [ "$(grep -c '^{name}' {log})" = {fails_at} ]; then exit 1; fi
exec {real} "$@"
"""


class Stubs:
    """Stubs of `names` in `folder`; the call number `fails_at` (from 1) of each is not made and ends with 1."""

    def __init__(self, folder: Path, *names: str, fails_at: int = 0) -> None:
        folder.mkdir()
        self._log = folder / "calls"
        self._log.touch()
        for name in names:
            text = _STUB.format(name=name, log=shlex.quote(str(self._log)), real=shutil.which(name), fails_at=fails_at)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.path = f"{folder}:{os.environ['PATH']}"

    def calls(self) -> list[list[str]]:
        """Every call so far, in its order: the name and the arguments."""
        return [line.split("\t") for line in self._log.read_text().splitlines()]
