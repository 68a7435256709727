"""A file that is read again whenever it changes: trouble that passes by itself is over without the file being touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from spool.errors import ConfigError
from spool.server import livefile
from spool.server.livefile import LiveFile


@pytest.mark.parametrize("known", [True, False])
def test_a_shortage_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(livefile, "RACY_NS", 0)  # the file has long been as it is
    path = tmp_path / "tokens.json"
    path.write_text('{"format": 1}')
    path.chmod(0o600)
    file: LiveFile[str] = LiveFile(path, lambda fields: ("good",))
    if known:
        assert file.get() == ("good",)
        file._seen = None  # as after a change

    def short(*args: Any) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as shortage:
        shortage.setattr(livefile, "read_record", short)
        if known:
            assert file.get() == ("good",)
        else:
            with pytest.raises(ConfigError):
                file.get()
        assert "Too many open files" in file.problem
    assert file.get() == ("good",)
    assert file.problem == ""
