"""Owns the fork server's process as the supervisor sees it: start, orders, reports, end. What it does: workers/zygote.py."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import zmq

from ..ipc import launch
from ..ipc.launch import Fork, Forked, NotForked, Preload, Preloaded

log = logging.getLogger(__name__)

Report = Preloaded | Forked | NotForked

# One thread each, read once at import: a fork server that has started a second thread must not fork.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}


class ForkServer:
    """One process. Its report socket and its pidfd are registered with `poller` until `close`."""

    def __init__(
        self, workers: Path, poller: zmq.Poller, environment: Mapping[str, str], preload: Preload | None
    ) -> None:
        """Start it. With `preload` it loads models first; orders to fork wait for that."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._poller = poller
        arguments = ["--orders", str(theirs.fileno()), "--supervisor", str(os.getpid()), "--workers", str(workers)]
        with theirs:
            self._popen = subprocess.Popen(
                launch.command("workers.zygote", *arguments),
                stdin=subprocess.DEVNULL,
                env=launch.environment({**ONE_THREAD, **environment}),
                process_group=0,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.is_loading = preload is not None
        for fd in (self.fileno, self.pidfd):
            poller.register(fd, zmq.POLLIN)
        if preload is not None:
            self.order(preload)
        log.info("the fork server started as pid %d", self.pid)

    @property
    def fileno(self) -> int:
        return self._socket.fileno()

    def order(self, order: Preload | Fork) -> bool:
        """Send an order; False if there is no room, or nobody to take it."""
        try:
            self._socket.send(launch.encode(order))
        except OSError:  # BlockingIOError included
            return False
        return True

    def reports(self) -> Iterator[Report]:
        """Yield what it has reported so far."""
        while True:
            try:
                packet = self._socket.recv(launch.MAX_ORDER_BYTES)
            except OSError:
                return
            if not packet:
                return
            report = launch.reports.decode(packet)
            if isinstance(report, Preloaded):
                self.is_loading = False
                if report.problem:
                    log.warning("the fork server has no models to share: %s", report.problem)
            yield report

    def close(self) -> list[Report]:
        """Kill it, which is safe at any instant, and return its last reports."""
        self._popen.send_signal(signal.SIGKILL)
        self._popen.wait()
        last = list(self.reports())
        for fd in (self.fileno, self.pidfd):
            self._poller.unregister(fd)
        self._socket.close()
        os.close(self.pidfd)
        return last
