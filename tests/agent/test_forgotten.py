"""What MInt has forgotten, given up or replaced: a restore from last night's backup, a frozen agent, a copied identity."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

from agent.company import Company
from components.waiting import stays, wait_until
from spool.names import new_id


def restore(company: Company, backup: Path) -> None:
    """The spool as it was, with a new epoch, as docs/operations.md says."""
    tokens = (company.rig.spool / "tokens.json").read_bytes()  # the site's token is older than the backup
    shutil.rmtree(company.rig.spool)
    shutil.copytree(backup, company.rig.spool, symlinks=True)
    path = company.rig.spool / "spool.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epoch": new_id()}))
    (company.rig.spool / "tokens.json").write_bytes(tokens)
    (company.rig.spool / "tokens.json").chmod(0o600)


def counted(company: Company, name: str = "counter") -> tuple[Path, Path, str]:
    """(counter, go, script): a command that counts its starts and waits."""
    counter, go = company.rig.root / name, company.rig.root / f"{name}.go"
    return counter, go, f"echo started >>{counter}; while ! [ -e {go} ]; do sleep 0.05; done; echo 42 >out.dat"


def test_a_job_that_the_backup_shows_as_waiting_is_not_run_twice(company: Company) -> None:
    counter, go, script = counted(company)
    job = company.sh(script, outputs=("out.dat",))
    company.is_at(job, "queued")
    server = company.rig._processes[0]
    server.stop()
    backup = company.rig.root / "backup"
    shutil.copytree(company.rig.spool, backup, symlinks=True)
    company.serve()
    company.start()
    company.is_at(job, "running")
    wait_until(counter.exists, 20, "the command runs")
    company.rig._processes[-2].kill()
    restore(company, backup)
    company.serve()
    company.is_at(job, "running")
    go.touch()
    assert company.completed(job) == {"out.dat": b"42\n"}
    assert counter.read_text() == "started\n"
    assert company.rig.state(job)["attempt"] == 1


def test_a_job_that_is_not_in_the_backup_stays_at_the_site_and_holds_no_slot(company: Company) -> None:
    counter, go, script = counted(company)
    company.rig._processes[0].stop()
    backup = company.rig.root / "backup"
    shutil.copytree(company.rig.spool, backup, symlinks=True)
    server = company.serve()
    job = company.sh(script, outputs=("out.dat",))
    company.start(slots="1")
    company.is_at(job, "running")
    wait_until(counter.exists, 20, "the command runs")
    lost = company.rig.root / "lost"
    server.kill()
    shutil.copytree(company.rig.job(job), lost / job)
    restore(company, backup)
    server = company.serve()
    go.touch()
    company.locally(job, "returning")
    assert company.agent
    company.agent.wait_for_output("event=kept", 30)
    other = company.sh("echo x >out.dat", outputs=("out.dat",))
    assert company.completed(other) == {"out.dat": b"x\n"}
    assert "event=unknown_job" in server.output()
    assert company.local_state(job) == "returning", "it is kept"
    shutil.move(str(lost / job), company.rig.job(job))  # the operator has found it in another backup
    assert company.completed(job) == {"out.dat": b"42\n"}
    assert counter.read_text() == "started\n"


def test_a_frozen_agent_wakes_after_a_requeue(company: Company) -> None:
    counter, go, script = counted(company)
    job = company.sh(script, outputs=("out.dat",))
    agent = company.start(slots="2")
    company.is_at(job, "running")
    wait_until(counter.exists, 20, "the command runs")
    first_run = company.rig.state(job)["run_id"]
    agent.signal(signal.SIGSTOP)
    go.touch()
    wait_until((company.local(job) / "run" / "exit").exists, 20, "the command has ended")
    refused = company.rig.spoolctl("requeue", job, check=False)
    assert refused.returncode != 0
    assert "--force" in refused.stderr
    company.rig.spoolctl("requeue", "--force", job)
    agent.signal(signal.SIGCONT)
    assert company.completed(job) == {"out.dat": b"42\n"}
    state = company.rig.state(job)
    assert state["attempt"] == 2
    assert state["run_id"] != first_run
    assert counter.read_text() == "started\nstarted\n", "once in each attempt"
    reasons = [json.loads(line)["why"] for line in (company.rig.job(job) / "history.jsonl").read_text().splitlines()]
    assert any("given up by" in why for why in reasons)


def test_a_late_result_is_kept_aside(company: Company) -> None:
    counter, go, script = counted(company)
    job = company.sh(script, outputs=("out.dat",))
    agent = company.start(slots="1", wait_s="1")
    company.is_at(job, "running")
    wait_until(counter.exists, 20, "the command runs")
    run_id = company.rig.state(job)["run_id"]
    wire = company.rig.pid_of("spool_server.py")
    os.kill(wire, signal.SIGSTOP)  # so that nothing is returned before the requeue
    go.touch()
    company.locally(job, "returning")
    agent.signal(signal.SIGSTOP)
    os.kill(wire, signal.SIGCONT)
    company.rig.spoolctl("requeue", "--force", job)
    agent.signal(signal.SIGCONT)
    late = company.rig.job(job) / "late" / f"{run_id}.json"
    wait_until(late.exists, 30, "the late result is kept aside")
    assert json.loads(late.read_text())["run_id"] == run_id
    assert f"late result of run {run_id}" in company.rig.spoolctl("show", job).stdout
    company.completed(job)
    assert company.result(job)["run_id"] != run_id
    assert not late.with_name(f"{company.result(job)['run_id']}.json").exists()


def test_a_base_from_another_machine_is_refused(company: Company) -> None:
    agent = company.start()
    agent.wait_for_output("event=started_agent", 20)
    agent.stop()
    (path,) = (company.folder / "base").glob(".mint-spool-*/agent.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "0123456789abcdef"}))
    again = company.start()
    assert again.wait(20) == 78
    assert "another machine" in again.output()
    assert "agent.json" in again.output()


def test_two_processes_with_one_identity_are_told(company: Company) -> None:
    """The base copied on one machine: the one that was started more often works, the other is told and takes no job."""
    first = company.start(poll_s="0.2", wait_s="1")
    first.wait_for_output("event=protocol", 20)
    counter, go, script = counted(company)
    job = company.sh(script, outputs=("out.dat",))
    company.is_at(job, "running")
    (record,) = (company.folder / "base").glob(".mint-spool-*/agent.json")
    copy = company.rig.root / "copied base"
    (copy / record.parent.name).mkdir(parents=True, mode=0o700)
    copy.chmod(0o700)
    value = json.loads(record.read_text())
    (copy / record.parent.name / "agent.json").write_text(json.dumps({**value, "generation": value["generation"] - 1}))
    second = company.start(base=copy, poll_s="0.2", wait_s="1")
    second.wait_for_output("code=twin", 20)
    stays(lambda: company.rig.state(job)["state"] == "running", 1, "the first one's job is not lost")
    second.stop()
    go.touch()
    assert company.completed(job) == {"out.dat": b"42\n"}
    assert counter.read_text() == "started\n"
