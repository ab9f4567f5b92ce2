"""Owns the fork server: loads the models once, then forks workers that share them. Started by supervisor/forkserver.py.

    supervisor ──Preload, Fork──▶ zygote ──fork──▶ go-between ──fork──▶ worker (process.py)
               ◀──Forked(pid)────        ◀──pid, exit──               re-parented to the supervisor

Where a model has no graph yet, it forks one more process, which makes one while the workers are at work already.

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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..ipc import launch, prctl
from ..ipc.commands import Role
from ..ipc.errors import ModelUnavailable
from ..ipc.launch import Fork, Forked, NotForked, Order, Preload, Preloaded
from . import process, remote  # noqa: F401 - remote: imported once, for all workers
from .courtesy import make_courteous, pin
from .handover import Handover, make_embedder
from .link import ORPHANED
from .process import Models
from .qdrant_clients import load_client
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


@runtime_checkable
class Adoptable(Protocol):
    """A loaded model that a graph may stand for. `is_open`: there is no verdict on one yet."""

    @property
    def is_open(self) -> bool: ...

    def adopt(self) -> object: ...

    def load(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Child:
    """A process that makes the graphs of models, by pid and pidfd."""

    pid: int
    pidfd: int
    models: Sequence[Adoptable]

    @classmethod
    def of(cls, pid: int, models: Sequence[Adoptable]) -> Child:
        return cls(pid, os.pidfd_open(pid), models)


class Zygote:
    """Obeys the orders on a socket until its other end is closed."""

    def __init__(self, orders: socket.socket, supervisor: int, supervisor_fd: int, workers: Path) -> None:
        self._orders, self._supervisor, self._supervisor_fd, self._workers = orders, supervisor, supervisor_fd, workers
        self._models = Models()
        self._adopting: Child | None = None

    def serve(self) -> None:
        try:
            self._serve()
        finally:
            self._end_adopter()

    def _serve(self) -> None:
        waiting = select.poll()
        waiting.register(self._orders, select.POLLIN)
        waiting.register(self._supervisor_fd, select.POLLIN)
        while True:
            if self._adopting is not None:
                waiting.register(self._adopting.pidfd, select.POLLIN)
            ready = {fd for fd, _ in waiting.poll()}
            if self._supervisor_fd in ready:
                return
            if self._adopting is not None and self._adopting.pidfd in ready:
                child, self._adopting = self._adopting, None
                waiting.unregister(child.pidfd)
                self._adopted(child)
            if self._orders.fileno() not in ready:
                continue
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
            embedder = make_embedder(order.model)
            if isinstance(embedder, Handover):
                self._prepare(embedder)
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
        self._keep()
        loaded: tuple[object, ...] = (self._models.embedder, self._models.reranker)
        if waiting := [one for one in loaded if isinstance(one, Adoptable) and one.is_open]:
            self._adopting = Child.of(self._fork_adopter(waiting), waiting)
        return Preloaded(problem=problem)

    def _keep(self) -> None:
        """See that what was loaded can be shared."""
        if (count := len(os.listdir("/proc/self/task"))) > 1:
            self._restart(f"loading the models left {count} threads, of which a fork would have one")
        gc.collect()
        gc.freeze()  # the collector of a child would write to the pages that it shares

    def _prepare(self, embedder: Handover) -> None:
        """Load what computes. With 8-bit weights their graph comes first: the vectors must not change later."""
        if embedder.is_open:
            _ = embedder.reference.revision  # for the child that makes the graph as well
            if embedder.settings.precision != "fp32":
                os.waitpid(self._fork_adopter([embedder]), 0)
        embedder.load()

    def _fork_adopter(self, models: Sequence[Adoptable]) -> int:
        """Fork a process that makes graphs of the loaded models and judges them; return its pid."""
        if pid := os.fork():
            return pid
        status = 1
        try:
            with suppress(OSError):
                prctl.die_with_parent()
                prctl.set_name(launch.ADOPTER)
            self._orders.close()
            os.setsid()  # the autogroup that is niced is its own
            make_courteous(0)
            process.Speaker.name = "adopter"
            for model in models:
                model.adopt()
            status = 0
        except OSError as error:
            log.warning("no graph of the model can be kept, so its fast path is not used: %s", error)
        except BaseException:
            log.exception("the adopter ended")
        finally:
            logging.shutdown()
            os._exit(status)

    def _adopted(self, child: Child) -> None:
        """The adopter has ended: workers that are forked from now on share the graph, if there is one; others open it."""
        os.close(child.pidfd)
        _, status = os.waitpid(child.pid, 0)
        if os.WIFSIGNALED(status):
            log.warning("the adopter was ended by signal %d: the model goes without its fast path", os.WTERMSIG(status))
        for model in child.models:
            model.load()
        self._keep()

    def _end_adopter(self) -> None:
        """Leave no process behind: who stops the service waits for this one."""
        if self._adopting is not None:
            signal.pidfd_send_signal(self._adopting.pidfd, signal.SIGKILL)
            os.waitpid(self._adopting.pid, 0)

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
