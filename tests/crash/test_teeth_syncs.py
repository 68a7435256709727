"""What the agent, the pollers' calls and the moving to `corrupt/` acknowledge is durable, as it is for the store's operations."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from components.rig import write_ini
from crash.follow import unsynced
from server.spools import SITE, USER, new_store, quick_job
from spool import files, jsonio
from spool.agent import published_files, release, transfer
from spool.agent.config import read_config
from spool.agent.folder import LocalJob
from spool.agent.published_way import Steps, Way
from spool.errors import NotFound, Unreachable
from spool.incoming import Digests, Incoming
from spool.names import new_id
from spool.paths import JobPaths
from spool.records import FileEntry, Job, JobState
from spool.server.pollers import Pollers
from spool.states import State
from spool.streams import Stored

pytestmark = pytest.mark.filterwarnings("ignore:Warning.*:DeprecationWarning")

DATA = {"beam.inp": b"1, 2\n", "d/場.dat": b"3" * 5000}
Work = Callable[[], object]


class Served:
    """The inputs as a server hands them out, one by one or in a tar."""

    @contextlib.contextmanager
    def download(self, job_id: str, name: str, offset: int, sha256: str) -> Iterator[Iterator[bytes]]:
        yield iter([DATA.get(name, b"x")[offset:]])

    @contextlib.contextmanager
    def download_tar(self, job_id: str, after: str, max_bytes: int) -> Iterator[Any]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(10):
                info = tarfile.TarInfo(f"t/{number}")
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))
        buffer.seek(0)
        yield buffer


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def take_up(folder: Path) -> tuple[Path, Work]:
    """The agent's record of a job that it was given."""
    state = JobState(new_id(), State.CLAIMED, SITE, USER, 2, run_id=new_id())
    (folder / "base").mkdir()
    return folder / "base", lambda: LocalJob(folder / "base" / state.id).begin(state)


def fetch(folder: Path) -> tuple[Path, Work]:
    """The agent's inputs, downloaded one by one; what lies in `in.part` may be lost."""
    return fetching(folder, [entry(name, data) for name, data in DATA.items()])


def fetch_tar(folder: Path) -> tuple[Path, Work]:
    """The same from a tar."""
    return fetching(folder, [entry(f"t/{number}", b"x") for number in range(10)])


def fetching(folder: Path, inputs: list[FileEntry]) -> tuple[Path, Work]:
    paths = JobPaths(folder / "base" / new_id())
    for made in (paths.inputs, paths.folder / "in.part"):
        made.mkdir(parents=True)
    client: Any = Served()
    return paths.folder, lambda: transfer.fetch_inputs(client, "x", paths, inputs)


def let_out(folder: Path) -> tuple[Path, Work]:
    """The copies of what may leave, before the manifest that lists them."""
    paths = JobPaths(folder / "base" / new_id())
    for name, data in DATA.items():
        (paths.work / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.work / name).write_bytes(data)
    (folder / "token").write_text("the-secret-token")
    config = read_config(write_ini(folder / "agent.ini", {"release": {"allow": "**"}}))
    job = Job(site=SITE, command="c", outputs=("**",))

    def work() -> None:
        assert len(release.collect(config, job, paths).files) == len(DATA)
        files.replace_file(paths.result, b"{}")

    return paths.folder, work


def params(folder: Path) -> tuple[Path, Work]:
    """What a published server gives once."""
    inside = folder / "base" / "published"
    inside.mkdir(parents=True)

    def given(into: Path) -> dict[str, Any]:
        data = DATA["beam.inp"]
        (into / "0").write_bytes(data)
        content = Stored(into / "0", len(data), hashlib.sha256(data))
        return {"command": "c", "parameter_files": {"beam.inp": [content, "text", "utf-8"]}}

    def work() -> None:
        published_files.receive(given, inside / "params")
        assert published_files.load(inside / "params") is not None

    return folder / "base", work


def step(folder: Path) -> tuple[Path, Work]:
    """How far a job has come with a published server."""
    (folder / "base").mkdir()
    calls: Any = None
    way = Way(calls, folder / "base", Steps(new_id(), "a-1"), SITE)
    return folder / "base", lambda: way.note(trying="sending params")


def poller_results(folder: Path) -> tuple[Path, Work]:
    """The results that a published poller sends, decoded by the server."""
    store = new_store(folder / "spool")
    made = quick_job(store, outputs=("beam.dat",))
    pollers = Pollers(store, Digests())
    pollers.params(made.id, "p@x")
    pollers.received(made.id, "p@x")
    pollers.start(made.id, "p@x")
    pollers.end(made.id, "p@x", "calc end")

    def work() -> None:
        stored = {}
        scratch = store.paths.tmp / "published.x"
        scratch.mkdir()
        for number, (name, data) in enumerate(DATA.items()):
            path = scratch / str(number)
            path.write_bytes(data)
            stored[f"out/{name}"] = Stored(path, len(data), hashlib.sha256(data))
        pollers.results(made.id, "p@x", stored, {})

    return store.paths.root, work


def merged(folder: Path) -> tuple[Path, Work]:
    """Results that were moved in before a crash, and were then sent again as a group."""
    store = new_store(folder / "spool")
    paths = store.paths.job(quick_job(store).id)
    incoming = Incoming(paths.incoming / "run")
    group = [(f"out/{name}", io.BytesIO(data), len(data)) for name, data in DATA.items()]
    incoming.put_group(iter(group))
    paths.out.mkdir()
    (paths.out / "beam.inp").write_bytes(b"of the first sending")
    return store.paths.root, lambda: incoming.move_folder("out", paths.out)


def corrupt(folder: Path) -> tuple[Path, Work]:
    """A job whose record cannot be read."""
    store = new_store(folder / "spool")
    made = quick_job(store)
    store.paths.job(made.id).state.write_bytes(b"{")

    def work() -> None:
        with pytest.raises(NotFound):
            store.state(made.id)
        assert jsonio.loads((store.paths.corrupt / made.id / "reason.json").read_bytes(), "reason")

    return store.paths.root, work


CASES = (take_up, fetch, fetch_tar, let_out, params, step, poller_results, merged, corrupt)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_synced_in_time(case: Callable[[Path], tuple[Path, Work]], folder: Path) -> None:
    root, work = case(folder)
    assert unsynced(work, root, folder / "recording") == []


def test_an_input_that_was_cut_off_is_none(folder: Path) -> None:
    """By whatever cut it without saying so: it has no name in in/ before it is whole."""
    wanted = entry("beam.inp", DATA["beam.inp"] + b"and more")
    root, work = fetching(folder, [wanted])
    with pytest.raises(Unreachable):
        work()
    assert list((root / "in").iterdir()) == []


def test_params_that_were_cut_off_are_none(folder: Path) -> None:
    """They are given once: half of them must not be taken for all."""
    root, _ = params(folder)

    def cut(into: Path) -> dict[str, Any]:
        (into / "0").write_bytes(b"1")
        raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        published_files.receive(cut, root / "published" / "params")
    assert not (root / "published" / "params").exists()
