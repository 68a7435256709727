"""CalculiX' own reference decks, as Debian ships them."""

from __future__ import annotations

import gzip
from pathlib import Path

_FOLDER = Path("/usr/share/doc/calculix-ccx-test/examples/test")


def deck(name: str) -> bytes:
    """The input `NAME.inp`, e.g. of `beamp`."""
    return _read(f"{name}.inp")


def reference(name: str) -> bytes:
    """What ccx should write into `NAME.dat`, to the number's last digits or so."""
    return _read(f"{name}.dat.ref")


def _read(file_name: str) -> bytes:
    plain, packed = _FOLDER / file_name, _FOLDER / f"{file_name}.gz"
    assert plain.exists() or packed.exists(), f"no {file_name} in {_FOLDER}: tools/test installs calculix-ccx-test"
    return plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
