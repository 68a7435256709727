"""One job's way along the published progress, step by step, each remembered before and after (`published/steps.json`).

The server may be strict: a step that is past is then refused, also to the one whose first answer was lost. So no call whose
answer was lost is repeated before calc-progress has said that it was not taken, and what a step was answered counts durably
before the next is taken. A refusal that leaves the job where it was may pass: it is tried again, `REFUSALS` times in all. A job
that the server has no more (a forced cancel) is given up for good: `StaleRun`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spool import jsonio, log
from spool.agent.published_calls import Answer, Calls
from spool.errors import SpoolError, StaleRun, TransferFailed, Unreachable
from spool.fields import Fields
from spool.files import fsync_dir, read_record, remove_tree, replace_file
from spool.published import CALC_END, COMPLETE_SEND, GETTING_RETURN, GOT_RETURN, NOT_START, RUNNING, SENDING_PARAMS

ORDER = (NOT_START, SENDING_PARAMS, COMPLETE_SEND, RUNNING, CALC_END, GETTING_RETURN, GOT_RETURN)
RECORD_BYTES = 65536
REFUSALS = 6
MOST_SKIPPED = 64


@dataclass(frozen=True)
class Steps:
    """The record. `taken` is the last step that the server acknowledged, `trying` one that was asked for.

    `gone`: why the job was given up. `ending`: its end is being told. `refused`: why its results cannot leave.
    """

    run_id: str
    accept_id: str
    taken: str = NOT_START
    trying: str = ""
    gone: str = ""
    refused: str = ""
    ending: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Steps:
        """Read steps.json."""
        fields = Fields(jsonio.loads(data, "steps.json"), "steps.json")
        fields.format()
        steps = cls(
            fields.string("run_id"), fields.string("accept_id"), fields.string("taken"), fields.string("trying", ""),
            fields.string("gone", ""), fields.string("refused", ""), fields.boolean("ending", False),
        )  # fmt: skip
        if steps.taken not in ORDER:
            raise fields.wrong("taken", "is no published progress")
        return steps

    def encode(self) -> bytes:
        """Return the bytes of steps.json."""
        return jsonio.dumps({"format": 1, **vars(self)})


class Way:
    """The way of one job. Its carrier takes the steps, but for the start, which a sync takes while the carrier waits for it."""

    def __init__(self, calls: Calls, folder: Path, steps: Steps, site: str) -> None:
        self.folder = folder / "published"
        self.steps = steps
        self._calls = calls
        self.site = site
        self._path = self.folder / "steps.json"
        self._lock = threading.Lock()
        self._refusals: dict[str, int] = {}
        self._looks = self._untold = 0
        self._load()

    def _load(self) -> None:
        """Take up this run's record. With one that cannot be read nobody knows what may be repeated: the run is given up."""
        try:
            found = Steps.parse(read_record(self._path, RECORD_BYTES))
        except FileNotFoundError:
            return
        except (SpoolError, OSError) as exc:
            log.error("steps_unreadable", folder=self.folder, why=exc)
            self.steps = replace(self.steps, gone=f"{self._path} cannot be read")
            return
        if found.run_id == self.steps.run_id:
            self.steps = found
        else:
            remove_tree(self.folder)  # of an earlier run of the same job

    def open(self) -> None:
        """Make the folder, durably."""
        if not self.folder.exists():
            self.folder.mkdir(mode=0o700)
            fsync_dir(self.folder.parent)

    def note(self, **changes: Any) -> None:
        """Change the record, durably."""
        with self._lock:
            steps = replace(self.steps, **changes)
            self.open()
            replace_file(self._path, steps.encode(), mode=0o600)
            self.steps = steps

    def reached(self, step: str) -> bool:
        """True where the server has acknowledged `step`, or one after it."""
        return ORDER.index(self.steps.taken) >= ORDER.index(step)

    # Steps

    def params(self, into: Path) -> dict[str, Any]:
        """Claim the job and return its ``calc-info``, the inputs being numbered files in `into`.

        `StaleRun` where somebody else has it, `TransferFailed` where its answer was lost and the server does not give it twice.
        """
        self._need()
        if self.reached(SENDING_PARAMS):
            raise self._lost()
        again = self.steps.trying == SENDING_PARAMS
        self.note(trying=SENDING_PARAMS)
        answer, calc = self._calls.params(self.steps.accept_id, self.site, into)
        if answer.ok:
            return calc
        progress = self._calls.progress(self.steps.accept_id)
        if again and progress in (SENDING_PARAMS, None):
            self.note(taken=SENDING_PARAMS)
            raise self._lost()
        self._wait_for_better(SENDING_PARAMS, answer, progress, again)
        raise self._given_up("calc-params", answer, progress)

    @staticmethod
    def _lost() -> TransferFailed:
        return TransferFailed("the inputs were lost on the way, and the server does not send them twice", hint="submit it again")

    def take(self, call: str, target: str, more: Mapping[str, Any] | None = None) -> None:
        """Have the server take the step to `target`, once. Safe to repeat, also after a restart and a lost answer.

        Raises `StaleRun` where the job is not this agent's any more, `TransferFailed` where results are refused, `Unreachable`
        where it may be taken later.
        """
        self._need()
        if self.reached(target):
            return
        again = self.steps.trying == target
        if not (again and self._was_taken(target)):
            self.note(trying=target)
            ids = {"accept_id": self.steps.accept_id, "site_id": self.site}
            answer = self._calls.step(call, {**ids, **(more or {})})
            if not answer.ok:
                self._refused(call, target, answer, again)
        self.note(taken=target, trying="")

    def _was_taken(self, target: str) -> bool:
        """Return whether the step was taken whose answer was lost."""
        progress = self._calls.progress(self.steps.accept_id)
        if progress == "" and target == GOT_RETURN:  # canceled, or taken and the result fetched and removed meanwhile
            log.warning("end_not_confirmed", job=self.steps.accept_id, why="the server has no such job any more")
            return True
        if progress == "" or (progress in ORDER and ORDER.index(progress) > ORDER.index(target)):
            raise self._given_up("calc-progress", None, progress)
        log.info("answer_lost", job=self.steps.accept_id, step=target, progress=progress or "not told")
        return progress == target

    def _refused(self, call: str, target: str, answer: Answer, again: bool) -> None:
        """Return where the step counts as taken although the call was refused, else raise."""
        progress = self._calls.progress(self.steps.accept_id)
        self._wait_for_better(target, answer, progress, again)
        if target == GETTING_RETURN and progress == CALC_END:
            raise TransferFailed(f"the server refused the results: {answer.code} {answer.message}", hint="see MInt's log")
        if again and (progress == target or (progress is None and target != RUNNING)):
            return
        raise self._given_up(call, answer, progress)

    def _wait_for_better(self, target: str, answer: Answer, progress: str | None, again: bool) -> None:
        """Raise `Unreachable` where the job is still where it was and the refusal may pass; a few times for each step."""
        self._refusals[target] = self._refusals.get(target, 0) + 1
        if progress != self.steps.taken or self._refusals[target] >= REFUSALS:
            return
        if not again:  # refused, and nothing before it was lost: there is nothing to look up
            self.note(trying="")
        why = f"the step to {target!r} was answered {answer.code} {answer.message}"
        raise Unreachable(why, hint="the job is still where it was; it is tried again")

    def _need(self) -> None:
        if self.steps.gone:
            raise self._stale()

    def _stale(self) -> StaleRun:
        return StaleRun(self.steps.gone, hint="it was canceled there, or another poller has it")

    def _given_up(self, call: str, answer: Answer | None, progress: str | None) -> StaleRun:
        """Note that the job is not this agent's any more, and return the error that says so."""
        said = f"{answer.code} {answer.message}" if answer else "another state"
        where = "unknown there" if progress == "" else f"at {progress!r} there" if progress else "of unknown progress"
        self.note(gone=f"{call} was answered {said}; the job is {where}")
        return self._stale()

    def still_there(self) -> bool:
        """Ask whether the server still has the job: False after a forced cancel. True where it does not tell."""
        if self.steps.gone:
            return False
        self._looks += 1
        if self._looks < self._untold:  # who does not tell is asked less and less, and never given up
            return True
        progress = self._calls.progress(self.steps.accept_id)
        self._looks, self._untold = 0, min(MOST_SKIPPED, 2 * max(1, self._untold)) if progress is None else 0
        if progress == "" and not self.reached(CALC_END):
            self.note(gone="the server has no such job any more")
            return False
        return True
