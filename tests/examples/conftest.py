"""The example's modules stand by themselves in one folder, as they do at a site: that folder goes on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "etc" / "examples" / "common"))
