"""Owns the fork server: loads the models once, then forks workers that share them. Started by supervisor/forkserver.py.

    supervisor ──Preload, Fork──▶ zygote ──fork──▶ go-between ──fork──▶ worker (process.py)
               ◀──Forked(pid)────        ◀──pid, exit──               re-parented to the supervisor

It has one thread and never runs a model: a child of a process that has computed with several threads waits for ever for
those that were not forked (research: 5 of 5 hung).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path

from ..ipc import launch, prctl
from ..ipc.commands import Role
from ..ipc.errors import ModelUnavailable
from ..ipc.launch import Fork, Forked, NotForked, Order, Preload, Preloaded
from . import process, remote  # noqa: F401 - remote: imported once, for all workers
from .courtesy import make_courteous, pin
from .link import ORPHANED
from .models import SentenceTransformerEmbedder
from .process import Models
from .qdrant import load_client
from .reranker import CrossEncoderReranker, make_reranker

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(prog="morgan-background fork server")
    parser.add_argument("--orders", type=int, required=True, help="descriptor of the socket to the supervisor")
    parser.add_argument("--supervisor", type=int, required=True, help="its pid")
    parser.add_argument("--workers", type=Path, required=True, help="path of the supervisor's socket for workers")
    parser.add_argument("--light", default="", help="why no models are loaded")
    args = parser.parse_args()
    return obey(args.orders, args.supervisor, args.workers, args.light)


def obey(orders_fd: int, supervisor: int, workers: Path, light: str = "") -> int:
    """Be the fork server until the supervisor ends or closes its end; return the exit status. Takes the process over."""
    speaking = logging.StreamHandler()
    speaking.setFormatter(process.Speaker())
    level = os.environ.get("MORGAN_SERVICE_LOG_LEVEL", "info").upper()
    logging.basicConfig(level=level, handlers=[speaking], force=True)
    with suppress(OSError):
        prctl.die_with_parent()
        prctl.set_name("morgan-zygote")
    supervisor_fd = os.pidfd_open(supervisor)
    if os.getppid() != supervisor:  # it died before the descriptor was open
        return ORPHANED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    orders = socket.socket(fileno=orders_fd)
    zygote = Zygote(orders, supervisor, supervisor_fd, workers)
    if light:
        orders.send(launch.encode(Preloaded(problem=light)))
    zygote.serve()
    return 0


class Zygote:
    """Obeys the orders on a socket until its other end is closed."""

    def __init__(self, orders: socket.socket, supervisor: int, supervisor_fd: int, workers: Path) -> None:
        self._orders, self._supervisor, self._supervisor_fd, self._workers = orders, supervisor, supervisor_fd, workers
        self._models = Models()

    def serve(self) -> None:
        waiting = select.poll()
        waiting.register(self._orders, select.POLLIN)
        waiting.register(self._supervisor_fd, select.POLLIN)
        while True:
            if any(fd == self._supervisor_fd for fd, _ in waiting.poll()):
                return
            packet = self._orders.recv(launch.MAX_ORDER_BYTES)
            if not packet:
                return
            match launch.orders.decode(packet):
                case Preload() as order:
                    self._report(self._preload(order))
                case Fork() as order:
                    self._report(self._fork(order))

    def _report(self, report: Order) -> None:
        self._orders.send(launch.encode(report))

    def _preload(self, order: Preload) -> Preloaded:
        """Load the models without computing with them. What cannot be loaded the workers report when they need it."""
        if order.model.device != "cpu":
            return Preloaded(problem=f"a model on {order.model.device} cannot be shared with a forked process")
        problem, self._models = "", Models(order.model, order.rerank)
        try:
            embedder = SentenceTransformerEmbedder(order.model)
            log.info("model %s ready, %d dimensions", embedder.name, embedder.size)
            _ = embedder.revision  # a hash over the weights: one thread, and no product of matrices
            self._models.embedder = embedder
            reranker = make_reranker(order.rerank, embedder)
            if isinstance(reranker, CrossEncoderReranker):
                reranker.load()
            self._models.reranker = reranker
            if order.with_client:
                load_client()
        except ModelUnavailable as error:
            problem, self._models.is_refused = str(error), self._models.embedder is None
            log.error("%s", error)
        if (count := len(os.listdir("/proc/self/task"))) > 1:
            self._restart(f"loading the models left {count} threads, of which a fork would have one")
        gc.collect()
        gc.freeze()  # the collector of a child would write to the pages that it shares
        return Preloaded(problem=problem)

    def _restart(self, why: str) -> None:
        """Be a new process that has loaded nothing; each worker then loads its own."""
        log.warning("%s: a new one is started without", why)
        orders = self._orders.fileno()
        os.set_inheritable(orders, True)
        arguments = ["--orders", str(orders), "--supervisor", str(self._supervisor), "--workers", str(self._workers)]
        command = launch.command("workers.zygote", *arguments, "--light", why)
        os.execve(command[0], command, launch.environment({}))

    def _fork(self, order: Fork) -> Forked | NotForked:
        """Fork twice: a worker whose parent has gone is given to the supervisor, which alone may then wait for it."""
        reader, writer = os.pipe()
        until, held = os.pipe()  # until it is closed here, the go-between stays, and with it the worker waits
        try:
            go_between = os.fork()
        except OSError as error:
            for fd in (reader, writer, until, held):
                os.close(fd)
            return NotForked(index=order.index, message=str(error))
        if go_between == 0:
            os.close(reader)
            os.close(held)
            self._fork_again(order, writer, until)
        os.close(writer)
        os.close(until)
        answer = os.read(reader, 64)
        os.close(reader)
        if answer.isdigit():
            self._place(order, int(answer))
        os.close(held)
        os.waitpid(go_between, 0)  # now the worker is the supervisor's child, even if it is dead already
        if not answer.isdigit():
            return NotForked(index=order.index, message=answer.decode() or "it was killed at its start")
        return Forked(index=order.index, pid=int(answer))

    def _place(self, order: Fork, pid: int) -> None:
        """Give the worker its CPUs and its place among other processes, while it has one thread and waits."""
        pin(pid, order.cpus)
        if order.role is Role.TASKS:  # the owner answers applications: it is not in the background
            words = ", ".join(make_courteous(pid))
            log.info("worker %d (pid %d): %s", order.index, pid, words or "nothing in force but the CPU budget")

    def _fork_again(self, order: Fork, writer: int, until: int) -> None:
        """The go-between: fork the worker, which tells its pid, and leave when it is let go. Never returns."""
        status = 1
        try:
            me = os.pidfd_open(os.getpid())  # by it the worker sees that this process has gone
            try:
                is_worker = os.fork() == 0
            except OSError as error:
                os.write(writer, str(error).encode())
            else:
                status = self._be_worker(order, me, writer, until) if is_worker else self._stay(writer, until)
        except BaseException:
            log.exception("worker %d ended", order.index)
        finally:
            logging.shutdown()
            os._exit(status)  # whatever happens, two processes never return into one loop

    def _stay(self, writer: int, until: int) -> int:
        os.close(writer)
        os.read(until, 1)  # nothing comes but the end
        return 0

    def _be_worker(self, order: Fork, go_between: int, writer: int, until: int) -> int:
        os.close(until)
        self._orders.close()
        # A session of its own, before it is given its place: the kernel's autogroup is per session, and the supervisor
        # and the owner are not to be niced.
        os.setsid()
        os.write(writer, str(os.getpid()).encode())
        os.close(writer)
        place = process.Place(order, self._workers, self._supervisor, self._supervisor_fd, go_between)
        return process.run(place, self._models)


if __name__ == "__main__":
    raise SystemExit(main())
