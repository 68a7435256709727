"""CalculiX' reference decks through WebAPI mode: what comes back is what the solver should have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.dat import differences
from components.decks import deck, reference
from components.rig import Rig

# Those whose references hold numbers and agree with this build of ccx; some others differ in the release, not in the carrying.
DECKS = (
    "truss", "planestress3", "b31", "scheibe", "spring3", "spring4", "spring5", "pipempc1", "pipe2", "dashpot1", "axial",
    "beam8f", "beam10p", "beam20p", "beamdy1", "beamf", "beamnlp", "beampic", "beamptied1", "achtel2", "aniso", "acou2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_decks_come_back_solved(rig: Rig, tmp_path: Path) -> None:
    """One server, one agent with two slots; only results leave, and a deck that the command changed would be seen."""
    rig.start_server({"nims-dev": {"commands": "ccx"}})
    ccx = {"argv": "/usr/bin/ccx {args}", "args": "-i|[a-z][a-z0-9]*", "inputs_allow": "*.inp", "env.OMP_NUM_THREADS": "1"}
    rig.start_agent("nims-dev", {"ccx": ccx}, release={"allow": "*.dat *.frd", "logs": "return"})
    jobs = {}
    for name in DECKS:
        (tmp_path / f"{name}.inp").write_bytes(deck(name))
        outputs = [f"--out={pattern}" for pattern in ("*.dat", "*.frd", "*.inp")]
        jobs[name] = rig.submit("nims-dev", "ccx", "--arg=-i", f"--arg={name}", "--in", tmp_path / f"{name}.inp", *outputs)
    for name, job_id in jobs.items():
        state = rig.wait_state(job_id, "completed", "failed", "canceled", deadline_s=120)
        assert state["state"] == "completed", (name, state)
        out = rig.job(job_id) / "out"
        assert differences((out / f"{name}.dat").read_bytes(), reference(name)) == [], name
        assert (out / f"{name}.frd").read_bytes().rstrip().endswith(b"9999"), name
        assert not (out / f"{name}.inp").exists(), "the deck was asked for and may not leave"
        assert b"Job finished" in (rig.job(job_id) / "log" / "stdout.txt").read_bytes()
