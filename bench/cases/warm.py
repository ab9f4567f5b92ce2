"""`bench warm`: what precomputing brings for its CPU seconds: as planned, in other orders, and by who knows the future.

stream, cost of each query, hourly budget ─▶ replay with a daily flush ─▶ hits, CPU seconds
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import find_above
from ..policies import Stream, diurnal, synthetic
from ..report import Goal, MissingInput, Options, Result, Table
from ..warming import (
    ByCount,
    ByPopularity,
    ByRecency,
    Foresight,
    MakePlanner,
    NextDay,
    Outcome,
    Planned,
    Terms,
    costs_of,
    replayed,
    replayed_lru,
)
from .hitrate import FOLDER, GET_IT, TRACE

NAME = "warm"
SUMMARY = (
    "hits that precomputing brings for its CPU seconds: planned, by count, by recency, and by who knows the future"
)

ONE_PER_S = 30.0  # web07 has no times, as in bench hitrate
REQUESTS, QUICK_REQUESTS = 14_400, 3_600  # five days, and a little more than one
CAPACITY = 1000
COST_SEED = 11
SECONDS = Terms(CAPACITY, budget_s=10.0)  # a sixth of one percent of two CPUs, about 20 queries an hour
FIFTY = Terms(CAPACITY, most=50)
WITHOUT_FLUSH = Terms(CAPACITY, is_flushed=False)
OF_OFFLINE, OF_UNFLUSHED = 0.90, 0.97

PLANNED_3 = "planned, what was asked 3 times"
PLANNED, LAZY, OFFLINE = "planned", "nothing precomputed", "knows the future"
NEXT_DAY = "knows the next day's counts"
LRU, LRU_COUNT = "LRU, nothing precomputed", "LRU, top N by count"
COUNT, POPULARITY, RECENCY, UNFLUSHED = "by count", "by popularity", "by recency", "not flushed, nothing precomputed"

Run = Callable[[Stream, Sequence[float], Terms, MakePlanner | None], Outcome]
# name in the table -> the store, and what is precomputed into it
BY_SECONDS: Mapping[str, tuple[Run, MakePlanner | None]] = {
    PLANNED: (replayed, Planned),
    PLANNED_3: (replayed, functools.partial(Planned, least=3)),
    POPULARITY: (replayed, ByPopularity),
    COUNT: (replayed, ByCount),
    LRU_COUNT: (replayed_lru, ByCount),
    LRU: (replayed_lru, None),
    NEXT_DAY: (replayed, NextDay),
    OFFLINE: (replayed, Foresight),
}
BY_NUMBER: Mapping[str, tuple[Run, MakePlanner | None]] = {
    PLANNED: (replayed, Planned),
    POPULARITY: (replayed, ByPopularity),
    RECENCY: (replayed, ByRecency),
}
QUICK = (PLANNED, POPULARITY, LRU_COUNT, LRU, OFFLINE)


@dataclass(frozen=True, slots=True)
class Found:
    """Of one stream: outcomes by name, within seconds an hour and within 50 queries an hour, and those of neither."""

    by_seconds: Mapping[str, Outcome]
    by_number: Mapping[str, Outcome]
    lazy: Outcome
    unflushed: Outcome


def run(options: Options) -> Result:
    began_s = time.process_time()
    found = {stream.name: _replay(stream, options.is_quick) for stream in _streams(options)}
    return Result(
        bench=NAME,
        tables=[*(_seconds_table(name, one) for name, one in found.items()), _number_table(found)],
        figures={name: _figures(one) for name, one in found.items()},
        goals=_goals(found),
        notes=_notes(options, time.process_time() - began_s),
    )


def _streams(options: Options) -> list[Stream]:
    """Return the real trace and synthetic ones, two of them with the hours of a day."""
    folder = options.data or find_above(Path.cwd(), FOLDER)
    if folder is None or not (folder / TRACE).is_file():
        raise MissingInput(f"no {TRACE} in {folder or FOLDER + ' here or above'}. {GET_IT}")
    count = QUICK_REQUESTS if options.is_quick else REQUESTS
    web = Stream("web07", np.load(folder / TRACE)["q"].tolist(), []).at_rate(ONE_PER_S).first(count)
    office = diurnal("office hours", 301, count, ONE_PER_S, queries=5000, exponent=0.9, with_hour=0.5, drift=0.02)
    if options.is_quick:
        return [web, office]
    around = diurnal("round the clock", 302, count, ONE_PER_S, queries=20_000, exponent=1.0, with_hour=0.3, drift=0.02)
    bursts = synthetic("drift and bursts", 303, count, ONE_PER_S, exponent=0.9, drift=0.05, bursts=0.2)
    return [web, office, around, bursts]


def _replay(stream: Stream, is_quick: bool) -> Found:
    cost_s = costs_of(stream, COST_SEED)

    def outcomes(runs: Mapping[str, tuple[Run, MakePlanner | None]], terms: Terms) -> dict[str, Outcome]:
        wanted = {name: one for name, one in runs.items() if not is_quick or name in QUICK}
        return {name: replay(stream, cost_s, terms, make) for name, (replay, make) in wanted.items()}

    return Found(
        by_seconds=outcomes(BY_SECONDS, SECONDS),
        by_number=outcomes(BY_NUMBER, FIFTY),
        lazy=replayed(stream, cost_s, FIFTY, None),
        unflushed=replayed(stream, cost_s, WITHOUT_FLUSH, None),
    )


# --- what the outcomes say ----------------------------------------------------------------------------------------------


def of_offline(found: Found, name: str = PLANNED) -> float:
    """Return the hits of a plan by those of the plan that knows the future, both of the same store and budget."""
    return found.by_seconds[name].hits / found.by_seconds[OFFLINE].hits


def gained(found: Found, name: str) -> float:
    """Return how many hits a CPU second of precomputing brought, beside the same store without it."""
    one = found.by_seconds[name]
    return (one.hits - found.lazy.hits) / one.precomputed_s if one.precomputed_s else 0.0


def of_unflushed(found: Found, name: str = PLANNED) -> float:
    return found.by_number[name].hits / found.unflushed.hits


def _goals(found: Mapping[str, Found]) -> dict[str, Goal]:
    goals = {}
    for stream, one in found.items():
        goals[f"hits within {SECONDS.budget_s:g} CPU s an hour, of those of the best offline plan, {stream}"] = (
            Goal.at_least(of_offline(one), OF_OFFLINE)
        )
    for stream, one in found.items():
        goals[f"hits kept through a daily flush with {FIFTY.most} computed an hour, {stream}"] = Goal.at_least(
            of_unflushed(one), OF_UNFLUSHED
        )
    return goals


def _seconds_table(stream: str, found: Found) -> Table:
    def row(name: str, one: Outcome, gain: float | None) -> tuple[str, ...]:
        return (
            name,
            f"{one.hit_percent:.2f}",
            f"{one.precomputed_s:.0f}",
            f"{one.missed_s:.0f}",
            "" if gain is None else f"{gain:.3f}",
            f"{one.hits_a_cpu_s:.2f}",
            f"{100 * one.hits / found.by_seconds[OFFLINE].hits:.1f}",
        )

    rows = [
        row(name, one, None if one.precomputed == 0 or "LRU" in name else gained(found, name))
        for name, one in found.by_seconds.items()
    ]
    rows.insert(-1, row(LAZY, found.lazy, None))
    columns = ("order", "hits %", "precomputed s", "missed s", "gained/CPU s", "hits/CPU s", "% of offline")
    return Table(f"{stream}: flushed daily, {SECONDS.budget_s:g} CPU s an hour", columns, rows)


def _number_table(found: Mapping[str, Found]) -> Table:
    streams = list(found.values())
    names = list(streams[0].by_number)
    rows = [
        (name, *(f"{one.by_number[name].hit_percent:.2f} ({100 * of_unflushed(one, name):.1f})" for one in streams))
        for name in names
    ]
    rows.append(
        (LAZY, *(f"{one.lazy.hit_percent:.2f} ({100 * one.lazy.hits / one.unflushed.hits:.1f})" for one in streams))
    )
    rows.append((UNFLUSHED, *(f"{one.unflushed.hit_percent:.2f}" for one in streams)))
    heading = f"Hits in percent, flushed daily, {FIFTY.most} computed an hour (in brackets: % of those not flushed)"
    return Table(heading, ("order", *found), rows)


def _figures(found: Found) -> dict[str, Any]:
    def of(one: Outcome) -> dict[str, float]:
        return {
            "hit_percent": one.hit_percent,
            "precomputed": one.precomputed,
            "precomputed_cpu_s": one.precomputed_s,
            "missed_cpu_s": one.missed_s,
            "hits_per_cpu_s": one.hits_a_cpu_s,
        }

    return {
        "seconds": {name: of(one) for name, one in found.by_seconds.items()},
        "fifty": {name: of(one) for name, one in found.by_number.items()},
        "lazy": of(found.lazy),
        "unflushed": of(found.unflushed),
        "of_offline": of_offline(found),
        "kept": {name: of_unflushed(found, name) for name in found.by_number},
    }


def _notes(options: Options, cpu_s: float) -> list[str]:
    notes = [
        f'"{NEXT_DAY}": how often each query asked before is asked in the next 24 hours, but not when: what a perfect forecast'
        " of rates would know, and a plan could reach.",
        f"Streams of {QUICK_REQUESTS if options.is_quick else REQUESTS:,} requests, one per {ONE_PER_S:g} s on average: web07"
        " has no times, the hours of the others are made up (bench/policies.py). The first quarter is not counted.",
        f"All results are dropped at 02:00. {CAPACITY:,} entries. A miss is computed by who asked, and its result kept.",
        "A query costs 0.4 CPU s at the median, log-normal, two thirds within a factor of 1.8; the same each time.",
        f'"{OFFLINE}": the same store and budget, and of the queries asked before, those that are asked next: this hour'
        " the cheapest first, then the soonest. It cannot be reached: which of a thousand rare queries comes is chance.",
        "planned is the service's own code (supervisor/warming.py). by popularity is what it did before: the sum of decayed"
        " counts. gained/CPU s: hits beyond those with nothing precomputed, for each CPU second of precomputing.",
        "The forecast's prior was fitted on web07 and on streams of other seeds; it learns on from there.",
        f"{cpu_s:.0f} s of CPU for all replays.",
    ]
    if options.is_quick:
        notes.insert(0, "--quick: two short streams: no verdict.")
    return notes
