"""Owns the start of the daemon: lock, open what it keeps, run, close. `morgan-background serve` calls `serve`."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import zmq

from ..ipc.commands import Role
from ..ipc.errors import AlreadyRunning
from ..ipc.paths import RuntimePaths, make_private
from ..ipc.sockets import check_path
from .assemble import core_settings, make_core
from .cgroup import WorkerGroup, own_places
from .config import Config, load
from .forkserver import ForkMain
from .journal import Journal
from .loop import Supervisor
from .notify import Notifier
from .pool import Pool
from .reload import Reloader
from .requests import Requests

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 20_000  # containers more than before until the collector looks at the young ones


class Lock:
    """An exclusive lock on a file, held until `release` or the end of the process; never inherited by children."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise AlreadyRunning(
                f"another service (pid {holder}) holds {path}: stop it, or give this one its own --state-dir"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def serve(config: Config, load_again: Callable[[], Config] = load, fork_main: ForkMain | None = None) -> int:
    """Run the daemon until it is told to stop; return the exit code. Raises AlreadyRunning for a second one.

    `load_again` is what a reload gets the configuration from: the sources that `config` came from. With `fork_main` the
    fork server is forked from this process: see ForkServer.
    """
    notifier = Notifier()
    state_dir, runtime_dir = config.state_dir(), config.runtime_dir()
    os.umask(0o077)
    runtime = RuntimePaths(runtime_dir)
    settings = core_settings(config)
    poller = zmq.Poller()
    group = WorkerGroup.open(own_places()) if config.service.cgroups else WorkerGroup()
    pool = Pool(
        config.workers(),
        runtime.workers,
        poller,
        settings=settings.worker,
        log_level=config.service.log_level,
        jitter=random.SystemRandom().random,
        fork_main=fork_main,
        group=group,
    )
    with ExitStack() as held:
        # first of all: before there is a lock, a journal or a thread that it would have a part of
        held.callback(group.close)
        held.callback(lambda: pool.close(time.time()))
        pool.start_server(time.time())
        make_private(state_dir)
        make_private(runtime_dir)
        make_private(runtime.readers)
        for path in (state_dir / "lock", runtime.lock):
            held.callback(Lock(path).release)
        check_path(runtime.clients)  # before a worker does, of a shorter one
        pool.start_due(time.time())  # workers begin while the rest is opened: the runtime directory is ours by now
        held.callback((journal := Journal(state_dir / "journal.sqlite3")).close)
        # the owner answers the application's own searches: its work counts as the application's
        core = make_core(
            config,
            settings,
            runtime,
            journal,
            own_pids=lambda: pool.pids(Role.TASKS),
            saved_results=state_dir / "results.saved",
        )
        held.callback(core.keeper.store.close)
        rebuilt = {"journal": journal.rebuilt_because, "result store": core.keeper.store.rebuilt_because}
        for about, what in rebuilt.items():
            if what:
                log.warning("%s was rebuilt: %s", about, what)
                core.problems[f"{about} (at start)"] = what
        # what is there by now stays: the collector need not look at it again, and need not look often at the rest
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 50)
        reloader = Reloader(config, load_again, core, notifier)
        requests = Requests(core, str(state_dir), runtime, os.getpid(), reloader.reload)
        Supervisor(core, requests, runtime, pool, poller, config.service.grace_s, reloader, notifier).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(serve(load()))
