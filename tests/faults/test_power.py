"""The power of MInt's machine is cut under load: whatever was acknowledged is there, and without fsync it is not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import proc
from components.figures import tell
from components.images import Image, image_of, image_with_snapshots
from components.privilege import need_root
from components.rig import Rig
from faults.ledger import Line, all_ended, lost, told
from faults.load import Load, under_load, without_fsync

EXHAUSTIVE = os.environ.get("MINT_EXHAUSTIVE") == "1"
SEED = int(os.environ.get("MINT_POWER_SEED", "20261123"))
SNAPSHOTS = 100 if EXHAUSTIVE else 8
CUTS = 25 if EXHAUSTIVE else 3
KINDS = ["ext4", "xfs", "btrfs"] if EXHAUSTIVE else ["ext4", "xfs"]
CUT_KINDS = ["ext4", "xfs"]  # btrfs has no shutdown in the kernels of today
MIN_S, MAX_S = 0.2, 1.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    need_root()
    made = Rig(tmp_path / "rig")
    yield made
    made.close()


def pids(rig: Rig) -> list[int]:
    """Every process of the rig."""
    found = {process.pid for process in rig._processes if process.running}
    return sorted(found.union(*({one.pid for one in proc.descendants(pid)} for pid in found)))


class Figures:
    def __init__(self) -> None:
        self.images = self.acknowledged = self.lost = 0

    def __str__(self) -> str:
        return f"{self.images} images, {self.acknowledged} acknowledgements asked for, {self.lost} lost"


def snapshots(image: Image, load: Load, count: int) -> list[tuple[Path, list[Line]]]:
    """Images at random moments, each with what had been acknowledged before it."""
    image.sync()
    found, pause = [], threading.Event()
    load.start()
    for number in range(count):
        pause.wait(load.random.uniform(MIN_S, MAX_S))
        acknowledged = load.ledger.copy()
        target = image.path.with_name(f"snapshot.{number}")
        image.snapshot(target)
        found.append((target, acknowledged))
    load.stop()
    return found


def losses(image: Image, taken: list[tuple[Path, list[Line]]], mount_point: Path, figures: Figures) -> list[str]:
    """What is lost in any of the images; the original is not mounted any more."""
    found = []
    for path, acknowledged in taken:
        copy = Image(path, image.kind, mount_point, fresh=False)
        copy.mount()
        try:
            missing = lost(mount_point / "spool", acknowledged)
        finally:
            copy.close()
        path.unlink()
        figures.images += 1
        figures.acknowledged += len(acknowledged)
        figures.lost += len(missing)
        found += [f"{path.name}: {line}" for line in missing]
    return found


def on_image(rig: Rig, image: Image) -> None:
    rig.spool = image.mount_point / "spool"
    rig.spool.mkdir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_is_in_every_image(kind: str, rig: Rig, tmp_path: Path) -> None:
    figures = Figures()
    with image_with_snapshots(kind, tmp_path / "disk") as image:
        on_image(rig, image)
        with under_load(rig, SEED) as load:
            taken = snapshots(image, load, SNAPSHOTS)
        image.unmount()
        found = losses(image, taken, tmp_path / "copy", figures)
    tell(f"power, snapshots of {kind}, seed {SEED}: {figures}; {dict(load.ledger.counts())}")
    assert found == [], told(found)
    assert {"finished", "requeued", "dropped", "appended", "registered"} <= set(load.ledger.counts())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_fsync_it_is_lost(rig: Rig, tmp_path: Path) -> None:
    """The teeth of the test above: the same with fsync(2) switched off in every program."""
    figures = Figures()
    with image_with_snapshots("ext4", tmp_path / "disk") as image:
        on_image(rig, image)
        without_fsync(rig)
        with under_load(rig, SEED) as load:
            taken = snapshots(image, load, 3)
        image.unmount()
        found = losses(image, taken, tmp_path / "copy", figures)
    tell(f"power, snapshots of ext4 without fsync, seed {SEED}: {figures}")
    assert found, "the crash images do not show a missing fsync"
    assert not any("the spool itself" in line for line in found), "the loss is of another kind"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", CUT_KINDS)
def test_after_a_power_cut_everything_goes_on(kind: str, rig: Rig, tmp_path: Path) -> None:
    """Cut, power back, the server started again, again and again; at the end every job ends once, and the check finds nothing."""
    figures = Figures()
    with image_of(kind, tmp_path / "disk") as image:
        on_image(rig, image)
        with under_load(rig, SEED) as load:
            for _ in range(CUTS):
                load.start()
                threading.Event().wait(load.random.uniform(MIN_S, MAX_S))
                image.cut(lambda: pids(rig))
                load.stop()
                count(figures, lost(rig.spool, load.ledger.copy()), len(load.ledger.copy()))
                load.serve()
            load.drain()
            count(figures, lost(rig.spool, load.ledger.copy()), len(load.ledger.copy()))
            assert load.server
            assert load.server.stop() == 0
            rig.spoolctl("check", "--repair", check=False)
            assert rig.spoolctl("check").returncode == 0
            count(figures, lost(rig.spool, load.ledger.copy()), len(load.ledger.copy()))
            assert all_ended(rig.spool, load.registered()) == []
    tell(f"power, cuts of {kind}, seed {SEED}: {figures}; {dict(load.ledger.counts())}")


def count(figures: Figures, missing: list[str], acknowledged: int) -> None:
    figures.images += 1
    figures.acknowledged += acknowledged
    assert missing == [], told(missing)
