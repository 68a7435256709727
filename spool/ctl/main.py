"""spoolctl: submits jobs, follows them, fetches results, and looks after a spool.

Each command is one function here that reads like its description; the work is in the modules beside this one. `main`
is the outermost loop: the only place that turns errors into messages and exit codes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Callable

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from spool import jsonio
from spool.creation import SPOOL_UMASK
from spool.ctl import checking, exits, holding, loggingin, tokenfile, userfile
from spool.ctl.backend import Backend, Usage, Wanted
from spool.ctl.commandline import parse
from spool.ctl.fetching import fetch
from spool.ctl.folder import FolderBackend
from spool.ctl.http import Api, check_url, read_token
from spool.ctl.listing import facts_lines, facts_object, jobs_table, print_json, summary
from spool.ctl.messages import note, say, text
from spool.ctl.progress import drawing
from spool.ctl.remote import RemoteBackend
from spool.ctl.submission import fixed, job_of
from spool.ctl.waiting import LogFollower, Waiter, tell_error
from spool.errors import Busy, ConfigError, Conflict, SpoolError, from_os_error
from spool.heads import read_heads
from spool.manifest import printable
from spool.memory import keep_private
from spool.names import check_site
from spool.signatures import sign
from spool.states import FINAL, State
from spool.tls import Tls


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (`spool.ctl.exits`)."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character shows it escaped instead of ending the program
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    keep_private()
    logging.getLogger("mint-spool").addHandler(logging.NullHandler())  # people get messages, not log lines
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        args.umask = os.umask(SPOOL_UMASK)
        code = _run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        note("interrupted_plain")
        return exits.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone: `spoolctl ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    except OSError as exc:
        error = from_os_error(exc, str(exc.filename or "spoolctl"))
        tell_error(error)
        return exits.of_error(error)
    except SpoolError as exc:
        tell_error(exc)
        return exits.of_error(exc)


def _run(args: argparse.Namespace) -> int:
    if args.command_name == "check":
        return checking.run(_root(args), as_json=args.json, repair=args.repair)
    if args.command_name == "audit":
        return _audit(args, FolderBackend(_root(args)))
    if args.command_name == "token":
        return tokenfile.run(args, FolderBackend(_root(args)))
    if args.command_name == "user":
        return userfile.run(args, FolderBackend(_root(args)))
    if args.command_name == "login":
        return loggingin.run(args)
    if args.command_name in holding.COMMANDS:
        return holding.run(args, FolderBackend(_root(args)))
    commands: dict[str, Callable[[argparse.Namespace, Backend], int]] = {
        "submit": _submit, "ls": _ls, "show": _show, "wait": _wait, "logs": _logs, "fetch": _fetch, "cancel": _cancel,
        "requeue": _requeue,
    }  # fmt: skip
    return commands[args.command_name](args, _backend(args))


def _audit(args: argparse.Namespace, backend: FolderBackend) -> int:
    """Print the heads of its agents' audit logs that a site has told, oldest first."""
    path = backend.paths.heads(check_site(args.site))
    for told in read_heads(path):
        back = f" {text('audit_back', before=told['before'])}" if isinstance(told.get("before"), str) else ""
        line = f"{told['at']} {told['user']} {told['agent']} {told['head']}{back}"
        print(jsonio.dumps_line(told).decode().rstrip() if args.json else printable(line))
    if not path.exists():
        note("audit_none", site=args.site)
    return exits.DONE


def _backend(args: argparse.Namespace) -> Backend:
    if not args.url:
        return FolderBackend(_root(args))
    if args.spool is not None:
        raise Usage("--spool and --url name two places", hint="give one of them")
    if not args.token:
        raise Usage("--url needs --token @FILE", hint="an operator makes tokens: spoolctl token add")
    url = check_url(args.url, allow_http=args.allow_http)
    options = ["--url", args.url, "--token", args.token, *(["--allow-http"] if args.allow_http else [])]
    for name in ("ca_file", "client_cert", "client_key"):
        given = getattr(args, name)
        options += [f"--{name.replace('_', '-')}", given] if given else []
    options += ["--pin", " ".join(args.pin)] if args.pin else []
    if args.ca_file and not os.access(args.ca_file, os.R_OK):
        raise Usage(f"{args.ca_file} cannot be read", hint="name a file with the certificates to trust")
    own = {"client_cert": args.client_cert, "client_key": args.client_key}
    tls = Tls(ca_file=args.ca_file, bundle=DEFAULT_CA_BUNDLE_PATH, pins=args.pin, **own)
    return RemoteBackend(Api(url, read_token(args.token), tls), tuple(options))


def _root(args: argparse.Namespace) -> Path:
    if args.url:
        raise Usage(f"{args.command_name} works on the folder", hint="give --spool DIR on the computer that has it")
    root = args.spool or os.environ.get("MINT_SPOOL", "")
    if not root:
        raise ConfigError(
            "no spool was named",
            hint="give --spool DIR (the one in [server] spool of spool.ini), set MINT_SPOOL, or give --url URL --token @FILE",
        )
    return Path(root)


def _submit(args: argparse.Namespace, backend: Backend) -> int:
    if not args.wait and (args.into or args.timeout is not None or args.logs):
        raise Usage("--into, --logs and --timeout need --wait", hint="or fetch later: spoolctl fetch ID --into DIR")
    job, sources = job_of(args)
    with drawing() as progress:
        if args.sign:
            job = fixed(job, sources, progress)
    document = job.encode()
    signature = sign(document, Path(args.sign).expanduser()) if args.sign else None  # a passphrase may be asked for
    with drawing() as progress:
        state = backend.submit(job, sources, progress, document=document, signature=signature)
    if args.user and state is not None and state.user != args.user:
        note("other_user", user=state.user, wanted=args.user)
    try:
        return _wait_and_fetch(args, backend, job.id) if args.wait else exits.DONE
    finally:  # alone on the last line, also after Ctrl+C or a timeout: the job goes on
        print(job.id, flush=True)


def _wait_and_fetch(args: argparse.Namespace, backend: Backend, job_id: str) -> int:
    say("handed_in", id=job_id)
    with drawing() as progress:
        code = Waiter(backend, [job_id], from_start=True).wait(args.timeout, progress)
        if args.into and code in (exits.DONE, exits.FAILED) and backend.result(job_id) is not None:
            fetch(backend, job_id, Path(args.into), logs=args.logs, umask=args.umask, progress=progress)
    return code


def _ls(args: argparse.Namespace, backend: Backend) -> int:
    states, total = backend.jobs(Wanted(args.state, args.site, args.user, args.limit))
    if args.json:
        print_json({"jobs": [summary(state) for state in states], "total": total})
        return exits.DONE
    if states:
        print(jobs_table(states))
    else:
        note("ls_none")
    if total > len(states):
        note("ls_more", shown=len(states), total=total)
    return exits.DONE


def _show(args: argparse.Namespace, backend: Backend) -> int:
    facts = backend.facts(backend.full_id(args.id))
    if args.json:
        print_json(facts_object(facts))
    else:
        print("\n".join(facts_lines(facts)))
    return exits.DONE


def _wait(args: argparse.Namespace, backend: Backend) -> int:
    ids = [backend.full_id(given) for given in args.ids]
    with drawing() as progress:
        return Waiter(backend, ids).wait(args.timeout, progress)


def _logs(args: argparse.Namespace, backend: Backend) -> int:
    name = "stderr.txt" if args.err else "stdout.txt"
    return LogFollower(backend, backend.full_id(args.id), name).run(follow=args.follow)


def _fetch(args: argparse.Namespace, backend: Backend) -> int:
    job_id = backend.full_id(args.id)
    state = backend.look(job_id)
    if state is None or state.state not in FINAL:
        raise Busy(f"job {job_id} has not ended", hint=f"spoolctl wait {job_id}")
    with drawing() as progress:
        fetch(backend, job_id, Path(args.into), logs=args.logs, umask=args.umask, progress=progress)
    return exits.DONE


def _cancel(args: argparse.Namespace, backend: Backend) -> int:
    def cancel(job_id: str) -> None:
        state = backend.cancel(job_id)
        if state.state in FINAL and state.state != State.CANCELED:
            raise Conflict(f"job {job_id} is {state.state} already", hint="there is nothing to cancel")
        say("canceled" if state.state in FINAL else "cancel_asked", id=job_id, state=state.state)

    return _each(args.ids, backend, cancel)


def _requeue(args: argparse.Namespace, backend: Backend) -> int:
    def requeue(job_id: str) -> None:
        say("requeued", id=job_id, attempt=backend.requeue(job_id, force=args.force).attempt)

    return _each(args.ids, backend, requeue)


def _each(given: list[str], backend: Backend, act: Callable[[str], None]) -> int:
    """Act on every job; one that cannot be is told and does not stop the others."""
    codes = []
    for word in given:
        try:
            act(backend.full_id(word))
        except SpoolError as exc:
            tell_error(exc)
            codes.append(exits.of_error(exc))
    return exits.worst(codes)
