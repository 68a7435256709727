"""A job's steps at a guarded site, where they differ from those at an open one (ssh_push.py has those).

Both keep the same order: inputs there and verified, `running` written at MInt, the start; the results here and verified, the end.
"""

from __future__ import annotations

import time

from spool import log
from spool.errors import Busy, DigestMismatch, TransferFailed
from spool.records import CANCELED
from spool.results import accept, no_run
from spool.ssh import transfer
from spool.ssh.connection import SiteTrouble
from spool.ssh.trip import AGENT, HeldThere, NoLongerOurs, Trip

TRIES = 3
HELD_POLL_S = (0.5, 10.0)


def send(trip: Trip) -> bool:
    """Have the site judge the job, bring its inputs there and have them verified; False: another run was started there already.

    What an earlier try has brought is not sent again.
    """
    try:
        if not trip.enter():
            return False
    except Busy:
        state = trip.state()
        if not state.cancel_requested_at:
            raise
        # The site takes no new job, and MInt has not let it start: there is nothing to stop.
        accept(trip.store, no_run(state, CANCELED, "canceled before it started"), by=AGENT)
        raise NoLongerOurs from None
    trip.note_audit()
    inputs, here = trip.state().inputs, trip.here
    wrong: list[str] = []
    for _ in range(TRIES):
        trip.at_gate.put(inputs, here, trip.paths.inputs)
        wrong = trip.at_gate.verify()
        if not wrong:
            return True
        log.warning("inputs_differ", job=trip.there.job_id, files=" ".join(wrong[:5]))
        if changed := transfer.changed_here(trip.paths, inputs):
            what = f"changed or gone at MInt since it was accepted: {', '.join(changed[:5])}"
            raise TransferFailed(what, hint="submit it again")
        here = {entry.path: entry.size for entry in inputs if entry.path not in wrong}
    what = f"{len(wrong)} inputs are not at the site as they were accepted: {', '.join(wrong[:5])}"
    raise SiteTrouble(what, hint="does something else write there?")


def bring_back(trip: Trip) -> None:
    """Wait for the site's release, fetch exactly what its manifest lists, verify it and hand in the result."""
    job_id, run_id = trip.there.job_id, trip.there.run_id
    result = trip.at_gate.finish(trip.state().attempt)
    began, (least, most) = time.monotonic(), HELD_POLL_S
    while result is None:
        if trip.store.hold(job_id, run_id, by=AGENT).cancel_requested_at:
            trip.there.cancel()
        elif not trip.waits_for_person:
            raise HeldThere
        else:
            trip.pause_unless_canceled(min(most, max(least, (time.monotonic() - began) / 10)))
        result = trip.at_gate.finish(trip.state().attempt)
        trip.note_audit()
    if result.files or not result.reason:  # what a person has refused ends without having returned anything
        trip.store.returning(job_id, run_id, by=AGENT, exit_code=result.exit_code)
    trip.take_back_half_moved()
    files, wrong = trip.incoming / "files", ""
    with transfer.fetch_lock(trip.incoming, trip.pause):
        transfer.purge(files, {entry.path for entry in result.files})
        for _ in range(TRIES):
            try:
                trip.at_gate.get(result.files, files)
                ended = accept(trip.store, result, by=AGENT)
            except DigestMismatch as exc:
                wrong = exc.message
                log.warning("results_differ", job=job_id, run=run_id, why=wrong)
                continue
            log.info("ended", job=job_id, run=run_id, state=ended.state, reason=ended.reason, files=len(result.files))
            return
    raise TransferFailed(f"the results did not arrive as they were released: {wrong}", hint="were they changed at the site?")
