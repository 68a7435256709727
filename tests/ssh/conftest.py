"""A spool, a push and a real sshd as the site's: jobs are handed in as drops, as a workflow module does."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from components.process import Process
from components.rig import Rig, Value
from components.sshd import Sshd
from components.waiting import wait_until
from spool.store import Store

MakePush = Callable[..., "Pushed"]


class Pushed:
    """One site behind `sshd`, and the push. `options` are those of ``[site site]``; `base` is the folder at the site."""

    def __init__(self, rig: Rig, sshd: Sshd, base: Path, options: Mapping[str, Value]) -> None:
        self.rig = rig
        self.sshd = sshd
        self.base = base
        self.options: dict[str, Value] = {
            "mode": "ssh", "host": sshd.name, "ssh_config": sshd.ssh_config, "base": base, "commands": "*", **options,
        }  # fmt: skip

    def start(self, *args: str) -> Process:
        """`ssh_push.py`, waiting until it is at work (or has ended, with `--once`)."""
        process = self.rig.start_push({"site": self.options}, *args)
        wait_until(lambda: not process.running or (self.rig.spool / "spool.json").exists(), 20, "the spool is there")
        return process

    def once(self, *ids: str, deadline_s: float = 60) -> int:
        return self.start("--once", *ids).wait(deadline_s)

    def drop(self, command: str, *args: str, inputs: Mapping[str, bytes] | None = None, **more: Any) -> str:
        """Hand a job in; returns its id."""
        job_id = str(uuid.uuid4())
        folder = self.rig.spool / "tmp" / f"made.{job_id}"
        for name, data in (inputs or {}).items():
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (folder / "in").mkdir(parents=True, exist_ok=True)
        job = {"site": "site", "command": command, "args": list(args), "inputs": list(inputs or {}), "user": "mint", **more}
        (folder / "job.json").write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        drop = self.rig.spool / "drop"
        wait_until(drop.exists, 10, "drop/ is there")
        folder.rename(drop / job_id)
        return job_id

    def sh(self, script: str, **more: Any) -> str:
        return self.drop("sh", "-c", script, **more)

    def store(self) -> Store:
        return Store.open(self.rig.spool)

    def ended(self, job_id: str, deadline_s: float = 60) -> dict[str, Any]:
        return self.rig.wait_state(job_id, "completed", "failed", "canceled", "expired", deadline_s=deadline_s)

    def result(self, job_id: str) -> dict[str, Any]:
        return dict(json.loads((self.rig.job(job_id) / "result.json").read_bytes()))

    def out(self, job_id: str) -> dict[str, bytes]:
        """What came back: contents by name."""
        folder = self.rig.job(job_id) / "out"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}

    def log(self, job_id: str, name: str = "stdout.txt") -> str:
        return (self.rig.job(job_id) / "log" / name).read_text(encoding="utf-8")

    def there(self, job_id: str) -> Path:
        """The job's folder at the site."""
        return self.base / job_id


@pytest.fixture
def make_push(tmp_path: Path) -> Iterator[MakePush]:
    """`make_push(sshd, root=None, base=None, **site_options)`."""
    rigs: list[Rig] = []

    def make(sshd: Sshd, root: Path | None = None, base: Path | None = None, **options: Value) -> Pushed:
        rigs.append(Rig((root or tmp_path) / "rig"))
        return Pushed(rigs[-1], sshd, base or sshd.home / "base", options)

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def push(make_push: MakePush, sshd: Sshd) -> Pushed:
    """A site without `program`; nothing is started yet."""
    return make_push(sshd)


def lines(path: Path) -> Sequence[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
