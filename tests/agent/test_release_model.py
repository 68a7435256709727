"""Any sequence of what persons, agent, MInt and an intruder do to held results: no byte leaves that was not released.

10,000 sequences and 1,000 races with MINT_EXHAUSTIVE=1, a part of them otherwise; looked for at the socket.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from agent.releasing import REVIEWERS, STRANGER, Receiver, Site, tokens_in
from components.privilege import need_root
from spool.agent import custody, holding, reviewing, snapshot
from spool.agent.decisions import REFUSE, RELEASE
from spool.agent.folder import LocalJob
from spool.agent.held import digest
from spool.errors import SpoolError
from spool.states import FINAL

ALL = os.environ.get("MINT_EXHAUSTIVE") == "1"
SEQUENCES, RACES, PARTS = (10_000, 1_000, 4) if ALL else (600, 60, 4)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    need_root()  # decisions of several users
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 1 << 10)
    monkeypatch.setattr(holding, "LOOK_S", 0.002)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power cut here, and ten thousand sequences
    made = Receiver()
    yield made
    made.close()


# What an intruder does to the snapshot. `name` is a file of the manifest.


def overwrite(site: Site, path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(site.content(size))


def replaced(site: Site, path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(site.content(path.stat().st_size))
    os.replace(other, path)


def last_byte(site: Site, path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(max(0, path.stat().st_size - 20))
        file.write(site.content(20))


def append(site: Site, path: Path) -> None:
    with open(path, "ab") as file:
        file.write(site.content(40))


def truncate(site: Site, path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def link(site: Site, path: Path) -> None:
    other = site.folder / "work" / "elsewhere"
    other.write_bytes(site.content(100))
    path.unlink()
    path.symlink_to(other)


def hard_link(site: Site, path: Path) -> None:
    other = site.folder / "work" / "linked"
    other.unlink(missing_ok=True)
    other.write_bytes(site.content(path.stat().st_size))
    path.unlink()
    os.link(other, path)


def gone(site: Site, path: Path) -> None:
    path.unlink()


EDITS = (overwrite, replaced, last_byte, append, truncate, link, hard_link, gone)


class Player:
    """One sequence of random actions on one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.random = site.random
        self.old: list[tuple[str, str]] = []  # run and manifest of earlier runs
        self.actions: list[Callable[[], None]] = [
            self.release, self.release, self.release, self.refuse, self.stranger, self.stale, self.replay, self.forged, self.edit,
            self.edit_manifest, self.put_back, self.put_back, self.works, self.works, self.restart, self.cancel, self.forget,
            self.requeue, self.edit_while_sent, self.restored, self.unconfigured,
        ]  # fmt: skip

    def play(self, steps: int) -> None:
        done = []
        for _ in range(steps):
            action = self.random.choice(self.actions)
            done.append(action.__name__)
            action()
            self.look(done)
        self.site.start()
        self.site.rests()
        self.site.leave()
        self.look(done)

    def look(self, done: list[str]) -> None:
        assert self.site.unreleased() == set(), done

    def release(self) -> None:
        """A person releases, if that is the first word of that person."""
        site = self.site
        uid = self.random.choice(REVIEWERS)
        words = {uid: RELEASE, **site.decided()}
        if list(words.values()).count(RELEASE) >= site.config.release["persons"]:
            site.let_go()  # before the agent can see it
        site.say(RELEASE, uid)

    def refuse(self) -> None:
        self.site.say(REFUSE, self.random.choice(REVIEWERS), because="no")

    def stranger(self) -> None:
        self.site.say(RELEASE, self.random.choice((STRANGER, 0)))

    def stale(self) -> None:
        self.site.say(RELEASE, self.random.choice(REVIEWERS), manifest=digest(self.site.random.randbytes(8)))

    def replay(self) -> None:
        if self.old:
            run_id, manifest = self.random.choice(self.old)
            path = self.site.say(RELEASE, REVIEWERS[0], run_id=run_id, manifest=manifest)
            os.replace(path, path.with_name(path.name.replace(run_id, self.site.run_id)))

    def forged(self) -> None:
        folder = self.site.shelf.decisions.folder
        path = folder / f"{self.site.job_id}.{self.site.run_id}.{REVIEWERS[1]}.json"
        if os.path.lexists(path):
            return
        elsewhere = self.site.say(RELEASE, STRANGER)
        way = self.random.choice(("link", "hard", "others", "copy"))
        if way == "link":
            path.symlink_to(elsewhere)
        elif way == "hard":
            os.link(elsewhere, path)
        else:
            path.write_bytes(elsewhere.read_bytes())
            if way == "others":
                os.chmod(path, 0o666)
                os.chown(path, REVIEWERS[1], -1)

    def edit(self) -> None:
        path = self.site.folder / self.random.choice(self.site.names())
        if path.is_file() and not path.is_symlink():
            self.random.choice(EDITS)(self.site, path)

    def edit_manifest(self) -> None:
        path = self.site.folder / "result.json"
        secret = self.site.folder / "out" / self.site.token().decode()
        secret.write_bytes(self.site.content(50))
        entry = f'"files": [{{"path": "out/{secret.name}", "size": 50, "sha256": "{digest(secret.read_bytes())}"}},'
        more = self.site.manifest.decode().replace('"files": [', entry, 1)
        assert secret.name in more
        path.write_text(more)

    def put_back(self) -> None:
        """Everything as it was laid out."""
        site = self.site
        if site.state() in ("held", "returning"):
            for name, data in site.laid_out.items():
                (site.folder / name).unlink(missing_ok=True)
                (site.folder / name).write_bytes(data)
            (site.folder / "result.json").write_bytes(site.manifest)

    def works(self) -> None:
        self.site.start()
        self.site.rests()

    def restart(self) -> None:
        self.site.start()
        if self.random.random() < 0.5:
            self.site.leave()

    def cancel(self) -> None:
        if self.site.carrier and self.random.random() < 0.4:
            self.site.carrier.tell("cancel")

    def forget(self) -> None:
        if self.site.carrier and self.random.random() < 0.4:
            self.site.carrier.tell("forget")

    def requeue(self) -> None:
        self.site.leave()
        self.old.append((self.site.run_id, digest(self.site.manifest)))
        self.site.new_run()

    def edit_while_sent(self) -> None:
        self.site.receiver.on_chunk = self.edit

    def restored(self) -> None:
        """MInt went back to a backup, and wants what has ended once more."""
        self.site.leave()
        local = LocalJob(self.site.folder)
        local.load()
        if local.state.state in FINAL:
            with contextlib.suppress(SpoolError):
                local.result()
            local.reopen("MInt was restored")
            self.works()

    def unconfigured(self) -> None:
        """The agent is started with hold = never: what is held stays held."""
        release = {**self.site.config.release, "hold": type(self.site.config.release["hold"])()}
        before, self.site.config.release["hold"] = self.site.config.release["hold"], release["hold"]
        self.works()
        self.site.leave()
        self.site.config.release["hold"] = before


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 300)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_sequence_lets_an_unreleased_byte_out(tmp_path: Path, receiver: Receiver, part: int) -> None:
    sent = ended = 0
    for number in range(SEQUENCES // PARTS):
        seed = part * 1_000_000 + number
        site = Site(tmp_path / str(number), receiver, seed, persons=1 + seed % 2)
        receiver.wire.clear()
        receiver.ends.clear()
        receiver.on_chunk = lambda: None
        try:
            Player(site).play(site.random.randint(3, 14))
        except AssertionError as exc:
            raise AssertionError(f"sequence {seed}: {exc}") from exc
        finally:
            site.leave()
        sent += bool(tokens_in(bytes(receiver.wire)))
        ended += bool(receiver.ends)
    print(f"release: {SEQUENCES // PARTS} sequences, {sent} of which sent results, {ended} told an end; 0 unreleased bytes")
    assert sent > SEQUENCES // PARTS // 20, "the sequences do something"
    assert ended > SEQUENCES // PARTS // 4


# Swapping while a person looks and the agent sends


class Swapper(threading.Thread):
    """Swaps one file of the snapshot for others, and back, as fast as it can."""

    def __init__(self, site: Site, seed: int) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(seed)
        self._path = site.folder / self._random.choice(site.names())
        self._good = self._path.read_bytes()
        self._bad = [site.content(max(1, len(self._good))) for _ in range(4)]
        self._elsewhere = site.folder / "work" / "elsewhere"
        self._elsewhere.write_bytes(self._bad[0])
        self._over = threading.Event()
        self.swaps = 0

    def run(self) -> None:
        temp = self._path.with_name("swapping")
        while not self._over.is_set():
            way = self._random.randrange(4)
            with contextlib.suppress(OSError):
                if way == 0:
                    temp.write_bytes(self._random.choice(self._bad))
                    os.replace(temp, self._path)
                elif way == 1:
                    temp.symlink_to(self._elsewhere)
                    os.replace(temp, self._path)
                elif way == 2 and not self._path.is_symlink():
                    with open(self._path, "r+b") as file:
                        file.write(self._random.choice(self._bad))
                temp.write_bytes(self._good)
                os.replace(temp, self._path)
            self.swaps += 1

    def end(self) -> None:
        self._over.set()
        self.join(30)


def shown(site: Site) -> str:
    """What `show` and `release` print while the files change under them, decided by the first reviewer."""
    rules: Any = custody.rules_of(site.config.release)
    desk = reviewing.Desk(site.base.folder, rules)
    out = io.StringIO()
    with contextlib.suppress(SpoolError, FileNotFoundError), contextlib.redirect_stdout(out):
        reviewing._show(desk, site.job_id)
        lying = desk.shelf.find(site.job_id)
        desk.snapshot(lying, desk.manifest(lying)).check()
    return out.getvalue()


@pytest.mark.parametrize("where", [330_000, 1_000_000])
def test_a_change_between_two_requests_never_leaves(tmp_path: Path, receiver: Receiver, where: int) -> None:
    """The file was whole when its first chunk left; what is changed then does not follow."""
    site = Site(tmp_path / "site", receiver, where)
    while not (large := [name for name, data in site.laid_out.items() if len(data) > 1 << 17]):
        site.new_run()
    target = site.folder / large[0]

    def change() -> None:
        receiver.on_chunk = lambda: None
        with open(target, "r+b") as file:  # the open file itself, not another of that name
            file.seek(where)
            file.write(site.content(5_000))

    receiver.on_chunk = lambda: change() if b"/out/%s" % target.name.encode() in receiver.wire else None
    site.let_go()
    site.say(RELEASE, REVIEWERS[0])
    site.start()
    carrier = site.carrier
    assert carrier is not None
    carrier.join(60)
    assert site.unreleased() == set()
    assert (site.state(), receiver.ends[-1]["reason"]) == ("failed", "refused_by_site")
    assert receiver.chunks
    site.leave()


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 300)
def test_swapping_while_reviewing(tmp_path: Path, receiver: Receiver) -> None:
    swaps = sent = stopped = 0
    for number in range(RACES):
        site = Site(tmp_path / str(number), receiver, number)
        receiver.wire.clear()
        site.start()
        site.rests()
        snapshot_tokens = tokens_in(site.manifest).union(*map(tokens_in, site.laid_out.values()))
        swapper = Swapper(site, number)
        swapper.start()
        try:
            text = shown(site)
            seen = {line for line in text.splitlines() if line.startswith("    | ")}
            assert tokens_in("\n".join(seen).encode()) <= snapshot_tokens, "a person sees the snapshot and nothing else"
            site.let_go()
            site.say(RELEASE, REVIEWERS[0])
            carrier = site.carrier
            assert carrier is not None
            carrier.join(60)
        finally:
            swapper.end()
        assert site.unreleased() == set(), f"race {number}"
        swaps += swapper.swaps
        sent += bool(tokens_in(bytes(receiver.wire)))
        stopped += site.state() == "failed"
        site.leave()
    print(f"release: {RACES} races, {swaps} swaps, {sent} sent something, {stopped} were stopped; 0 unreleased bytes")
    assert swaps > RACES
    assert stopped > 0
