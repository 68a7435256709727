"""The states of a job and the one table of its transitions (docs/format.md, "States").

The diagram in the documentation and the exhaustive test are made from `TRANSITIONS`; no other module decides what may
follow what.
"""

from __future__ import annotations

from enum import Enum

from spool.errors import Conflict


class State(str, Enum):
    """Where a job stands; the value is the word on disk, in the API, in logs and in the documentation."""

    NEW = "new"
    QUEUED = "queued"
    CLAIMED = "claimed"
    RUNNING = "running"
    HELD = "held"
    RETURNING = "returning"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    def __str__(self) -> str:
        return self.value


MEANING: dict[State, str] = {
    State.NEW: "registered, not yet enqueued; uploads may still be coming",
    State.QUEUED: "waits for its site",
    State.CLAIMED: "one agent's; its inputs are on their way; provably not started",
    State.RUNNING: "may have been started; written durably before the command is",
    State.HELD: "finished; its results wait at the site for a person's release",
    State.RETURNING: "finished; its results are on their way",
    State.COMPLETED: "every released byte is here and verified",
    State.FAILED: "ended without success; `reason` says why",
    State.CANCELED: "will not run, or was stopped on request",
    State.EXPIRED: "was not claimed before its time ran out",
}

TRANSITIONS: dict[State, dict[State, str]] = {
    State.NEW: {
        State.QUEUED: "the submitter enqueues it",
        State.CANCELED: "cancel",
        State.EXPIRED: "its expiry passed",
    },
    State.QUEUED: {
        State.CLAIMED: "an agent or the push claims it",
        State.CANCELED: "cancel",
        State.EXPIRED: "its expiry passed",
    },
    State.CLAIMED: {
        State.RUNNING: "the agent asked for the start",
        State.QUEUED: "no contact with the agent",
        State.FAILED: "refused by the site, or its inputs could not be carried",
        State.CANCELED: "cancel",
    },
    State.RUNNING: {
        State.HELD: "finished, waits for a release",
        State.RETURNING: "finished, results follow",
        State.FAILED: "lost, unreachable, or could not be spawned",
        State.CANCELED: "cancel, confirmed by the site",
    },
    State.HELD: {
        State.RETURNING: "released",
        State.FAILED: "refused by the site",
        State.CANCELED: "cancel, confirmed by the site",
    },
    State.RETURNING: {
        State.COMPLETED: "everything is here and verified",
        State.FAILED: "the command failed, or the results could not be carried",
        State.CANCELED: "cancel, confirmed by the site",
    },
    State.COMPLETED: {State.QUEUED: "requeue"},
    State.FAILED: {State.QUEUED: "requeue"},
    State.CANCELED: {State.QUEUED: "requeue"},
    State.EXPIRED: {State.QUEUED: "requeue"},
}

FINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELED, State.EXPIRED})
WITH_SITE = frozenset({State.CLAIMED, State.RUNNING, State.HELD, State.RETURNING})


class Reason(str, Enum):
    """Why a job failed: a closed list, so that the job's fault and the carrier's are never mixed up."""

    EXIT_NONZERO = "exit_nonzero"
    SIGNAL = "signal"
    WALL_TIME = "wall_time"
    NO_OUTPUTS = "no_outputs"
    MISSING_OUTPUTS = "missing_outputs"
    REFUSED_BY_SITE = "refused_by_site"
    SPAWN = "spawn"
    TRANSFER = "transfer"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    ABNORMAL = "abnormal"
    GIVEN_UP = "given_up"

    def __str__(self) -> str:
        return self.value


REASON_MEANING: dict[Reason, str] = {
    Reason.EXIT_NONZERO: "the command ended with an exit code other than 0",
    Reason.SIGNAL: "the command was ended by a signal that nobody here sent",
    Reason.WALL_TIME: "the command was stopped at its wall-time limit",
    Reason.NO_OUTPUTS: "the command ended with 0 but left none of the outputs asked for",
    Reason.MISSING_OUTPUTS: "the command ended with 0, `require_all` is set, and an output asked for is missing",
    Reason.REFUSED_BY_SITE: "the site's policy does not allow this job or its results",
    Reason.SPAWN: "the command could not be started",
    Reason.TRANSFER: "files could not be carried or did not verify",
    Reason.LOST: "the site no longer knows how the command ended (a reboot, a vanished process or folder)",
    Reason.UNREACHABLE: "no contact with the site for longer than `give_up_after_s`",
    Reason.ABNORMAL: "a published poller said `abnormal`: the exit code was not 0, or none of the outputs was written",
    Reason.GIVEN_UP: "an operator gave the run up to have the job run again",
}


def check_transition(job_id: str, source: State, target: State) -> None:
    """Raise `Conflict` unless the table has `source` -> `target`."""
    if target not in TRANSITIONS[source]:
        allowed = ", ".join(TRANSITIONS[source]) or "nothing"
        raise Conflict(f"job {job_id} is {source} and cannot become {target}", hint=f"from {source} it can become: {allowed}")
