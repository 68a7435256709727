"""What the fourteen calls of the published server do, written anew from the protocol notes alone; no HTTP in here.

`their_server.py` puts them on the wire. State is in memory, one job per accept_id, and every job belongs to the user who
registered it: to anyone else its id is unknown.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

UNCLAIMED_S = 30 * 60
PROGRESS = ("not start", "sending params", "complete send", "running", "calc end", "getting return", "got return")


@dataclass
class Job:
    """One registered calculation; `step` counts along PROGRESS."""

    user: str
    calc: dict[str, Any]
    added: float  # by the server's clock
    waiting: bool = False
    step: int = 0
    status: str = "none"
    results: dict[str, Any] = field(default_factory=dict)
    poller: tuple[str, str] = ("", "")  # token and address of who claimed it

    @property
    def progress(self) -> str:
        """The published word for its step."""
        return PROGRESS[self.step]

    def fail(self, reason: str) -> None:
        """End it without results."""
        names = self.calc.get("result_files", {})
        self.results = {name: {"content": "", "mimetype1": "Error", "mimetype2": reason} for name in names}
        self.step, self.status = PROGRESS.index("got return"), "abnormal"


class Call(NamedTuple):
    """One request, as the calls see it: a GET has no body and a POST no query."""

    query: dict[str, str]
    body: dict[str, Any]
    user: str
    poller: tuple[str, str]

    def given(self, name: str) -> Any:
        """A parameter of either."""
        return self.body.get(name, self.query.get(name))


class Answer(NamedTuple):
    """An HTTP status and what is sent as JSON."""

    status: int
    shape: dict[str, Any]


class Refusal(Exception):
    """What a call answers where it does not work."""

    def __init__(self, status: int, code: int | str, message: str) -> None:
        super().__init__(message)
        self.answer = envelope(code, message, status=status)


def envelope(code: int | str = 200, message: str = "OK", *, status: int = 200, more: dict[str, object] | None = None) -> Answer:
    """The envelope of success and of failure; `more` stands beside code and message."""
    return Answer(status, {"errors": [{"code": code, "message": message, **(more or {})}]})


class Shelf:
    """All jobs, and how they are found."""

    def __init__(self, sites: dict[str, list[str]], clock: Callable[[], float]) -> None:
        self.sites, self.clock = sites, clock
        self.jobs: dict[str, Job] = {}
        self.lock = threading.RLock()

    def drop_unclaimed(self) -> None:
        """Forget what nobody claimed in time."""
        for accept_id, job in list(self.jobs.items()):
            if job.step == 0 and self.clock() - job.added > UNCLAIMED_S:
                del self.jobs[accept_id]

    def job(self, call: Call, *, status: int = 400) -> Job:
        """This user's job by its id; HTTP `status` and code 400 where there is none."""
        job = self.jobs.get(str(call.given("accept_id")))
        if job is None or job.user != call.user:
            raise Refusal(status, 400, f"There is no information for accept_id({call.given('accept_id')})")
        return job


class MintSide:
    """The seven calls of the submitter."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def add_calcinfo(self, call: Call) -> Answer:
        """Register a calculation."""
        calc = call.body.get("calc-info")
        if not isinstance(calc, dict):
            raise Refusal(202, 400, "There is no calc-info")
        site, command = calc.get("remote-site"), calc.get("command")
        if site not in self.shelf.sites:
            raise Refusal(202, 400, f"remote-site({site}) is not known")
        if not command:
            raise Refusal(202, 400, "There is no command")
        if command not in self.shelf.sites[site]:
            raise Refusal(202, 401, f"command({command}) is not registered for remote-site({site})")
        accept_id = str(uuid.uuid4())
        self.shelf.jobs[accept_id] = Job(call.user, calc, self.shelf.clock())
        return envelope(more={"accept_id": accept_id})

    def allow_wait_calc(self, call: Call) -> Answer:
        """Let the pollers have it."""
        job = self.shelf.job(call)
        if job.waiting or job.step > 0:
            raise Refusal(400, 401, "The calculation is waiting or started already")
        job.waiting = True
        return envelope()

    def cancel_wait_calc(self, call: Call) -> Answer:
        """Forget it; where it runs or does not wait yet, only by force."""
        job = self.shelf.job(call)
        if call.body.get("delete") != "force" and (job.step > 0 or not job.waiting):
            raise Refusal(400, 401, "The calculation is running or does not wait yet")
        del self.shelf.jobs[call.given("accept_id")]
        return envelope()

    def calc_status(self, call: Call) -> Answer:
        """How it ended."""
        return envelope(message=f"status:{self._asked(call).status}")

    def calc_progress(self, call: Call) -> Answer:
        """How far it is."""
        return envelope(message=f"status:{self._asked(call).progress}")

    def get_calc_result(self, call: Call) -> Answer:
        """The files; a body that comes along is not looked at."""
        job = self._asked(call)
        if job.progress != "got return":
            raise Refusal(200, 400, f"The result is not there yet({job.progress})")
        return envelope(more={"result-info": {"result_files": job.results}})

    def get_calcinfo(self, _: Call) -> Answer:
        """All that is known, of every user, as a bare object."""
        known = {
            accept_id: {"calc-info": job.calc, "progress": job.progress, "status": job.status, "waiting": job.waiting}
            for accept_id, job in self.shelf.jobs.items()
        }
        return Answer(200, known)

    def _asked(self, call: Call) -> Job:
        if "accept_id" not in call.query:
            raise Refusal(400, 400, "There is no accept_id")
        return self.shelf.job(call, status=200)


class ExternalSide:
    """The seven calls of the poller."""

    def __init__(self, shelf: Shelf, repeatable: bool, finish_abandoned: bool) -> None:
        self.shelf, self.repeatable, self.finish_abandoned = shelf, repeatable, finish_abandoned

    def calc_request(self, call: Call) -> Answer:
        """The first job that waits for this site and this user; claims nothing."""
        if "site_id" not in call.query:
            raise Refusal(400, 400, "There is no site_id")
        site = call.query["site_id"]
        if site not in self.shelf.sites:
            raise Refusal(200, "400", f"Your site-id({site}) does not match in the list that acceptable to.")
        if self.finish_abandoned:
            self._finish(call, site)
        for accept_id, job in self.shelf.jobs.items():
            if job.waiting and job.step == 0 and job.user == call.user and job.calc["remote-site"] == site:
                return envelope(more={"accept_id": accept_id})
        raise Refusal(200, "0300", f"There is no information for accept_id(None), about the your site id({site})")

    def calc_params(self, call: Call) -> Answer:
        """Command and inputs, names as they were registered: claims the job."""
        job = self._job(call)
        if not job.waiting:
            raise Refusal(200, 401, "The calculation does not wait")
        if self._moves(job, "sending params", same=job.poller == call.poller):
            job.poller = call.poller
        return Answer(200, {"calc-info": job.calc})

    def calc_params_complete(self, call: Call) -> Answer:
        """The inputs have arrived."""
        self._moves(self._job(call), "complete send")
        return envelope()

    def calc_start(self, call: Call) -> Answer:
        """The command starts."""
        self._moves(self._job(call), "running")
        return envelope()

    def calc_end(self, call: Call) -> Answer:
        """The command has ended, one way or the other."""
        job = self._job(call)
        word = self._result(call, "calc end", "abnormal")
        status = "completed" if word == "calc end" else "abnormal"
        self._moves(job, "calc end", same=job.status == status)
        job.status = status
        return envelope()

    def send_results(self, call: Call) -> Answer:
        """The files."""
        job = self._job(call)
        files = call.body.get("result_files")
        if not isinstance(files, dict):
            raise Refusal(400, 401, "There is no result_files")
        if self._moves(job, "getting return"):
            job.results = files
        return envelope()

    def end_send(self, call: Call) -> Answer:
        """All is returned; right after calc-end it means that nothing could be."""
        job = self._job(call)
        self._result(call, "end send")
        if job.progress == "calc end":
            job.fail("send-results failed")
        else:
            self._moves(job, "got return")
        return envelope()

    def _job(self, call: Call) -> Job:
        site = call.given("site_id")
        if site not in self.shelf.sites:
            raise Refusal(400, 400, f"Your site-id({site}) does not match in the list that acceptable to.")
        job = self.shelf.job(call)
        if job.calc["remote-site"] != site:
            raise Refusal(400, 400, f"There is no information for accept_id({call.given('accept_id')})")
        return job

    def _moves(self, job: Job, progress: str, *, same: bool = True) -> bool:
        """Go one step on to `progress`: True. False for the `same` request again, where the server is repeatable."""
        target = PROGRESS.index(progress)
        if job.step == target - 1:
            job.step = target
            return True
        if self.repeatable and same and job.step == target:
            return False
        raise Refusal(200, 401, f"The calculation is in another state({job.progress})")

    def _result(self, call: Call, *words: str) -> str:
        word = call.body.get("result")
        if word is None:
            raise Refusal(400, 401, "There is no result")
        if word not in words:
            raise Refusal(400, 402, f"result({word}) is not known")
        return str(word)

    def _finish(self, call: Call, site: str) -> None:
        for job in self.shelf.jobs.values():
            abandoned = job.progress == "calc end" and job.status == "abnormal" and job.poller == call.poller
            if abandoned and job.calc["remote-site"] == site:
                job.fail("the poller went on without sending results")
