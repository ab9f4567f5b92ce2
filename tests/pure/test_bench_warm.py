"""The replay of `bench warm`: budgets are kept, the future is used by one planner alone, and the figures say what they name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from bench.cases import warm
from bench.policies import HOUR_S, Stream, diurnal, synthetic
from bench.warming import (
    FLUSH_HOUR,
    ByCount,
    ByPopularity,
    ByRecency,
    Foresight,
    LruStore,
    MakePlanner,
    NextDay,
    Outcome,
    Planned,
    Replay,
    Terms,
    costs_of,
    replayed,
    replayed_lru,
)

PLANNERS: Mapping[str, MakePlanner] = {
    "planned": Planned,
    "by popularity": ByPopularity,
    "by count": ByCount,
    "by recency": ByRecency,
    "knows the next day": NextDay,
    "knows the future": Foresight,
}
SHORT = diurnal("short", 1, 900, 800.0, queries=60, exponent=0.9, with_hour=0.5, drift=0.02)  # eight days
HOURS = 900 * 800 / HOUR_S * 0.75 + 2
COSTS = costs_of(SHORT, 1)


@pytest.mark.parametrize("make", PLANNERS.values(), ids=PLANNERS)
def test_no_plan_takes_more_than_the_terms_allow(make: MakePlanner) -> None:
    by_seconds = replayed(SHORT, COSTS, Terms(40, budget_s=1.0, most=2), make)
    assert 0 < by_seconds.precomputed_s <= 1.0 * HOURS
    assert 0 < by_seconds.precomputed <= 2 * HOURS


def test_who_knows_the_future_and_nobody_else_beats_the_planner_and_it_beats_doing_nothing() -> None:
    terms = Terms(40, budget_s=0.5)
    lazy = replayed(SHORT, COSTS, terms, None)
    planned, offline = (replayed(SHORT, COSTS, terms, make) for make in (Planned, Foresight))
    assert lazy.hits < planned.hits < offline.hits
    assert lazy.precomputed == 0


def test_a_flush_costs_hits_and_only_at_its_hour() -> None:
    terms = Terms(40)
    assert replayed(SHORT, COSTS, terms, None).hits < replayed(SHORT, COSTS, Terms(40, is_flushed=False), None).hits
    at = [FLUSH_HOUR * HOUR_S - 2, FLUSH_HOUR * HOUR_S - 1, FLUSH_HOUR * HOUR_S + 1, FLUSH_HOUR * HOUR_S + 2]
    flushed = Stream("s", [1] * 4, at)
    assert replayed_lru(flushed, [1.0, 2.0], terms, None) == Outcome(3, 2, 0, 0.0, 2.0)


def test_who_knows_the_future_names_what_is_asked_this_hour_first_and_no_query_that_is_new() -> None:
    stream = Stream("s", [1, 2, 3, 9, 2, 1, 3], [0.0, 1.0, 2.0, 7300.0, 7301.0, 7302.0, 12000.0])
    replay = Replay(stream, [0.0, 5.0, 1.0, 1.0, *[0.0] * 6], Terms(10), LruStore(10))
    planner = Foresight(replay)
    for name in (1, 2, 3):
        planner.asked(name, 0.0)
    assert list(planner.plan(2, 7200.0)) == [2, 1, 3]


def test_lru_is_that_of_the_other_benchmark() -> None:
    stream = synthetic("s", 2, 3000, 30.0, exponent=0.9, drift=0.05, bursts=0.1)
    from bench.policies import OwnLru, hit_percent

    found = replayed_lru(stream, costs_of(stream, 1), Terms(50, is_flushed=False), None)
    assert found.hit_percent == pytest.approx(hit_percent(OwnLru, 50, stream))


def test_a_stream_with_days_has_its_rate_and_its_queries_by_the_hour() -> None:
    stream = diurnal("d", 3, 40_000, 30.0, queries=50, exponent=0.5, with_hour=0.5, drift=0.0)
    hours = (np.asarray(stream.times_s) / HOUR_S % 24).astype(int)
    by_hour = np.bincount(hours, minlength=24)
    assert by_hour[14] > 4 * by_hour[2]
    assert 0.8 < len(stream.names) / 40_000 <= 1
    names = np.asarray(stream.names)
    share = np.array([[np.mean(names[hours // 6 == part] == name) for part in range(4)] for name in range(50)])
    swings = share.max(axis=1) / share.min(axis=1)
    assert np.mean(swings > 3) == pytest.approx(0.5, abs=0.2)
    assert diurnal("d", 3, 400, 30.0, queries=50, exponent=0.5, with_hour=0.5, drift=0.1) == diurnal(
        "d", 3, 400, 30.0, queries=50, exponent=0.5, with_hour=0.5, drift=0.1
    )


def test_the_figures_are_ratios_of_what_was_counted() -> None:
    def outcome(hits: int, cpu_s: float = 10.0) -> Outcome:
        return Outcome(100, hits, 5, cpu_s, 20.0)

    found = warm.Found(
        by_seconds={warm.PLANNED: outcome(60), warm.OFFLINE: outcome(80)},
        by_number={warm.PLANNED: outcome(66)},
        lazy=outcome(40, 0.0),
        unflushed=outcome(70),
    )
    assert warm.of_offline(found) == pytest.approx(0.75)
    assert warm.gained(found, warm.PLANNED) == pytest.approx(2.0)
    assert warm.of_unflushed(found) == pytest.approx(66 / 70)
    assert found.lazy.hits_a_cpu_s == pytest.approx(2.0)
    verdicts = [goal.met for goal in warm._goals({"s": found}).values()]
    assert verdicts == [False, False]
