"""Being the one push of a spool."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from spool.errors import Busy, from_os_error
from spool.locks import file_lock
from spool.store import Store


@contextlib.contextmanager
def the_only_push(store: Store) -> Iterator[Store]:
    """Hold the lock of the spool's one push; `Busy` where another holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(store.paths.locks / "ssh-push", timeout_s=0))
        except Busy as exc:
            hint = "one is enough: it takes up what is there"
            raise Busy(f"another ssh_push.py is at work on {store.paths.root}", hint=hint) from exc
        except OSError as exc:
            raise from_os_error(exc, f"taking the lock of the push in {store.paths.locks}") from exc
        yield store
