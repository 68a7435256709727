"""The product itself: its programs started from the checkout, as a user would, with ini files of their own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

from components import proc
from components.ports import free_port
from components.process import Process, clean_env, run
from components.waiting import wait_until

REPO = Path(__file__).resolve().parents[2]

Value = Union[str, int, Path, Iterable[str]]
Section = Mapping[str, Value]


def write_ini(path: Path, sections: Mapping[str, Section]) -> Path:
    """An ini file (mode 0600); a list is written one item a line."""
    lines = []
    for name, options in sections.items():
        lines.append(f"[{name}]")
        for option, value in options.items():
            text = str(value) if isinstance(value, (str, int, Path)) else "\n".join(value)
            lines.append(f"{option} = " + text.replace("\n", "\n    "))
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    path.chmod(0o600)
    return path


class Rig:
    """One MInt side and any number of sites under `root`. `close` ends all that was started, jobs included.

    `spool` is the spool's folder, `url` the server's address; both exist before the server does. Where the path of
    `root` cannot be written into an ini value (a newline), it is given on the command line or as a relative path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = root / "spool"
        self.home = root / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.env = clean_env(self.home)
        self.address, self.port = "127.0.0.1", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: list[Process] = []

    # ---- the programs

    def start_server(
        self, sites: Mapping[str, Section] | None = None, *args: str, extra: Mapping[str, Section] | None = None,
        deadline_s: float = 20, **options: Value,
    ) -> Process:  # fmt: skip
        """`spool_server.py` with `[site NAME]` sections, waiting until `GET /health` answers 200.

        `options` are those of `[server]`, `args` further arguments, `extra` further sections. Called again (after
        `stop` or `kill`) it is a restart: same spool, same port.
        """
        server: dict[str, Value] = {"listen": f"127.0.0.1:{self.port}", **options}
        process = self._start("spool_server.py", "spool.ini", {"server": server, **(extra or {})}, sites or {}, args)

        def answers() -> bool:
            assert process.running, f"the server ended with {process.popen.returncode}:\n{process.output()}"
            return self.health() == 200

        wait_until(answers, deadline_s, f"{self.url}/health answers 200")
        return process

    def start_push(
        self, sites: Mapping[str, Section], *args: str, server: Section | None = None
    ) -> Process:
        """`ssh_push.py` over the same spool; the sites say `mode = ssh`. With `--once` it ends by itself."""
        return self._start("ssh_push.py", "push.ini", {"server": server or {}}, sites, args)

    def start_agent(
        self,
        site: str,
        commands: Mapping[str, Section],
        *args: str,
        user: str = "mint",
        url: str | None = None,
        token: str | None = None,
        release: Section | None = None,
        signatures: Section | None = None,
        env: Mapping[str, str] | None = None,
        **options: Value,
    ) -> Process:
        """`spool_agent.py --config agent.ini` with `[command NAME]` sections; a started one is not known to be ready.

        Without `token` one is made on the spool for `user` (the server need not run, the spool must exist). The files
        are `root/agents/SITE/{agent.ini,token,base,log}`; calling again after a stop or a kill is a restart of that
        agent, with its token and its base. `release` is `{"allow": "*", "logs": "return"}` unless given.
        """
        folder = self.agent_folder(site)
        token_file = folder / "token"
        if token is not None or not token_file.exists():
            token_file.write_text((token or self.token(user, "agent", site=site)) + "\n")
            token_file.chmod(0o600)
        agent: dict[str, Value] = {
            "site": site,
            "url": url or self.url,
            # Relative to the ini file's folder, which is the current one too: works below any path.
            "token_file": "token",
            "base": "base",
            "slots": 2,
            **options,
        }
        sections: dict[str, Section] = {"agent": agent, "release": release or {"allow": "*", "logs": "return"}}
        sections.update({"signatures": signatures} if signatures else {})
        sections.update({f"command {name}": section for name, section in commands.items()})
        write_ini(folder / "agent.ini", sections)
        return self._run_program("spool_agent.py", ["--config", "agent.ini", *args], folder, folder / "log", env)

    def agent_folder(self, site: str) -> Path:
        """Where that site's agent lives; its `base` is in it."""
        folder = self.root / "agents" / site
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "base").mkdir(mode=0o700, exist_ok=True)
        return folder

    def spoolctl(
        self, *args: str | os.PathLike[str], spool: Path | None = None, check: bool = True, deadline_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """`tools/spoolctl --spool … ARGS` to its end."""
        return run(
            [REPO / "tools" / "spoolctl", "--spool", spool or self.spool, *args],
            env=self.env,
            cwd=self.root,
            check=check,
            deadline_s=deadline_s,
        )

    def _start(
        self, program: str, ini: str, sections: Mapping[str, Section], sites: Mapping[str, Section],
        args: Iterable[str],
    ) -> Process:  # fmt: skip
        everything = {**sections, **{f"site {name}": section for name, section in sites.items()}}
        command = ["--config", ini, *args]
        if "\n" in str(self.spool):
            command += ["--spool", str(self.spool)]
        else:
            everything["server"] = {"spool": self.spool, **everything["server"]}
        write_ini(self.root / ini, everything)
        return self._run_program(program, command, self.root, self.root / f"{Path(ini).stem}.log")

    def _run_program(
        self, program: str, args: Iterable[str], cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        process = Process([sys.executable, REPO / program, *args], log=log, env={**self.env, **(env or {})}, cwd=cwd)
        self._processes.append(process)
        return process

    def pid_of(self, program: str) -> int:
        """The process id of the running program of that file name, the latest where there are several."""
        return next(one.pid for one in reversed(self._processes) if program in str(one.popen.args) and one.running)

    # ---- what a test asks and does

    def health(self) -> int | None:
        """The status of `GET /health`, None when nothing answers."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def token(self, user: str, *roles: str, site: str | None = None) -> str:
        """A new token, in the clear."""
        wanted = [part for role in roles for part in ("--role", role)] + (["--site", site] if site else [])
        return self.spoolctl("token", "add", "--user", user, *wanted).stdout.split()[-1]

    def submit(self, site: str, command: str, *args: str | os.PathLike[str], user: str = "mint") -> str:
        """`spoolctl submit`; `args` are further options (`--in`, FILE, `--out`, GLOB, `--arg=A`). Returns the id."""
        done = self.spoolctl("submit", "--site", site, "--command", command, "--user", user, *args)
        return done.stdout.split()[-1]

    def job(self, job_id: str) -> Path:
        """The job's folder."""
        return self.spool / "jobs" / job_id

    def state(self, job_id: str) -> dict[str, Any]:
        """What `state.json` says; empty while the job is not accepted yet."""
        try:
            return dict(json.loads((self.job(job_id) / "state.json").read_bytes()))
        except FileNotFoundError:
            return {}

    def wait_state(self, job_id: str, *states: str, deadline_s: float = 30) -> dict[str, Any]:
        """Until the job is in one of `states`; returns what `state.json` says then."""
        last: dict[str, Any] = {}

        def there() -> bool:
            last.clear()
            last.update(self.state(job_id))
            return last.get("state") in states

        try:
            wait_until(there, deadline_s, f"job {job_id} is {' or '.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nstate.json: {json.dumps(last, ensure_ascii=False, indent=1)}") from None
        return last

    def close(self) -> None:
        """End the programs, then what their jobs left running: those have sessions of their own."""
        for process in self._processes:
            process.close()
        proc.kill(proc.working_in(self.root))
