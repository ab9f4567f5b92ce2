"""Owns the inline lane: the supervisor's core and a task worker in the calling process, on a live client object.

Same decisions, same tasks, same governor as the daemon's. Tasks run in the thread that waits for one, or in the lane's
own thread after `start`; one at a time.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from .borrowed import Borrowed
from .ipc import messages
from .ipc.commands import Command, Configure, Event, Ready, Role, Run, StopTask
from .ipc.errors import InvalidArgument, from_wire
from .ipc.paths import RuntimePaths, make_private
from .ipc.reader import ResultReader
from .ipc.records import ComputedResult, PointId, QueryJob, TaskRecord
from .ipc.settings import WorkerSettings
from .lane import is_over
from .supervisor.assemble import core_settings, make_core
from .supervisor.config import Config, load
from .supervisor.journal import Journal
from .supervisor.requests import Requests
from .supervisor.state import Action, SendCommand, SendReply
from .workers.changes import looked_up
from .workers.checking import has_better
from .workers.learned_reranker import Rerankers
from .workers.loop import TaskWorker
from .workers.models import SentenceTransformerEmbedder, load_embedder
from .workers.open_store import open_store
from .workers.qdrant import QdrantStore
from .workers.reranker import as_reranker, make_reranker
from .workers.search import compute
from .workers.serving import Serving
from .workers.task import Tools
from .workers.tasks import TASKS
from .workers.vectors import VectorStore

log = logging.getLogger(__name__)

WORKER = 1  # the index of the one task worker
TOKEN = "caller"  # whom the core answers


class InlineLane:
    """See the module. Thread-safe: `_lock` guards the core, `_run_lock` lets one task run at a time."""

    name = "inline"

    def __init__(
        self,
        vector_db_client: Any = None,
        reranking_service: Any = None,
        *,
        config: Config | None = None,
        is_auto_scheduling: bool = False,
        check_interval_s: float | None = None,
    ) -> None:
        self._config = config or load()
        self._live_client, self._live_reranker = vector_db_client, reranking_service
        self._store: VectorStore | None = None
        self._tools: Tools | None = None
        self._lock, self._run_lock = threading.RLock(), threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inbox: deque[Command] = deque()
        self._thread: threading.Thread | None = None
        self._is_stopping = threading.Event()
        # A store of this lane's own: readers of other processes look for the daemon's.
        folder = Path(tempfile.mkdtemp(prefix="morgan-inline-", dir=_tmpfs()))
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        runtime = RuntimePaths(folder)
        make_private(runtime.readers)
        settings = core_settings(
            self._config, "inline", is_auto_scheduling=is_auto_scheduling, check_interval_s=check_interval_s
        )
        self._core = make_core(self._config, settings, runtime, Journal(None), own_pids=lambda: [os.getpid()])
        self._requests = Requests(self._core, str(self._config.state_dir()), runtime, os.getpid())
        self._reader = ResultReader(runtime.results, counters_dir=runtime.readers)
        self._worker = TaskWorker(
            _Port(self),
            self._make_tools,
            TASKS,
            duty=lambda: self._core.budget.duty_permille(WORKER),
            count_step=lambda: None,
            cpu=time.thread_time,  # the process's CPU is mostly the application's
        )
        configure = Configure(
            settings=WorkerSettings(),
            board_path="",
            owner_socket="",
            results_path="",
            board_row=WORKER,
            allowed_uids=(),
        )
        self._core.worker_joined(WORKER, Role.TASKS, os.getpid(), configure)
        self.on_event(Ready(role=Role.TASKS, index=WORKER, pid=os.getpid()))

    # --- requests -----------------------------------------------------------------------------------------------------

    def request(self, message: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """Answer at once from the core in this process. Raises what a Failure stands for."""
        import msgspec

        with self._lock:
            reply = self._requests.handle(msgspec.structs.replace(message, rid=1), TOKEN, time.time())
            self._turn()
            self._changed.notify_all()
        if reply is None:  # a long poll, which `wait` does itself in this lane
            raise ValueError("GetTask(wait_s=...) is not answered inline: call wait(task_id)")
        if isinstance(reply, messages.Failure):
            raise from_wire(reply.code, reply.message)
        return reply

    def post(self, message: messages.Track | messages.Publish) -> None:
        self.request(message)

    @property
    def reader(self) -> ResultReader:
        return self._reader

    def on_event(self, event: Event) -> None:
        """Take what the task worker reports."""
        with self._lock:
            self._core.on_event(WORKER, event, time.time())
            self._turn()
            self._changed.notify_all()

    def _turn(self) -> None:
        """One turn of the loop: what the daemon does with sockets happens here with a list. Call with the lock held."""
        actions: list[Action] = self._core.tick(time.time())
        self._core.journal.commit()
        self._core.journal.tidy()
        for action in actions:
            match action:
                case SendCommand():
                    if isinstance(action.command, Run | StopTask):
                        self._inbox.append(action.command)
                case SendReply():
                    pass  # nobody polls inline
        if actions:  # not every turn: two threads that look again when woken would wake each other for ever
            self._changed.notify_all()

    # --- running ------------------------------------------------------------------------------------------------------

    def wait(self, task_id: str, *, until_attempted: bool = False) -> TaskRecord:
        """Return the task when it has ended, running what is queued in this thread meanwhile."""
        while True:
            with self._lock:
                record = self._core.find_task(task_id)
                if record is None or is_over(record, until_attempted=until_attempted):
                    assert record is not None, task_id
                    return record
            if not self._run_next():
                with self._lock:
                    self._changed.wait(self._idle_s())
                    self._turn()

    def _idle_s(self) -> float:
        now = time.time()
        return min(max(self._core.next_deadline(now) - now, 0.01), 1.0)

    def _run_next(self) -> bool:
        """Run the next dispatched task in this thread; False if there is none or another thread runs one."""
        if not self._run_lock.acquire(blocking=False):
            return False
        try:
            command = self._take()
            if isinstance(command, Run):
                with self._opened():
                    self._worker.run(command)
                return True
            return False
        finally:
            self._run_lock.release()

    def _take(self) -> Command | None:
        with self._lock:
            return self._inbox.popleft() if self._inbox else None

    def start(self) -> None:
        """Run schedules and queued tasks in a thread of this lane's own."""
        self._is_stopping.clear()
        self._thread = threading.Thread(target=self._serve, name="morgan-inline", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_stopping.is_set():
            if not self._run_next():
                with self._lock:
                    if self._is_stopping.is_set():
                        return
                    self._changed.wait(self._idle_s())
                    self._turn()

    def stop(self) -> None:
        """Let the running task leave at its next step and end the lane's thread. What is queued stays queued."""
        self._is_stopping.set()
        with self._lock:
            for record in self._core.queue.running(None):
                self._core.stop_running(record, is_cancelled=False)
            self._turn()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def compute(self, text: str, collection: str, limit: int) -> ComputedResult | None:
        settings = self._config.worker_settings().rerank
        if not text.strip() or limit < 1:
            raise InvalidArgument("a search needs a text that is not empty and a limit of at least 1")
        with self._run_lock, self._opened():
            problems: list[str] = []
            tools, job = self._tools_now().of(collection), QueryJob(text=text)
            ((_, result, candidates),) = compute(
                [job],
                collection,
                tools,
                limit=limit,
                candidates=settings.candidates,
                is_reranked=True,
                told=lambda _, problem: problems.append(problem),
            )
            is_kept = bool(problems) and has_better(job, collection, candidates, tools)
        with self._lock:
            self._core.reranked(problems[0] if problems else None)
            if result is not None and not is_kept:
                self._core.publish([result], time.time(), is_asked_for=True)
        return result

    def report_change(self, collection: str, ids: tuple[PointId, ...]) -> None:
        with self._run_lock, self._opened():
            events = looked_up(self.store(), collection, ids)
        for event in events:
            self.on_event(event)

    # --- tools --------------------------------------------------------------------------------------------------------

    def store(self) -> VectorStore:
        """The live client's store, or the configured one, opened at first use."""
        if self._store is None:
            settings = self._config.worker_settings().store
            if self._live_client is not None:
                self._store = QdrantStore(self._live_client)
            elif settings.is_embedded:
                self._store = cast("VectorStore", Borrowed(lambda: open_store(settings, None)))
            else:
                self._store = open_store(settings, None)
        return self._store

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Give an embedded store back at the end: one process at a time opens it, and another component may be next."""
        try:
            yield
        finally:
            if isinstance(self._store, Borrowed):
                self._store.give_back()

    def _tools_now(self) -> Tools:
        """Tools that are not paced: the application waits for what they find."""
        return self._make_tools(lambda: None)

    def _make_tools(self, pace: Any) -> Tools:
        settings = self._config.worker_settings()
        known = self._tools  # the models are loaded once, whoever needs them first
        embedder = known.embedder if known else SentenceTransformerEmbedder(settings.model)
        if known:
            reranker = known.reranker
        elif self._live_reranker is not None:
            reranker = as_reranker(self._live_reranker)
        else:
            reranker = make_reranker(settings.rerank, embedder)
        store = self.store()
        models = Serving(store, embedder, lambda name: load_embedder(settings.model, name))
        tools = Tools(
            store,
            embedder,
            reranker,
            settings,
            time.time,
            pace,
            cached=lambda text, collection: self._reader.get_at(text, collection, "", time.time()),
            models=models,
            rerankers=Rerankers.of_settings(settings, reranker, models.of),
        )
        self._tools = known or tools
        return tools

    def close(self) -> None:
        """Stop, close a store this lane opened itself, remove its shared memory. A live client stays the caller's."""
        if not self._cleanup.alive:
            return
        self.stop()
        self._reader.close()
        self._core.keeper.store.close()
        self._core.journal.close()
        if self._store is not None and self._live_client is None:
            self._store.close()
        self._cleanup()


class _Port:
    """The task worker's commands and events, without a socket."""

    def __init__(self, lane: InlineLane) -> None:
        self._lane = weakref.proxy(lane)

    def send(self, event: Event) -> None:
        self._lane.on_event(event)

    def wait(self, timeout_s: float | None) -> Command | None:
        command: Command | None = self._lane._take()
        return command

    def peek(self) -> Command | None:
        with self._lane._lock:
            self._lane._turn()
            return self._lane._inbox[0] if self._lane._inbox else None

    def nap(self, timeout_s: float) -> None:
        with self._lane._lock:
            self._lane._changed.wait(timeout_s)


def _tmpfs() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
