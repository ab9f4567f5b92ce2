"""Which queries a plan takes: never more than there is to spend, and nothing better left out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.records import DecisionRow, Spread
from morgan.background.supervisor.planning import (
    DEFAULT_COST_S,
    LEAST_COST_S,
    LEAST_LOG_S,
    Candidate,
    costs,
    gain,
    plan,
    spare_s,
)

ANY = 10**6
cost = st.one_of(st.none(), st.just(0.0), st.just(math.nan), st.floats(0.01, 10))
candidate = st.builds(
    Candidate,
    text=st.text("abc", min_size=1, max_size=4),
    collection=st.sampled_from(["docs", "memories"]),
    asks=st.floats(0, 50),
    covered=st.floats(0, 1),
    cost_s=cost,
)
candidates = st.lists(candidate, max_size=12, unique_by=lambda one: (one.text, one.collection))
budget = st.one_of(st.none(), st.floats(0, 20))
share = st.floats(0, 1)


def of(
    text: str, asks: float, cost_s: float | None = 1.0, *, collection: str = "docs", covered: float = 0.0
) -> Candidate:
    return Candidate(text, collection, asks, covered, cost_s)


def texts(*given: Candidate, budget_s: float | None = None, most: int = ANY) -> list[str]:
    return [one.text for one in plan(given, budget_s, {"docs": most, "memories": most})]


@settings(deadline=None)
@given(candidates, budget, st.integers(0, 5), st.integers(0, 5), share)
def test_a_plan_spends_no_more_than_there_is_and_takes_no_query_twice(
    found: list[Candidate], budget_s: float | None, of_docs: int, of_memories: int, refill: float
) -> None:
    most = {"docs": of_docs, "memories": of_memories}
    chosen = plan(found, budget_s, most, refill=refill)
    assert sum(one.cost_s for one in chosen) <= (math.inf if budget_s is None else budget_s + 1e-9)
    names = [(one.text, one.collection) for one in chosen]
    assert len(set(names)) == len(names)
    assert set(names) <= {(one.text, one.collection) for one in found}
    assert all(one.gain > 0 for one in chosen)
    for name, limit in most.items():
        assert sum(one.collection == name for one in chosen) <= limit


@settings(deadline=None)
@given(candidates, budget)
def test_the_order_of_what_is_handed_in_changes_nothing(found: list[Candidate], budget_s: float | None) -> None:
    most = {"docs": 4, "memories": 4}
    assert plan(found, budget_s, most) == plan(reversed(found), budget_s, most)


@settings(deadline=None)
@given(st.lists(candidate, max_size=8, unique_by=lambda one: (one.text, one.collection)), st.floats(0, 20), share)
def test_a_plan_bounded_by_seconds_has_half_of_the_best_gain(
    found: list[Candidate], budget_s: float, refill: float
) -> None:
    worth = [(gain(one.asks, one.covered, refill), c) for one, c in zip(found, costs(found), strict=True)]
    subsets = itertools.chain.from_iterable(itertools.combinations(worth, n) for n in range(len(worth) + 1))
    best = max(sum(g for g, _ in one) for one in subsets if sum(c for _, c in one) <= budget_s)
    chosen = plan(found, budget_s, {"docs": ANY, "memories": ANY}, refill=refill)
    assert sum(one.gain for one in chosen) >= best / 2 - 1e-9


@settings(deadline=None)
@given(candidates, st.integers(0, 6))
def test_a_plan_bounded_by_number_alone_takes_those_that_gain_most(found: list[Candidate], most: int) -> None:
    docs = [one for one in found if one.collection == "docs"]
    gains = sorted((gain(one.asks, one.covered) for one in docs), reverse=True)
    chosen = plan(found, None, {"docs": most})
    assert sum(one.gain for one in chosen) == pytest.approx(sum(gains[:most]))


def test_hits_per_cpu_second_go_first_not_hits() -> None:
    assert texts(of("dear", 2.0, 10.0), of("a", 1.0, 0.1), of("b", 0.9, 0.1), budget_s=10.05) == ["a", "b"]
    assert texts(of("dear", 2.0, 9.0), of("cheap", 1.0, 0.1), budget_s=10.0) == ["cheap", "dear"]


def test_nothing_is_planned_with_nothing_to_spend() -> None:
    assert texts(of("a", 5.0), of("b", 1.0, None), budget_s=0.0) == []
    assert texts(of("a", 5.0), most=0) == []
    assert texts() == []


def test_a_giant_query_keeps_no_other_from_being_planned_and_none_that_fits_is_forgotten() -> None:
    assert texts(of("giant", 50.0, 1000.0), of("a", 0.5), of("b", 0.1), budget_s=2.0) == ["a", "b"]
    assert texts(of("giant", 50.0, 2.0), of("a", 0.6, 1.0), budget_s=2.0) == ["giant"]


def test_of_equals_the_order_is_that_of_their_names() -> None:
    assert texts(of("b", 1.0), of("a", 1.0), of("c", 1.0), budget_s=2.0) == ["a", "b"]
    both = [of("x", 1.0, collection="memories"), of("x", 1.0)]
    assert [one.collection for one in plan(both, None, {"docs": 1, "memories": 1})] == ["docs", "memories"]


def test_an_unknown_cost_is_the_mean_of_its_collection_of_all_or_the_default() -> None:
    found = [of("a", 1, 2.0), of("b", 1, 4.0), of("c", 1, None), of("d", 1, None, collection="memories")]
    assert costs(found) == [2.0, 4.0, 3.0, 3.0]
    assert costs([of("a", 1, None)]) == [DEFAULT_COST_S]
    assert costs([of("a", 1, 1e-9)]) == [LEAST_COST_S]


def test_a_result_that_holds_throughout_is_not_computed_and_one_that_expires_counts_for_the_rest() -> None:
    assert texts(of("held", 9.0, covered=1.0), of("lacking", 0.1)) == ["lacking"]
    assert gain(1.0, 0.75) == pytest.approx(gain(0.25, 0.0))


def test_a_result_for_which_a_better_one_leaves_is_not_computed() -> None:
    full = [
        Candidate("worse", "docs", 0.2, cost_s=0.1, lost=0.3),
        Candidate("better", "docs", 0.9, cost_s=5.0, lost=0.3),
    ]
    (chosen,) = plan(full, None, {"docs": ANY})
    assert chosen.text == "better"
    assert chosen.gain == pytest.approx(gain(0.9, 0.0) - gain(0.3, 0.0))


def test_where_misses_refill_the_store_the_first_ask_is_all_that_is_saved() -> None:
    assert gain(100.0, 0.0) == pytest.approx(1.0)
    assert gain(100.0, 0.0, refill=0.0) == pytest.approx(100.0)
    # so two queries asked now and then go before one that is asked all day
    asked = [of("always", 30.0, 2.0), of("a", 0.9, 1.0), of("b", 0.9, 1.0)]
    limits = {"docs": ANY}
    assert [one.text for one in plan(asked, 2.0, limits)] == ["a", "b"]
    assert [one.text for one in plan(asked, 2.0, limits, refill=0.0)] == ["always"]


def row(seconds: float, budget: float) -> DecisionRow:
    nothing = Spread(mean=0.0, peak=0.0)
    return DecisionRow(
        started_at=0.0,
        seconds=seconds,
        is_admitting=True,
        reason="",
        is_change=False,
        changes=0,
        admitted=1.0,
        budget=Spread(mean=budget, peak=1.0),
        limit=nothing,
        own=nothing,
        others=nothing,
        memory=nothing,
        query_rate=nothing,
    )


def test_what_can_be_spent_in_an_hour_is_what_the_governor_left_on_average() -> None:
    assert spare_s([row(1800, 0.5), row(1800, 0.1)], cpus=2.0) == pytest.approx(0.3 * 2 * 3600)
    assert spare_s([row(7200, 0.0)], cpus=2.0) == 0.0
    assert spare_s([row(LEAST_LOG_S - 1, 0.5)], cpus=2.0) is None
    assert spare_s([], cpus=2.0) is None
