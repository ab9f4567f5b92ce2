"""Owns how likely a query is asked again soon: a logistic model of its age and decayed counts, learned on-line. Pure.

  sample (features of a query) ─▶ wait for `horizon` more accesses ─▶ was it asked meanwhile? ─▶ one Newton step

A fixed formula suits one kind of traffic: a burst that ended still has high counts, a steady favourite has a high age.
How much each counts differs between streams, so it is learned from the stream itself (bench/cases/hitrate.py compares).
The step is the extended Kalman filter of logistic regression (recursive Newton, e.g. Haykin, Kalman Filtering and Neural
Networks, 2001): no learning rate to fit, and age and counts, which move together, do not slow it down.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .popularity import HALF_LIVES_S, Evidence

OLDEST_S = 10 * HALF_LIVES_S[-1]  # stands for every higher age, "never" included
LEAST_COUNT = 0.03  # added before the logarithm: a count 5 half-lives old, below which differences say nothing
BASE = 2 + len(HALF_LIVES_S)  # features before their products: 1, the age, the counts
# Of the base features in their order, then 0 for each product: they rank sensibly before anything was learned.
PRIOR = (-1.0, -1.0, 0.6, 0.6, 0.6) + (0.0,) * (BASE * (BASE - 1) // 2)
DOUBT = 0.01  # variance of each weight at the start: a few hundred samples move them
FORGET = 0.0001  # of what is known, a step: traffic changes within some 10,000 accesses

Features = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    at: float
    due: int  # the number of accesses at which it is judged
    features: Features


def base_features(evidence: Evidence) -> tuple[float, float, float, float]:
    """Return the logarithms of age and counts, on a scale around 0..1."""
    log2 = math.log2
    b, c, d = evidence.decayed
    return (
        (log2(1 + min(evidence.age_s, OLDEST_S) / 60) - 8) / 3,  # 8: four hours in minutes
        log2(LEAST_COUNT + b) / 2,
        log2(LEAST_COUNT + c) / 2,
        log2(LEAST_COUNT + d) / 2,
    )


def features(evidence: Evidence) -> Features:
    """Return 1, the base features, and the half products of all pairs of them."""
    a, b, c, d = base_features(evidence)
    halves = (a / 2, b / 2, c / 2, d / 2)
    p, q, r, s = halves
    return (1.0, a, b, c, d, a * p, a * q, a * r, a * s, b * q, b * r, b * s, c * r, c * s, d * s)


def weights_or_prior(weights: Sequence[float]) -> Sequence[float]:
    """Return `weights` if a Demand can start from them, else PRIOR: those of another version have other features."""
    return weights if len(weights) == len(PRIOR) and all(map(math.isfinite, weights)) else PRIOR


class Demand:
    """Estimates whether a query is asked again within the next `horizon` accesses."""

    def __init__(self, horizon: int, weights: Sequence[float] = PRIOR) -> None:
        """Start from `weights`, e.g. those of an earlier run. Raises ValueError for the wrong number of them."""
        if weights_or_prior(weights) is not weights:
            raise ValueError(f"the demand model has {len(PRIOR)} finite weights, not {tuple(weights)}")
        self.weights = [float(weight) for weight in weights]
        self._horizon = max(horizon, 1)
        self._doubt: npt.NDArray[np.float64] = DOUBT * np.eye(len(PRIOR))  # covariance of the weights
        # one an access at most: a caller that samples more often loses the oldest
        self._pending: deque[_Sample] = deque(maxlen=self._horizon + 1)

    def value(self, evidence: Evidence) -> float:
        """Return the log-odds of being asked again: only their order matters to an eviction."""
        return sum(map(float.__mul__, self.weights, features(evidence)))

    def sample(self, key: str, evidence: Evidence, now: float, accesses: int) -> None:
        """Remember what is known of a query now, to learn from it `horizon` accesses later."""
        self._pending.append(_Sample(key, now, accesses + self._horizon, features(evidence)))

    def settle(self, accesses: int, last_at: Callable[[str], float]) -> None:
        """Learn from the samples that are due. `last_at` says when a query was last asked."""
        while self._pending and self._pending[0].due <= accesses:
            sample = self._pending.popleft()
            self._step(sample.features, last_at(sample.key) > sample.at)

    def _step(self, features: Features, was_asked: bool) -> None:
        odds = sum(map(float.__mul__, self.weights, features))
        chance = 1 / (1 + math.exp(-max(min(odds, 30.0), -30.0)))
        variance = chance * (1 - chance) + 1e-4  # 1e-4: a certain model that is wrong takes no endless step
        x = np.array(features)
        reach = self._doubt @ x
        spread = 1 / variance + float(x @ reach)
        step = (was_asked - chance) / variance / spread
        self.weights = [weight + step * one for weight, one in zip(self.weights, reach.tolist(), strict=True)]
        self._doubt -= np.outer(reach, reach / spread)
        if self._doubt.trace() < DOUBT * len(
            PRIOR
        ):  # what the stream does not show must not come to be doubted without end
            self._doubt /= 1 - FORGET
