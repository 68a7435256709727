#!/usr/bin/env python3
"""ssh_push.py: pushes the jobs of `mode = ssh` sites there over ssh, has them run, and fetches them back (docs/operations.md).

    ssh_push.py --config spool.ini [--spool DIR] [--once] [ID ...]
    ssh_push.py authorize SITE --config spool.ini [--from PATTERNS]     the line for the site's authorized_keys
    ssh_push.py check SITE --config spool.ini                           what of the site works and what does not

What it does, in order: open the spool (an empty folder becomes one), be its only push, then round and round: take in drops, claim
what waits for its sites, and carry each job through the steps of `carry`, one thread a job. All state is in the spool and
in the job's folder at the site: killing it at any moment loses nothing, and starts no command twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from spool import __version__, log
from spool.config import LiveConfig, Site, SpoolConfig, find_config
from spool.creation import SPOOL_UMASK, identity
from spool.drops import Drops, may_accept
from spool.errors import Conflict, DigestMismatch, NotFound, SpoolError, StaleRun, TransferFailed, Unreachable
from spool.files import sync_tree
from spool.heads import Heads
from spool.manifest import hash_files
from spool.memory import keep_private
from spool.opening import open_store
from spool.records import FileEntry, JobState
from spool.results import Outputs, accept, judge
from spool.runner import RunStatus, write_run
from spool.ssh import guarded, solver_log, transfer
from spool.ssh.arguments import ask, parse
from spool.ssh.chosen import ChosenQueue
from spool.ssh.command import argv_of, env_of
from spool.ssh.connection import Connections, SiteTrouble, Stopped
from spool.ssh.only import the_only_push
from spool.ssh.patience import Patience
from spool.ssh.site import CannotTell, FolderGone
from spool.ssh.trip import AGENT, GUARDED, HeldThere, NoLongerOurs, Trip, forget
from spool.ssh.upkeep import Upkeep
from spool.states import FINAL, WITH_SITE, State
from spool.store import Store

EXIT_FAILED, EXIT_USAGE, EXIT_LATER, EXIT_CONFIG = 1, 2, 75, 78
ROUND_S = 0.05
AFTER_FAILURE_S = 2.0
REST_S = 30.0
FETCH_TRIES = 3
POLL_S = (0.1, 10.0)
Logs = tuple[FileEntry, ...]


# ---- The steps of one job


def carry(trip: Trip, spool_id: str) -> None:
    """All steps that the job still has before it. Safe to repeat, which is what a restart and a retry do."""
    try:
        if trip.state().state == State.CLAIMED and (guarded.send(trip) if trip.guarded else send(trip)):
            trip.there.prepare()
            trip.store.start(trip.there.job_id, trip.there.run_id, by=AGENT)  # durable before the command is
        status = watch(trip)
        if trip.guarded:
            guarded.bring_back(trip)
        else:
            bring_back(trip, status)
    except (StaleRun, Conflict) as exc:
        raise NoLongerOurs from exc
    finally:
        trip.mark_if_over(spool_id)


def send(trip: Trip) -> bool:
    """Bring inputs and command line to the site, and see that they arrived as they were frozen; False: it is started already."""
    state, job = trip.state(), trip.job
    write_run(trip.paths.folder, argv_of(job, trip.site), env_of(job, trip.site, state), wall_time_s=job.wall_time_s)
    if not trip.enter():
        return False
    with transfer.fetch_lock(trip.incoming, trip.pause) as lock:
        for again in (False, True):
            transfer.send(trip.paths, trip.at_open, lock, again=again)
            wrong = transfer.wrong_inputs(state.inputs, trip.at_open.sums("in")[0])
            if not wrong:
                return True
            log.warning("inputs_differ", job=state.id, files=" ".join(wrong[:5]))
    what = f"{len(wrong)} inputs are not at the site as they were accepted"
    if changed := transfer.changed_here(trip.paths, state.inputs):
        where = f"changed or gone at MInt since it was accepted: {', '.join(changed[:5])}"
        raise TransferFailed(f"{what}: {where}", hint="submit it again")
    raise SiteTrouble(f"{what}: {', '.join(wrong[:5])}", hint="does something else write there?")


def watch(trip: Trip) -> RunStatus:
    """Start the command unless it ever was, and ask until it is over; a cancel is passed on, the logs follow along."""
    began = trip.tailed_at = time.monotonic()
    status, stopped = trip.there.status(), False
    while not status.is_over:
        if status.word == "absent":
            raise FolderGone(f"the folder {trip.there.folder} is gone at the site", hint="requeue the job")
        if status.word != "new":
            trip.note_started()
        elif trip.was_started or trip.state().state == State.RETURNING:
            raise FolderGone(f"{trip.there.folder} has lost its run: the command was started there once", hint="ask the site")
        if trip.state().cancel_requested_at:
            status, stopped = trip.there.cancel(), True
        elif status.word == "new":
            status = trip.there.start()  # the runner's latch lets one start through, ever
            log.info("started", job=trip.there.job_id, run=trip.there.run_id, status=status.word)
        if status.is_over:
            break
        trip.tail_logs()
        least, most = POLL_S
        trip.pause_unless_canceled(min(most, max(least, (time.monotonic() - began) / 10)))
        status = trip.there.status()
    if status.cancel and not stopped:  # a line cut within the cancel may have left some of its processes
        status = trip.there.cancel()
    return status


def bring_back(trip: Trip, status: RunStatus) -> None:
    """Fetch outputs and logs, judge the run and hand in its result; what does not verify is fetched again."""
    job_id, run_id = trip.there.job_id, trip.there.run_id
    trip.store.returning(job_id, run_id, by=AGENT, exit_code=status.exit_code)
    trip.take_back_half_moved()
    wrong = ""
    with transfer.fetch_lock(trip.incoming, trip.pause) as lock:
        for number in range(FETCH_TRIES):
            outputs, logs, absent = fetch(trip, status, lock, again=number > 0, last=number == FETCH_TRIES - 1)
            wrong = ", ".join(absent[:5])
            if not absent:
                try:
                    ended = accept(trip.store, judge(trip.job, trip.state(), status, outputs, logs), by=AGENT)
                except DigestMismatch as exc:
                    wrong = exc.message
                else:
                    log.info("ended", job=job_id, run=run_id, state=ended.state, reason=ended.reason, files=len(outputs.files))
                    return
            log.warning("results_differ", job=job_id, run=run_id, why=wrong)
    raise TransferFailed(f"the results did not arrive as they are at the site: {wrong}", hint="does something still write there?")


def fetch(trip: Trip, status: RunStatus, lock: int, *, again: bool, last: bool) -> tuple[Outputs, Logs, list[str]]:
    """Fetch once; return outputs, logs, and the names that did not come. A run that was stopped or lost brings its logs only."""
    patterns = trip.job.outputs if status.word == "exited" and not status.cancel else ()
    chosen = transfer.choose(*trip.at_open.sums("work"), patterns) if patterns else transfer.Chosen({})
    log_sums = {f"log/{name}": digest for name, digest in trip.at_open.sums("log")[0].items() if name in transfer.LOGS}
    transfer.fetch_outputs(trip.at_open, trip.incoming, chosen.wanted, lock, checksum=again)
    transfer.fetch_logs(trip.at_open, trip.incoming, lock, append=not again)
    files = trip.incoming / "files"
    announced = {f"out/{name}": digest for name, digest in chosen.wanted.items()}
    transfer.purge(files, {*announced, *log_sums})
    sync_tree(files)
    entries, absent = transfer.arrived(files, {**announced, **log_sums})
    logs = tuple(entry for entry in entries if entry.path in log_sums)
    if last:  # a log that somebody still writes to is taken as it came
        logs = hash_files(files, [entry.path for entry in logs])
    outputs = tuple(entry for entry in entries if entry.path in announced)
    return Outputs(outputs, chosen.missing, (), chosen.not_carried, chosen.found), logs, absent


# ---- The program around them


class Push:
    """The rounds of one process. `only` limits it to the jobs named there; `once` ends it after one pass over what is there."""

    def __init__(self, store: Store, config: LiveConfig, only: list[str], once: bool) -> None:
        self._store = store
        self._config = config
        self._only = frozenset(only)
        self._once = once
        self._spool_id = identity(store.paths)[0]
        self._drops = Drops(store)
        self._connections = Connections()
        self._heads = Heads(store.paths)
        self._upkeep = Upkeep(store, self._connections)
        self._threads: dict[str, threading.Thread] = {}
        self._rest_until: dict[str, float] = {}
        self._problem = ""
        self._unreachable = False
        self.stop = threading.Event()
        if only:
            store.queue = ChosenQueue(store.paths, only)
        store.listen(self._note)

    def run(self) -> int:
        """Go round until stopped, or with `once` or `only` until there is nothing left to do; return the exit code."""
        accepting = may_accept(self._store.paths)
        if not accepting:
            log.warning("not_the_owner", why="drops are accepted only by the uid that owns spool.json")
        while accepting and (self._once or self._only) and self._scan() and not self.stop.wait(ROUND_S / 2):
            pass
        claiming = True
        while not self.stop.is_set():
            try:
                self._round(accepting, claiming)
            except (SpoolError, OSError) as exc:
                log.error("round_failed", why=exc)
                self.stop.wait(AFTER_FAILURE_S)
            except Exception:  # noqa: BLE001  outermost frame: a defect, but the push goes on
                log.error("round_failed", trace=True)
                self.stop.wait(AFTER_FAILURE_S)
            claiming = not self._once
            if self._all_done():
                break
            self.stop.wait(ROUND_S)
        return self._finish()

    def _scan(self) -> int:
        try:
            return self._drops.scan(self._get_config())
        except OSError as exc:
            log.error("round_failed", why=exc)
            return 0

    def _round(self, accepting: bool, claiming: bool) -> None:
        config = self._get_config()
        self._store.clock.settle_s = config.server["clock_settle_s"]
        self._store.clock.certain()  # a jump is seen when it comes
        if accepting:
            self._drops.scan(config)
        self._threads = {job_id: thread for job_id, thread in self._threads.items() if thread.is_alive()}
        for site in config.sites.values():
            if site.mode == "ssh":
                self._look_after(site, claiming)
                self._upkeep.look_after(site)

    def _look_after(self, site: Site, claiming: bool) -> None:
        in_hand = self._store.queue.active(site.name, AGENT)
        for job_id in in_hand:
            self._take_up(site.name, job_id)
        room = site.slots - len(in_hand)
        if room <= 0 and claiming and site.kind == GUARDED:
            room += sum(map(self._rests, in_hand))
        if claiming and site.enabled and room > 0:
            users = list(site.users) or self._store.queue.users(site.name)
            for state in self._store.claim(site.name, users, agent=AGENT, room=room):
                self._take_up(site.name, state.id)

    def _rests(self, job_id: str) -> bool:
        """True where nothing can be done but by a person of the site who releases the results: it takes no slot."""
        try:
            return self._store.state(job_id).state == State.HELD
        except (SpoolError, OSError):
            return False

    def _take_up(self, site: str, job_id: str) -> None:
        """Have a thread carry the job, unless one does, or it has just met a defect, or in one pass it had its turn."""
        if job_id in self._threads or (self._only and job_id not in self._only):
            return
        if time.monotonic() < self._rest_until.get(job_id, 0.0):
            return
        self._rest_until[job_id] = float("inf") if self._once else 0.0
        thread = threading.Thread(target=self._safely, args=(site, job_id), name=f"carry-{job_id[:8]}", daemon=True)
        self._threads[job_id] = thread
        thread.start()

    def _safely(self, site: str, job_id: str) -> None:
        try:
            self._carry(site, job_id)
        except Exception:  # noqa: BLE001  outermost frame of the thread: a defect; the other jobs go on
            log.error("carry_failed", trace=True, job=job_id)
            self._rest_until[job_id] = max(self._rest_until[job_id], time.monotonic() + REST_S)
        finally:
            if connection := self._connections.known(site):
                connection.blind.pop(job_id, None)  # nobody looks for it now

    def _carry(self, site: str, job_id: str) -> None:
        """Carry one job, again and again while its site is silent; what else goes wrong ends it with its reason."""
        patience, trip = Patience(self._store, job_id), None
        while True:
            try:
                trip = self._trip(site, job_id)
                if trip is not None:
                    carry(trip, self._spool_id)
                return
            except (Stopped, NotFound):
                return
            except HeldThere:
                self._unreachable = True  # a later pass looks again
                return
            except NoLongerOurs:
                log.info("run_over", job=job_id, why="canceled, given up or requeued meanwhile")
                return
            except (SpoolError, OSError) as exc:
                if patience.settles(exc) or not self._may_try_again(site, exc, patience):
                    if trip is not None and trip.guarded:
                        trip.mark_if_over(self._spool_id)
                    return

    def _may_try_again(self, site_name: str, exc: SpoolError | OSError, patience: Patience) -> bool:
        passing = isinstance(exc, (Unreachable, CannotTell, OSError)) or (isinstance(exc, SpoolError) and exc.transient)
        if self._once and passing and patience.failures:
            self._unreachable = True
            return False
        site = self._get_config().sites.get(site_name)
        return site is not None and patience.wait(site, self._connections.to(site), exc, self.stop)

    def _trip(self, site_name: str, job_id: str) -> Trip | None:
        site, state = self._get_config().sites.get(site_name), self._store.state(job_id)
        if state.agent != AGENT or state.site != site_name or state.state not in WITH_SITE:
            forget(self._store, site_name, job_id)
            raise NoLongerOurs
        if site is None or site.mode != "ssh":
            return None
        connection = self._connections.to(site)
        return Trip.of(self._store, site, connection, state, self.stop, self._heads, waits_for_person=not self._once)

    def _get_config(self) -> SpoolConfig:
        config = self._config.get()
        if self._config.problem != self._problem:
            self._problem = self._config.problem
            log.warning("configuration", why=self._problem or "good again")
        return config

    def _note(self, state: JobState) -> None:
        site = self._config.get().sites.get(state.site)
        if site is not None:
            solver_log.note(site, state)

    # The end

    def _all_done(self) -> bool:
        if self._once:
            return not any(thread.is_alive() for thread in self._threads.values())
        return bool(self._only) and all(self._is_over(job_id) for job_id in self._only)

    def _is_over(self, job_id: str) -> bool:
        try:
            state = self._store.state(job_id)
        except NotFound:
            return True
        site = self._get_config().sites.get(state.site)
        return state.state in FINAL or site is None or site.mode != "ssh"

    def _finish(self) -> int:
        stopped = self.stop.is_set()
        self.stop.set()
        self._connections.close()
        for thread in self._threads.values():
            thread.join(5)
        self._drops.close()
        if stopped:
            return 0
        ended = [self._ended_as(job_id) for job_id in sorted(self._only)]
        if any(state is None or (state in FINAL and state != State.COMPLETED) for state in ended):
            return EXIT_FAILED
        return EXIT_LATER if self._unreachable or any(state not in FINAL for state in ended) else 0

    def _ended_as(self, job_id: str) -> State | None:
        try:
            return self._store.state(job_id).state
        except NotFound as exc:
            print(f"ssh_push.py: {exc.message}\n  {exc.hint}", file=sys.stderr)
            return None


# ---- The command line


def main(argv: list[str] | None = None) -> int:
    """Run the push; return its exit code: 0 done or stopped, 1 a named job failed, 2 usage, 75 later, 78 configuration."""
    args = parse(argv)
    keep_private()
    os.umask(SPOOL_UMASK)
    try:
        config = LiveConfig(find_config(args.config, args.spool))
        if args.words[:1] in (["authorize"], ["check"]):
            return ask(args, config.get())
        solver_log.check_formats(config.get())
        with the_only_push(open_store(args.spool, config, "ssh_push.py")) as store:
            log.setup(config.get().server["log"])
            return serve(Push(store, config, args.words, args.once))
    except SpoolError as exc:
        print(f"ssh_push.py: {exc.message}\n  {exc.hint}", file=sys.stderr)
        return EXIT_LATER if exc.transient else EXIT_CONFIG


def serve(push: Push) -> int:
    """Run until it is done, or SIGTERM or Ctrl+C; commands at the sites go on."""

    def stop(signum: int, frame: FrameType | None) -> None:
        push.stop.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("pushing", version=__version__)
    code = push.run()
    log.info("stopped", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main())
