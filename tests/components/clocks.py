"""A wall clock that jumps under running programs (libfaketime); the monotonic clock goes on as it does."""

from __future__ import annotations

from pathlib import Path

_PLACES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")


class FakeClock:
    """`env` is for the programs; `jump("+1d")` sets their clock, in days, hours (`-1h`) or seconds off the true one."""

    def __init__(self, folder: Path) -> None:
        found = [path for pattern in _PLACES for path in Path("/").glob(pattern[1:])]
        assert found, "no libfaketime here: tools/test installs faketime"
        self._file = folder / "faketime"
        self.jump("+0")
        self.env = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # the kernel stamps files by the true clock
        }

    def jump(self, by: str) -> None:
        """From now on the clock is off by so much."""
        temp = self._file.with_suffix(".new")
        temp.write_text(f"{by}\n")
        temp.replace(self._file)
