#!/usr/bin/env python3
"""Starts the submitter from this checkout, wherever it is called from (spool/ctl/published.py is the program).

Where a package is missing it goes on with the Python of the checkout's own environment (.venv), if there is one.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
OWN_PYTHON = os.path.join(ROOT, ".venv", "bin", "python")
sys.path.insert(0, ROOT)

if sys.version_info < (3, 9):  # noqa: UP036 - this file is what says so
    sys.exit("mi-system-wf.py: Python 3.9 or later is needed, this is " + sys.version.split()[0])

try:
    from spool.ctl.published import main
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] == "spool":
        raise
    if os.path.exists(OWN_PYTHON) and os.path.dirname(OWN_PYTHON) != os.path.join(sys.prefix, "bin"):
        os.execv(OWN_PYTHON, [OWN_PYTHON, os.path.realpath(__file__), *sys.argv[1:]])
    print(
        f"mi-system-wf.py: the Python package {missing.name!r} is missing for {sys.executable}. This installs it:\n"
        f"  python3 -m venv '{ROOT}/.venv' && '{ROOT}/.venv/bin/python' -m pip install '{ROOT}'",
        file=sys.stderr,
    )
    sys.exit(78)

if __name__ == "__main__":
    sys.exit(main())
