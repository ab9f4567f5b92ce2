"""Admission: what a miss computed is kept, an expired entry leaves first, and the model learns what its stream is like."""

from __future__ import annotations

import math
import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policies import (
    LIBRARY,
    LRU,
    Ours,
    OwnBelady,
    OwnLru,
    Stream,
    SumOfCounts,
    absent,
    hit_percent,
    next_uses,
    peer,
    synthetic,
)
from morgan.background.supervisor.admission import RANKED_S, Policy
from morgan.background.supervisor.demand import PRIOR, Demand, features
from morgan.background.supervisor.popularity import HALF_LIVES_S, NOTHING, Evidence, Popularity

HOUR_S = 3600.0
# (what happens, which of the keys, seconds since the event before, seconds until it expires)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["miss", "precompute", "hit", "remove"]),
        st.integers(0, 30),
        st.sampled_from([0.0, 1.0, HOUR_S, 50 * HOUR_S]),
        st.sampled_from([-1.0, 10.0, 100 * HOUR_S, math.inf]),
    ),
    max_size=120,
)


def asked(popularity: Popularity, text: str, times: int, now: float) -> str:
    return popularity.add(text, "docs", "", times, now).key


def filled(capacity: int, now: float = 0.0) -> tuple[Policy, Popularity, list[str]]:
    """A full policy whose keys were asked 2, 3, 4, ... times."""
    popularity = Popularity()
    policy = Policy(capacity, popularity, SumOfCounts())
    keys = [asked(popularity, f"q{n}", n + 2, now) for n in range(capacity)]
    assert [policy.admit(key, now) for key in keys] == [None] * capacity
    return policy, popularity, keys


# --- which one leaves ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(events=EVENTS, capacity=st.integers(1, 12), refresh=st.integers(0, 4), is_learned=st.booleans())
def test_the_policy_holds_what_was_admitted_less_what_it_named_to_leave(
    events: list[tuple[str, int, float, float]], capacity: int, refresh: int, is_learned: bool
) -> None:
    popularity = Popularity(20)
    policy = Policy(capacity, popularity, None if is_learned else SumOfCounts(), refresh=refresh)
    held: dict[str, float] = {}
    now = 1e9
    for what, number, gap_s, left_s in events:
        now += gap_s
        if what == "remove":
            key = popularity.track(f"q{number}", "docs", "", 0.0, now)
            policy.remove(key)
            held.pop(key, None)
        elif what == "hit":
            policy.touch(asked(popularity, f"q{number}", 3, now), 3, now)
        else:
            key = popularity.track(f"q{number}", "docs", "", 0.0, now)
            overdue = {one for one, at in held.items() if at <= now and one != key}
            was_full = key not in held and len(held) == capacity
            gone = (policy.admit if what == "miss" else policy.admit_precomputed)(key, now, now + left_s)
            held[key] = now + left_s
            assert (gone is not None) == was_full or gone == key
            if gone is not None:
                assert gone != key or what == "precompute"
                assert not overdue or gone in overdue, "an expired entry leaves first"
                del held[gone]
        assert len(policy) == len(held) <= capacity
        assert all(key in policy for key in held)
        victim = policy.victim(now)
        assert (victim in held) if held else (victim is None)
        if any(at <= now for at in held.values()):
            assert held[str(victim)] == min(held.values())


def test_what_a_miss_computed_is_kept_even_if_everything_else_is_asked_more_often() -> None:
    policy, popularity, keys = filled(10)
    newcomer = asked(popularity, "new", 1, 1.0)
    assert policy.admit(newcomer, 1.0) == keys[0]
    assert newcomer in policy


def test_what_was_precomputed_is_kept_only_if_it_is_worth_more_than_the_least_entry() -> None:
    policy, popularity, keys = filled(10)
    for times, gone, is_worth in ((1, None, False), (5, keys[0], True)):
        key = asked(popularity, f"asked {times} times", times, HOUR_S)
        assert policy.is_worth(key, HOUR_S) is is_worth
        assert policy.worth([key, keys[1]], HOUR_S) == {key, keys[1]} - (set() if is_worth else {key})
        assert policy.admit_precomputed(key, HOUR_S) == (gone or key)
        assert (key in policy) is is_worth


def test_a_renewed_entry_is_not_taken_for_expired() -> None:
    policy, _, keys = filled(10)
    policy.admit(keys[5], 0.0, 10.0)
    policy.admit(keys[5], 5.0, 100.0)
    assert policy.victim(50.0) == keys[0]
    assert policy.victim(100.0) == keys[5]
    policy.remove(keys[5])
    assert policy.victim(200.0) == keys[0]


def test_what_a_new_result_costs_is_the_least_entry_of_a_full_store_unless_that_has_expired() -> None:
    policy, _, keys = filled(10)
    assert policy.leaves_next(1.0) == keys[0]
    policy.admit(keys[5], 1.0, 10.0)
    assert policy.leaves_next(9.0) == keys[0]
    assert policy.leaves_next(10.0) is None
    policy.remove(keys[1])
    assert policy.leaves_next(9.0) is None


def test_an_entry_that_comes_expired_is_kept_until_the_next_and_then_leaves_first() -> None:
    policy, popularity, keys = filled(10)
    late, later = asked(popularity, "late", 9, 1.0), asked(popularity, "later", 1, 1.0)
    assert policy.admit(late, 1.0, 0.5) == keys[0]
    assert policy.admit(later, 1.0) == late


def test_the_window_spares_the_new_ones_until_they_were_not_asked_for_a_while() -> None:
    popularity = Popularity()
    policy = Policy(20, popularity, SumOfCounts(), window_share=0.1)
    for n in range(18):
        policy.admit(asked(popularity, f"q{n}", 5, 0.0), 0.0)
    first, second, third = (asked(popularity, text, 1, 1.0) for text in ("first", "second", "third"))
    assert [policy.admit(first, 1.0), policy.admit(second, 1.0)] == [None, None]
    policy.touch(first, 1, 2.0)  # which makes `second` the window's oldest
    assert policy.admit(third, 3.0) == second


def test_what_the_store_held_before_is_restored_and_ranked_by_its_counts() -> None:
    popularity = Popularity()
    policy = Policy(3, popularity, SumOfCounts())
    keys = [asked(popularity, f"q{times}", times, 0.0) for times in (2, 1, 3)]
    policy.restore([(key, math.inf) for key in keys])
    policy.restore([(keys[0], math.inf)])  # twice is once
    assert len(policy) == 3
    assert policy.admit(asked(popularity, "new", 1, 1.0), 1.0) == keys[1]


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), capacity=st.integers(20, 60))
def test_whoever_leaves_is_at_most_an_hours_decay_above_the_lowest(seed: int, capacity: int) -> None:
    """No value is older than an hour: meanwhile a score falls by at most an hour's decay of the fastest count."""
    chance = random.Random(seed)
    popularity = Popularity()
    policy = Policy(capacity, popularity, SumOfCounts(), refresh=1)
    held: set[str] = set()
    now = 0.0
    for _ in range(400):
        now += chance.expovariate(1 / 600)
        key = popularity.track(f"q{int(chance.paretovariate(0.7)) % 150}", "docs", "", 0.0, now)
        if key in policy:
            policy.touch(key, 1, now)
            continue
        before = {one: popularity.score(one, now) for one in held}
        held.add(key)
        if (gone := policy.admit(key, now)) is not None:
            # the window's entries do not compete: the lowest of all is a lower bound only where main has it
            lowest = min(score for one, score in before.items() if one in policy._place or one == gone)
            assert before[gone] <= lowest * 2 ** (RANKED_S / HALF_LIVES_S[0]) * (1 + 1e-9)
            held.remove(gone)


def test_a_ranking_kept_for_a_while_costs_no_tenth_of_a_point() -> None:
    stream = synthetic("", 7, 6000, 30.0, exponent=0.9, drift=0.05, bursts=0.2)
    assert hit_percent(Ours(), 100, stream) == pytest.approx(hit_percent(Ours(refresh=0), 100, stream), abs=0.1)


def test_where_bursts_end_the_learned_values_keep_more_than_lru_and_than_sums_of_counts() -> None:
    stream = synthetic("", 8, 12_000, 30.0, exponent=0.9, drift=0.05, bursts=0.2)
    hits = {
        name: hit_percent(make, 100, stream) for name, make in (("ours", Ours()), ("sum", Ours(False)), ("lru", OwnLru))
    }
    assert hits["ours"] > hits["sum"] + 0.5
    assert hits["ours"] > hits["lru"] + 0.5


def test_a_policy_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Policy(0, Popularity())


# --- the model ----------------------------------------------------------------------------------------------------------


def test_before_it_learned_anything_more_counts_and_a_lower_age_are_worth_more() -> None:
    demand = Demand(10)
    old, often, fresh = (
        Evidence(HOUR_S, (1.0, 1.0, 1.0)),
        Evidence(HOUR_S, (2.0, 3.0, 4.0)),
        Evidence(60.0, (1.0, 1.0, 1.0)),
    )
    assert demand.value(NOTHING) < demand.value(old) < min(demand.value(often), demand.value(fresh))
    assert all(map(math.isfinite, features(NOTHING)))


@pytest.mark.parametrize("comes_back", ["old", "new"])
def test_it_learns_from_the_stream_whether_old_or_new_queries_come_back(comes_back: str) -> None:
    demand = Demand(10)
    old, new = Evidence(100 * HOUR_S, (0.1, 2.0, 8.0)), Evidence(60.0, (2.0, 2.0, 2.0))
    last_at = {"old": -1.0, "new": -1.0}
    for step in range(6000):
        demand.sample(*(("old", old) if step % 2 else ("new", new)), float(step), step)
        last_at[comes_back] = step + 0.5
        demand.settle(step, last_at.__getitem__)
    assert (demand.value(old) > demand.value(new)) == (comes_back == "old")


def test_nothing_is_learned_before_the_horizon_is_over_and_what_waits_is_bounded() -> None:
    demand = Demand(10)
    for accesses in range(10):
        demand.sample("a", NOTHING, 0.0, accesses)
        demand.settle(accesses, lambda _: 1.0)
    assert demand.weights == list(PRIOR)
    demand.settle(10, lambda _: 1.0)
    assert demand.weights != list(PRIOR)
    for _ in range(100):
        demand.sample("a", NOTHING, 0.0, 11)
    assert len(demand._pending) == 11


@settings(deadline=None)
@given(
    ages=st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e6), st.booleans()), min_size=1, max_size=200),
)
def test_no_stream_makes_the_model_run_away(ages: list[tuple[float, float, bool]]) -> None:
    demand = Demand(1)
    for step, (age_s, count, was_asked) in enumerate(ages):
        demand.sample("a", Evidence(age_s, (count,) * len(HALF_LIVES_S)), 0.0, step)
        demand.settle(step + 1, {"a": 1.0 if was_asked else -1.0}.__getitem__)
    assert all(math.isfinite(weight) and abs(weight) < 100 for weight in demand.weights)


@pytest.mark.parametrize("weights", [(1.0,), (*PRIOR, 1.0), (math.nan, *PRIOR[1:])])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite weights"):
        Demand(10, weights)


# --- the bench's own policies and streams -------------------------------------------------------------------------------


def stream_of(names: list[int]) -> Stream:
    return Stream("", names, [float(i) for i in range(len(names))])


def best_hits(names: list[int], capacity: int) -> int:
    """Try every choice: after each request, any of the names seen (the newcomer may be declined)."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for name in names:
        following: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            hits += name in held  # noqa: PLW2901
            everyone = held | {name}
            choices = [everyone] if len(everyone) <= capacity else [everyone - {out} for out in everyone]
            for choice in choices:
                following[choice] = max(following.get(choice, 0), hits)
        states = following
    return max(states.values())


@settings(deadline=None)
@given(names=st.lists(st.integers(0, 5), min_size=1, max_size=14), capacity=st.integers(1, 3))
def test_belady_is_as_good_as_the_best_of_all_choices(names: list[int], capacity: int) -> None:
    cache = OwnBelady(capacity, stream_of(names))
    assert sum(cache.request(name, 0.0) for name in names) == best_hits(names, capacity)


def test_next_uses_look_ahead() -> None:
    assert next_uses([1, 2, 1, 1]) == [2, math.inf, 3, math.inf]
    assert all(next_uses(list(order)) == [math.inf] * 3 for order in permutations(range(3)))


@pytest.mark.skipif(absent() is not None, reason=f"needs {LIBRARY}")
def test_our_lru_and_the_librarys_agree_on_every_request() -> None:
    stream = synthetic("", 3, 3000, 30.0, exponent=0.9, drift=0.05, bursts=0.2)
    ours, theirs = OwnLru(50, stream), peer(LRU)(50, stream)
    assert [ours.request(name, 0.0) for name in stream.names] == [theirs.request(name, 0.0) for name in stream.names]


def test_a_synthetic_stream_is_seeded_in_order_and_as_bursty_as_asked() -> None:
    made = [synthetic("", seed, 4000, 30.0, exponent=0.9, drift=0.05, bursts=0.2) for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0].names != made[2].names
    assert list(made[0].times_s) == sorted(made[0].times_s)
    assert len(made[0].names) == len(made[0].times_s) == 4000
    calm = synthetic("", 1, 4000, 30.0, exponent=0.9, drift=0.0, bursts=0.0)
    assert max(calm.names) < 20_000 <= max(made[0].names)


def test_the_warm_up_is_not_counted() -> None:
    assert hit_percent(OwnLru, 1, stream_of([1, 1, 2, 3, 4, 5, 6, 7])) == 0.0
    assert hit_percent(OwnLru, 1, stream_of([2, 1, 1, 1])) == pytest.approx(200 / 3)
