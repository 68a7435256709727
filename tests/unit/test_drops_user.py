"""Whose job a drop is: the owner of the folder, and nobody makes it look like another's (as root, who can be every uid)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.privilege import need_root
from server.spools import DECK, SITE, config, drop, new_store
from spool import staging
from spool.config import SpoolConfig
from spool.drops import Drops
from spool.files import walk
from spool.store import Store

NOBODY, BIN = 65534, 2


@pytest.fixture
def store() -> Iterator[Store]:
    need_root()
    folder = Path(tempfile.mkdtemp(prefix="mint-drops-user-"))
    folder.chmod(0o755)
    yield new_store(folder / "spool")
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture
def settings(store: Store) -> SpoolConfig:
    return config(store.paths.root.parent / "ini", {SITE: {"commands": "*"}}, drop_quiet_s=0.05, trusted_uids="1")


def owned(store: Store, uid: int, *, json_uid: int | None = None, inputs_uid: int | None = None, **keys: Any) -> Path:
    """A drop whose folder, job.json and inputs belong to these uids."""
    folder = store.paths.drop / drop(store, **keys)
    for path in folder.rglob("*"):
        os.chown(path, uid if inputs_uid is None else inputs_uid, -1)
    os.chown(folder / "job.json", uid if json_uid is None else json_uid, -1)
    os.chown(folder, uid, -1)
    return folder


def reason(store: Store, name: str) -> dict[str, Any]:
    return dict(json.loads((store.paths.rejected / name / "reason.json").read_bytes()))


@pytest.mark.parametrize(
    ("uid", "user", "mode", "group"),
    [(0, "boss", 0o770, 0), (1, "boss", 0o770, 0), (NOBODY, "nobody", 0o770, 0), (BIN, "bin", 0o770, 0),
     (NOBODY, "nobody", 0o6770, 0), (NOBODY, "nobody", 0o2770, 1), (BIN, "bin", 0o7777, 0)],
)  # fmt: skip
def test_the_owner_of_the_folder_says(
    store: Store, settings: SpoolConfig, uid: int, user: str, mode: int, group: int
) -> None:
    """This program's own uid and the trusted one may name a user; neither the setuid nor setgid bit nor a group helps."""
    folder = owned(store, uid, user="boss")
    os.chown(folder, uid, group)
    folder.chmod(mode)
    state = Drops(store).accept(folder.name, settings)
    assert state is not None
    assert state.user == user


@pytest.mark.parametrize(("folder_uid", "json_uid"), [(0, NOBODY), (1, NOBODY), (NOBODY, 0), (NOBODY, 1), (BIN, NOBODY)])
def test_a_job_json_of_another(store: Store, settings: SpoolConfig, folder_uid: int, json_uid: int) -> None:
    """A stranger's job.json in a folder of somebody trusted, or the reverse: nobody's word."""
    folder = owned(store, folder_uid, json_uid=json_uid, user="boss")
    assert Drops(store).accept(folder.name, settings) is None
    assert f"uid {folder_uid}" in reason(store, folder.name)["message"]
    assert list(store.paths.jobs.iterdir()) == []


def test_a_hard_link_to_a_job_json_of_somebody_trusted(store: Store, settings: SpoolConfig) -> None:
    other = owned(store, 1, user="boss")
    folder = owned(store, NOBODY)
    (folder / "job.json").unlink()
    os.link(other / "job.json", folder / "job.json")
    assert Drops(store).accept(folder.name, settings) is None
    assert "uid 1" in reason(store, folder.name)["message"]


def test_a_renamed_folder_is_still_its_owners(store: Store, settings: SpoolConfig) -> None:
    """Another user's folder under a new name is his; with a job.json of the thief in it, nobody's."""
    folder = owned(store, BIN, user="boss")
    mine = owned(store, NOBODY, user="boss")
    renamed = folder.rename(store.paths.drop / "1b4e28ba-2fa1-41d2-883f-0016d3cca427")
    state = Drops(store).accept(renamed.name, settings)
    assert state is not None
    assert state.user == "bin"
    folder = owned(store, BIN)
    (mine / "job.json").rename(folder / "job.json")
    assert Drops(store).accept(folder.name, settings) is None


def test_a_hard_link_to_a_secret_of_the_spool(store: Store, settings: SpoolConfig) -> None:
    """What only this program may read does not become an input of whoever can make a link to it."""
    secret = store.paths.root / "tokens.json"
    secret.write_bytes(b'{"format": 1, "tokens": []}')
    secret.chmod(0o600)
    folder = owned(store, NOBODY)
    (folder / "in" / "beam.inp").unlink()
    os.link(secret, folder / "in" / "beam.inp")
    assert Drops(store).accept(folder.name, settings) is None
    assert "hard link" in reason(store, folder.name)["message"]
    assert not list(store.paths.root.glob("jobs/*/in/*"))


@pytest.mark.parametrize("what", ["the folder", "job.json"])
def test_swapped_while_it_is_copied(
    store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What is copied says whose it is, whatever has its name before and after."""
    theirs, mine = owned(store, BIN, user="boss"), owned(store, NOBODY, outputs=["stolen.dat"])
    aside, name = store.paths.root / "aside", theirs.name

    def before(source: Path, target: Path, **more: Any) -> None:
        if what == "the folder":
            theirs.rename(aside)
            mine.rename(store.paths.drop / name)
        else:
            (theirs / "job.json").rename(aside)
            (mine / "job.json").rename(theirs / "job.json")
        try:
            real(source, target, **more)
        finally:
            if what == "the folder":
                (store.paths.drop / name).rename(mine)
                aside.rename(theirs)
            else:
                (theirs / "job.json").rename(mine / "job.json")
                aside.rename(theirs / "job.json")

    real = staging.copy_tree
    monkeypatch.setattr(staging, "copy_tree", before)
    state = Drops(store).accept(name, settings)
    if what == "the folder":
        assert state is not None
        assert (state.user, store.job(name).outputs) == ("nobody", ("stolen.dat",))
    else:
        assert state is None


def test_swapped_before_it_is_moved(store: Store, settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged as ours, then another's folder under that name: it is judged again where nobody reaches it."""
    ours, mine = owned(store, 0, user="boss"), owned(store, NOBODY, user="boss")
    real = staging.Staging.move_in

    def swap(self: staging.Staging, source: Path) -> None:
        ours.rename(store.paths.root / "aside")
        mine.rename(ours)
        real(self, source)

    monkeypatch.setattr(staging.Staging, "move_in", swap)
    state = Drops(store).accept(ours.name, settings)
    assert state is not None
    assert state.user == "nobody"


def test_no_file_of_the_drop_stays_its_submitters(store: Store, settings: SpoolConfig) -> None:
    folder = owned(store, NOBODY, inputs_uid=0)
    state = Drops(store).accept(folder.name, settings)
    assert state is not None
    job = store.paths.jobs / folder.name
    assert (job / "in" / "beam.inp").read_bytes() == DECK
    assert {info.st_uid for place in walk(job) for _, info in place.entries} == {0}
