"""Owns a worker process from its fork to its end: who it is to the machine, what it works with. Forked by zygote.py."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..ipc import prctl
from ..ipc.board import Board
from ..ipc.commands import Configure, Drain, Role
from ..ipc.launch import Fork
from ..ipc.reader import ResultReader
from ..ipc.settings import ModelSettings, RerankSettings, WorkerSettings
from .batches import Batched
from .courtesy import make_courteous, pin
from .handover import make_embedder
from .learned_reranker import Rerankers
from .link import ORPHANED, Link, watch_over
from .loop import TaskWorker
from .models import load_embedder
from .open_store import open_store
from .owner_loop import run_owner
from .reranker import make_reranker
from .serving import Serving
from .task import Embedder, Reranker, Tools
from .tasks import TASKS
from .write_gate import OwnersGate

log = logging.getLogger(__name__)

CONFIGURE_S = 30.0  # a supervisor answers Ready within one turn of its loop


class Speaker(logging.Formatter):
    """Says who speaks. A worker sets its name and nothing else: logging set up anew would cost it 0.4 MiB of its own."""

    name = "fork server"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(speaker)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.speaker = self.name
        return super().format(record)


@dataclass(slots=True)
class Models:
    """What the fork server has loaded, and for which settings. Nothing by default: workers load their own."""

    model: ModelSettings | None = None
    rerank: RerankSettings | None = None
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    is_refused: bool = False  # the embedding model cannot be loaded: no use in trying before somebody needs it

    def for_settings(self, settings: WorkerSettings) -> tuple[Embedder, Reranker]:
        """Return the loaded models if they are those of `settings`, else ones that load at their first use."""
        is_same = (self.model, self.rerank) == (settings.model, settings.rerank)
        embedder = (is_same and self.embedder) or make_embedder(settings.model)
        return embedder, (is_same and self.reranker) or make_reranker(settings.rerank, embedder)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a forked worker finds itself: its order, the supervisor's socket, pid and pidfd, and its own parent's pidfd."""

    order: Fork
    socket: Path
    supervisor: int
    supervisor_fd: int
    go_between_fd: int


def run(place: Place, models: Models) -> int:
    """Be a worker until told to leave; return the exit status."""
    role, index = place.order.role, place.order.index
    settle(place)
    if role is Role.TASKS and os.sched_getscheduler(0) != os.SCHED_IDLE:  # the fork server died before it came to that
        pin(0, place.order.cpus)
        make_courteous(0)
    Speaker.name = f"{role.value} {index}"
    with suppress(OSError):
        prctl.set_name(f"morgan-{role.value}-{index}")
    reseed()
    link = Link(place.socket, role, index)
    command = link.wait(CONFIGURE_S)
    if not isinstance(command, Configure):
        link.close()
        return 0 if isinstance(command, Drain) else 1  # told to leave: what it was handed meanwhile was not begun
    board = Board.attach(Path(command.board_path))
    watch_over(place.supervisor_fd, board, command.board_row, link.pulse)
    embedder, reranker = models.for_settings(command.settings)
    if role is Role.OWNER:
        run_owner(link, command, embedder, reranker, is_model_refused=models.is_refused)
    else:
        run_tasks(link, board, command, embedder, reranker)
    link.close()
    return 0


def settle(place: Place) -> None:
    """Wait until the supervisor is this process's parent, and have the kernel end this one with it.

    Until then the parent is the go-between, whose end would be taken for the supervisor's. It goes when the fork server
    has given this process its place among others.
    """
    waiting = select.poll()
    waiting.register(place.go_between_fd, select.POLLIN)
    waiting.register(place.supervisor_fd, select.POLLIN)
    waiting.poll()
    os.close(place.go_between_fd)
    if os.getppid() == place.supervisor:  # else it has gone, or is no subreaper: the watch thread sees to the end
        with suppress(OSError):
            prctl.die_with_parent()
    if is_over(place.supervisor_fd):
        os._exit(ORPHANED)


def is_over(pidfd: int) -> bool:
    """Say whether the process behind `pidfd` has ended."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(0))


def reseed() -> None:
    """Let the generators of this process differ from its siblings'. `random` and `secrets` see to it themselves."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:  # numpy itself loads it late
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(7), "little"))


def run_tasks(link: Link, board: Board, command: Configure, embedder: Embedder, reranker: Reranker) -> None:
    settings, results = command.settings, ResultReader(Path(command.results_path))
    row = command.board_row

    def make_tools(pace: Callable[[], None]) -> Tools:
        store = open_store(settings.store, command.owner_socket)
        is_embedded = settings.store.is_embedded
        models = Serving(store, embedder, lambda name: load_embedder(settings.model, name))
        gate = OwnersGate(Path(command.owner_socket), settings.store.timeout_s, sees_every_write=is_embedded)
        return Tools(
            store=store,
            embedder=embedder,
            reranker=reranker,
            settings=settings,
            clock=time.time,
            pace=pace,
            as_of=lambda: getattr(store, "as_of", 0),
            cached=lambda text, collection: results.get_at(text, collection, "", time.time()),
            gate=gate,
            filters=gate.filters,
            models=models,
            rerankers=Rerankers.of_settings(settings, reranker, models.of, is_small=lambda: board.is_small(row)),
        )

    for batched in (embedder, reranker):
        if isinstance(batched, Batched):
            batched.batches.watch(lambda: board.is_small(row), lambda: board.threads(row))
    TaskWorker(
        link,
        make_tools,
        TASKS,
        duty=lambda: board.duty(row),
        count_step=lambda: board.count_step(row),
        count_pace=lambda: board.count_pace(row),
    ).serve()
