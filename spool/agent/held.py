"""What a job's local record says of its release, and what may be told of a result for which that is wanted. Pure.

Whatever is told of a held job goes through `tellable`: before the release that is a bare end without files, exit code and names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from spool.errors import SpoolError
from spool.fields import Fields
from spool.records import JobState, Result
from spool.results import no_run
from spool.states import Reason

KEY = "held"  # in the local state.json
CHANGED = "the results changed at the site after they were laid out for release; nothing of the change was returned"
NOT_RELEASED = "the results were not released by the site"


class ChangedAfterSnapshot(SpoolError):
    """What lies there is not what its manifest says; nothing of it leaves."""

    code = "changed_after_snapshot"


@dataclass(frozen=True)
class Mark:
    """`manifest`: SHA-256 of the bytes of result.json. `why` and `since` it is held; `told`: decisions in the audit log already.

    `released`: persons have said so. `reason` and `message`: how it ends without any results, once that is settled.
    """

    manifest: str
    since: str
    why: str = ""
    told: tuple[str, ...] = ()
    released: bool = False
    reason: str = ""
    message: str = ""

    @classmethod
    def of(cls, state: JobState) -> Mark | None:
        """Return the mark of a job that was ever held in this run, else None."""
        value = state.extra.get(KEY)
        if value is None:
            return None
        fields = Fields(value if isinstance(value, dict) else {}, "state.json: held")
        return cls(
            fields.string("manifest"), fields.string("since", ""), fields.string("why", ""), fields.strings("told"),
            fields.boolean("released", False), fields.string("reason", ""), fields.string("message", ""),
        )  # fmt: skip

    def extra(self, state: JobState, **changes: Any) -> Mapping[str, Any]:
        """Return the `extra` of `state` with this mark, `changes` applied to it."""
        value = asdict(replace(self, **changes))
        return {**state.extra, KEY: {**value, "told": list(value["told"])}}


def digest(data: bytes) -> str:
    """Return the SHA-256 that stands for a manifest: that of the exact bytes of result.json."""
    return hashlib.sha256(data).hexdigest()


def tellable(data: bytes, state: JobState) -> Result:
    """Return what may be told of the run whose result.json holds `data`: the result itself, or a bare end where it was held.

    Raises `ChangedAfterSnapshot` where it was released with other bytes.
    """
    mark = Mark.of(state)
    if mark is None:
        return Result.parse(data)
    if not mark.released:
        return no_run(state, mark.reason or Reason.REFUSED_BY_SITE.value, mark.message or NOT_RELEASED)
    if digest(data) != mark.manifest or (result := Result.parse(data)).encode() != data:
        raise ChangedAfterSnapshot("result.json changed after its release", hint="see the audit log; nothing leaves")
    return result
