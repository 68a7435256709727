"""Hostile names through every entry of the server and the agent: what is taken lies beneath its job under that very name."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.company import Company
from components.figures import tell
from components.sshd import Sshd
from components.waiting import wait_until
from hostile.cast import Cast
from hostile.line import Told, ask, request
from hostile.names import hostile_names, must_be_refused, spellings
from hostile.routes import BASE
from hostile.surroundings import CANARY, Surroundings, holds_canary, odd_below, tree
from spool.names import is_id, new_id
from ssh.conftest import Pushed

BATCH = 20


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    made = Cast(tmp_path / "rig", drop_quiet_s="0.2")
    yield made
    made.close()


class Watch:
    """A server's spool and what lies around it, before and after."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.other = cast.store.paths.job(cast.job("completed", user="bob", site="site-b").id).folder
        self.before = tree(self.other)
        self.around = Surroundings(cast.rig.root, ["spool", "home", "spool.log"])
        self.names = hostile_names(self.around.outside)

    def check(self) -> None:
        self.around.check()
        spool = self.cast.rig.spool
        assert tree(self.other) == self.before
        assert (odd_below(spool / "jobs"), holds_canary(spool)) == ([], [])
        assert all(is_id(entry.name) for entry in (spool / "jobs").iterdir())
        assert {entry.name for entry in spool.iterdir()} <= {
            *self.cast.store.paths.FOLDERS, "spool.json", "spool.ini", "tokens.json", "tokens.json.lock",
        }  # fmt: skip
        assert not [path for path in spool.rglob("pwned") if path.is_file() and not {"in", "out"} & set(path.parts)]
        log = self.cast.process.output()
        assert "event=internal" not in log, log[log.find("event=internal") :][:3000]

    def asked(self, requests: list[tuple[str, bytes]]) -> list[Told]:
        """The answers to (method, request), sent many at a time; after one that closes the line the rest goes over another."""
        found: list[Told] = []
        for at in range(0, len(requests), BATCH):
            batch = requests[at : at + BATCH]
            while batch:
                told = ask(self.cast.port, [data for _, data in batch], methods=[method for method, _ in batch])
                if not told:  # the answer was lost with the line: the server closed it over bytes it had not read
                    told = ask(self.cast.port, [batch[0][1]], methods=[batch[0][0]])
                assert told, batch[0]
                found += told
                batch = batch[len(told) :]
        assert [one for one in found if one.status >= 500 or one.is_traced() or CANARY in one.body] == []
        return found


@pytest.mark.slow
def test_in_targets_of_requests(cast: Cast) -> None:
    """As the id of a job, an input, a result and a log; in five spellings; to be read, asked for and written."""
    watch, job, fresh = Watch(cast), cast.job("running"), cast.job("fresh")
    token, more = cast.token_of("submitter and agent"), {"Upload-Offset": "0"}
    requests: list[tuple[str, bytes]] = []
    for number, name in enumerate(watch.names):
        for way, spelling in enumerate(spellings(name)):
            targets = [
                ("GET", b"/v1/jobs/%b" % spelling), ("GET", b"/v1/jobs/%b/files/in/%b" % (job.id.encode(), spelling)),
                ("PATCH", b"/v1/jobs/%b/files/out/%b?run_id=%b" % (job.id.encode(), spelling, job.run_id.encode())),
                ("PATCH", b"/v1/jobs/%b/files/in/%b" % (fresh.id.encode(), spelling)), ("POST", b"/v1/jobs/%b/cancel" % spelling),
                ("HEAD", b"/v1/jobs/%b/files/log/%b?run_id=%b" % (job.id.encode(), spelling, job.run_id.encode())),
                ("GET", BASE.encode() + b"/calc-status?accept_id=%b" % spelling), ("GET", b"/%b" % spelling),
            ]  # fmt: skip
            # Each name is written as it is; the other ways and spellings take turns.
            for method, target in {targets[2] if way < 2 else targets[0], targets[(number + way) % len(targets)]}:
                body = b"evil" if method == "PATCH" else b""
                requests.append((method, request(method, target, body, more if body else {}, token=token)))
    told = watch.asked(requests)
    taken = cast.store.paths.job(job.id).incoming_of(job.run_id) / "files" / "out"
    here = sorted(str(path.relative_to(taken)) for path in taken.rglob("*") if path.is_file())
    assert [name for name in here if must_be_refused(name)] == []
    assert len(here) > 50
    watch.check()
    statuses = sorted({one.status for one in told})
    tell(f"hostile: {len(watch.names)} names in {len(requests)} targets ({statuses}): {len(here)} files, in the job; 0 escapes")


@pytest.mark.slow
def test_in_documents(cast: Cast) -> None:
    """As inputs, outputs, id, site, user and command of a job.json, in a manifest, and in both protocols' bodies."""
    watch, job = Watch(cast), cast.job("running")
    token = cast.token_of("submitter and agent")
    requests: list[tuple[str, bytes]] = []
    named: list[str] = []

    def post(path: str, name: str, value: object) -> None:
        requests.append(("POST", request("POST", path, json.dumps(value).encode(), token=token)))
        named.append(name)

    entry = {"size": 4, "sha256": "0" * 64}
    for number, name in enumerate(watch.names):
        asked = {"site": "site-a", "command": "ccx"}
        post("/v1/jobs", name, {**asked, "inputs": [name, {"path": "ok", **entry}], "outputs": [name]})
        result = {"format": 1, "id": job.id, "run_id": job.run_id, "attempt": 1, "exit_code": 0}
        post(f"/v1/jobs/{job.id}/finish", name, {**result, "files": [{"path": f"out/{name}", **entry}]})
        calc = {"remote-site": "site-a", "command": "ccx", "parameter_files": {name: ["ZXZpbA==", "t", "c"]},
            "result_files": {name: {}}}
        post(f"{BASE}/add-calcinfo", "", {"calc-info": calc})
        post(f"{BASE}/send-results", "", {"accept_id": job.id, "site_id": "site-a",
            "result_files": {name: {"content": "ZXZpbA=="}}})
        key = ("id", "site", "user", "command", "workflow", "expires_at")[number % 6]
        post("/v1/jobs", "", {**asked, key: name})
        post("/v1/sync", "", {"site": name if number % 2 else "site-a", "agent": "a" if number % 2 else name, "room": 0})
    told = watch.asked(requests)
    taken = [name for name, one in zip(named, told) if one.status in (200, 201) and name]
    assert [name for name in taken if must_be_refused(name)] == []
    assert len(set(taken)) > 50
    watch.check()
    tell(f"hostile: {len(watch.names)} names in {len(requests)} documents: 0 escapes")


@pytest.mark.slow
def test_in_drops(cast: Cast) -> None:
    """As the folder, as files in `in/`, as names in job.json; renamed into place, and written in place with job.json last."""
    watch = Watch(cast)
    paths, made, total = cast.store.paths, {}, 0
    for number, name in enumerate(watch.names):
        job_id = new_id()
        folder = paths.drop / job_id if number % 2 else paths.tmp / f"made.{job_id}"
        _write_drop(folder, name, watch.around.outside, link=number % 5 == 0)
        if not number % 2:
            folder.rename(paths.drop / job_id)
        made[job_id] = name
        if "/" not in name and not name.startswith("."):
            total += _name_a_drop(paths.drop, paths.tmp / f"odd.{number}", name)
    wait_until(lambda: [name for name in os.listdir(paths.drop) if not name.startswith(".")] == [], 60, "every drop is judged")
    accepted = {job_id: made[job_id] for job_id in os.listdir(paths.jobs) if job_id in made}
    assert [name for name in accepted.values() if must_be_refused(name)] == []
    assert len(accepted) > 50
    for job_id in accepted:
        assert [entry.path for entry in cast.store.state(job_id).inputs] == [made[job_id]]
    watch.around.check()
    assert (odd_below(paths.jobs), holds_canary(cast.rig.spool)) == ([], [])
    assert "event=drop_failed" not in cast.process.output()
    tell(f"hostile: {len(made) + total} drops: {len(accepted)} taken in, {len(os.listdir(paths.rejected))} rejected; 0 escapes")


def _name_a_drop(drop: Path, odd: Path, name: str) -> bool:
    os.mkdir(odd)
    (odd / "job.json").write_text('{"site": "site-a", "command": "ccx"}')
    try:
        os.rename(odd, os.path.join(os.fsencode(drop), name.encode("utf-8", "surrogatepass")))
        return True
    except (OSError, ValueError):  # no file system takes it
        return False


def _write_drop(folder: Path, name: str, outside: Path, *, link: bool) -> None:
    (folder / "in").mkdir(parents=True)
    path = os.path.join(os.fsencode(folder / "in"), name.encode("utf-8", "surrogatepass"))
    inside = not must_be_refused(name)  # what leads out is not written by the test itself
    with contextlib.suppress(OSError, ValueError):
        if inside or ("/" not in name and name not in ("", ".", "..")):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if link and not inside:
                os.symlink(os.fsencode(outside / "beam.inp"), path)
            else:
                with open(path, "xb") as file:
                    file.write(b"evil")
    (folder / "job.json").write_text(json.dumps({"site": "site-a", "command": "ccx", "user": "alice", "inputs": [name]}))


SCRIPT = """
import json, os, socket, sys
names, outside = json.load(open(sys.argv[1])), sys.argv[2]
for at, name in enumerate(names):
    try:
        data = name.encode("utf-8", "surrogatepass")
        if data.startswith(b"/") or b".." in data.split(b"/"):
            continue
        if os.path.dirname(data):
            os.makedirs(os.path.dirname(data), exist_ok=True)
        if at % 4 == 1:
            os.symlink(os.path.join(outside, "beam.dat"), data)
        elif at % 8 == 2:
            os.mkfifo(data)
        else:
            open(data, "xb").write(b"result")
    except (OSError, ValueError, RecursionError):
        pass
os.symlink(outside, "linked folder")
os.symlink("/", "root")
os.symlink(os.path.join(outside, "pwned"), "pwned.link")
socket.socket(socket.AF_UNIX).bind("sock")
"""


def _plant(folder: Path, names: list[str], outside: Path) -> str:
    """A program in `folder` that leaves those names, and links to what is outside, in the folder it runs in."""
    (folder / "plant.py").write_text(SCRIPT)
    (folder / "names.json").write_text(json.dumps(names))
    program = folder / "plant.sh"
    program.write_text(f"#!/bin/sh\nexec python3 '{folder}/plant.py' '{folder}/names.json' '{outside}'\n")
    program.chmod(0o755)
    return str(program)


def _judge(out: dict[str, bytes], result: dict[str, object], around: Surroundings) -> None:
    assert len(out) > 40
    assert {name for name in out if must_be_refused(name)} == set()
    assert set(out.values()) <= {b"result"}
    not_carried = result["not_carried"]
    assert isinstance(not_carried, list)
    assert {"pwned.link: is a symbolic link"} <= set(not_carried) or {"pwned.link: is not a regular file"} <= set(not_carried)
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", str(item)) for item in not_carried)
    around.check()


@pytest.mark.slow
def test_names_that_a_command_leaves(tmp_path: Path) -> None:
    """A hostile command at a site with an agent: what comes back are its plain files, under names that can be carried."""
    company = Company(tmp_path / "rig")
    try:
        around = Surroundings(tmp_path, ["rig"])
        names = hostile_names(around.outside)
        company.commands = {"plant": {"argv": _plant(company.rig.root, names, around.outside)}}
        company.serve()
        job_id = company.drop("plant", outputs=("**",))
        company.start()
        assert company.ended(job_id, 60)["state"] == "completed"
        _judge(company.out(job_id), company.result(job_id), around)
        assert (odd_below(company.rig.job(job_id)), holds_canary(company.rig.spool)) == ([], [])
        tell(f"hostile: a command's {len(names)} names at an agent: {len(company.out(job_id))} came back; 0 escapes")
    finally:
        company.close()


@pytest.mark.slow
def test_names_that_an_ssh_site_leaves(push: Pushed, sshd: Sshd, tmp_path: Path) -> None:
    """The same at a site without an agent: rsync fetches by name, what it brings is judged here."""
    around = Surroundings(tmp_path, ["rig"])
    names = hostile_names(around.outside)
    command = _plant(sshd.home, names, around.outside)
    push.start()
    job_id = push.drop(command, outputs=["**"])
    assert push.ended(job_id)["state"] == "completed"
    _judge(push.out(job_id), push.result(job_id), around)
    assert (odd_below(push.rig.job(job_id)), holds_canary(push.rig.spool)) == ([], [])
    tell(f"hostile: a command's {len(names)} names at an SSH site: {len(push.out(job_id))} came back; 0 escapes")


def test_enough_names(tmp_path: Path) -> None:
    names = hostile_names(tmp_path)
    assert len(names) >= 250
    assert sum(map(must_be_refused, names)) > 120
    assert must_be_refused("a/../b")
    assert not must_be_refused("梁.inp")
