"""Owns the fork server's process as the supervisor sees it: start, orders, reports, end. What it does: workers/zygote.py."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import zmq

from ..ipc import launch
from ..ipc.launch import Fork, Forked, NotForked, Preload, Preloaded
from ..ipc.title import set_title
from . import procfs

log = logging.getLogger(__name__)

Report = Preloaded | Forked | NotForked

ForkMain = Callable[[int, int, Path], int]
"""What a fork server does from start to end: given the descriptor of its orders, this process's pid and the path of the
socket for workers, it returns its exit status. workers/zygote.py has it; whoever starts the daemon hands it in."""

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
        self,
        workers: Path,
        poller: zmq.Poller,
        environment: Mapping[str, str],
        preload: Preload | None,
        main: ForkMain | None = None,
    ) -> None:
        """Start it. With `preload` it loads models first; orders to fork wait for that.

        With `main` it is forked from this process, if that has one thread: it has then imported all it needs, and shares
        the memory of it. Without, it is a program of its own.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._poller = poller
        values = launch.environment({**ONE_THREAD, **environment})
        with theirs:
            if main is not None and len(procfs.threads(os.getpid())) == 1:
                self._popen, self.pid = None, _fork(main, theirs.fileno(), workers, values)
            else:
                self._popen = _start(theirs.fileno(), workers, values)
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
        """Kill it, which is safe at any instant, and return its last reports. Workers stay."""
        with suppress(ProcessLookupError):  # it is dead already
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()
        else:
            os.waitpid(self.pid, 0)
        _end_adopters()
        last = list(self.reports())
        for fd in (self.fileno, self.pidfd):
            self._poller.unregister(fd)
        self._socket.close()
        os.close(self.pidfd)
        return last


def _end_adopters() -> None:
    """Wait for what a fork server that has ended had make a graph: it is this process's child now, and was told to end."""
    for pid in procfs.children(os.getpid()):
        if procfs.name(pid) == launch.ADOPTER:
            with suppress(ChildProcessError, ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _start(orders: int, workers: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    arguments = ["--orders", str(orders), "--supervisor", str(os.getpid()), "--workers", str(workers)]
    return subprocess.Popen(
        launch.command("workers.zygote", *arguments),
        stdin=subprocess.DEVNULL,
        env=environment,
        process_group=0,
        pass_fds=[orders],
    )


def _fork(main: ForkMain, orders: int, workers: Path, environment: Mapping[str, str]) -> int:
    """Fork a process that does `main` and nothing else; return its pid.

    It keeps standard output and error, and its end of the socket: a lock that it held on to would outlive this process.
    """
    supervisor = os.getpid()
    # here as in the child: a collector that looks at what both have would have each page copied
    gc.freeze()
    with suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)  # what the imports left behind: 0.4 MiB that nobody has to share
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        os.environ.update(environment)
        set_title("morgan-background (forked)")
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2 and fd != orders:
                with suppress(OSError):  # the one of this listing
                    os.close(fd)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        status = main(orders, supervisor, workers)
    except BaseException:
        log.exception("the fork server ended")
    finally:
        logging.shutdown()
        os._exit(status)  # whatever happens, two processes never return into one program
