"""`spool_agent.py gate`: the forced command of MInt's key at a guarded SSH site (docs/agent.md, "Guarded SSH sites").

sshd starts it for every session of that key and puts what the other side wanted to run into SSH_ORIGINAL_COMMAND. That text is
never run: it is one of the verbs of `spool.gate`, or it is refused. No shell, no rsync, no file name in a command line; every
verb is about one job below the site's own base, and is judged by agent.ini as for an agent that polls.

Nothing about the site is told to the other side but what a verb answers: the log goes to a file at the site.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import subprocess
import syslog
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

from spool import __version__, gate, jsonio, log
from spool.agent import release, shelf
from spool.agent.config import AgentConfig, find_config, read_config
from spool.agent.folder import Base
from spool.agent.gated_files import Later, Line, NoRoom
from spool.agent.gated_job import GatedJob
from spool.agent.gated_run import Gone, Replaced
from spool.agent.troubles import Left
from spool.errors import Busy, ConfigError, Conflict, NotAllowed, SpoolError, Unreachable, from_os_error
from spool.fields import Fields
from spool.files import read_record, replace_file
from spool.locks import file_lock
from spool.names import check_site
from spool.runner import LocalRunner, install

LOCK_S = 20.0
SPOKEN = (*release.SPOKEN, Gone, Replaced, Conflict, Later, NoRoom, Unreachable)  # made for MInt; all else stays in gate.log
Verb = Callable[[GatedJob, Line], Mapping[str, Any]]


def run(words: list[str], program: Path) -> int:
    """Answer one command; return the exit code: 0, `spool.gate.REFUSED`, or 78 where the site's configuration is at fault."""
    args = _arguments(words)
    asked = gate.parse(os.environb.get(b"SSH_ORIGINAL_COMMAND", b""))
    _forget_environment()
    if asked is None:
        return _refuse(NotAllowed("this key is for ssh_push.py alone", hint="no shell, no other command, no other transfer"))
    try:
        config = _config(args.config, program)
        base = Base(config.base)
        own_id = _open(config, base)
    except (SpoolError, OSError) as exc:  # its words name files of the site
        words_too = f" ({exc.hint})" if isinstance(exc, SpoolError) else ""
        syslog.syslog(syslog.LOG_ERR, f"spool_agent.py gate: {exc}{words_too}")
        return _refuse(ConfigError("the site's gate is not configured", hint="the site's system log says why"))
    log.setup(config.agent["log"] or base.control / "gate.log")
    try:
        line = Line(config.agent["stall_s"])
        with line.watched():
            _answer(config, base, own_id, asked, line)
        return 0
    except Left:
        return _refuse(Later("the site's operator has stopped everything", hint="it is tried again"))
    except SpoolError as exc:
        log.warning("gate_refused", job=asked.job_id, run=asked.run_id, verb=asked.verb, code=exc.code, why=exc)
        return _refuse(exc, config)
    except (OSError, subprocess.CalledProcessError, ValueError) as exc:
        log.error("gate_failed", job=asked.job_id, run=asked.run_id, verb=asked.verb, why=exc)
        told = from_os_error(exc, asked.verb) if isinstance(exc, OSError) else None
        return _refuse(told or Busy(f"{asked.verb} did not work at the site"), config)
    except Exception:  # noqa: BLE001 - outermost frame: a defect, and no traceback for the other side
        log.error("gate_failed", trace=True, job=asked.job_id, run=asked.run_id, verb=asked.verb)
        return _refuse(SpoolError(f"{asked.verb} met a defect of the gate", hint="the site's gate.log says more"))


def _forget_environment() -> None:
    """What the other side may have sent (sshd_config(5), AcceptEnv) chooses no configuration and reaches no program."""
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8", HOME=pwd.getpwuid(os.geteuid()).pw_dir)


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="spool_agent.py gate")
    parser.add_argument("--config", type=Path, metavar="INI", help="the site's agent.ini")
    return parser.parse_args(words)


def _config(given: Path | None, program: Path) -> AgentConfig:
    config = read_config(find_config(given, program))
    check_site(config.agent["site"] or "")
    return config


def _open(config: AgentConfig, base: Base) -> str:
    """Make the base ready and return its id, by which the push knows it again; a base of an agent that polls is refused."""
    base.open()
    shelf.ready(config)
    if (base.control / "agent.json").exists():
        raise ConfigError("the base belongs to an agent that polls", hint="give the gate an agent.ini with a base of its own")
    (base.control / "gate").mkdir(mode=0o700, exist_ok=True)
    path = base.control / "gate.json"
    with contextlib.suppress(FileNotFoundError):
        return Fields(jsonio.loads(read_record(path, 65536), "gate.json"), "gate.json").string("id")
    with file_lock(base.control / "lock", timeout_s=LOCK_S, mode=0o600):
        if not path.exists():
            replace_file(path, jsonio.dumps({"format": 1, "id": f"gate-{os.urandom(8).hex()}"}), mode=0o600)
    return _open(config, base)


def _answer(config: AgentConfig, base: Base, own_id: str, asked: gate.Asked, line: Line) -> None:
    if asked.verb == "hello":
        line.answer(_hello(config, base, own_id))
        return
    job = GatedJob(config, base, LocalRunner(install(base.control)), asked.job_id, asked.run_id)
    if asked.verb == "status":  # a look, while another session may have the job
        line.answer(job.status(line))
        return
    with _the_only_one(base, asked.job_id):
        if asked.verb == "get":
            job.get(line)
        elif asked.verb == "tail":
            job.tail(line)
        else:
            answer = _VERBS[asked.verb](job, line)
            line.answer({**answer, "base": own_id, "audit": str(base.audit.head())})


_VERBS: dict[str, Verb] = {
    "enter": GatedJob.enter,
    "put": GatedJob.put,
    "prepare": GatedJob.prepare,
    "start": GatedJob.start,
    "cancel": GatedJob.cancel,
    "finish": GatedJob.finish,
    "delivered": GatedJob.delivered,
}


def _hello(config: AgentConfig, base: Base, own_id: str) -> dict[str, Any]:
    """What `check` asks, and where the audit log ends. The names of commands and the site's own are agreed on anyway."""
    version = __version__ if config.agent["tell_version"] else ""
    return {"gate": gate.GATE_FORMAT, "version": version, "site": config.agent["site"],
            "commands": sorted(config.commands), "base": own_id, "audit": str(base.audit.head())}  # fmt: skip


@contextlib.contextmanager
def _the_only_one(base: Base, job_id: str) -> Iterator[None]:
    """Hold the job for this session; a session whose line is dead ends by itself after `stall_s`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(base.control / "gate" / f"{job_id}.lock", timeout_s=LOCK_S, mode=0o600))
        except Busy as exc:  # of the lock alone: what the verb is busy with it says itself
            raise Later("another session has this job in hand", hint="it is tried again") from exc
        yield


def _refuse(exc: SpoolError, config: AgentConfig | None = None) -> int:
    """Say on standard error why; with `config` only words that are made for MInt, as the site lets words leave."""
    message, hint = exc.message, exc.hint
    if config is not None:
        message = release.words(config, exc, spoken=SPOKEN)
        hint = config.redactor.text(hint) if isinstance(exc, SPOKEN) else "the site's gate.log says why"
    known = {"code": exc.code, "message": message, "hint": hint, "transient": exc.transient}
    with contextlib.suppress(OSError):
        os.write(2, jsonio.dumps_line({"gate_error": known}))
    return 78 if isinstance(exc, ConfigError) else gate.REFUSED
