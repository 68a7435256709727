"""POST /v1/login: a token for user and password, how guesses are counted, and that a password is nowhere afterwards."""

from __future__ import annotations

import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.waiting import wait_until
from server.client import Answer, Client, Service
from spool.instants import to_epoch
from spool.server.users import UserFile

PASSWORD = "correct horse battery"
WRONG = "a wrong password"


@pytest.fixture
def users(service: Service) -> UserFile:
    """alice may log in, as submitter and agent of site-a."""
    made = UserFile(service.store.paths.users)
    made.add("alice", PASSWORD, ["submitter", "agent"], ["site-a"])
    return made


def login(service: Service, user: Any = "alice", password: Any = PASSWORD, **headers: str) -> Answer:
    body = json.dumps({"user": user, "password": password}).encode()
    return Client(service.port)("POST", "/v1/login", body, timeout_s=60, **headers)


def test_a_token_for_a_password(service: Service, users: UserFile) -> None:
    answer = login(service)
    assert answer.status == 200, answer.body
    told = answer.json
    assert (told["user"], told["roles"], told["sites"]) == ("alice", ["submitter", "agent"], ["site-a"])
    assert answer.headers["Cache-Control"] == "no-store"
    assert abs(to_epoch(told["expires_at"]) - time.time() - 30 * 86400) < 300
    client = Client(service.port, told["token"])
    client.ok("GET", "/v1/jobs")
    (token,) = (token for token in service.tokens.all() if token.id == told["id"])
    assert token.via == "login"
    service.tokens.revoke(told["id"])
    client("GET", "/v1/jobs").problem(401)
    users.add("利用者", "が" * 10, ["submitter"], ())
    assert login(service, "利用者", "か\u3099" * 10).status == 200, "the same letters in another form of Unicode"


BODIES = [
    b"", b"{}", b"[]", b'{"user": "alice"}', b'{"user": "alice", "password": 5}', b'{"user": "a b", "password": "secret-word"}',
    b'{"user": "alice", "password": "secret-word', b'{"user": "alice", "password": ""}', bytes([255]) * 20,
    b'{"user": "alice", "password": "' + b"x" * 5000 + b'"}', b'{"user": "alice", "password": "secret-word\\u0000"}',
]  # fmt: skip


def test_what_is_no_login(service: Service, users: UserFile) -> None:
    for body in BODIES:
        answer = Client(service.port)("POST", "/v1/login", body)
        answer.problem(400, "invalid_request")
        assert b"secret-word" not in answer.body
    assert "secret-word" not in service.process.output()
    Client(service.port)("POST", "/v1/login", b" " * 20_000).problem(413)
    Client(service.port)("GET", "/v1/login").problem(405)


def test_no_users_no_login(service: Service) -> None:
    login(service).problem(404)


def test_a_wrong_password_is_counted_here_only(service: Service, users: UserFile) -> None:
    """After ten the right one is refused too, from this address and for a minute; elsewhere, and another user, it is not."""
    users.add("bob", PASSWORD, ["submitter"], ())
    service.restart(trusted_proxy="127.0.0.1")
    token = login(service, X_Forwarded_For="192.0.2.1").json["token"]
    guesses = [login(service, password=f"guess number {number}", X_Forwarded_For="192.0.2.1").status for number in range(12)]
    assert guesses == [401] * 10 + [429] * 2
    refused = login(service, X_Forwarded_For="192.0.2.1")
    refused.problem(429, "too_many_tries")
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert login(service, user="bob", X_Forwarded_For="192.0.2.1").status == 200, "a colleague behind the same address"
    assert login(service, X_Forwarded_For="192.0.2.2").status == 200, "alice from elsewhere"
    assert login(service, X_Forwarded_For="192.0.2.2, 192.0.2.1").status == 429, "what a client says of itself is not believed"
    Client(service.port, token).ok("GET", "/v1/jobs", X_Forwarded_For="192.0.2.1")
    said = service.process.output()
    assert said.count("event=bad_login address=192.0.2.1 ") == 10
    assert "guess number" not in said


def test_at_once_are_no_more_guesses_than_one_by_one(service: Service, users: UserFile) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(login(service, password=WRONG).status)) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(statuses) == 40
    assert set(statuses) <= {401, 429, 503}
    assert statuses.count(401) <= 10


def test_a_good_token_is_served_while_many_log_in(service: Service, users: UserFile) -> None:
    """Derivations take their turn: two at a time, four requests in all, and the rest 503."""
    over = threading.Event()
    statuses: list[int] = []

    def guess(number: int) -> None:
        while not over.is_set():
            statuses.append(login(service, user=f"user{number}", password=WRONG).status)

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(statuses) > 20, 60, "they guess")
        for _ in range(20):
            service.alice.ok("GET", "/v1/jobs", timeout_s=20)
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert 503 in set(statuses) <= {401, 429, 503}
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    peak_kb = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    assert peak_kb < 220_000, "two derivations of 32 MiB, not one for each request"


@pytest.mark.slow
def test_the_time_tells_nothing_of_a_user(service: Service, users: UserFile) -> None:
    """An unknown user takes as long as a known one."""

    def took(user: str) -> float:
        began = time.monotonic()
        assert login(service, user=user, password=WRONG).status == 401
        return time.monotonic() - began

    pairs = [(took("alice"), took(f"stranger{number}")) for number in range(9)]
    known, unknown = (statistics.median(column) for column in zip(*pairs))
    assert unknown > 0.5 * known, (known, unknown)


def test_a_removed_user_and_a_changed_password(service: Service, users: UserFile) -> None:
    """Their tokens by login end; one that an operator gave does not."""
    first = Client(service.port, login(service).json["token"])
    given = service.client("alice", "submitter")
    secret = service.rig.root / "new"
    secret.write_text("another password\n")
    secret.chmod(0o600)
    service.rig.spoolctl("user", "passwd", "alice", "--password", f"@{secret}")
    first("GET", "/v1/jobs").problem(401)
    given.ok("GET", "/v1/jobs")
    login(service).problem(401)
    second = Client(service.port, login(service, password="another password").json["token"])
    second.ok("GET", "/v1/jobs")
    users.add("bob", PASSWORD, ["submitter"], ())
    service.rig.spoolctl("user", "remove", "alice")
    second("GET", "/v1/jobs").problem(401)
    login(service, password="another password").problem(401)


def test_no_more_tokens_than_enough(service: Service, users: UserFile) -> None:
    """The file does not grow for ever by a script that logs in each time."""
    for _ in range(20):
        service.tokens.add("alice", ["agent"], (), via="login")
    login(service).problem(409, "conflict")
    service.tokens.revoke_logins("alice")
    assert login(service).status == 200


def test_what_is_kept_of_a_password(service: Service, users: UserFile) -> None:
    login(service)
    login(service, password=PASSWORD + "x")
    held = [path for path in service.rig.root.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert held == []
    (entry,) = json.loads(service.store.paths.users.read_bytes())["users"]
    assert (entry["cost"], entry["block"], entry["parallel"]) == (32768, 8, 1)
    assert len(entry["salt"]) == 32
    assert service.store.paths.users.stat().st_mode & 0o777 == 0o600


def test_parameters_that_would_take_too_much_are_refused(service: Service, users: UserFile) -> None:
    """A file that asks for a gigabyte at each login, or for next to nothing, is not used."""
    path = service.store.paths.users
    whole = json.loads(path.read_bytes())
    wrongs: list[dict[str, Any]] = [{"cost": 2**20}, {"roles": []}]
    wrongs += [{"cost": 3 * 2**14}, {"cost": 2}, {"block": 33}, {"key": "zz"}]
    service.restart()
    for wrong in wrongs:
        path.write_text(json.dumps({**whole, "users": [{**whole["users"][0], **wrong}]}))
        assert login(service).status == 500, wrong
    path.write_text(json.dumps(whole))
    assert login(service).status == 200
