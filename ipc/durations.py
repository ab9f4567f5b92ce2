"""Owns how response times are counted: four buckets to each doubling, from 100 ns to 100 s. Pure."""

from __future__ import annotations

import math

LEAST_S = 1e-7  # of the first bucket: no answer takes less
A_DOUBLING = 4  # buckets: a value is known to within 19 %, the middle of its bucket is off by 9 % at most
BUCKETS = 120  # the last one ends at 107 s, and takes all that is longer


def bucket_of(seconds: float) -> int:
    """Return the bucket of a duration, 0..BUCKETS-1."""
    if seconds <= LEAST_S:
        return 0
    return min(int(A_DOUBLING * math.log2(seconds / LEAST_S)), BUCKETS - 1)


def middle_of(bucket: int) -> float:
    """Return the geometric middle of a bucket, in seconds."""
    return LEAST_S * math.exp2((bucket + 0.5) / A_DOUBLING)
