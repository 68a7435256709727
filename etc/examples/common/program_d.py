#!/usr/bin/env python3
"""Program D: puts the site's confidential curve into the deck, runs the solver, leaves no trace of the curve behind.

プログラム(D): 秘匿の硬化曲線を入力に合わせ、ソルバーを実行し、終わる前に秘匿データを含むファイルをすべて消す。

    program_d.py [INPUT]        INPUT: the three numbers from MInt, default material.txt in the current directory

Reads   TABLE (environment)     the curve; stays in the site's own folder
Writes  plate.dat plate.frd     displacements and stresses: all that may leave
Exit    0 done, 1 the solver failed, 2 the input is refused, 3 a line of the curve was found where it must not be

How the curve is kept in:
- MInt sends three numbers and not a deck. A deck from outside could `*INCLUDE` the table or ask for plastic strains.
- All that the solver reads and writes is in ./private, which is removed whole: at the end, on an error, on a cancel.
- What the solver says goes to that folder too: ccx repeats the faulty line ("card image") in its error messages.
- Then everything that is left here is searched for each line of the curve.

注意: 変位と応力の全分布からは、曲線の一部を逆算できる。大切な曲線なら、返すものを減らす(最大値だけ、図だけ)。
Note: from the whole field of displacements *and* stresses an expert can work back part of the curve. If it is worth
that much, return less (only maxima, only the picture): that is decided here and in agent.ini.
"""
from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
from types import FrameType

import plate
import traces

HERE = pathlib.Path(__file__).resolve().parent
PRIVATE = pathlib.Path("private")
RESULTS = ("plate.dat", "plate.frd")


def main() -> int:
    for stream in (sys.stdout, sys.stderr):     # a locale without Japanese is no reason to fail
        stream.reconfigure(errors="replace")    # type: ignore[union-attr]
    # A cancel arrives as TERM: as an exception it passes through `finally`, where the private folder goes.
    signal.signal(signal.SIGTERM, _stop)
    table = pathlib.Path(os.environ.get("TABLE") or HERE / "confidential" / "hardening_curve.csv")
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "material.txt")
    try:
        material = plate.Material.parse(given.read_text(encoding="utf-8"))
        curve = plate.read_hardening(table)
        watch = traces.Curve(table.read_text(encoding="utf-8"), material, curve)
    except (plate.InputError, OSError, UnicodeError) as error:
        print(f"入力を受け付けません / input refused: {_reason(error)}", file=sys.stderr)
        return 2
    try:
        PRIVATE.mkdir(mode=0o700)
        (PRIVATE / "plate.inp").write_text(plate.deck(material, curve), encoding="ascii")
        if not run_solver():
            return 1
        for name in RESULTS:
            os.replace(PRIVATE / name, name)
    finally:
        shutil.rmtree(PRIVATE, ignore_errors=True)
    return keep_in(watch)


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _reason(error: Exception) -> str:
    """Without the path of a site's file, which is nobody's business either."""
    return error.strerror or "unreadable" if isinstance(error, OSError) else str(error)


def run_solver() -> bool:
    """ccx where it is installed, else the bundled one, and says which. Its own words stay in the private folder."""
    ccx = shutil.which(os.environ.get("CCX") or "ccx")
    if ccx:
        name, argv = "CalculiX (ccx)", [ccx, "-i", "plate"]
    else:
        name, argv = "mini_solver.py", [sys.executable, str(HERE / "mini_solver.py"), "plate"]
        print("ccx が無いので同梱の簡易ソルバーを使います(実演用) / "
              "ccx is not installed here: using the bundled mini solver, for demonstration only")
    print(f"solver: {name}", flush=True)
    with (PRIVATE / "solver.log").open("wb") as log:
        done = subprocess.run(argv, cwd=PRIVATE, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    complete = all((PRIVATE / name).is_file() and (PRIVATE / name).stat().st_size for name in RESULTS)
    if done.returncode == 0 and complete:
        print("solver: done")
        return True
    print(f"ソルバー失敗 / the solver failed (exit {done.returncode}); its messages stay at the site", file=sys.stderr)
    return False


def keep_in(curve: traces.Curve) -> int:
    """The last look: no file left here may hold a line, or a pair of numbers, of the curve."""
    files = [path for path in pathlib.Path().rglob("*") if path.is_file() and not path.is_symlink()]
    found = {path: curve.search(path.read_bytes()) for path in files}
    bad = [path for path, seen in found.items() if seen.lines or seen.pairs]
    for path in bad:
        path.unlink()
    if bad:
        print("秘匿データが残っていたので削除しました / removed files that held confidential lines", file=sys.stderr)
        return 3
    print("秘匿データは残っていません / nothing confidential is left in the working directory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
