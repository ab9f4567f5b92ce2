"""Owns how each task queue is started, given work and killed: ours, and what a user would pick instead of it.

Two workers each, results kept, defaults else; peers with a broker have a Redis of their own on a Unix socket, which saves
nothing (faster than ours, which syncs every commit to the disk). Run by measuring.py, one process a system.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from . import broker_apps
from .daemon import to_toml
from .stores import needs, needs_program, server

if TYPE_CHECKING:
    from morgan.background.ipc.messages import Message
    from morgan.background.ipc.records import TaskRecord

R = TypeVar("R", bound="Message")

WORKERS = 2
START_S, STOP_S, RESULT_S = 60.0, 20.0, 600.0
BATCH = 500  # tasks handed to ours in one message
WINDOW = 4  # of those that are not answered yet
UNUSED_PORT = 9  # discard: nothing listens there
LOOK_S = 0.001  # between two looks for a result, where a peer has no way to wait for one

ROOT = Path(__file__).parents[1]


class System(Protocol):
    """A task queue with two workers. `folder` holds its files; sockets go to `run`, a short path."""

    name: str
    is_durable: bool  # an accepted task survives a power cut
    is_child: bool  # its processes are all children; else this process is part of it

    def available(self) -> str | None: ...
    def version(self) -> str: ...

    def serving(self) -> AbstractContextManager[None]:
        """Start it; on entry nothing need have been run yet."""
        ...

    def one(self) -> None:
        """Run one no-op task to its end."""
        ...

    def many(self, count: int) -> None:
        """Run so many no-op tasks, and return when all results are here."""
        ...

    def hold(self, number: int) -> Callable[[float], bool]:
        """Begin a task that holds its worker; return a wait for its end, which says whether it ended in time."""
        ...

    def holder(self, number: int) -> int | None:
        """Return the pid of the process that holds task `number`; None while there is none."""
        ...


@runtime_checkable
class Supervised(Protocol):
    """A system whose workers are supervised by a main process of its own, not by the application itself."""

    def main_pid(self) -> int:
        """Return the pid of the main process, while `serving`."""
        ...

    def start_again(self) -> None:
        """Start the main process again after it was killed."""
        ...


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    folder: Path
    run: Path
    name: str = "morgan-background"
    is_durable: bool = True
    is_child: bool = True
    with_models: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _count: int = 0
    _held: dict[int, str] = field(default_factory=dict)

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return importlib.metadata.version("morgan-background")

    @contextmanager
    def serving(self) -> Iterator[None]:
        import zmq

        from morgan.background.ipc.client import Client

        settings: dict[str, dict[str, str | bool | int | float]] = {
            "service": {"state_dir": f"{self.folder}/state", "runtime_dir": f"{self.run}/run", "workers": WORKERS},
            # a server that is never asked: no embedded store; a model that is not there: none is loaded
            "store": {"url": f"http://127.0.0.1:{UNUSED_PORT}"},
            "schedule": {"auto": False},
        } | ({} if self.with_models else {"model": {"name": f"{self.folder}/none"}})
        (self.folder / "config.toml").write_text(to_toml(settings), encoding="utf-8")
        self.start_again()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.connect(f"ipc://{self.run}/run/clients.sock")
        self.client = Client(f"{self.run}/run", f"{self.folder}/state", timeout_s=RESULT_S)
        try:
            yield
        finally:
            self.client.close()
            context.destroy(linger=0)
            if self._process is not None:
                stop(self._process)

    def worker_pids(self) -> dict[int, int]:
        """Return the pids of the task workers that are ready, by place."""
        workers = self.client.status()["workers"]
        return {one["index"]: one["pid"] for one in workers if one["role"] == "tasks" and one["state"] == "ready"}

    def _order(self) -> dict[str, Any]:
        self._count += 1
        token = f"{os.getpid()}.{self._count}"  # else equal pending tasks would be one
        return {"task_type": "ping", "collection": "bench", "params": {"token": token}}

    def _ended(self, kind: type[R]) -> R:
        from morgan.background.ipc import wire
        from morgan.background.ipc.client import expect

        return expect(kind, wire.replies.decode(self._socket.recv()))

    def one(self) -> None:
        from morgan.background.ipc import messages, wire

        self._socket.send(wire.encode(messages.Submit(rid=1, **self._order(), wait_s=RESULT_S)))
        _demand_completed([self._ended(messages.TaskReply).task])

    def many(self, count: int) -> None:
        from morgan.background.ipc import messages, wire
        from morgan.background.ipc.records import Order

        sent = got = 0
        while got < count:
            while sent < count and sent - got < WINDOW * BATCH:
                orders = tuple(Order(**self._order()) for _ in range(min(BATCH, count - sent)))
                sent += len(orders)
                self._socket.send(wire.encode(messages.SubmitMany(rid=sent, orders=orders, wait_s=RESULT_S)))
            tasks = self._ended(messages.TaskList).tasks
            _demand_completed(tasks)
            got += len(tasks)

    def hold(self, number: int) -> Callable[[float], bool]:
        from morgan.background.ipc import messages
        from morgan.background.ipc.client import expect

        params = {"token": str(number), "hold_s": broker_apps.HOLD_S}
        ask = messages.Submit(task_type="ping", collection="bench", params=params)
        task_id = self._held[number] = expect(messages.Submitted, self.client.request(ask)).task_id

        def wait(timeout_s: float) -> bool:
            ask = messages.GetTask(task_id=task_id, wait_s=timeout_s, until_ended=True)
            return expect(messages.TaskReply, self.client.request(ask)).task.status == "completed"

        return wait

    def holder(self, number: int) -> int | None:
        from morgan.background.ipc import messages
        from morgan.background.ipc.client import expect

        task = expect(messages.TaskReply, self.client.request(messages.GetTask(task_id=self._held[number]))).task
        if not task.progress.note:  # it has reported its first step, and with that its checkpoint
            return None
        by_index = {worker["index"]: worker["pid"] for worker in self.client.status()["workers"]}
        return by_index.get(task.worker)

    def main_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start_again(self) -> None:
        command = [sys.executable, "-m", "morgan.background", "serve", "--config", str(self.folder / "config.toml")]
        self._process = start(command, self.folder / "log", {})


def _demand_completed(tasks: Iterable[TaskRecord]) -> None:
    for task in tasks:
        if task.status != "completed":
            raise RuntimeError(f"a task of ours has not completed: {task}")


# --- in this process --------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    folder: Path
    run: Path
    name: str = "multiprocessing.Pool"
    is_durable: bool = False
    is_child: bool = False

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return sys.version.split()[0]

    @contextmanager
    def serving(self) -> Iterator[None]:
        import multiprocessing

        self._pool = multiprocessing.get_context("fork").Pool(WORKERS)
        try:
            yield
        finally:
            self._pool.terminate()  # close and join would wait for ever for a task whose worker was killed

    def one(self) -> None:
        self._pool.apply(broker_apps.work)

    def many(self, count: int) -> None:
        for result in [self._pool.apply_async(broker_apps.work) for _ in range(count)]:
            result.get()

    def hold(self, number: int) -> Callable[[float], bool]:
        import multiprocessing

        result = self._pool.apply_async(broker_apps.work, (str(broker_apps.mark_of(self.folder, number)),))

        def wait(timeout_s: float) -> bool:
            with contextlib.suppress(multiprocessing.TimeoutError):
                result.get(timeout_s)
                return True
            return False

        return wait

    def holder(self, number: int) -> int | None:
        return pid_in(broker_apps.mark_of(self.folder, number))


@dataclass
class Futures(Pool):
    name: str = "ProcessPoolExecutor"

    @contextmanager
    def serving(self) -> Iterator[None]:
        from concurrent.futures import ProcessPoolExecutor

        self._executor = ProcessPoolExecutor(WORKERS)
        try:
            yield
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def one(self) -> None:
        self._executor.submit(broker_apps.work).result()

    def many(self, count: int) -> None:
        for future in [self._executor.submit(broker_apps.work) for _ in range(count)]:
            future.result()

    def hold(self, number: int) -> Callable[[float], bool]:
        from concurrent.futures import BrokenExecutor

        future = self._executor.submit(broker_apps.work, str(broker_apps.mark_of(self.folder, number)))

        def wait(timeout_s: float) -> bool:
            with contextlib.suppress(BrokenExecutor, TimeoutError):
                future.result(timeout_s)
                return True
            return False

        return wait


@dataclass
class Dask(Pool):
    name: str = "Dask"

    def available(self) -> str | None:
        return needs("distributed")

    def version(self) -> str:
        return importlib.metadata.version("distributed")

    @contextmanager
    def serving(self) -> Iterator[None]:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(self.folder),
            silence_logs="CRITICAL",
        )
        self._client = Client(cluster)
        try:
            yield
        finally:
            self._client.close()
            cluster.close()

    def one(self) -> None:
        self._client.submit(broker_apps.work, pure=False).result()

    def many(self, count: int) -> None:
        self._client.gather([self._client.submit(broker_apps.work, pure=False) for _ in range(count)])

    def hold(self, number: int) -> Callable[[float], bool]:
        future = self._client.submit(broker_apps.work, str(broker_apps.mark_of(self.folder, number)), pure=False)

        def wait(timeout_s: float) -> bool:
            with contextlib.suppress(TimeoutError):
                future.result(timeout_s)
                return True
            return False

        return wait


# --- with a broker ----------------------------------------------------------------------------------------------------


@dataclass
class Brokered(ABC):
    """What those on Redis share: a server of their own, and a main process that has the workers."""

    folder: Path
    run: Path
    name: str = ""
    package: str = ""
    is_durable: bool = False
    is_child: bool = True
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def available(self) -> str | None:
        return needs(self.package) or needs("redis") or needs_program("redis-server", "redis-server")

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    @abstractmethod
    def commands(self) -> list[list[str]]:
        """Return the commands of the main processes; the first is the one that is killed."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        socket = self.run / "redis.sock"
        options = {"port": "0", "unixsocket": str(socket), "save": "", "appendonly": "no", "dir": str(self.folder)}
        words = [part for key, value in options.items() for part in (f"--{key}", value)]
        os.environ["MORGAN_BENCH_REDIS"] = str(socket)
        with server(["redis-server", *words], socket):
            try:
                self.start_again()
                yield
            finally:
                for process in self._processes:
                    stop(process)

    def start_again(self) -> None:
        """Start what does not run: as a service manager would."""
        alive = [process for process in self._processes if process.poll() is None]
        missing = self.commands()[len(alive) :]
        self._processes = alive + [start(command, self.folder / "log", {}) for command in missing]

    @abstractmethod
    def submit(self, mark: str = "") -> Any:
        """Hand in a task that leaves `mark`, where there is one; return a handle for its result."""

    @abstractmethod
    def result(self, handle: Any, timeout_s: float) -> bool:
        """Wait for a result; say whether it came in time."""

    def one(self) -> None:
        if not self.result(self.submit(), RESULT_S):
            raise RuntimeError(f"{self.name} has not run its task")

    def many(self, count: int) -> None:
        for handle in [self.submit() for _ in range(count)]:
            if not self.result(handle, RESULT_S):
                raise RuntimeError(f"{self.name} has not run its tasks")

    def hold(self, number: int) -> Callable[[float], bool]:
        handle = self.submit(str(broker_apps.mark_of(self.folder, number)))

        def wait(timeout_s: float) -> bool:
            end_at = time.monotonic() + timeout_s
            while (left_s := end_at - time.monotonic()) > 0:
                if self.result(handle, min(left_s, 1.0)):
                    return True
                self.start_again()  # Dramatiq's main process leaves when a worker of it was killed
            return False

        return wait

    def holder(self, number: int) -> int | None:
        return pid_in(broker_apps.mark_of(self.folder, number))

    def main_pid(self) -> int:
        return self._processes[0].pid


@dataclass
class Celery(Brokered):
    name: str = "Celery"
    package: str = "celery"

    def commands(self) -> list[list[str]]:
        options = ["--concurrency", str(WORKERS), "--loglevel", "critical", "--without-mingle", "--without-gossip"]
        return [[sys.executable, "-m", "celery", "-A", "bench.broker_apps:celery", "worker", *options]]

    def submit(self, mark: str = "") -> Any:
        return broker_apps.celery_app().tasks["work"].delay(mark)

    def result(self, handle: Any, timeout_s: float) -> bool:
        from celery.exceptions import TimeoutError as TooLate

        with contextlib.suppress(TooLate):
            handle.get(timeout=timeout_s)
            return True
        return False


@dataclass
class Dramatiq(Brokered):
    name: str = "Dramatiq"
    package: str = "dramatiq"

    def commands(self) -> list[list[str]]:
        return [[sys.executable, "-m", "dramatiq", "bench.broker_apps:dramatiq", "-p", str(WORKERS), "-t", "1"]]

    def submit(self, mark: str = "") -> Any:
        return broker_apps.dramatiq_broker().get_actor("work").send(mark)

    def result(self, handle: Any, timeout_s: float) -> bool:
        from dramatiq.results import ResultTimeout

        with contextlib.suppress(ResultTimeout):
            handle.get_result(block=True, timeout=max(int(timeout_s * 1000), 1))
            return True
        return False


@dataclass
class Huey(Brokered):
    name: str = "Huey"
    package: str = "huey"

    def commands(self) -> list[list[str]]:
        options = ["-w", str(WORKERS), "-k", "process", "-q"]
        return [[sys.executable, "-m", "huey.bin.huey_consumer", "bench.broker_apps.huey", *options]]

    def submit(self, mark: str = "") -> Any:
        return broker_apps.huey_app().bench_work(mark)

    def result(self, handle: Any, timeout_s: float) -> bool:
        from huey.exceptions import HueyException

        with contextlib.suppress(HueyException):
            return handle.get(blocking=True, timeout=timeout_s, backoff=1.0, max_delay=0.005) is not None
        return False


@dataclass
class Rq(Brokered):
    name: str = "RQ"
    package: str = "rq"

    def commands(self) -> list[list[str]]:
        url = f"unix://{self.run / 'redis.sock'}"
        one = [sys.executable, "-m", "rq.cli", "worker", "--url", url, "--quiet", "bench"]
        return [one] * WORKERS

    def _queue(self) -> Any:
        import redis
        from rq import Queue

        if not hasattr(self, "_made"):
            self._made = Queue("bench", connection=redis.Redis(unix_socket_path=str(self.run / "redis.sock")))
        return self._made

    def submit(self, mark: str = "") -> Any:
        from rq import Retry

        return self._queue().enqueue(broker_apps.work, mark, retry=Retry(max=3), result_ttl=broker_apps.RESULTS_S)

    def result(self, handle: Any, timeout_s: float) -> bool:
        end_at = time.monotonic() + timeout_s
        while time.monotonic() < end_at:
            if handle.get_status(refresh=True) == "finished":
                return True
            time.sleep(LOOK_S)
        return False


MAKERS: Sequence[Callable[[Path, Path], System]] = (Ours, Pool, Futures, Celery, Dramatiq, Huey, Rq, Dask)
OURS, POOL, FUTURES, CELERY, DRAMATIQ, DASK = (one.name for one in (Ours, Pool, Futures, Celery, Dramatiq, Dask))
BROKERS = tuple(kind.name for kind in (Celery, Dramatiq, Huey, Rq))


def start(command: Sequence[str], log: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MORGAN_") or "BENCH" in name}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    with log.open("ab") as out:
        return subprocess.Popen([*command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env | more, cwd=ROOT)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pid_in(mark: Path) -> int | None:
    """Return the pid in a mark; None where it is not written yet."""
    try:
        words = mark.read_text()
    except FileNotFoundError:
        return None
    return int(words) if words.endswith("\n") else None


def found(name: str, folder: Path, run: Path) -> System:
    return next(system for make in MAKERS if (system := make(folder, run)).name == name)
