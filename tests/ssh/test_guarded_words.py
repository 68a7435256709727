"""What may leave a guarded site, with the real gate: redaction, scrub, withheld logs, names and words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.rig import Rig
from components.sshd import Sshd
from components.waiting import wait_until

from .guarded import COMMANDS, Guarded, Run, parts

HIDDEN = "[withheld by the site]"
REDACTED = {"allow": "**", "logs": "redact", "redact": "key=[0-9]+\n    顧客[A-Z]+"}
LOGS = ("log/stdout.txt", "log/stderr.txt")


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Iterator[Guarded]:
    rig = Rig(tmp_path / "rig")
    yield Guarded(rig, sshd)
    rig.close()


@pytest.mark.slow
def test_a_redacted_log_that_grows(site: Guarded) -> None:
    """The secret is cut in two by a look at the log: nothing of its line leaves before the line is whole, and then redacted."""
    site.law(release=REDACTED)
    script = (
        "echo 始め; echo err key=1 >&2; printf 'a key=12'; touch half; while [ ! -e on ]; do sleep 0.05; done; "
        "echo '34 b 顧客TOYOTA'; echo x >顧客A.dat; touch whole; while [ ! -e off ]; do sleep 0.05; done"
    )
    run, wire = Run(site, script), b""
    run.to_start()
    run.good("start")
    wait_until((run.work / "half").exists, 60, "half a line is there")
    first = run.tail()
    assert first.decode() == "始め\n"
    (run.work / "on").touch()
    wait_until((run.work / "whole").exists, 60, "the whole line is there")
    second = run.tail(offset=len(first))
    assert second.decode() == f"a {HIDDEN} b {HIDDEN}\n"
    assert run.tail("log/stderr.txt").decode() == f"err {HIDDEN}\n"
    streamed = [(entry["file"], entry["start"], entry["end"]) for entry in site.audit(run.id) if entry["event"] == "sent"]
    assert streamed[:2] == [(LOGS[0], 0, len(first)), (LOGS[0], len(first), len(first + second))]
    (run.work / "off").touch()
    run.wait_exited()
    done = run.ask("finish")
    wire += done.stdout
    result = json.loads(done.stdout)["result"]
    assert "顧客" not in json.dumps(result, ensure_ascii=False), "a name is data too"
    assert result["withheld"] == ["1 file: withheld by the site"]
    done = run.get(*LOGS)
    wire += done.stdout
    assert done.stdout.decode() == f"始め\na {HIDDEN} b {HIDDEN}\nerr {HIDDEN}\n"
    for secret in ("key=", "12", "34", "TOYOTA"):
        assert secret.encode() not in first + second + done.stdout, secret
    assert "TOYOTA" not in wire.decode()
    run.over("completed")
    logs = site.control / "logs"
    assert [path.name for path in logs.iterdir()] == [run.id]
    run.folder.rename(site.site_folder / "cleaned-away")
    Run(site, "true").over("completed")
    assert list(logs.iterdir()) == [], "what is kept of a job goes with its folder"


@pytest.mark.slow
@pytest.mark.parametrize("why", ["withhold", "scrub"])
def test_logs_that_are_not_streamed(site: Guarded, why: str) -> None:
    scrub = "/bin/sh -c 'rm -f secret.dat; sed -i s/key=.*/gone/ $MINT_SPOOL_LOG/stdout.txt y.dat'"
    site.law(release={"allow": "**", **({"logs": "withhold"} if why == "withhold" else {"logs": "return", "scrub": scrub})})
    script = "echo key=1; echo key=2 >y.dat; echo s >secret.dat; touch said; while [ ! -e off ]; do sleep 0.05; done; rm said off"
    run = Run(site, script)
    run.to_start()
    run.good("start")
    wait_until((run.work / "said").exists, 60, "it has said something")
    assert run.ask("tail", parts(dict.fromkeys(LOGS, 0))).stdout == b'{"files":[]}\n'
    (run.work / "off").touch()
    run.wait_exited()
    result = run.good("finish")["result"]
    names = [entry["path"] for entry in result["files"]]
    if why == "withhold":
        assert names == ["out/secret.dat", "out/y.dat"]
        assert result["withheld"] == ["log/stdout.txt: withheld by the site", "log/stderr.txt: withheld by the site"]
        assert run.refused("get", parts({LOGS[0]: 0})) == "refused_by_site"
    else:
        assert sorted(names) == ["log/stderr.txt", "log/stdout.txt", "out/y.dat"]
        assert run.get("out/y.dat", LOGS[0]).stdout == b"gone\ngone\n"
    assert "sending" not in site.events(run.id)[:4]


@pytest.mark.slow
def test_a_scrub_that_fails_lets_nothing_leave(site: Guarded) -> None:
    site.law(release={"allow": "**", "logs": "return", "scrub": "/bin/sh -c 'echo SECRET >&2; exit 1'"})
    run = Run(site, "echo SECRET >y.dat; echo SECRET")
    run.to_exit()
    done = run.ask("finish")
    result = json.loads(done.stdout)["result"]
    assert (result["reason"], result["files"]) == ("refused_by_site", [])
    assert b"SECRET" not in done.stdout + done.stderr
    assert run.refused("get", parts({"out/y.dat": 0})) == "refused_by_site"
    assert "sending" not in site.events(run.id)


@pytest.mark.slow
def test_words_of_a_refusal_are_redacted_and_paths_stay(site: Guarded) -> None:
    """Of what goes wrong MInt hears what is made for it, without what a pattern matches; gate.log has the rest."""
    site.law({"sh": {**COMMANDS["sh"], "pre_run": "/bin/sh -c 'echo no key=77 for you >&2; exit 1'", "pre_run_words": "return"}},
             release=REDACTED)  # fmt: skip
    run = Run(site, "touch ran")
    run.good("enter", run.request())
    done = run.ask("prepare")
    told = json.loads(done.stderr)["gate_error"]
    assert (told["code"], told["message"]) == ("refused_by_site", f"the site's own check refused the job: no {HIDDEN} for you")
    assert "77" in site.audit(run.id)[-1]["why"], "the site's own log has the words themselves"
    assert site.events(run.id) == ["receipt", "refused"]
    run = Run(site, "true", {"顧客TOYOTA.env": b"1"})
    done = run.ask("enter", run.request())
    assert b"refused_by_site" in done.stderr
    assert b"TOYOTA" not in done.stderr
    assert "TOYOTA" not in json.loads(done.stderr)["gate_error"]["message"]
    run = Run(site, "true")
    run.good("enter", run.request())
    (run.folder / "job.json").write_bytes(b"{")
    done = run.ask("prepare")
    assert done.returncode != 0
    assert str(site.site_folder).encode() not in done.stderr
    assert "gate_" in (site.control / "gate.log").read_text()
