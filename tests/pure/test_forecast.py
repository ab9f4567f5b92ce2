"""How often a query will be asked: held against streams whose rates are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.supervisor.forecast import (
    LEAST_SWING,
    LONGEST_S,
    MOST_SWING,
    PRIOR,
    SAMPLES,
    Forecast,
    features,
    swing,
)
from morgan.background.supervisor.popularity import DAY_S, Evidence, Popularity

HOUR_S = 3600.0
START = 20_000 * DAY_S
number = st.floats(0, 1e6)
place = st.complex_numbers(max_magnitude=1)


def asked_at(*hours: float, days: int = 30) -> tuple[Evidence, float]:
    """Return what is known of a query that is asked at these hours every day, and the time of it."""
    popularity, now = counts_of(*hours, days=days), START + days * DAY_S
    (found,) = popularity.asked(now, 1, "docs", 9)
    return found.evidence, now


def counts_of(*hours: float, days: int = 30) -> Popularity:
    popularity = Popularity()
    for day in range(days):
        for hour in hours:
            popularity.track("q", "docs", "", 0.0, START + day * DAY_S + hour * HOUR_S)
    return popularity


@given(number, st.tuples(number, number, number), place, place, st.floats(0, 1e10))
def test_a_rate_and_a_swing_are_finite_and_above_nothing(
    age_s: float, decayed: tuple[float, ...], once: complex, twice: complex, at: float
) -> None:
    evidence = Evidence(age_s, decayed, (once * decayed[-1], twice * decayed[-1]))
    usual = (once, twice)
    assert LEAST_SWING <= swing(evidence, usual, at) <= MOST_SWING
    rate = Forecast().rate(features(evidence, usual, at))
    assert 0 < rate < math.inf


def test_what_is_asked_in_the_morning_swings_up_then_and_down_in_the_evening() -> None:
    evidence, now = asked_at(7.5, 8, 8.5)
    flat = (0j, 0j)
    assert swing(evidence, flat, now + 8 * HOUR_S) > 3
    assert swing(evidence, flat, now + 20 * HOUR_S) < 0.3
    assert swing(evidence, flat, now + 4 * DAY_S + 8 * HOUR_S) == pytest.approx(swing(evidence, flat, now + 8 * HOUR_S))


def test_two_peaks_a_day_are_told_from_the_time_between_them() -> None:
    evidence, now = asked_at(8, 20)
    at = {hour: swing(evidence, (0j, 0j), now + hour * HOUR_S) for hour in (2, 8, 14, 20)}
    assert min(at[8], at[20]) > 1.8
    assert max(at[2], at[14]) < 0.2


def test_a_query_that_was_never_asked_has_the_day_of_its_collection_and_a_flat_one_none() -> None:
    popularity, now = counts_of(8), START + 30 * DAY_S
    new = Evidence(0.0, (0.0, 0.0, 0.0))
    usual = popularity.usual_day("docs")
    assert swing(new, usual, now + 8 * HOUR_S) > 3
    assert swing(new, popularity.usual_day("memories"), now) == 1.0
    evidence, now = asked_at(*range(24))
    assert all(swing(evidence, (0j, 0j), now + h * HOUR_S) == pytest.approx(1, abs=0.1) for h in range(24))


def test_a_forecast_learns_the_rates_of_a_stream_that_its_prior_is_wrong_about() -> None:
    """60 queries asked 3 an hour down to 0.002, from a prior that expects none to be asked in a year."""
    chance = np.random.default_rng(5)
    rates = 3 * 2.0 ** (-np.arange(60) / 5.5)
    popularity = Popularity()
    forecast = Forecast((-9.0, *PRIOR[1:]))
    keys = [popularity.track(f"q{i}", "docs", "", 0.0, START - HOUR_S) for i in range(60)]
    error = []
    for hour in range(400):
        now = START + hour * HOUR_S
        known = [(key, features(popularity.evidence(key, now), (0j, 0j), now)) for key in keys]
        forecast.settle(now, popularity.last_at)
        if hour >= 300:
            expected = sum(-math.expm1(-forecast.rate(one)) for _, one in known)
            error.append(expected - float(np.sum(-np.expm1(-rates))))
        forecast.watch(known, now)
        for i, count in enumerate(chance.poisson(rates)):
            for at in np.sort(chance.uniform(now, now + HOUR_S, count)):
                popularity.track(f"q{i}", "docs", "", 0.0, float(at))
    assert abs(np.mean(error)) < 0.1 * float(np.sum(-np.expm1(-rates)))


def test_an_outcome_counts_once_and_one_that_came_too_late_or_before_its_time_not_at_all() -> None:
    known = features(Evidence(60.0, (1.0, 1.0, 1.0)), (0j, 0j), 0.0)

    def after(elapsed_s: float, asked_s: float) -> list[float]:
        forecast = Forecast()
        forecast.watch([("q", known)], 1000.0)
        forecast.settle(1000.0 + elapsed_s, lambda _: 1000.0 + asked_s)
        weights = list(forecast.weights)
        forecast.settle(1000.0 + elapsed_s + 1, lambda _: 1000.0 + asked_s)
        assert forecast.weights == weights or elapsed_s == 0
        return weights

    prior = list(PRIOR)
    assert after(HOUR_S, 5.0)[0] > prior[0] > after(HOUR_S, -5.0)[0]
    assert after(LONGEST_S + 1, 5.0) == after(-10.0, 5.0) == after(0.0, 5.0) == prior


def test_of_many_queries_only_so_many_outcomes_are_waited_for() -> None:
    forecast = Forecast()
    known = features(Evidence(60.0, (1.0, 1.0, 1.0)), (0j, 0j), 0.0)
    forecast.watch([(str(i), known) for i in range(5000)], 0.0)
    looked_at: list[str] = []
    forecast.settle(HOUR_S, lambda key: looked_at.append(key) or 0.0)  # type: ignore[func-returns-value]
    assert len(set(looked_at)) == SAMPLES
