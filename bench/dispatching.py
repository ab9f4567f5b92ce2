"""Owns the measuring of one task queue, in a process of its own: `python -m bench.dispatching NAME PLAN`, JSON to stdout.

start, first task ─▶ idle ─▶ one at a time ─▶ many at once ─▶ a worker killed ─▶ the main process killed ─▶ stop
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from .brokers import Brokered, Ours, Supervised, System, found

HOLDER_S = 60.0  # for a task to be begun
LOOK_S = 0.002  # between two looks whether it is
WARM_UP = 200  # tasks before the throughput is measured: its rate says how many can be run
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Plan(msgspec.Struct, frozen=True):
    """How much is measured. Of what takes longer, less is."""

    idle_s: float
    trips: int
    trips_s: float
    tasks: int
    tasks_s: float
    kills: int
    kill_s: float  # longer than this counts as lost
    main_kills: int
    model_kills: int


@dataclass
class Found:
    """What was measured; None or empty: not. Times in seconds but for the round trips, in nanoseconds."""

    name: str
    version: str = ""
    first_task_s: float | None = None
    idle_percent: float | None = None  # of one core
    idle_kib: dict[str, int] = field(default_factory=dict)  # PSS by process
    trips_ns: list[int] = field(default_factory=list)
    tasks: int = 0
    tasks_per_s: float | None = None
    cpu_us: float | None = None  # a task, of all processes
    worker_killed_s: list[float | None] = field(default_factory=list)  # None: lost
    main_killed_s: list[float | None] = field(default_factory=list)
    error: str = ""


def measure(system: System, plan: Plan, found: Found) -> None:
    began = time.perf_counter()
    with system.serving():
        system.one()
        found.first_task_s = time.perf_counter() - began
        system.many(WARM_UP // 10)
        _idle(system, plan, found)
        _trips(system, plan, found)
        _many(system, plan, found)
        _kill_workers(system, plan, found)
        _kill_main(system, plan, found)


def _tree(*, with_self: bool) -> list[psutil.Process]:
    me = psutil.Process()
    return [*([me] if with_self else []), *me.children(recursive=True)]


def _idle(system: System, plan: Plan, found: Found) -> None:
    processes = _tree(with_self=not system.is_child)
    time.sleep(1.0)  # what starts late is over
    before, began = _run_ns(processes), time.perf_counter()
    time.sleep(plan.idle_s)
    elapsed_s = time.perf_counter() - began
    found.idle_percent = 100 * (_run_ns(processes) - before) / 1e9 / elapsed_s
    for process in processes:
        with contextlib.suppress(psutil.Error):
            name = f"{process.name()} {process.pid}"
            found.idle_kib[name] = process.memory_full_info().pss // 1024


def _run_ns(processes: list[psutil.Process]) -> int:
    """Return the CPU time of all threads of processes, in ns: the kernel's ticks are too coarse for an idle one."""
    total = 0
    for process in processes:
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(path.read_text().split()[0])
    return total


def _cpu_s() -> float:
    """Return the CPU seconds of this process and all below it, those included that have ended and were waited for."""
    total = 0
    for process in _tree(with_self=True):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(word) for word in words[11:15])
    return total * TICK_S


def _trips(system: System, plan: Plan, found: Found) -> None:
    end_at = time.perf_counter() + plan.trips_s
    while len(found.trips_ns) < plan.trips and time.perf_counter() < end_at:
        began = time.perf_counter_ns()
        system.one()
        found.trips_ns.append(time.perf_counter_ns() - began)


def _many(system: System, plan: Plan, found: Found) -> None:
    began = time.perf_counter()
    system.many(WARM_UP)
    rate = WARM_UP / (time.perf_counter() - began)
    found.tasks = min(plan.tasks, max(int(rate * plan.tasks_s), WARM_UP))
    cpu_s, began = _cpu_s(), time.perf_counter()
    system.many(found.tasks)
    found.tasks_per_s = found.tasks / (time.perf_counter() - began)
    found.cpu_us = (_cpu_s() - cpu_s) / found.tasks * 1e6


def _kill_workers(system: System, plan: Plan, found: Found) -> None:
    for number in range(plan.kills):
        wait = system.hold(number)
        end_at = time.monotonic() + HOLDER_S
        while (pid := system.holder(number)) is None:
            if time.monotonic() > end_at:
                raise TimeoutError(f"{system.name} has not begun its task within {HOLDER_S:g} s")
            time.sleep(LOOK_S)
        killed_at = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        is_done = wait(plan.kill_s)
        found.worker_killed_s.append(time.perf_counter() - killed_at if is_done else None)
        if not is_done:
            return  # the next one would be lost as well


def _kill_main(system: System, plan: Plan, found: Found) -> None:
    if None in found.worker_killed_s or not isinstance(system, Supervised):
        return  # what it still holds would be in the way; or the application itself is the main process
    for _ in range(plan.main_kills):
        pid = system.main_pid()
        children = psutil.Process(pid).children(recursive=True)
        killed_at = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)], timeout=10) if psutil.pid_exists(pid) else None
        if isinstance(system, Brokered):  # some leave their workers behind, and those would take the task
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
        system.start_again()
        if isinstance(system, Brokered) and not system.result(system.submit(), plan.kill_s):
            found.main_killed_s.append(None)
            return
        if not isinstance(system, Brokered):
            system.one()
        found.main_killed_s.append(time.perf_counter() - killed_at)


def measure_models(system: Ours, plan: Plan, found: Found) -> None:
    """Kill idle workers that have the models, and take the time until their place has another that is ready."""
    with system.serving():
        system.one()
        for number in range(plan.model_kills):
            end_at = time.monotonic() + HOLDER_S
            while len(before := system.worker_pids()) < 2 and time.monotonic() < end_at:
                time.sleep(LOOK_S)
            index = sorted(before)[number % 2]
            killed_at = time.perf_counter()
            os.kill(before[index], signal.SIGKILL)
            while system.worker_pids().get(index, before[index]) == before[index]:
                if time.perf_counter() - killed_at > plan.kill_s:
                    raise TimeoutError("no worker has come back")
                time.sleep(LOOK_S)
            found.worker_killed_s.append(time.perf_counter() - killed_at)


@contextlib.contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """Yield a folder on disk, for what is to last, and one with a short path on tmpfs, for sockets."""
    shm = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(prefix="b-", dir=shm if shm.is_dir() else None) as run,
    ):
        yield Path(folder), Path(run)


def main(name: str, words: str) -> int:
    plan, report = msgspec.json.decode(words, type=Plan), Found(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with folders() as (folder, run):
        try:
            if name == Ours.name and plan.model_kills:
                measure_models(Ours(folder, run, with_models=True), plan, report)
            else:
                system = found(name, folder, run)
                report.version = system.version()
                measure(system, plan, report)
        except Exception as error:  # noqa: BLE001 - a peer that breaks is a result; what was measured before it counts
            report.error = f"{type(error).__name__}: {error}"
            log = folder / "log"
            if log.exists():
                report.error += "\n" + log.read_text(errors="replace")[-1500:]
    _clean_up()
    print(json.dumps(as_json(report)))
    return 0


def _clean_up() -> None:
    """End what a peer has left running: it was started here."""
    left = _tree(with_self=False)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def as_json(report: Found) -> dict[str, Any]:
    return asdict(report)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
