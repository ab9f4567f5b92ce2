"""Owns how sure a figure is: 95 % intervals of shares, means, medians and slopes, each by a named formula. Pure.

The supervisor imports no scipy; tests hold every formula against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
LEAST_FREEDOM = 3  # degrees below which `t_quantile` is off by more than 1 %

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Of `count` values: their sum and that of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return z: a normal value is within z deviations of the mean with `confidence`."""
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the same of Student's t (Cornish-Fisher expansion, Abramowitz and Stegun 1964, 26.7.5).

    Raises ValueError below LEAST_FREEDOM degrees.
    """
    if freedom < LEAST_FREEDOM:
        raise ValueError(f"Student's t is not known here for {freedom} degrees of freedom: {LEAST_FREEDOM} at least")
    z = normal_quantile(confidence)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def share(hits: int, count: int) -> Interval:
    """Return hits / count with its score interval (Wilson 1927), which stays within 0..1. `count` is 1 or more."""
    z = normal_quantile()
    p, weight = hits / count, z * z / count
    middle = (p + weight / 2) / (1 + weight)
    half = z * math.sqrt(p * (1 - p) / count + weight / (4 * count)) / (1 + weight)
    return Interval(p, max(middle - half, 0.0) if hits else 0.0, min(middle + half, 1.0) if hits < count else 1.0)


def mean(sums: Sums) -> Interval:
    """Return the mean with its t interval (Student 1908). Raises ValueError below LEAST_FREEDOM + 1 values."""
    value = sums.total / sums.count
    variance = max(sums.squares - sums.total * value, 0.0) / (sums.count - 1)
    half = t_quantile(sums.count - 1) * math.sqrt(variance / sums.count)
    return Interval(value, value - half, value + half)


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest key that at least this share of all counts is not above. Raises ValueError without counts."""
    return _at_rank(counts, math.ceil(share * sum(counts.values())))


def quantile_range(counts: Mapping[int, int], share: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the keys between which the quantile of the whole population lies: order statistics whose ranks follow from
    the binomial distribution, in its normal approximation, rounded outwards (Conover 1999, section 3.2).
    """
    count = sum(counts.values())
    middle, half = share * count, normal_quantile(confidence) * math.sqrt(count * share * (1 - share))
    return _at_rank(counts, math.floor(middle - half)), _at_rank(counts, math.ceil(middle + half) + 1)


def _at_rank(counts: Mapping[int, int], rank: int) -> int:
    """Return the key of the value of this rank, from 1 on; of the first or the last where there is none."""
    if not counts:
        raise ValueError("there is nothing of which to take a quantile")
    passed, last = 0, max(counts)
    for key in sorted(counts):
        passed += counts[key]
        if passed >= max(rank, 1):
            return key
    return last


def slope(days: Iterable[tuple[float, int, int]]) -> Interval | None:
    """Return by how much a share changes a day, with its t interval: least squares over single outcomes of 0 or 1.

    `days`: (day, outcomes that are 1, outcomes that are 0). The slope is that of the Cochran-Armitage test for a trend
    (Armitage 1955). None where it is not defined: fewer than LEAST_FREEDOM + 2 outcomes, all of one day, or all alike.
    """
    rows = [(day, positive, positive + negative) for day, positive, negative in days if positive + negative]
    count = sum(n for _, _, n in rows)
    if count < LEAST_FREEDOM + 2:
        return None
    mean_day = sum(day * n for day, _, n in rows) / count
    mean_outcome = sum(positive for _, positive, _ in rows) / count
    spread = sum(n * (day - mean_day) ** 2 for day, _, n in rows)
    if spread <= 0 or mean_outcome in (0, 1):
        return None
    found = sum((positive - n * mean_outcome) * (day - mean_day) for day, positive, n in rows) / spread
    total = count * mean_outcome * (1 - mean_outcome)
    variance = max(total - found * found * spread, 0.0) / (count - 2)
    half = t_quantile(count - 2) * math.sqrt(variance / spread)
    return Interval(found, found - half, found + half)
