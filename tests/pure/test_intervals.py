"""Every interval against scipy's."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from morgan.background.ipc.durations import A_DOUBLING, BUCKETS, LEAST_S, bucket_of, middle_of
from morgan.background.supervisor import intervals
from morgan.background.supervisor.intervals import Sums


@pytest.mark.parametrize("freedom", [5, 9, 19, 99, 10_000])
def test_students_t_is_that_of_scipy(freedom: int) -> None:
    assert intervals.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)
    assert intervals.t_quantile(freedom, 0.9) == pytest.approx(stats.t.ppf(0.95, freedom), rel=1e-3)


def test_students_t_of_too_few_is_refused_and_that_of_few_is_near() -> None:
    assert intervals.t_quantile(3) == pytest.approx(stats.t.ppf(0.975, 3), rel=0.01)
    with pytest.raises(ValueError, match="2 degrees"):
        intervals.t_quantile(2)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_has_wilsons_interval(pair: tuple[int, int]) -> None:
    hits, count = pair
    found = intervals.share(hits, count)
    wanted = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_mean_has_the_interval_of_a_t_test() -> None:
    values = np.random.default_rng(1).normal(0.03, 0.2, 40)
    found = intervals.mean(Sums(len(values), float(values.sum()), float((values**2).sum())))
    wanted = stats.ttest_1samp(values, 0).confidence_interval()
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_a_trend_is_the_regression_of_the_single_outcomes(rows: list[tuple[int, int, int]]) -> None:
    days = [day for day, positive, negative in rows for _ in range(positive + negative)]
    outcomes = [one for _, positive, negative in rows for one in [1] * positive + [0] * negative]
    found = intervals.slope(rows)
    if len(outcomes) < 5 or len(set(days)) < 2 or len(set(outcomes)) < 2:
        assert found is None
        return
    wanted = stats.linregress(days, outcomes)
    assert found is not None
    assert found.value == pytest.approx(wanted.slope, abs=1e-9)
    half = intervals.t_quantile(len(outcomes) - 2) * wanted.stderr
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-4, abs=1e-7)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.sampled_from([0.5, 0.95]))
def test_quantiles_of_counts_are_those_of_the_values(values: list[int], share: float) -> None:
    counts = Counter(values)
    assert intervals.quantile(counts, share) == sorted(values)[math.ceil(share * len(values)) - 1]
    low, high = intervals.quantile_range(counts, share)
    assert low <= intervals.quantile(counts, share) <= high


def test_the_range_of_a_median_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        low, high = intervals.quantile_range(Counter(rng.integers(0, 1001, 50).tolist()), 0.5)
        held += low <= 500 <= high
    assert 0.92 < held / 400 < 0.98


@given(st.floats(1e-9, 1e4))
def test_a_duration_is_within_a_tenth_of_its_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert 0 <= bucket < BUCKETS
    if LEAST_S < seconds < middle_of(BUCKETS - 1):
        assert middle_of(bucket) == pytest.approx(seconds, rel=2 ** (0.5 / A_DOUBLING) - 1 + 1e-3)


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        intervals.quantile({}, 0.5)
