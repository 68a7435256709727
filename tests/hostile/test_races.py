"""A folder or a file is swapped with a link to the outside while it is opened: nothing of the outside is read or written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from components.figures import tell
from components.waiting import wait_until
from hostile.cast import Cast
from hostile.line import ask, request
from hostile.routes import out_tar
from hostile.surroundings import CANARY, NAMES, Surroundings, holds_canary
from hostile.swapper import Racer, exchange
from server.spools import config, job_json, new_store
from spool.agent.config import AgentConfig, read_config
from spool.agent.release import collect
from spool.copying import copy_tree
from spool.drops import Drops
from spool.errors import SpoolError
from spool.files import open_beneath, walk
from spool.manifest import hash_files, list_files
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import Job

TOTAL = 10_000 if os.environ.get("MINT_EXHAUSTIVE") == "1" else 500
KINDS = 11  # below, each `rounds` times
ROUNDS = -(-TOTAL // KINDS)
_raced: list[int] = []


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    made = Surroundings(tmp_path, ["inside"])
    yield made
    made.check()


def inside(around: Surroundings, name: str = "work") -> Path:
    """A folder that holds what `outside` holds, by the same names, with other contents."""
    folder = around.root / "inside" / name
    for file in NAMES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"mine " + file.encode())
    return folder


@pytest.fixture(scope="module")
def racer() -> Iterator[Racer]:
    with Racer() as made:
        yield made


def swapped_since(racer: Racer, before: int) -> None:
    """Until there was a swap since `before` were counted."""
    wait_until(lambda: racer.swaps > before, 60, "a swap", every_s=0)


def race(racer: Racer, place: Path, target: Path, attempt: Callable[[], object], rounds: int = ROUNDS) -> None:
    """Try `rounds` times while `place` is by turns itself and a link to `target`; whatever is refused, each round sees a swap."""
    link, tries = place.parent.parent / f"apart.{new_id()}", 0
    link.symlink_to(target)
    racer.go(place, link)
    try:
        while tries < rounds:
            before = racer.swaps
            with contextlib.suppress(SpoolError, OSError):
                attempt()
            tries += 1
            swapped_since(racer, before)
    finally:
        racer.rest()
        if place.is_symlink():
            exchange(place, link)
        link.unlink()
    _raced.append(rounds)


PLACES = [("file", "beam.dat", "beam.dat"), ("folder", "sub", "sub"), ("whole", "", "")]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "target"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES])
def test_opening_beneath(racer: Racer, around: Surroundings, place: str, target: str) -> None:
    """Reading and writing a name in a folder in which a file, a folder, or which itself is swapped."""
    folder = inside(around)
    name = "sub/beam.dat" if place != "beam.dat" else place

    def attempt() -> None:
        fd = open_beneath(folder, name, os.O_RDWR)
        try:
            assert CANARY not in os.read(fd, 100)
            os.pwrite(fd, b"mine", 0)
        finally:
            os.close(fd)

    race(racer, folder / place if place else folder, around.outside / target, attempt)
    around.check()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sub", ""], ids=["folder", "whole"])
def test_walking_copying_hashing(racer: Racer, around: Surroundings, place: str) -> None:
    folder, copies = inside(around), around.root / "inside" / "copies"
    copies.mkdir()
    outside = {(info.st_dev, info.st_ino) for info in map(os.stat, (around.outside / name for name in NAMES))}

    def attempt() -> None:
        for found in walk(folder):
            assert not {(info.st_dev, info.st_ino) for _, info in found.entries} & outside
        hash_files(folder, list_files(folder).files)
        copy_tree(folder, copies / new_id())

    race(racer, folder / place if place else folder, around.outside / place, attempt)
    assert holds_canary(copies) == []


def _agent(root: Path) -> AgentConfig:
    (root / "token").write_text("t" * 64)
    (root / "token").chmod(0o600)
    ini = root / "agent.ini"
    base = f"[agent]\nsite = site-a\nurl = http://127.0.0.1:1\ntoken_file = {root}/token\nbase = {root}/base\n"
    ini.write_text(base + "[release]\nallow = **\nlogs = return\n")
    ini.chmod(0o600)
    return read_config(ini)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "target"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES])
def test_release(racer: Racer, around: Surroundings, place: str, target: str) -> None:
    """What a process that the command left behind swaps in `work/` while the agent copies from there."""
    paths = JobPaths(around.root / "inside" / "job")
    inside(around, "job/work")
    agent = _agent(around.root / "inside")
    job = Job(site="site-a", command="x", outputs=("**",))

    def attempt() -> None:
        collect(agent, job, paths)
        assert holds_canary(paths.out) == []

    race(racer, paths.work / place if place else paths.work, around.outside / target, attempt)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sub/beam.inp", "sub", "in"], ids=["file", "folder", "in"])
def test_drops(racer: Racer, around: Surroundings, place: str) -> None:
    """A submitter swaps in the drop while it is taken in; every tenth is a folder of another uid, which is copied."""
    store = new_store(around.root / "inside" / "spool")
    settings = config(around.root / "inside" / "ini", drop_quiet_s="0.05")
    drops = Drops(store)
    rounds = -(-ROUNDS // 3)
    for number in range(rounds):
        name = new_id()
        folder = store.paths.drop / name
        (folder / "in" / "sub").mkdir(parents=True)
        (folder / "in" / "sub" / "beam.inp").write_bytes(b"mine")
        (folder / "job.json").write_bytes(job_json(inputs=["sub/beam.inp"]))
        if number % 10 == 0:
            os.chown(folder, 65534, -1)
        target = around.outside if place == "in" else around.outside / place
        swapped = folder / place if place == "in" else folder / "in" / place
        apart = around.root / "inside" / f"apart.{number}"
        apart.symlink_to(target)
        before = racer.swaps
        racer.go(swapped, apart)
        swapped_since(racer, before)
        with contextlib.suppress(SpoolError, OSError):
            drops.accept(name, settings)
        racer.rest()
    assert holds_canary(store.paths.root) == []
    _raced.append(rounds)
    drops.close()


@pytest.mark.slow
def test_the_server(racer: Racer, tmp_path: Path) -> None:
    """Downloads and uploads of a job whose folders are swapped meanwhile, over the wire."""
    cast = Cast(tmp_path / "rig")
    try:
        around = Surroundings(tmp_path, ["rig"])
        token = cast.token_of("submitter and agent")
        for target in NAMES[:2]:  # the names that requests ask for
            (around.outside / target).write_bytes(CANARY)
        for name in ("out", "in", "canary-of-a-job.inp", "canary-of-a-job.dat"):
            (around.outside / name).write_bytes(CANARY) if "." in name else (around.outside / name).mkdir()
            if "." not in name:
                for file in ("canary-of-a-job.inp", "canary-of-a-job.dat", "small.txt"):
                    (around.outside / name / file).write_bytes(CANARY)
        around.before = around.snapshot()
        done, running = cast.job("completed"), cast.job("running")
        files = cast.store.paths.job(running.id).incoming_of(running.run_id) / "files"
        put = [
            request("PATCH", f"/v1/jobs/{running.id}/files/out/{NAMES[1]}?run_id={running.run_id}", b"evil",
                {"Upload-Offset": "0"}, token=token),
            request("POST", f"/v1/jobs/{running.id}/files/out.tar?run_id={running.run_id}", out_tar(), token=token),
        ]  # fmt: skip
        ask(cast.port, put, methods=["PATCH", "POST"])
        get = [request("GET", f"/v1/jobs/{done.id}/{what}", token=token) for what in ("files/in/canary-of-a-job.inp", "in.tar")]
        get += [request("GET", f"/v1/jobs/{done.id}/files/out/canary-of-a-job.dat", token=token)]
        folder = cast.store.paths.job(done.id).folder

        def reading() -> None:
            for told in ask(cast.port, get, methods=["GET"] * 3):
                assert CANARY not in told.body

        def writing() -> None:
            ask(cast.port, put, methods=["PATCH", "POST"])

        rounds = -(-ROUNDS // 3)
        race(racer, folder / "in" / "canary-of-a-job.inp", around.outside / "canary-of-a-job.inp", reading, rounds)
        race(racer, folder / "in", around.outside / "in", reading, rounds)
        race(racer, folder / "out", around.outside / "out", reading, rounds)
        race(racer, files / "out", around.outside / "out", writing, rounds)
        race(racer, files / "out" / NAMES[1], around.outside / "out" / "small.txt", writing, rounds)
        around.check()
        log = cast.process.output()
        assert "event=internal" not in log, log[log.find("event=internal") - 100 :][:3000]
    finally:
        cast.close()
    tell(f"hostile: {sum(_raced)} swaps raced here (of {TOTAL} over all workers): 0 escapes")
