"""Opening the spool that a program was told of, by its command line or its configuration."""

from __future__ import annotations

import sys
from pathlib import Path

from spool.config import LiveConfig
from spool.creation import link_config
from spool.errors import ConfigError, from_os_error
from spool.store import Store


def open_store(given: Path | None, config: LiveConfig, program: str) -> Store:
    """Open the spool that was `given`, else the configured one; an empty folder becomes a spool.

    A link to the configuration is left in the spool; what stands against that is told on standard error in the name of `program`.
    Raises `ConfigError` where no spool was named or the folder is none, and the family's error for what the disk says.
    """
    root = given or config.get().server["spool"]
    if root is None:
        raise ConfigError("no spool was named", hint="give --spool DIR, or [server] spool in the ini file")
    try:
        store = Store.open(root, create=True)
        warning = link_config(store.paths, config.path) if config.path else ""
    except OSError as exc:
        raise from_os_error(exc, f"opening the spool {root}") from exc
    if warning:
        print(f"{program}: {warning}", file=sys.stderr)
    return store
