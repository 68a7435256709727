"""The token file under a running server: torn, foreign, gone; revoked and expired while somebody waits or asks."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.privilege import need_root
from components.waiting import stays, wait_until
from server.client import Agent, Client, Service
from spool.instants import from_epoch
from spool.server import livefile
from spool.server.tokens import Token, TokenFile

DAMAGES = ["torn", "empty", "not JSON", "a wrong instant", "an unknown role", "no sites", "a newer format"]


def health(service: Service) -> dict[str, Any]:
    return dict(Client(service.port)("GET", "/health").json)


def damaged(whole: bytes, damage: str) -> bytes:
    value = json.loads(whole)
    first = value["tokens"][0]
    if damage == "torn":
        return whole[: len(whole) // 2]
    if damage == "empty":
        return b""
    if damage == "not JSON":
        return b"# edited\n" + whole
    if damage == "a wrong instant":
        first["expires_at"] = "tomorrow"
    elif damage == "an unknown role":
        first["roles"] = ["submiter"]
    elif damage == "no sites":
        del first["sites"]
    else:
        value["format"] = 2
    return json.dumps(value).encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_locks_nobody_out_and_lets_nobody_in(service: Service, damage: str) -> None:
    """Who counted goes on, who was revoked stays out, an unknown one is not told that it does not count; /health says so."""
    path = service.store.paths.tokens
    text, gone = service.tokens.add("carol", ["operator"], ())
    revoked = Client(service.port, text)
    service.tokens.revoke(gone.id)
    service.alice.ok("GET", "/v1/jobs")
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, damage))
    service.alice.ok("GET", "/v1/jobs")
    for other in (revoked, Client(service.port, "0" * 64)):
        other("GET", "/v1/jobs").problem(500, "configuration")
    assert "tokens.json" in str(health(service)["problems"])
    service.process.wait_for_output("event=secrets_unusable", 20)
    made = service.rig.spoolctl("token", "add", "--user", "x", "--role", "agent", check=False)
    assert made.returncode == 78, "nothing is written over what cannot be read"
    path.write_bytes(whole)
    revoked("GET", "/v1/jobs").problem(401)
    service.alice.ok("GET", "/v1/jobs")
    assert health(service)["status"] == "ok"


def test_a_file_that_is_gone_or_somebody_elses(service: Service) -> None:
    """A member of the spool's group may rename what lies in its folder; that makes nobody an operator."""
    need_root()
    path = service.store.paths.tokens
    service.alice.ok("GET", "/v1/jobs")
    forged = service.rig.root / "forged.json"
    text, _ = TokenFile(forged).add("mallory", ["operator"], ())
    mallory = Client(service.port, text)
    mine = path.read_bytes()
    os.chown(forged, 65534, -1)
    forged.replace(path)
    mallory("GET", "/v1/jobs").problem(500, "configuration")
    service.alice.ok("GET", "/v1/jobs")
    path.chmod(0o620)
    os.chown(path, 0, -1)
    mallory("GET", "/v1/jobs").problem(500, "configuration")
    path.unlink()
    assert mallory("GET", "/v1/jobs").status == service.alice("GET", "/v1/jobs").status == 500, "nobody counts"
    path.write_bytes(mine)
    path.chmod(0o600)
    service.alice.ok("GET", "/v1/jobs")
    mallory("GET", "/v1/jobs").problem(401)


def test_no_change_is_missed(tmp_path: Path) -> None:
    """Revocations one straight after the other, each counting at the next look."""
    tokens, looking = TokenFile(tmp_path / "tokens.json"), TokenFile(tmp_path / "tokens.json")
    for text, token in [tokens.add("alice", ["agent"], ()) for _ in range(20)]:
        assert looking.find(text) is not None
        tokens.revoke(token.id)
        assert looking.find(text) is None


def test_a_change_that_leaves_inode_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in place within one tick of the clock: it is read again until that tick is long over."""
    path = tmp_path / "tokens.json"
    TokenFile(path).add("alice", ["agent"], ())
    looking, real, info, age_ns = TokenFile(path), os.stat, os.stat(path), [1_000_000]
    monkeypatch.setattr(livefile.os, "stat", lambda at, **more: info if at == path else real(at, **more))
    monkeypatch.setattr(livefile.time, "time_ns", lambda: max(info.st_mtime_ns, info.st_ctime_ns) + age_ns[0])
    for name, then in (("alice", "clara"), ("clara", "maria")):
        assert looking.all()[0].user == name
        path.write_bytes(path.read_bytes().replace(name.encode(), then.encode()))
        assert looking.all()[0].user == then
    age_ns[0] = 1_000_000_000
    kept = looking.all()
    path.write_bytes(b"")
    assert looking.all() is kept, "not read at each request for ever"


def waiting(agent: Agent) -> tuple[threading.Thread, list[Any]]:
    """A sync that waits at the server, in a thread of its own."""
    answers: list[Any] = []
    body = agent.body(room=5, wait_s=25)
    thread = threading.Thread(target=lambda: answers.append(agent("POST", "/v1/sync", body, timeout_s=60)))
    thread.start()
    stays(lambda: not answers, 1.2, "it waits")
    return thread, answers


def test_revoked_while_it_waits(service: Service) -> None:
    """A waiting sync ends with 401 soon, and gets no job that comes after the revocation."""
    text, token = service.tokens.add("alice", ["agent"], ())
    thread, answers = waiting(Agent(service.port, text))
    service.tokens.revoke(token.id)
    revoked_at = time.monotonic()
    job = service.drop()
    thread.join(60)
    assert time.monotonic() - revoked_at < 15, "it is ended, not waited out"
    answers[0].problem(401, "unauthorized")
    assert service.rig.state(job)["state"] == "queued"
    assert service.agent.sync()[0]["id"] == job, "another token of that user gets it"


@pytest.mark.parametrize("change", ["expires", "loses the role", "loses the site"])
def test_it_ends_while_it_waits(service: Service, change: str) -> None:
    soon = from_epoch(time.time() + 4) if change == "expires" else ""
    text, token = service.tokens.add("alice", ["agent", "viewer"], (), expires_at=soon)
    thread, answers = waiting(Agent(service.port, text))
    if change != "expires":
        path = service.store.paths.tokens
        value = json.loads(path.read_bytes())
        one = next(one for one in value["tokens"] if one["id"] == token.id)
        one.update({"roles": ["viewer"]} if change == "loses the role" else {"sites": ["site-b"]})
        new = path.with_suffix(".new")
        new.write_text(json.dumps(value))
        new.chmod(0o600)
        new.replace(path)
    thread.join(60)
    assert answers[0].status == (401 if change == "expires" else 403)
    assert service.rig.state(service.drop())["state"] == "queued"


@pytest.mark.slow
def test_revoked_while_twenty_ask(service: Service) -> None:
    """No request that begins after `revoke` has returned is accepted."""
    for _ in range(3):
        text, token = service.tokens.add("alice", ["agent", "viewer"], ())
        seen: list[tuple[float, int]] = []
        over = threading.Event()
        client = Client(service.port, text)

        def ask(client: Client = client, seen: list[tuple[float, int]] = seen, over: threading.Event = over) -> None:
            while not over.is_set():
                began = time.monotonic()
                seen.append((began, client("GET", "/v1/jobs", timeout_s=60).status))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda seen=seen: len(seen) > 60, 60, "they ask")
            service.tokens.revoke(token.id)
            at = time.monotonic()
            wait_until(lambda seen=seen, at=at: sum(began > at for began, _ in seen) > 60, 60, "they ask on")
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert {status for began, status in seen if began > at} <= {401, 429}
        assert {status for began, status in seen if began < at} <= {200, 401, 429}
        assert any(status == 200 for _, status in seen)


def test_two_at_once_and_an_imported_one(service: Service) -> None:
    """A token is changed by adding, switching, revoking; one of another system goes on as it was."""
    first, one = service.tokens.add("alice", ["agent", "submitter"], ["site-a"])
    second, _ = service.tokens.add("alice", ["agent", "submitter"], ["site-a"])
    old, _ = service.tokens.add("alice", ["submitter", "agent"], (), text="0123456789abcdef-old-system")
    for text in (first, second, old):
        Client(service.port, text).ok("GET", "/v1/jobs")
        assert Agent(service.port, text, name=text[:8]).sync(room=0) == []
    service.tokens.revoke(one.id)
    Client(service.port, first)("GET", "/v1/jobs").problem(401)
    Client(service.port, second).ok("GET", "/v1/jobs")


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    until = "2100-01-01T00:00:00+09:00"
    _, made = tokens.add("利用者", ["agent", "agent", "viewer"], ["a", "a"], expires_at=until, via="login")
    assert made.roles == ("agent", "viewer")
    assert made.sites == ("a",)
    assert tokens.all() == (made,) == (Token.parse(made.encode()),)
