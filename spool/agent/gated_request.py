"""What `enter` brings to the gate: nothing of it is believed, and nothing of it stored, before the site's law has judged it."""

from __future__ import annotations

import base64
import binascii

from spool import jsonio
from spool.agent.signed import Claim
from spool.errors import Refused
from spool.fields import Fields
from spool.instants import utc_now
from spool.names import check_id, check_user
from spool.records import JOB_LIMIT_BYTES, Job, JobState, parse_entries
from spool.states import State

BY = "ssh-push"
SIGNATURE_BYTES = 64 * 1024


class Coming:
    """A job that is asked for and not here yet, with the local record that it would begin with."""

    def __init__(self, state: JobState) -> None:
        self.state = state

    @property
    def claim(self) -> Claim:
        """What MInt says of it."""
        state = self.state
        return Claim(state.id, state.run_id, state.attempt, state.site, state.user, state.inputs)


class Request:
    """What `enter` brings: the exact bytes of job.json, a signature or none, and what MInt's record says of the run."""

    def __init__(self, line: bytes, job_id: str) -> None:
        fields = Fields(jsonio.loads(line, "the request"), "the request")
        self.job_bytes = _bytes(fields, "job", JOB_LIMIT_BYTES)
        self.signature = _bytes(fields, "signature", SIGNATURE_BYTES)
        self.user = check_user(fields.string("user"))
        self.attempt = fields.integer("attempt", low=1, high=10**6)
        self.inputs = parse_entries(fields.list("inputs"), "the request")
        self.earlier = {check_id(run) for run in fields.strings("earlier")}
        self.job = Job.parse(self.job_bytes)
        if self.job.id and self.job.id != job_id:
            raise Refused(f"job.json is of job {self.job.id}", hint="send it under its own id")
        asked = {item.path: item for item in self.job.inputs}
        if {entry.path for entry in self.inputs} != set(asked):
            raise Refused("the inputs announced are not those of job.json", hint="send exactly what the job names")
        for entry in self.inputs:
            item = asked[entry.path]
            if item.sha256 is not None and (item.size, item.sha256) != (entry.size, entry.sha256):
                raise Refused(f"the input {entry.path!r} is not the one that job.json fixes", hint="send that one")

    def state(self, job_id: str, run_id: str) -> JobState:
        """Return the local record to begin with."""
        return JobState(job_id, State.CLAIMED, self.job.site, self.user, 1, command=self.job.command, attempt=self.attempt,
                        run_id=run_id, agent=BY, claimed_at=utc_now(), inputs=self.inputs)  # fmt: skip


def _bytes(fields: Fields, key: str, most: int) -> bytes:
    try:
        data = base64.b64decode(fields.string(key, ""), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise fields.wrong(key, "must be base64") from exc
    if len(data) > most:
        raise fields.wrong(key, f"is longer than {most} bytes")
    return data
