"""Opening the spool for its one push."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from spool.config import LiveConfig
from spool.creation import link_config
from spool.errors import Busy, ConfigError, from_os_error
from spool.locks import file_lock
from spool.store import Store


def open_store(given: Path | None, config: LiveConfig) -> Store:
    """Open the spool that was `given`, else the configured one; an empty folder becomes a spool."""
    root = given or config.get().server["spool"]
    if root is None:
        raise ConfigError("no spool was named", hint="give --spool DIR, or [server] spool in the ini file")
    try:
        store = Store.open(root, create=True)
        warning = link_config(store.paths, config.path) if config.path else ""
    except OSError as exc:
        raise from_os_error(exc, f"opening the spool {root}") from exc
    if warning:
        print(f"ssh_push.py: {warning}", file=sys.stderr)
    return store


@contextlib.contextmanager
def the_only_push(store: Store) -> Iterator[Store]:
    """Hold the lock of the spool's one push; `Busy` where another holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(store.paths.locks / "ssh-push", timeout_s=0))
        except Busy as exc:
            hint = "one is enough: it takes up what is there"
            raise Busy(f"another ssh_push.py is at work on {store.paths.root}", hint=hint) from exc
        yield store
