"""The agent's side of sync: what it has, what it is told, and when it asks again.

A waiting sync runs in the loop; whenever a job has news, a short one goes out beside it, and the server then ends the
waiting one, so that the agent never has two.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any, Callable

from spool import __version__, log
from spool.agent import release, restored
from spool.agent.book import HINT, told
from spool.agent.carrier import Carrier
from spool.agent.config import AgentConfig
from spool.agent.folder import Base, LocalJob
from spool.agent.protocol import PUBLISHED, Server
from spool.agent.standing import STOPPED, Lookout, Switch
from spool.agent.troubles import hint_for, is_tried_again, may_pass
from spool.errors import SpoolError, Unreachable
from spool.names import is_id
from spool.results import no_run
from spool.room import try_to_write, why_no_room
from spool.runner import LocalRunner
from spool.states import FINAL, Reason, State

LOOK_S = 0.02
TAKE_TRIES = 4


class Agent:
    """The jobs in hand and the syncs about them."""

    def __init__(self, config: AgentConfig, server: Server, base: Base, identity: tuple[str, int], runner: LocalRunner) -> None:
        self.config = config
        self._server = server
        self._base = base
        self._runner = runner
        self._name, self._generation = identity
        self._instance = os.urandom(8).hex()
        self._seq = 0
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._epoch = restored.Epoch(base.control / "epoch.json")
        self._restoring = threading.Lock()
        self._carriers: dict[str, Carrier] = {}
        self._refused: dict[str, int] = {}
        self._news = threading.Event()
        self._closing = self._gone = False
        self.closed_to_new = False
        self.stopping = False
        self._switch = Switch(base.control)
        server.send_only_if(self._switch.check)
        self._lookout = Lookout(self._switch, self._heed)
        self._herald = threading.Thread(target=self._run_herald, name="herald", daemon=True)
        self._herald.start()

    def close_to_new(self) -> None:
        """Take nothing new: at once, also where a sync waits at the server with room."""
        if not self.stopping:
            self.closed_to_new = self.stopping = True
            self._news.set()

    def _heed(self) -> None:
        """Act on the order of the site's operator at once, and have MInt hear of it."""
        with self._lock:
            carriers = tuple(self._carriers.values())
        for carrier in carriers:
            carrier.wake()
        self._news.set()

    def _carry_on(self) -> None:
        """Carry on the jobs that a stop has left, once it is undone."""
        if self._gone or self._switch.stopped:
            return
        with self._lock:
            left = [item for item in self._carriers.values() if item.left and item.idle and not item.done]
            for item in left:
                item.left = False
        for item in left:
            self._carry(item.local)

    # Jobs

    def take_up_again(self) -> int:
        """Carry on with what an earlier start left in the base; return how many jobs that is."""
        # All are in hand before the first has news: MInt would take those that a sync does not list for lost.
        carriers = [self._take(local) for local in tuple(self._base.jobs())]
        for carrier in carriers:
            state = carrier.local.state
            log.info("taken_up_again", job=state.id, state=state.state, run=state.run_id)
            carrier.start()
        return self.in_hand()

    def in_hand(self) -> int:
        """Return how many jobs are in hand; the ended ones are dropped on the way."""
        with self._lock:
            self._carriers = {key: item for key, item in self._carriers.items() if not (item.idle and item.done)}
            # What MInt has forgotten takes no slot, nor what waits for a person.
            return sum(not item.kept and not item.rests for item in self._carriers.values())

    def waiting_for_commands_only(self) -> bool:
        """True where every job in hand waits for its command, or its thread has ended."""
        with self._lock:
            carriers = tuple(self._carriers.values())
        return all(
            item.idle or item.rests or (item.waits_for_command.is_set() and item.local.state.state == State.RUNNING)
            for item in carriers
        )

    def _carry(self, local: LocalJob) -> Carrier:
        carrier = self._take(local)
        carrier.start()
        return carrier

    def _take(self, local: LocalJob) -> Carrier:
        carrier = Carrier(local, self._server.of(local.state), self.config, self._runner, self._news.set, self._base)
        with self._lock:
            self._carriers[local.state.id] = carrier
        return carrier

    def leave(self, timeout_s: float = 5.0) -> None:
        """Leave all jobs as they are, for the next start."""
        self._gone = True
        with self._lock:
            carriers = tuple(self._carriers.values())
        for carrier in carriers:
            carrier.leave()
        deadline = time.monotonic() + timeout_s
        for carrier in carriers:
            carrier.join(max(0.0, deadline - time.monotonic()))

    # Syncs

    def sync(self, wait_s: int, *, fresh_room: bool = True) -> bool:
        """Ask once and pass on what is told; return whether there was any news. Raises the family's errors."""
        self._carry_on()
        answer = self._server.sync(self._request(wait_s, fresh_room))
        jobs = answer.get("jobs")
        if not isinstance(jobs, list):
            raise Unreachable("the answer to sync holds no jobs", hint="is the URL that of a mint-spool server?")
        with self._telling:  # two answers may tell of the same new job
            news = [self._tell(told) for told in jobs]
        again = self._heed_epoch(str(answer.get("epoch", "")))
        # A wait that another sync of this agent ended brought nothing, and is taken up again at once.
        return any(news) or again or bool(answer.get("superseded"))

    def _heed_epoch(self, epoch: str) -> bool:
        """Note the spool's epoch; where it is a new one, tell what has ended here since the backup. Return whether it is."""
        with self._restoring:
            former = self._epoch.value
            if epoch in ("", former):
                return False
            if former:
                log.warning("restored", epoch=epoch, former=former, why="MInt's spool was restored from a backup",
                            hint="what ended here lately is told again, and returned again where MInt wants it")  # fmt: skip
                self._tell_ended()
            self._epoch.keep(epoch)
            return bool(former)

    def _tell_ended(self) -> None:
        with self._lock:
            in_hand = {key for key, item in self._carriers.items() if item.local.state.state not in FINAL}
        ended = list(restored.ended_lately(job for job in self._base.jobs(ended=True) if job.state.id not in in_hand))
        for start in range(0, len(ended), restored.BATCH):
            batch = ended[start : start + restored.BATCH]
            request = self._request(0, fresh_room=False)
            request["jobs"] = [*request["jobs"], *(restored.report(job, result) for job, result in batch)]
            told = self._server.sync(request).get("jobs")
            for job in restored.wanted({job.state.id: job for job, _ in batch}, told if isinstance(told, list) else []):
                job.reopen("MInt was restored to before its end")
                self._carry(job)

    def say_goodbye(self) -> None:
        """Tell what this agent leaves, so that a job it was just given is free for others at once."""
        self._server.goodbye({**self._request(0, fresh_room=False), "leaving": True})

    def _request(self, wait_s: int, fresh_room: bool) -> dict[str, Any]:
        epoch = self._epoch.value  # before the jobs: those that go with a new epoch are among them then
        in_hand = self.in_hand()
        room = max(0, self.config.agent["slots"] - in_hand) if fresh_room else 0
        standing = self._switch.get().mode
        head = self._audit_head()
        if room and (standing or self.closed_to_new or not head or not self._has_space()):
            room = 0
        with self._lock:
            self._seq += 1  # numbered together with the snapshot: the server tells an overtaken one by its number
            in_hand_now = [item for item in self._carriers.values() if item.local.state.state not in FINAL]
            reports = [_report(item, stopped=standing == STOPPED) for item in in_hand_now]
            seq = self._seq
        return {
            "site": self.config.agent["site"],
            "agent": self._name,
            "generation": self._generation,
            "instance": self._instance,
            "seq": seq,
            "version": __version__ if self.config.agent["tell_version"] else "",
            "audit": head,
            "room": room,
            "wait_s": wait_s,
            # What was given out while the order was on its way goes back to the queue.
            "leaving": self.stopping or bool(standing),
            "standing": standing,
            "epoch": epoch,
            "jobs": reports,
        }

    def _audit_head(self) -> str:
        """Return the head of the audit log; nothing, and no new job is taken, where it cannot be read."""
        try:
            return str(self._base.audit.head())
        except (SpoolError, OSError) as exc:
            log.error("audit_not_read", file=self._base.audit.path, why=exc, hint=f"no new job is taken; {HINT}")
            return ""

    def _has_space(self) -> bool:
        """True where the base takes a new job; told apart here, so that none is claimed that would only fail."""
        why = why_no_room(self._base.folder, self.config.agent["min_free"])
        if not why and (failed := try_to_write(self._base.control)):
            why = str(failed.strerror)
        if why:
            hint = "no new job is taken until then: free space or inodes, raise the quota, or remount it writable"
            log.warning("no_space", base=self._base.folder, why=why, hint=hint)
        return not why

    def _tell(self, told: Any) -> bool:
        job_id, run_id, want = (str(told.get(key, "")) if isinstance(told, dict) else "" for key in ("id", "run_id", "want"))
        if not (is_id(job_id) and is_id(run_id)):
            raise Unreachable("the answer to sync names no job", hint="is the URL that of a mint-spool server?")
        with self._lock:
            carrier = self._carriers.get(job_id)
        if carrier is not None and carrier.local.state.run_id == run_id:
            if carrier.kept and carrier.idle and want == "forget" and carrier.local.state.state == State.RETURNING:
                carrier.forget()
                return True
            if carrier.kept and carrier.idle and want != "keep":  # MInt knows it again
                carrier = self._carry(carrier.local)
            return carrier.tell(want)
        if want == "fetch":
            return self._take_up(job_id, run_id, carrier)
        return False

    def _take_up(self, job_id: str, run_id: str, former: Carrier | None) -> bool:
        if self.stopping or self._switch.get().mode:
            return False  # given back with the goodbye, or the next sync
        if former is not None and not former.idle:
            log.warning("busy_with_former_run", job=job_id, run=run_id, former=former.local.state.run_id)
            former.tell("forget")
            return False  # a later sync tells it again
        try:
            state = self._server.state(job_id)
            if state.run_id != run_id:
                return False
            local = LocalJob(self._base.folder / job_id)
            if local.paths.state.exists():
                local.load()
                if local.state.run_id == run_id and local.state.state in FINAL:
                    log.warning("ended_here_already", job=job_id, run=run_id)
                    return self._return_again(local)
            local.begin(state)
        except (SpoolError, OSError) as exc:
            log.warning("not_taken_up", job=job_id, run=run_id, why=exc, hint=hint_for(exc, self._base.folder))
            self._give_up_taking(job_id, run_id, exc)
            return False
        self._refused.pop(run_id, None)
        log.info("claimed", job=job_id, run=run_id, attempt=state.attempt, command=state.command, user=state.user)
        self._carry(local)
        return True

    def _return_again(self, local: LocalJob) -> bool:
        """Return what has ended here once more: MInt has gone back in time, and would tell to fetch it for ever."""
        result = local.result()
        if result is None or result.run_id != local.state.run_id:
            return False
        local.reopen("MInt does not know of its end")
        self._carry(local)
        return True

    def _give_up_taking(self, job_id: str, run_id: str, why: Exception) -> None:
        """Tell the server of a job that cannot be taken up here, after some tries, so that it does not hold a slot for ever."""
        if isinstance(why, SpoolError) and is_tried_again(why):
            return
        self._refused[run_id] = self._refused.get(run_id, 0) + 1
        if self._refused[run_id] < TAKE_TRIES or may_pass(why, self._base.folder):
            return  # with a full disk, say, every job that waits would be refused, one after the other
        try:
            message = f"the agent cannot take this job up: {release.words(self.config, why)}"
            audit = self._base.audit
            told(audit, lambda: audit.append("failed", job=job_id, run=run_id, message=message, why=str(why)[:4000]))
            self._server.finish(no_run(self._server.state(job_id), Reason.TRANSFER.value, message))
        except (SpoolError, OSError) as exc:
            log.warning("refusal_not_told", job=job_id, run=run_id, why=exc)

    def _run_herald(self) -> None:
        """Send a short sync whenever a job has news."""
        while not self._closing:
            self._news.wait()
            self._news.clear()
            if self._closing:
                return
            try:
                self.sync(0, fresh_room=False)
            except (SpoolError, OSError) as exc:
                log.debug("news_not_told", why=exc)  # the loop's next sync tells it
            except Exception:  # noqa: BLE001 - outermost frame of the thread: a defect, but the next news is told
                log.error("news_not_told", trace=True)

    def close(self) -> None:
        """Stop the herald and the lookout."""
        self._closing = True
        self._lookout.close()
        self._news.set()

    @staticmethod
    def settle(seconds: float, enough: Callable[[], bool]) -> None:
        """Wait until `enough()`, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not enough() and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def pause_s(self, waited: bool, news: bool) -> float:
        """Return the seconds until the next sync: hardly any after news or a wait at the server, else `poll_s` with jitter."""
        published = self._server.protocol == PUBLISHED
        if news or (waited and not published):
            return LOOK_S
        poll_s = self.config.published_poll_s if published else self.config.agent["poll_s"]
        pause_s = float(poll_s) * random.uniform(0.9, 1.1)
        return min(pause_s, self.config.agent["heartbeat_s"]) if self.in_hand() else pause_s


def _report(carrier: Carrier, *, stopped: bool) -> dict[str, Any]:
    state = carrier.local.state
    return {
        "id": state.id,
        "run_id": state.run_id,
        "state": str(state.state),
        "attempt": state.attempt,
        "ready": carrier.local.ready and not stopped,
        "told": carrier.wanted,
        "exit_code": state.exit_code,
    }
