"""Owns the copy of the result store that survives a reboot: in the state directory, written now and then and at the end.

No fsync: every record has a checksum, and a copy that is damaged is found out and rebuilt like any other store.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from ..ipc import layout
from ..ipc.errors import ResultStoreError
from ..ipc.store import ResultStore

log = logging.getLogger(__name__)


def save(store: ResultStore, snapshot: Path) -> None:
    """Copy the store to `snapshot`, in place of an earlier copy. Called by the store's writer, between two writes.

    Raises ResultStoreError where there is no room for it; the earlier copy stays.
    """
    fresh = snapshot.with_name(snapshot.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as target:
            store.copy_to(target)
        os.replace(fresh, snapshot)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)  # half a copy would only take more of the room that is missing
        raise ResultStoreError(f"the results could not be saved to {snapshot}: {error.strerror}") from error


def restore(snapshot: Path, results: Path) -> bool:
    """Bring a snapshot back where there is no store; False if there is one, or nothing to bring back.

    Raises ResultStoreError where shared memory has no room for it.
    """
    if results.exists() or not snapshot.is_file():
        return False
    size = snapshot.stat().st_size
    if size < layout.HEADER_BYTES:
        return False
    fresh = results.with_name(results.name + ".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
    import shutil  # late: once after a reboot

    with os.fdopen(fd, "wb") as target, snapshot.open("rb") as source:
        try:
            os.posix_fallocate(target.fileno(), 0, size)  # a full tmpfs says so here, not with SIGBUS later
            shutil.copyfileobj(source, target)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise ResultStoreError(f"{results.parent} has no room for the saved results: {error.strerror}") from error
    os.replace(fresh, results)
    log.info("the result store was brought back from %s", snapshot)
    return True
