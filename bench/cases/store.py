"""`bench store`: what reading a precomputed result from another process costs, beside what a user would pick instead."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..measure import Latency, clock_ns, interleaved, median_latency, median_ratio, micro, missing
from ..payload import ENTRIES, ROWS, pack, results
from ..reading import HOT, UPDATES_PER_S, Crew, Freshness, Reading, Shape
from ..report import Goal, Options, Result, Table
from ..stores import FLOOR, LMDB, OURS, REDIS, Store, all_stores

NAME = "store"
SUMMARY = (
    "read a precomputed result from another process: ours, LMDB, Redis, memcached, diskcache, sqlite, Manager, dict"
)

ROUNDS, SLOT_S, VERIFY_S = 9, 0.4, 10.0
QUICK_ROUNDS, QUICK_SLOT_S, QUICK_VERIFY_S = 3, 0.12, 1.5
READERS = (1, 2)
COMPARED = (Shape.REPEATED, Shape.IDS_SCORES, Shape.EVERYTHING)

Slot = tuple[int, str, Shape]  # readers at once, store, what is read
Readings = dict[Slot, list[list[Reading]]]  # of each slot: a list a round, in it one a reader


def run(options: Options) -> Result:
    rounds, slot_s = (QUICK_ROUNDS, QUICK_SLOT_S) if options.is_quick else (ROUNDS, SLOT_S)
    shm = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=shm if shm.is_dir() else None))
        stores = all_stores(Path(root))
        absent = missing(stores)
        present = [store for store in stores if store.name not in absent]
        for store in present:
            stack.enter_context(store.serving())
        crew = stack.enter_context(Crew(present, max(READERS)))
        for store in present:
            crew.fill(store.name)
        found = _measure(crew, present, rounds, slot_s)
        writes, seen = crew.verify(Path(root) / "acks", QUICK_VERIFY_S if options.is_quick else VERIFY_S, max(READERS))
    empty_ns = clock_ns()
    return Result(
        bench=NAME,
        tables=[_table(found, stores, absent, readers) for readers in READERS],
        figures=_figures(found, empty_ns, writes, seen) | {"not_measured": dict(absent)},
        goals=_goals(found, empty_ns, absent, seen),
        notes=_notes(found, empty_ns, absent, writes, seen),
        versions={store.name: store.version() for store in present},
    )


def _measure(crew: Crew, stores: Sequence[Store], rounds: int, slot_s: float) -> Readings:
    slots: list[Slot] = [(readers, store.name, shape) for readers in READERS for store in stores for shape in COMPARED]
    slots += [(readers, OURS, Shape.HANDED_OUT) for readers in READERS]
    for _, name, shape in slots[: len(slots) // 2]:
        crew.read(name, shape, 0.01, max(READERS))  # opens everything: not part of any lookup
    found: Readings = {slot: [] for slot in slots}
    for slot in interleaved(slots, rounds):
        readers, name, shape = slot
        found[slot].append(crew.read(name, shape, slot_s, readers))
    return found


# --- what the readings say ----------------------------------------------------------------------------------------------


def _p50s(found: Readings, slot: Slot) -> list[float]:
    """Return the median latency of each round in ns, the mean of its readers'."""
    return [statistics.fmean(reading.latency.p50_ns for reading in readings) for readings in found[slot]]


def _p99s(found: Readings, slot: Slot) -> list[float]:
    return [statistics.fmean(reading.latency.p99_ns for reading in readings) for readings in found[slot]]


def _latency(found: Readings, slot: Slot) -> Latency:
    return median_latency([reading.latency for readings in found[slot] for reading in readings])


def _rate(found: Readings, slot: Slot) -> float:
    """Return lookups per second of all readers together, the median of the rounds."""
    return statistics.median(sum(reading.lookups_per_s for reading in readings) for readings in found[slot])


def _ratio(found: Readings, above: Slot, below: Slot, empty_ns: float, *, of_p99: bool = False) -> float | None:
    """Return how many times as long `above` took, the clock's own cost taken out of both; None if not measured."""
    if above not in found or below not in found:
        return None
    part = _p99s if of_p99 else _p50s
    net = [[max(ns - empty_ns, 1.0) for ns in part(found, slot)] for slot in (above, below)]
    return median_ratio(*net)


def _goals(found: Readings, empty_ns: float, absent: Mapping[str, str], seen: Sequence[Freshness]) -> dict[str, Goal]:
    def ratio(above: str, below: str, shape: Shape, ours: Shape | None = None, *, of_p99: bool = False) -> float | None:
        shapes = {name: (ours or shape) if name == OURS else shape for name in (above, below)}
        slots: list[Slot] = [(1, name, shapes[name]) for name in (above, below)]
        return _ratio(found, *slots, empty_ns, of_p99=of_p99)

    no_lmdb, no_redis = absent.get(LMDB, ""), absent.get(REDIS, "")
    lazy = "first read with lazy text: ahead of LMDB get+decode"
    goals = {
        "repeated read of an unchanged entry: times LMDB get+decode": Goal.at_least(
            ratio(LMDB, OURS, Shape.REPEATED), 20, no_lmdb
        ),
        "repeated read of an unchanged entry: times Redis": Goal.at_least(
            ratio(REDIS, OURS, Shape.REPEATED), 300, no_redis
        ),
        "repeated read of an unchanged entry: times a plain dict's time": Goal.at_most(
            ratio(OURS, FLOOR, Shape.REPEATED), 1.5
        ),
    }
    for part, of_p99 in (("p50", False), ("p99", True)):
        goals[f"{lazy}, ids+scores, {part}: times"] = Goal.at_least(
            ratio(LMDB, OURS, Shape.IDS_SCORES, of_p99=of_p99), 1, no_lmdb
        )
        goals[f"{lazy}, the full result handed out, {part}: times"] = Goal.at_least(
            ratio(LMDB, OURS, Shape.EVERYTHING, Shape.HANDED_OUT, of_p99=of_p99), 1, no_lmdb
        )
    goals["first read with everything decoded: times LMDB's time"] = Goal.at_most(
        ratio(OURS, LMDB, Shape.EVERYTHING), 1.2, no_lmdb
    )
    goals["throughput with 2 readers: times that of one"] = Goal.at_least(
        _rate(found, (2, OURS, Shape.REPEATED)) / _rate(found, (1, OURS, Shape.REPEATED)), 1.9
    )
    goals["replaced results returned after the write was acknowledged"] = Goal.at_most(
        sum(one.stale for one in seen), 0
    )
    return goals


def _figures(found: Readings, empty_ns: float, writes: int, seen: Sequence[Freshness]) -> dict[str, Any]:
    rows = [
        {
            "store": name,
            "readers": readers,
            "read": shape.value,
            "p50_ns": round(_latency(found, (readers, name, shape)).p50_ns),
            "p99_ns": round(_latency(found, (readers, name, shape)).p99_ns),
            "lookups_per_s": round(_rate(found, (readers, name, shape))),
            "lookups_timed": _latency(found, (readers, name, shape)).count,
            "misses": sum(reading.misses for readings in found[readers, name, shape] for reading in readings),
        }
        for readers, name, shape in found
    ]
    return {
        "rows": rows,
        "clock_ns": empty_ns,
        "record_bytes": len(pack(results()[0])),
        "entries": ENTRIES,
        "freshness": {
            "writes": writes,
            "reads": sum(one.reads for one in seen),
            "stale": sum(one.stale for one in seen),
            "mixed": sum(one.mixed for one in seen),
            "misses": sum(one.misses for one in seen),
        },
    }


def _table(found: Readings, stores: Sequence[Store], absent: Mapping[str, str], readers: int) -> Table:
    rows = []
    for store in stores:
        if store.name in absent:
            rows.append((store.name, *["-"] * 5, absent[store.name]))
            continue
        cells = [_cell(found, (readers, store.name, shape)) for shape in COMPARED]
        handed_out = _cell(found, (readers, store.name, Shape.HANDED_OUT))
        rate = f"{_rate(found, (readers, store.name, Shape.REPEATED)):,.0f}"
        rows.append((store.name, cells[0], rate, handed_out, *cells[1:], ""))
    heading = (
        f"{readers} reader process{'es' if readers > 1 else ''}, a writer at {UPDATES_PER_S} updates/s;"
        " p50/p99 in microseconds, median of the rounds"
    )
    columns = (
        "store",
        "repeated",
        "lookups/s",
        "first: handed out",
        "first: ids+scores",
        "first: everything",
        "",
    )
    return Table(heading, columns, rows)


def _cell(found: Readings, slot: Slot) -> str:
    if slot not in found:
        return ""
    one = _latency(found, slot)
    return f"{micro(one.p50_ns)}/{micro(one.p99_ns)}"


def _notes(
    found: Readings, empty_ns: float, absent: Mapping[str, str], writes: int, seen: Sequence[Freshness]
) -> list[str]:
    misses = sum(reading.misses for rounds in found.values() for readings in rounds for reading in readings)
    return [
        f"{ENTRIES} entries of {ROWS} results, {len(pack(results()[0]))} bytes each; repeated reads are of {HOT} of them,"
        " first reads of all in turn, nothing kept between two reads of one",
        f"two looks at the clock cost {empty_ns:.0f} ns; they are in the latencies and taken out of the ratios",
        "byte stores get our lazy columns without checksum, on tmpfs or a Unix socket, without fsync; dict is the floor:"
        " no other process can update it",
        f"freshness: {writes} writes at full speed, {sum(one.reads for one in seen)} reads meanwhile,"
        f" {sum(one.stale for one in seen)} stale, {sum(one.mixed for one in seen)} mixed,"
        f" {sum(one.misses for one in seen)} misses",
        f"{misses} lookups of the timed ones missed",
        *(f"{name}: {why}" for name, why in absent.items()),
    ]
