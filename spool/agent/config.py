"""agent.ini: the site's law and the agent's settings (etc/agent.ini shows every option).

Relative paths are relative to the ini file's folder. Without any command nothing runs; without `allow` nothing leaves.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spool import options as o
from spool.addresses import is_loopback
from spool.agent.conditions import Hold, hold
from spool.agent.params import Param, declare
from spool.agent.redaction import Redactor
from spool.errors import ConfigError, SpoolError
from spool.names import check_env_name, check_site, check_user
from spool.options import Option, Section
from spool.tls import read_pins


def paths(value: str) -> tuple[Path, ...]:
    """Paths, split at blanks and newlines."""
    return tuple(map(o.path, value.split()))


AGENT = Section(
    "agent",
    (
        Option("site", o.text, "", "this site's identifier, as MInt's operators gave it", "nims-dev"),
        Option("url", o.text, "", "the server, such as https://mint.example.jp:50443"),
        Option("token_file", o.path, None, "file of mode 0600 that holds the token alone", "/etc/mint-spool/token"),
        Option("base", o.path, Path("/var/lib/mint-spool"), "folder that gets one folder a job", "/var/lib/mint-spool"),
        Option("slots", o.integer(1, 1000), 1, "jobs in hand at a time"),
        Option("ca_file", o.path, None, "PEM file of the authorities to trust; none: the system's"),
        Option("pin_sha256", read_pins, (), "SHA-256 of the server's public key, two while it changes: no other is spoken to"),
        Option("pin_only", o.boolean, False, "yes: the pin stands for the authorities: issuer, name and dates are not asked"),
        Option("client_cert", o.path, None, "PEM file of the certificate that is shown where the server wants one"),
        Option("client_key", o.path, None, "its key, mode 0600 and without password; none: it is in client_cert"),
        Option("allow_http", o.boolean, False, "speak plain http to another host than loopback"),
        Option("wait_s", o.integer(0, 25), 25, "seconds a sync may wait at the server for a new job; 0: poll only"),
        Option("poll_s", o.seconds(0.05, 3600), 15.0, "seconds between syncs where waiting is not possible"),
        Option("heartbeat_s", o.seconds(0.05, 600), 60.0, "longest time between syncs while jobs are in hand"),
        Option("once_wait_s", o.seconds(0, 3600), 5.0, "--once: seconds a pass waits for commands before it leaves them running"),
        Option("cancel_grace_s", o.integer(0, 3600), 10, "seconds between TERM and KILL of a canceled command"),
        Option("stall_s", o.integer(4, 3600), 60, "seconds without a sign of life after which a line counts as cut"),
        Option("chunk", o.size_from(64 * 1024), 16 * 1024 * 1024, "bytes sent in one request", "16M"),
        Option("min_free", o.size, 64 * 1024 * 1024, "bytes that must stay free below base; less: no new job", "64M"),
        Option("tell_version", o.boolean, False, "tell MInt which release this agent is"),
        Option("log", o.path, None, "file that gets the log lines; none: standard error", "/var/log/mint-spool/agent.log"),
    ),
    meaning="who this agent is and where it works",
)

RELEASE = Section(
    "release",
    (
        Option("allow", o.words, (), "patterns of output names that may leave; none: nothing leaves", "*.dat *.frd"),
        Option("deny", o.words, (), "patterns of output names that never leave, whatever allow says", "*.inp"),
        Option(
            "logs", o.choice("withhold", "redact", "return"), "withhold",
            "stdout and stderr: stay at the site, are returned without what redact matches, or are returned",
        ),
        Option(
            "redact", o.patterns, (),
            "regular expressions, one a line; what they match leaves in no log (logs = redact), name or message",
            "license=[^ ]*",
        ),
        Option("scrub", o.argv, (), "command line that is run in work/ before anything is measured", "/opt/site/scrub --strict"),
        Option("scrub_timeout_s", o.integer(1, 86400), 600, "seconds that scrub may take; longer: nothing leaves"),
        Option("max_bytes", o.size, None, "most bytes that one job may return; more: the job's results are refused", "10G"),
        Option("max_files", o.integer(1, 10**7), None, "most files that one job may return", "1000"),
        Option("hold", hold, Hold(), "never, always, or when: COND…: results wait at the site for a person's release", "always"),
        Option("reviewers", o.words, (), "users of this host who may decide; none: the agent's own account", "sato suzuki"),
        Option("reviewers_group", o.text, "", "group of this host that may read what is held; needed with reviewers", "release"),
        Option("persons", o.integer(1, 2), 1, "persons who must say release; one who refuses is enough"),
        Option("not_submitter", o.boolean, False, "the job's user is none of those who decide on it"),
        Option("warn_table", paths, (), "files with a confidential table: reviewers are told of an output with a line of it"),
    ),
    meaning="what may leave the site",
)

SIGNATURES = Section(
    "signatures",
    (
        Option("required", o.boolean, False, "yes: only jobs run that are signed by their user's own key"),
        Option(
            "allowed_signers", o.path, None,
            "who may sign: a user, then his public key, a line (ssh-keygen(1)); none: signatures are not looked at",
            "/etc/mint-spool/allowed_signers",
        ),
        Option("revoked", o.path, None, "keys that do not count any more: public keys, or a KRL of ssh-keygen -k"),
    ),
    meaning="signed jobs: who says so",
)  # fmt: skip

COMMAND = Section(
    "command",
    (
        Option("argv", o.argv, (), "the command line; {args}: the job's arguments, {NAME}: one of them", "/usr/bin/ccx {args}"),
        Option("args", o.pattern, None, "regular expression that each argument must match as a whole; none: no arguments"),
        Option("sha256", o.pins, (), "PATH DIGEST, one a line: files pinned to this SHA-256", f"/usr/bin/ccx {'0' * 64}"),
        Option("users", o.words, (), "users whose jobs may run it; empty: every user"),
        Option("inputs_allow", o.words, ("**",), "patterns of input names; dotfiles and *.env need a pattern of their own"),
        Option("max_inputs", o.integer(0, 10**7), None, "most input files of one job", "100"),
        Option("max_input_bytes", o.size, None, "most bytes of all input files of one job", "1G"),
        Option("min_free", o.size, None, "bytes that must stay free below base beside the job's inputs; less: refused", "10G"),
        Option("env_allow", o.words, (), "names of a job's env that are passed on", "OMP_NUM_THREADS"),
        Option("wall_time_s", o.integer(1, 10**8), None, "seconds after which the command is stopped; a job may ask for less"),
        Option("pre_run", o.argv, (), "a program of the site's own that may refuse a job", "/etc/mint-spool/pre_run"),
        Option("pre_run_s", o.integer(1, 86400), 60, "seconds after which a pre_run that has not ended refuses the job"),
        Option("pre_run_words", o.choice("withhold", "return"), "withhold", "its first line on stderr: stays here, or leaves"),
        Option(
            "wrapper", o.argv, (), "a wall around the command: what comes before its argv; knows {work}, {job} and {base}",
            "/etc/mint-spool/bwrap-wrapper.sh --hide {base} {work} --",
        ),
        Option("run_as", o.text, "", "accounts (or UID:GID) to run it as, one for each job at a time; agent as root", "mint-job"),
        Option("executor", o.choice("local"), "local", "local: on this host"),
    ),
    titled=True,
    free="env. param.",
    meaning="one command that may run; env.NAME = VALUE sets a variable for it, param.NAME = TYPE declares an argument",
)

SECTIONS = (AGENT, RELEASE, SIGNATURES, COMMAND)
ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}|[1-9][0-9]{0,9}:[1-9][0-9]{0,9}")
PUBLISHED_POLL_S = 30.0  # of the published command line, where agent.ini says nothing


@dataclass(frozen=True)
class Command:
    """One ``[command NAME]``; attributes are the options of the table `COMMAND`."""

    name: str
    argv: tuple[str, ...]
    args: re.Pattern[str] | None
    users: tuple[str, ...]
    sha256: tuple[tuple[Path, str], ...]
    inputs_allow: tuple[str, ...]
    max_inputs: int | None
    max_input_bytes: int | None
    min_free: int | None
    env_allow: tuple[str, ...]
    wall_time_s: int | None
    pre_run: tuple[str, ...]
    pre_run_s: int
    pre_run_words: str
    wrapper: tuple[str, ...]
    run_as: str
    executor: str
    env: Mapping[str, str]
    param: Mapping[str, Param]


def walled(command: Command) -> bool:
    """True where something stands between the command and the agent's own files: a wrapper, or another account."""
    return bool(command.wrapper or command.run_as)


@dataclass(frozen=True)
class AgentConfig:
    """All of agent.ini. `agent`, `release` and `signatures` hold the values of their tables by name.

    `user` is the token's owner where he is known; `published_poll_s` the seconds between polls of a published server; `policy`
    the SHA-256 of the file as it was read.
    """

    agent: dict[str, Any]
    release: dict[str, Any]
    commands: dict[str, Command] = field(default_factory=dict)
    source: Path | None = None
    token: str = ""
    user: str = ""
    poll_s_given: bool = False
    published_poll_s: float = 0.0
    signatures: dict[str, Any] = field(default_factory=lambda: {option.name: option.default for option in SIGNATURES.options})
    policy: str = ""

    @property
    def redactor(self) -> Redactor:
        """What holds for names, messages and, with ``logs = redact``, logs."""
        return Redactor(self.release["redact"])

    @property
    def base(self) -> Path:
        """The folder with one folder a job."""
        return Path(self.agent["base"])


def candidates(program: Path) -> list[Path]:
    """Return where agent.ini is looked for when none is named."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [program.parent / "etc" / "agent.ini", home / "mint-spool" / "agent.ini", Path("/etc/mint-spool/agent.ini")]


def find_config(given: Path | None, program: Path) -> Path:
    """Return the ini to read; `ConfigError` naming `init` where there is none."""
    if given is not None:
        return given.absolute()
    sample, *own = candidates(program)
    found = [path for path in (sample, *own) if path.exists() and not (path == sample and _says_nothing(path))]
    if not found:
        raise ConfigError(
            "there is no agent.ini, so nothing may run here",
            hint=f"write one with: spool_agent.py init (looked for: {', '.join(map(str, candidates(program)))})",
        )
    return found[0]


def _says_nothing(path: Path) -> bool:
    """True for a file of nothing but comments and headings, such as the sample in a checkout: it is nobody's law."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        return False
    return all(not line.strip() or line.lstrip().startswith(("#", ";", "[")) for line in lines)


def read_config(path: Path) -> AgentConfig:
    """Read agent.ini; raise `ConfigError` naming the place of whatever is wrong. The token is not read yet."""
    raw, data = o.load_bytes(path)
    ini = o.convert(raw, SECTIONS, str(path))
    agent, release = dict(ini.one("agent")), dict(ini.one("release"))
    for name in ("token_file", "base", "ca_file", "client_cert", "client_key", "log"):
        if agent[name] is not None:
            agent[name] = path.parent / agent[name]
    if agent["pin_only"] and not agent["pin_sha256"]:
        raise ConfigError(f"{path}: [agent] pin_only without pin_sha256: no server could be told from another", hint="set both")
    signatures = _signatures(dict(ini.one("signatures")), path)
    commands = {name: _command(name, dict(values), path) for name, values in ini.titled("command").items()}
    release["warn_table"] = tuple(path.parent / table for table in release["warn_table"])
    _check_hold(release, commands, str(path))
    if release["logs"] == "redact" and not release["redact"]:
        raise ConfigError(f"{path}: [release] logs = redact needs redact", hint="one regular expression a line")
    poll_s_given = any(name.lower() == "poll_s" for name in raw.get("agent", {}))
    digest = hashlib.sha256(data).hexdigest()
    return AgentConfig(agent, release, commands, path, poll_s_given=poll_s_given, signatures=signatures, policy=digest)


def _signatures(values: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in ("allowed_signers", "revoked"):
        if values[name] is not None:
            values[name] = path.parent / values[name]
    if values["required"] and values["allowed_signers"] is None:
        raise ConfigError(f"{path}: [signatures] required needs allowed_signers", hint="list whom this site trusts")
    return values


def _check_hold(release: Mapping[str, Any], commands: Mapping[str, Command], where: str) -> None:
    if not release["hold"]:
        return
    if open_ones := [name for name, command in commands.items() if not walled(command)]:
        raise ConfigError(f"{where}: [release] hold needs a wall around every command, which {', '.join(open_ones)} has not",
                          hint="set run_as or wrapper there: without it the command could release its own results")  # fmt: skip
    if own := {account for command in commands.values() for account in command.run_as.split()} & set(release["reviewers"]):
        raise ConfigError(f"{where}: [release] reviewers: commands run as {' '.join(sorted(own))}: not persons",
                          hint="reviewers are persons; run_as names accounts that nobody else uses")  # fmt: skip
    if release["persons"] > max(1, len(set(release["reviewers"]))):
        raise ConfigError(f"{where}: [release] persons = {release['persons']} needs as many reviewers", hint="list them")
    if release["reviewers"] and not release["reviewers_group"]:
        raise ConfigError(f"{where}: [release] reviewers need reviewers_group to read what is held", hint="groupadd, and name it")


def _command(name: str, values: dict[str, Any], path: Path) -> Command:
    where = f"{path}: [command {name}]"
    try:
        for user in values["users"]:
            check_user(user)
        for variable in (*values["env_allow"], *values["env"]):
            check_env_name(variable)
    except SpoolError as exc:
        raise ConfigError(f"{where}: {exc.message}", hint=exc.hint) from exc
    if not values["argv"]:
        raise ConfigError(f"{where} needs argv", hint="such as: argv = /usr/bin/ccx {args}")
    try:
        values["param"] = declare(values["param"], values["argv"])
        _check_walls(values)
    except ValueError as exc:
        raise ConfigError(f"{where}: {exc}", hint='docs/agent.md, "Arguments" and "Walls"') from exc
    if "{args}" in values["argv"] and values["args"] is None:
        raise ConfigError(f"{where} takes {{args}} but has no pattern for them", hint="such as: args = [A-Za-z0-9_.-]+")
    return Command(name=name, **values)


def _check_walls(values: dict[str, Any]) -> None:
    for option in ("wrapper", "pre_run"):
        # By name they would be looked for on a PATH that a job's own variables, or its work folder, could turn.
        if values[option] and not values[option][0].startswith("/"):
            raise ValueError(f"{option}: {values[option][0]!r} is not an absolute path")
    for path, _ in values["sha256"]:
        if not path.is_absolute():
            raise ValueError(f"sha256: {str(path)!r} is not an absolute path")
    for item in values["wrapper"]:
        if re.search(r"[{}]", re.sub(r"\{(work|job|base)\}", "", item)):
            raise ValueError(f"wrapper: {item!r} cannot be used: {{work}}, {{job}} and {{base}} are what it knows")
    if (values["wrapper"] or values["run_as"]) and "=" in values["argv"][0]:
        raise ValueError(f"argv: {values['argv'][0]!r}: behind a wall a program has no '=' in its name")  # env(1)
    for account in values["run_as"].split():
        if not ACCOUNT.fullmatch(account):
            raise ValueError(f"run_as: {account!r} is neither the name of an account nor UID:GID")


def finish_config(config: AgentConfig, overrides: Mapping[str, Any], *, token: str = "", user: str = "") -> AgentConfig:
    """Return the configuration with the command line's values and the token; raise `ConfigError` where something is missing."""
    agent = {**config.agent, **overrides}
    try:
        check_site(agent["site"] or "")
    except SpoolError as exc:
        raise ConfigError(f"[agent] site: {exc.message}", hint=exc.hint) from exc
    check_url(agent["url"], agent["allow_http"])
    if not token:
        if agent["token_file"] is None:
            raise ConfigError("[agent] token_file is missing", hint="put the token into a file of mode 0600 and name it")
        token = read_token(agent["token_file"])
    published_poll_s = PUBLISHED_POLL_S if "site" in overrides and not config.poll_s_given else agent["poll_s"]
    return replace(config, agent=agent, token=token, user=user, published_poll_s=published_poll_s)


def check_url(url: str, allow_http: bool) -> None:
    """Raise `ConfigError` unless `url` is https, or http to loopback (or allowed)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"[agent] url = {url!r}: {exc}", hint="such as https://mint.example.jp:50443") from exc
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"[agent] url = {url!r} is no address of a server", hint="such as https://mint.example.jp:50443")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not allow_http:
        raise ConfigError(f"{url} is not encrypted: the token and all data could be read", hint="use https://")


def read_token(path: Path) -> str:
    """Return the token in `path`; refuse a file that others can read."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as exc:
        hint = "put the token alone into it, or get one: spool_agent.py login"
        raise ConfigError(f"the token file {path} cannot be read: {exc}", hint=hint) from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"the token file {path} can be read by others", hint=f"chmod 600 {path}")
    if not text or len(text.split()) != 1:
        raise ConfigError(f"the token file {path} does not hold one token", hint="put the token alone into it")
    return text
