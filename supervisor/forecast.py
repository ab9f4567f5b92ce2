"""Owns how often a query will be asked in the next hours: a log-linear model of what is known of it, learned on-line. Pure.

  age, counts at three half-lives, hour of day ─▶ asks an hour ─▶ was it asked until the next plan? ─▶ one Newton step

demand.py says which of two queries is likelier asked again soon, and that is all an eviction needs. A plan needs a number
of asks, at an hour of the day. "Asked within t" has the chance 1 - exp(-rate t) (the complementary log-log model), so an
outcome teaches after any t, and a burst of a thousand asks no more than one of two.
"""

from __future__ import annotations

import cmath
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .demand import base_features
from .popularity import DAY_S, Evidence

# For 1, the age and the counts as in demand.py, and the logarithm of the swing. Fitted to web07 and to synthetic streams
# other than bench warm's.
PRIOR = (-3.8, -0.4, 0.45, 0.65, 0.1, 0.4)
DOUBT = 0.05  # variance of each weight at the start: some hundred outcomes move them
FORGET = 0.0001  # of what is known, a step
LOWEST, HIGHEST = -15.0, 7.0  # logarithm of asks an hour: one in three hundred years, a thousand
SWING_COUNT = 4.0  # asks that a query's own day needs to count as much as that of its collection
LEAST_SWING, MOST_SWING = 0.1, 6.0  # two harmonics can fall below nothing, and a few asks say little
SAMPLES = 64  # outcomes a plan: a step each, 20 us
LONGEST_S = 6 * 3600.0  # an outcome that comes later says nothing of the hour it was forecast for
LEAST_S = 60.0

Day = tuple[complex, complex]
Features = tuple[float, ...]


class _Sample(NamedTuple):
    key: str
    at: float
    features: Features


def swing(evidence: Evidence, usual: Day, at: float) -> float:
    """Return how much more than on average of the day a query is asked at the hour of `at` (Unix seconds).

    The first harmonic of where in the day it was asked and half of the second, whole it would ring:
    1 + Re(2 m_1 exp(-i t) + m_2 exp(-2 i t)), m_k the mean of exp(i k t) over its asks, drawn towards the `usual` of its
    collection while they are few.
    """
    turn = cmath.exp(-2j * math.pi * (at % DAY_S) / DAY_S)
    weight = 2 / (evidence.decayed[-1] + SWING_COUNT)
    once = (evidence.day[0] + SWING_COUNT * usual[0]) * turn
    twice = (evidence.day[1] + SWING_COUNT * usual[1]) * turn * turn
    return min(max(1 + weight * (once.real + twice.real / 2), LEAST_SWING), MOST_SWING)


def features(evidence: Evidence, usual: Day, at: float) -> Features:
    return (1.0, *base_features(evidence), math.log(swing(evidence, usual, at)))


class Forecast:
    """Estimates asks an hour. `weights` are of the features."""

    def __init__(self, weights: Sequence[float] = PRIOR, *, seed: int = 0) -> None:
        self.weights = [float(weight) for weight in weights]
        self._doubt: npt.NDArray[np.float64] = DOUBT * np.eye(len(PRIOR))  # covariance of the weights
        self._pending: deque[_Sample] = deque(maxlen=16 * SAMPLES)
        self._chance = random.Random(seed)

    def rate(self, known: Features) -> float:
        """Return the asks an hour that are expected of a query with these features."""
        return math.exp(min(max(sum(map(float.__mul__, self.weights, known)), LOWEST), HIGHEST))

    def watch(self, forecast: Sequence[tuple[str, Features]], now: float) -> None:
        """Remember some of what was forecast now (query's key, features), to learn from what becomes of it."""
        few = len(forecast) <= SAMPLES
        chosen = forecast if few else self._chance.sample(forecast, SAMPLES)
        self._pending += [_Sample(key, now, known) for key, known in chosen]

    def settle(self, now: float, last_at: Callable[[str], float]) -> None:
        """Learn from what was remembered at least a minute ago. `last_at` says when a query was last asked."""
        while self._pending and not 0 <= now - self._pending[0].at < LEAST_S:
            sample = self._pending.popleft()
            elapsed_s = now - sample.at
            if 0 < elapsed_s <= LONGEST_S:  # else the clock was set back, or nothing was planned for long
                self._step(sample.features, elapsed_s / 3600, last_at(sample.key) > sample.at)

    def _step(self, known: Features, hours: float, was_asked: bool) -> None:
        mean = self.rate(known) * hours
        chance = -math.expm1(-mean)
        slope = max(mean * math.exp(-mean), 1e-9)  # of the chance by the logarithm of the rate
        variance = max(chance * (1 - chance), 1e-6) / slope**2
        x = np.array(known)
        reach = self._doubt @ x
        spread = variance + float(x @ reach)
        step = (was_asked - chance) / slope / spread
        self.weights = [weight + step * one for weight, one in zip(self.weights, reach.tolist(), strict=True)]
        self._doubt -= np.outer(reach, reach / spread)
        if self._doubt.trace() < DOUBT * len(PRIOR):  # what the stream does not show must not be doubted without end
            self._doubt /= 1 - FORGET
