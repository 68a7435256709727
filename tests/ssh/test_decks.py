"""CalculiX' reference decks through SSH mode: what comes back is what the solver should have written."""

from __future__ import annotations

import pytest

from components.dat import differences
from components.decks import deck, reference

from .conftest import Pushed

# Those whose references hold numbers and agree with this build of ccx; some others differ in the release, not in the carrying.
DECKS = (
    "truss", "planestress3", "b31", "scheibe", "spring3", "spring4", "spring5", "pipempc1", "pipe2", "dashpot1", "axial",
    "beam8f", "beam10p", "beam20p", "beamdy1", "beamf", "beamnlp", "beampic", "beamptied1", "achtel2", "aniso", "acou2",
)  # fmt: skip


@pytest.mark.slow
def test_decks_come_back_solved(push: Pushed) -> None:
    push.options["commands"] = "ccx"
    push.start()
    outputs = ["*.dat", "*.frd"]
    jobs = {name: push.drop("ccx", "-i", name, inputs={f"{name}.inp": deck(name)}, outputs=outputs) for name in DECKS}
    for name, job_id in jobs.items():
        state = push.ended(job_id)
        assert state["state"] == "completed", (name, state)
        out = push.out(job_id)
        assert differences(out[f"{name}.dat"], reference(name)) == [], name
        assert out[f"{name}.frd"].rstrip().endswith(b"9999"), name


def test_a_wrong_number_is_seen() -> None:
    table = b"\n displacements (vx,vy,vz)\n\n 1  1.000000E+00 -2.0E-17 nan\n 2  3.000000E-01 1.0E+01 0\n"
    assert differences(table, table) == []
    assert differences(table.replace(b"-2.0E-17", b" 3.1E-17"), table) == []
    assert differences(table.replace(b"3.000000E-01", b"3.001000E-01"), table) != []
    assert differences(table.replace(b"1.0E+01", b"-1.0E+01"), table) != []
    assert differences(table.replace(b"displ", b"forces"), table) != []
    assert differences(table.replace(b" nan", b""), table) != []
    with pytest.raises(AssertionError, match="unusable"):
        differences(b"", b"")
