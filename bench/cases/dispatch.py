"""`bench dispatch`: what it costs to have a no-op task run by another process, and what a death costs, beside its peers."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from ..brokers import BATCH, BROKERS, CELERY, DASK, DRAMATIQ, FUTURES, MAKERS, OURS, POOL, WINDOW, WORKERS, System
from ..dispatching import Found, Plan
from ..measure import missing, percentile
from ..report import Goal, Options, Result, Table

NAME = "dispatch"
SUMMARY = "have a no-op task done: ours, Pool, ProcessPoolExecutor, Celery, Dramatiq, Huey, RQ, Dask; kill workers"

FULL = Plan(idle_s=5, trips=2000, trips_s=4, tasks=10_000, tasks_s=8, kills=5, kill_s=15, main_kills=3, model_kills=0)
QUICK = Plan(idle_s=1, trips=200, trips_s=0.6, tasks=10_000, tasks_s=1, kills=1, kill_s=1, main_kills=1, model_kills=0)
NOT_QUICK = (DRAMATIQ, DASK, FUTURES)  # what --quick leaves out
MODEL_KILLS = 2  # one of each place: a second one would measure its back-off
SYSTEM_S = 180.0  # for one system to be measured
COMMITS = 200

Measured = Mapping[str, Any]  # as dispatching.Found


def run(options: Options) -> Result:
    plan = QUICK if options.is_quick else FULL
    systems = [make(Path(), Path()) for make in MAKERS]
    absent = dict(missing(systems))
    if options.is_quick:
        absent |= dict.fromkeys(NOT_QUICK, "left out by --quick")
    commit_ms = _commit_ms()
    found = {one.name: _measure(one.name, plan) for one in systems if one.name not in absent}
    broken = {name: one["error"] for name, one in found.items() if one["error"]}
    models = None
    if not options.is_quick:
        models = _measure(OURS, msgspec.structs.replace(plan, model_kills=MODEL_KILLS))
    return Result(
        bench=NAME,
        tables=_tables(systems, found, absent, models),
        figures={
            "systems": [_figures(one) for one in found.values()],
            "models": None if models is None else _figures(models),
            "commit_ms": commit_ms,
            "not_measured": absent,
            "broken": broken,
        },
        goals=_goals(found, models, options),
        notes=_notes(found, absent, broken, commit_ms),
        versions={one["name"]: one["version"] for one in found.values() if one["name"] != OURS},
    )


def _measure(name: str, plan: Plan) -> Measured:
    """Run one system in a process of its own, so that what it imports and leaves behind is not the next one's."""
    command = [sys.executable, "-m", "bench.dispatching", name, msgspec.json.encode(plan).decode()]
    print(f"{name} ...", file=sys.stderr)
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            out, errors = process.communicate(timeout=SYSTEM_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            return asdict(Found(name, error=f"not measured within {SYSTEM_S:g} s"))
        except BaseException:
            process.terminate()  # not killed: it ends what it has started
            raise
    lines = out.splitlines()
    if process.returncode != 0 or not lines:
        raise RuntimeError(f"{name} could not be measured:\n{errors[-2000:]}")
    found: Measured = json.loads(lines[-1])
    return found


def _commit_ms() -> float:
    """Return the median of a small commit with synchronous=FULL on the disk that has the journal."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        database = sqlite3.connect(Path(folder) / "journal", isolation_level=None)
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=full")
        database.execute("create table task (id integer primary key, record blob)")
        samples = []
        for number in range(COMMITS):
            began = time.perf_counter()
            database.execute("insert into task values (?, ?)", (number, bytes(400)))
            samples.append(time.perf_counter() - began)
        database.close()
    return statistics.median(samples) * 1000


def _trip(one: Measured) -> tuple[float, float] | None:
    """Return p50 and p99 of a round trip in ms."""
    if not one["trips_ns"]:
        return None
    ordered = sorted(one["trips_ns"])
    return percentile(ordered, 0.5) / 1e6, percentile(ordered, 0.99) / 1e6


def _killed_ms(one: Measured | None, which: str = "worker_killed_s") -> float | None:
    """Return the median of the milliseconds after a SIGKILL; None where a task was lost or nothing was killed."""
    if one is None or not one[which] or None in one[which]:
        return None
    return float(statistics.median(one[which]) * 1000)


def _pss_mib(one: Measured, words: Sequence[str] = ("",)) -> float | None:
    """Return the PSS of the processes whose name has one of `words`."""
    kib = [pss for name, pss in one["idle_kib"].items() if any(word in name for word in words)]
    return sum(kib) / 1024 if kib else None


def _lean_mib(one: Measured) -> float | None:
    """Return the PSS of our supervisor and task workers: what is left out is the store owner and the fork server."""
    return _pss_mib(one, ("python", "morgan-tasks", "morgan-super"))


def _figures(one: Measured) -> dict[str, Any]:
    trip = _trip(one)
    kept = {key: value for key, value in one.items() if key != "trips_ns"}
    return kept | {"trips": len(one["trips_ns"]), "trip_p50_ms": trip and trip[0], "trip_p99_ms": trip and trip[1]}


def _number(value: float | None, digits: str = ".3g") -> str:
    return "-" if value is None else f"{value:{digits}}" if value < 1000 else f"{value:.0f}"


def _after(one: Measured, which: str) -> str:
    if not one[which]:
        return "-"
    return "lost" if None in one[which] else _number(_killed_ms(one, which))


def _tables(
    systems: Sequence[System], found: Mapping[str, Measured], absent: Mapping[str, str], models: Measured | None
) -> list[Table]:
    rows = []
    for system in systems:
        if (one := found.get(system.name)) is None:
            rows.append((system.name, *["-"] * 9))
            continue
        trip = _trip(one)
        rows.append(
            (
                system.name + (" (durable)" if system.is_durable else ""),
                "-" if trip is None else f"{trip[0]:.3g} / {trip[1]:.3g}",
                _number(one["tasks_per_s"], ".0f"),
                str(one["tasks"]),
                _number(one["cpu_us"]),
                _number(one["idle_percent"]),
                _number(_pss_mib(one)),
                _number(one["first_task_s"] and one["first_task_s"] * 1000),
                _after(one, "worker_killed_s"),
                _after(one, "main_killed_s"),
            )
        )
    heading = f"No-op tasks, {WORKERS} workers; times in ms, CPU of all processes of a system together"
    columns = (
        *("system", "round trip p50 / p99", "tasks/s", "of", "CPU us/task", "idle CPU %", "PSS MiB", "first task"),
        *("worker killed", "main killed"),
    )
    tables = [Table(heading, columns, rows)]
    if absent:
        tables.append(Table("Not measured", ("system", "why"), sorted(absent.items())))
    if models is not None:
        back = _number(_killed_ms(models))
        tables.append(Table("Workers with models", ("killed", "ms to the next one ready, p50"), [(OURS, back)]))
    return tables


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _goals(found: Mapping[str, Measured], models: Measured | None, options: Options) -> dict[str, Goal]:
    ours = found[OURS]
    trip, pool = _trip(ours), _trip(found[POOL])
    brokers = [one for name in BROKERS if (one := found.get(name)) is not None]
    trips = [found_trip[0] for one in brokers if (found_trip := _trip(one)) is not None]
    retried = [ms for name, one in found.items() if name != OURS and (ms := _killed_ms(one)) is not None]
    celery = found.get(CELERY)
    no_celery = "" if celery else "Celery is not installed"
    slower = _ratio(min(trips, default=None), trip and trip[0])
    again = _ratio(_killed_ms(ours), min(retried, default=None))
    late = _ratio(trip and trip[1], pool and pool[1])
    back = "only without --quick: the models are loaded for it" if options.is_quick else ""
    return {
        "durable throughput, times Celery's": Goal.at_least(
            _ratio(ours["tasks_per_s"], celery["tasks_per_s"] if celery else None), 50, no_celery
        ),
        "CPU us a task": Goal.at_most(ours["cpu_us"], 60),
        "round trip p50 of the fastest peer with a broker, times ours": Goal.at_least(
            slower, 10, "" if brokers else "no peer with a broker is installed"
        ),
        "round trip p99, share of multiprocessing.Pool's": Goal.at_most(late, 1),
        "worker killed to task done again p50, share of the best peer's that retries": Goal.at_most(
            again, 0.1, "" if retried else "no peer that retries is installed"
        ),
        "a worker with models back, ms p50": Goal.at_most(_killed_ms(models), 150, back),
        "supervisor killed to first task, ms p50": Goal.at_most(_killed_ms(ours, "main_killed_s"), 300),
        "idle CPU, % of a core": Goal.at_most(ours["idle_percent"], 0.05),
        "idle PSS of supervisor and two workers without models, MiB": Goal.at_most(_lean_mib(ours), 30),
    }


def _notes(
    found: Mapping[str, Measured], absent: Mapping[str, str], broken: Mapping[str, str], commit_ms: float
) -> list[str]:
    notes = [
        f"ours is `serve` with its journal at synchronous=FULL and group commit; one small commit on this disk takes"
        f" {commit_ms:.2f} ms (median). No peer writes anything to a disk.",
        "a round trip of ours is one request (`submit` with `wait_s`) to a ping; it is answered when its end is durable."
        " A ping leaves a task record, no line in the history of executions.",
        f"many at once: all are handed in, then all results awaited. Ours: {BATCH} in one message (`submit_many`), {WINDOW} of"
        " those at a time. Fewer than 10,000 where they would take too long: column `of`.",
        "worker killed: SIGKILL of the process that holds a task, until that task is done by another; `lost`: not within"
        f" {FULL.kill_s:g} s ({QUICK.kill_s:g} s with --quick), or failed.",
        "main killed: SIGKILL, started again at once, until a new task is done. RQ has no main process: one of its"
        " workers is killed, and the other goes on. `-`: the application itself is the main process.",
        "Pool, ProcessPoolExecutor and Dask are part of the application: its idle memory and CPU are in theirs.",
        "idle PSS of ours has the store owner and the fork server in it; the goal is for supervisor and task workers.",
    ]
    idle = ", ".join(f"{name.rsplit(' ', 1)[0]} {kib / 1024:.1f}" for name, kib in found[OURS]["idle_kib"].items())
    notes.append(f"idle PSS of ours in MiB: {idle}")
    notes += [f"{name} is not measured: {why}" for name, why in absent.items()]
    notes += [f"{name} broke: {why.splitlines()[0]}" for name, why in broken.items()]
    if os.cpu_count() == 1:
        notes.append("on one CPU client, main process and workers take turns")
    return notes
