"""spool.ini: the configuration of the MInt side, read by the server, the push and spoolctl (etc/spool.ini shows every option).

Guarantee: the file is read again when it changes, so that a new site counts without a restart.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spool import options as o
from spool.errors import CommandNotAllowed, ConfigError, Disabled, NotAllowed, SpoolError, UnknownSite
from spool.names import check_env_name, check_site, check_user
from spool.options import Option, Section
from spool.published_ini import is_published, translate
from spool.sample import render

MIB = 1024 * 1024
SETTLING_S = 0.1  # a file that has changed is read when it has not changed again for this long
SETTLING_TRIES = 10
_HEADER = re.compile(r"[Xx]-[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")

SERVER = Section(
    "server",
    (
        Option("spool", o.path, None, "the spool's folder; --spool wins over it", "/var/spool/mint-spool"),
        Option("listen", o.text, "127.0.0.1:8082", "HOST:PORT to listen on; plain http, so loopback with nginx in front"),
        Option("allow_http", o.boolean, False, "listen on an address other than loopback although it is plain http"),
        Option("trusted_proxy", o.words, (), "addresses of the proxies in front, whose X-Forwarded-For is believed", "127.0.0.1"),
        Option("log", o.path, None, "file that gets the log lines; none: standard error", "/var/log/mint-spool/server.log"),
        Option("tokens", o.path, None, "the token file; none: tokens.json in the spool", "/etc/mint-spool/tokens.json"),
        Option("users", o.path, None, "users and passwords for login; none: users.json in the spool", "/etc/mint-spool/users"),
        Option("login_days", o.integer(1, 3650), 30, "days for which a token that login gives counts"),
        Option(
            "auth", o.choice("file", "gateway", "command"), "file",
            "who says who asks: the token file, the headers of a gateway in front, or a command that is asked",
        ),
        Option(
            "gateway_headers", o.words, ("X-Mint-User", "X-Mint-Roles", "X-Mint-Sites", "X-Mint-Secret"),
            "gateway: its headers for user, roles, sites and secret; believed from trusted_proxy only",
        ),
        Option(
            "gateway_secret", o.path, None,
            "gateway: file of mode 0600 with its secret; needed where trusted_proxy is this host", "/etc/mint-spool/gateway",
        ),
        Option("auth_command", o.argv, (), "command: what is asked; it reads the token on its standard input", "/opt/whose"),
        Option("auth_timeout_s", o.seconds(0.1, 60), 5.0, "command: seconds that it may take"),
        Option("auth_cache_s", o.seconds(1, 3600), 60.0, "command: seconds for which an answer holds, a revoked token too"),
        Option("auth_at_a_time", o.integer(2, 256), 4, "command: how many run at a time; below two thirds of threads"),
        Option("threads", o.integer(1, 512), 8, "threads for requests that do not wait"),
        Option("max_waiters", o.integer(0, 4096), 64, "waiting syncs at a time; further ones are answered at once"),
        Option("trusted_uids", o.words, (), "numeric uids whose drops may name another user than their own", "1001 1002"),
        Option(
            "unclaimed_s", o.seconds(1, 31536000), 1800.0,
            "seconds of observed waiting after which a job registered by the published protocol expires",
        ),
        Option("drop_quiet_s", o.seconds(0.05, 86400), 60.0, "seconds without change before an unfinished drop is rejected"),
        Option(
            "min_free",
            o.size,
            64 * MIB,
            "bytes that must stay free; below that new jobs and uploads are refused (507)",
            "64M",
        ),
        Option("claim_return_s", o.seconds(1, 86400), 600.0, "seconds without contact before a claimed job is queued again"),
        Option(
            "clock_settle_s", o.seconds(0, 86400), 300.0,
            "seconds that a clock which jumped forward must stand before anything expires by it",
        ),
        Option("max_chunk", o.size_from(64 * 1024), 16 * MIB, "largest request body in bytes", "16M"),
    ),
    meaning="the server, and what all programs of the MInt side share",
)

SITE = Section(
    "site",
    (
        Option("mode", o.choice("webapi", "ssh"), "webapi", "webapi: an agent polls; ssh: ssh_push.py pushes"),
        Option("commands", o.words, (), "commands a job may name; * allows any (the site's own list is the law)", "ccx"),
        Option("users", o.words, (), "users whose jobs may go there; empty: every user", "alice bob"),
        Option("enabled", o.boolean, True, "no: new jobs are refused with a clear message, nothing is deleted"),
        Option(
            "give_up_after_s",
            o.integer(1, 10**9),
            None,
            "seconds without contact before a job has failed: unreachable",
            "604800",
        ),
        Option("slots", o.integer(1, 1000), 4, "ssh: jobs of this site in hand at a time"),
        Option("host", o.text, "", "ssh: the Host of ssh_config, or a host name", "site-a"),
        Option("base", o.text, "/tmp", "ssh: absolute folder at the site that gets one folder a job"),
        Option("ssh_config", o.path, None, "ssh: file for ssh -F; none: the user's own", "~/.ssh/config"),
        Option(
            "kind", o.choice("open", "guarded"), "open",
            "ssh: open = a shell and rsync; guarded = the site's gate, whose agent.ini is the law",
        ),
        Option(
            "program",
            o.text,
            "",
            "ssh: the site's fixed program; the command becomes its first argument",
            "/opt/mint/run.sh",
        ),
        Option("env_allow", o.words, (), "ssh: names of a job's env that are passed on; * allows all", "OMP_NUM_THREADS"),
        Option(
            "solver_log",
            o.path,
            None,
            "ssh: file that gets a line for start, normal and abnormal end",
            "/var/log/solver_execute.log",
        ),
        Option(
            "solver_log_format",
            o.text,
            "",
            "ssh: that line; {at} {event} {id} {site} {user} {workflow} {command} {reason}",
        ),
        Option("connect_timeout_s", o.integer(1, 600), 15, "ssh: seconds to wait for a connection"),
        Option("stall_s", o.integer(4, 3600), 60, "ssh: seconds without a sign of life after which a line counts as cut"),
        Option("keep_days", o.integer(0, 3650), 30, "ssh: days a delivered job's folder stays at the site"),
    ),
    titled=True,
    meaning="one external computer",
)

SECTIONS = (SERVER, SITE)


@dataclass(frozen=True)
class Site:
    """One ``[site NAME]``; attributes are the options of the table `SITE`."""

    name: str
    mode: str
    commands: tuple[str, ...]
    users: tuple[str, ...]
    enabled: bool
    give_up_after_s: int | None
    slots: int
    host: str
    base: str
    ssh_config: Path | None
    kind: str
    program: str
    env_allow: tuple[str, ...]
    solver_log: Path | None
    solver_log_format: str
    connect_timeout_s: int
    stall_s: int
    keep_days: int

    def check_user(self, user: str) -> None:
        """Raise `NotAllowed` unless jobs of `user` may go to this site."""
        if self.users and user not in self.users:
            raise NotAllowed(
                f"user {user!r} may not use site {self.name!r}",
                hint=f"an operator adds the user to [site {self.name}] users",
            )

    def check_command(self, command: str) -> None:
        """Raise `CommandNotAllowed` unless the site's list has `command`."""
        if "*" not in self.commands and command not in self.commands:
            raise CommandNotAllowed(
                f"command {command!r} is not registered for site {self.name!r}",
                hint=f"registered: {' '.join(self.commands) or 'none'}; an operator edits [site {self.name}] commands",
            )


@dataclass(frozen=True)
class SpoolConfig:
    """All of spool.ini. `server` holds the values of the table `SERVER` by name."""

    server: dict[str, Any]
    sites: dict[str, Site] = field(default_factory=dict)
    source: Path | None = None

    def site(self, name: str) -> Site:
        """Return the site; `UnknownSite` where there is none of that name, `Disabled` where it is."""
        found = self.sites.get(name)
        if found is None:
            known = ", ".join(self.sites) or "none"
            where = self.source.name if self.source else "spool.ini"  # users see it too: not the whole path
            raise UnknownSite(f"site {name!r} is not known here", hint=f"known: {known}; an operator adds it to {where}")
        if not found.enabled:
            raise Disabled(f"site {name!r} is disabled", hint="an operator sets enabled = yes when it is back")
        return found


def default_config() -> SpoolConfig:
    """Return what holds without any file: the defaults and no site."""
    return SpoolConfig({option.name: option.default for option in SERVER.options})


def read_config(path: Path) -> SpoolConfig:
    """Read spool.ini, or the published ini; raise `ConfigError` naming the place of whatever is wrong."""
    raw = o.load(path)
    published: dict[str, tuple[str, ...]] = {}
    if is_published(raw):
        raw, published = translate(raw, str(path))
    ini = o.convert(raw, SECTIONS, str(path))
    server = dict(ini.one("server"))
    for name in ("spool", "tokens", "users", "gateway_secret", "log"):  # whichever program reads it, from wherever: the same file
        if server[name] is not None:
            server[name] = path.resolve().parent / server[name]
    for uid in server["trusted_uids"]:
        if not uid.isdecimal():
            raise ConfigError(f"{path}: [server] trusted_uids: {uid!r} is not a numeric uid", hint="see: id -u USER")
    server["trusted_uids"] = tuple(int(uid) for uid in server["trusted_uids"])
    _check_auth(server, path)
    sites = {name: dict(values) for name, values in ini.titled("site").items()}
    for name, commands in published.items():
        sites[name]["commands"] = (*commands, *sites[name]["commands"])
    return SpoolConfig(server, {name: _site(name, values, path) for name, values in sites.items()}, path)


def _check_auth(server: dict[str, Any], path: Path) -> None:
    """Raise `ConfigError` where the options of `auth` would let in whom nobody has checked, or nobody."""

    def wrong(option: str, why: str, hint: str) -> ConfigError:
        return ConfigError(f"{path}: [server] {option}: {why}", hint=hint)

    for address in server["trusted_proxy"]:
        try:
            ipaddress.ip_address(address)
        except ValueError as exc:
            raise wrong("trusted_proxy", f"{address!r} is no address", "such as 127.0.0.1") from exc
    names = server["gateway_headers"]
    if len({name.lower() for name in names}) != 4 or not all(_HEADER.fullmatch(name) for name in names):
        raise wrong("gateway_headers", "four different names are needed", "user, roles, sites, secret; X- and letters, digits, -")
    if server["auth"] == "gateway" and not server["trusted_proxy"]:
        raise wrong("auth", "a gateway needs trusted_proxy", "the address from which its headers are believed")
    here = any(ipaddress.ip_address(address).is_loopback for address in server["trusted_proxy"])
    if server["auth"] == "gateway" and here and server["gateway_secret"] is None:
        raise wrong("auth", "every account of this host could be the gateway", "set gateway_secret, and have the gateway send it")
    if server["auth"] == "command" and not server["auth_command"]:
        raise wrong("auth", "auth_command is missing", "the program that is asked whose a token is")
    held = server["auth_at_a_time"] * 3 // 2  # some requests wait for an answer that another has asked for
    if server["auth"] == "command" and held >= server["threads"]:
        raise wrong("auth_at_a_time", "a slow command would hold all threads", "set it below two thirds of threads")


def _site(name: str, values: dict[str, Any], path: Path) -> Site:
    try:
        check_site(name)
        for user in values["users"]:
            check_user(user)
        for variable in values["env_allow"]:
            if variable != "*":
                check_env_name(variable)
    except SpoolError as exc:
        raise ConfigError(f"{path}: [site {name}]: {exc.message}", hint=exc.hint) from exc
    for option in ("ssh_config", "solver_log"):
        if values[option] is not None:
            values[option] = path.resolve().parent / values[option]
    if values["mode"] == "ssh" and (not values["host"] or values["host"].startswith("-")):
        raise ConfigError(f"{path}: [site {name}] needs host", hint="a Host of ssh_config, or a host name")
    if values["mode"] == "ssh" and not values["base"].startswith("/"):
        raise ConfigError(f"{path}: [site {name}] base must be an absolute path", hint="such as /var/tmp/mint-spool")
    return Site(name=name, **values)


class LiveConfig:
    """spool.ini, read again whenever the file changes. Threads may share one.

    A file that has become wrong or unreadable leaves the last good values in force; `problem` then says why, so that a slip
    of an editor does not stop what runs. A file that is just being written is waited for, at most a second: half of an ini
    is often a valid one, with no sites in it, and their drops would be rejected.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = _signature(path)
        self._config = read_config(path) if path else default_config()
        self.problem = ""

    @property
    def path(self) -> Path | None:
        """The file, or none."""
        return self._path

    def get(self) -> SpoolConfig:
        """Return the configuration as the file stands."""
        with self._lock:
            if self._path is not None and _signature(self._path) != self._seen:
                self._seen = self._settled()
                try:
                    self._config, self.problem = read_config(self._path), ""
                except ConfigError as exc:
                    self.problem = f"{exc.message} ({exc.hint})"
            return self._config

    def _settled(self) -> tuple[int, ...] | None:
        """Return the signature once nothing has changed for a tenth of a second."""
        seen = _signature(self._path)
        for _ in range(SETTLING_TRIES):
            time.sleep(SETTLING_S)
            before, seen = seen, _signature(self._path)
            if seen == before:
                break
        return seen


def _signature(path: Path | None) -> tuple[int, ...] | None:
    try:
        info = path.stat() if path else None
    except OSError:
        return None
    return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) if info else None


def find_config(given: Path | None, spool: Path | None) -> Path | None:
    """Return the file to read: the one given, else spool.ini in the spool (a link that the server leaves there), else none."""
    if given is not None:
        return given.absolute()
    if spool is not None and os.path.lexists(spool / "spool.ini"):
        return spool / "spool.ini"
    return None


def spool_ini() -> str:
    """Return the commented sample `etc/spool.ini` with every option shown."""
    return render("spool.ini: the MInt side (docs/operations.md). It is read again whenever it changes.", SECTIONS)
