"""Making and opening a spool: an empty folder becomes one, an unknown format stays untouched (docs/format.md, "spool.json")."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from spool import jsonio
from spool.errors import ConfigError, UnknownFormat
from spool.fields import Fields
from spool.files import fsync_dir, read_record, write_new
from spool.instants import utc_now
from spool.names import new_id
from spool.paths import FORMAT, SpoolPaths

SPOOL_UMASK = 0o007
_SHARED_FOLDER = 0o2770
_HARMLESS = {"lost+found", "spool.ini"}


def open_spool(root: Path, *, create: bool = False) -> SpoolPaths:
    """Return the paths of the spool at `root`, having read its spool.json.

    With `create`, an absent or empty folder becomes a spool; safe to repeat and to race: one of several creators wins, the
    others open what it made. Raises `ConfigError` where `root` is no spool, `UnknownFormat` where a newer release wrote it.
    """
    paths = SpoolPaths(root.absolute())
    try:
        if create and not paths.spool_json.exists():
            _create(paths)
        identity(paths)
    except FileNotFoundError as exc:
        raise ConfigError(f"{root} is not a spool", hint="start spool_server.py or ssh_push.py with --spool once") from exc
    except NotADirectoryError as exc:
        raise ConfigError(f"{root} is not a folder", hint="name a folder") from exc
    return paths


def identity(paths: SpoolPaths) -> tuple[str, str]:
    """Return (id, epoch) of the spool; the epoch is a new one after a restore from a backup."""
    fields = Fields(jsonio.loads(read_record(paths.spool_json, 65536), "spool.json"), "spool.json")
    try:
        fields.format()
    except UnknownFormat as exc:
        raise UnknownFormat(
            f"{paths.root} is a spool of another format: {exc.message}",
            hint="nothing was changed; use the release that wrote it, or a newer one",
        ) from exc
    return fields.string("id"), fields.string("epoch")


def _create(paths: SpoolPaths) -> None:
    with contextlib.suppress(FileExistsError):
        os.makedirs(paths.root, 0o750)
    foreign = set(os.listdir(paths.root)) - set(SpoolPaths.FOLDERS) - _HARMLESS
    foreign = {name for name in foreign if not name.startswith(".")}
    if foreign and not paths.spool_json.exists():  # another creator may have been quicker
        raise ConfigError(
            f"{paths.root} holds other things ({', '.join(sorted(foreign)[:3])}, ...) and no spool.json",
            hint="name an empty folder, or an existing spool",
        )
    for name in SpoolPaths.FOLDERS:
        _make_shared(paths.root / name)
    for number in range(256):
        _make_lock(paths.locks / f"{number:02x}")
    fsync_dir(paths.locks)
    _publish_identity(paths)


def _make_shared(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o770)
    with contextlib.suppress(PermissionError):  # another creator's folder has its mode already
        os.chmod(folder, _SHARED_FOLDER)


def _make_lock(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660))


def _publish_identity(paths: SpoolPaths) -> None:
    # link(2) refuses to replace, so of two creators one wins and both read the winner's id afterwards.
    value = {"format": FORMAT, "id": new_id(), "epoch": new_id(), "created_at": utc_now()}
    temp = paths.tmp / f"spool.json.{secrets.token_hex(8)}"
    write_new(temp, jsonio.dumps(value), mode=0o640)
    with contextlib.suppress(FileExistsError):
        os.link(temp, paths.spool_json)
    os.unlink(temp)
    fsync_dir(paths.root)


def link_config(paths: SpoolPaths, config: Path) -> str:
    """Leave `spool.ini` in the spool as a link to `config`, so that spoolctl finds it; return a warning or ``""``.

    A real spool.ini that lies in the spool is left alone. Safe to repeat.
    """
    target = str(config.absolute())
    if paths.ini.is_symlink() or not paths.ini.exists():
        if paths.ini.is_symlink() and os.readlink(paths.ini) == target:
            return ""
        temp = paths.tmp / f"spool.ini.{secrets.token_hex(8)}"
        os.symlink(target, temp)
        os.rename(temp, paths.ini)
        return ""
    if paths.ini.samefile(config):
        return ""
    return f"{paths.ini} is a file of its own and not {config}: spoolctl would read another configuration"
