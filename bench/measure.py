"""Owns how competitors are measured against each other: interleaved rounds, percentiles, ratios within a round.

round 1: B A C   round 2: C B A   ...      a slow minute of the machine hits all of them alike
"""

from __future__ import annotations

import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Name = TypeVar("Name")


class Peer(Protocol):
    """What a user would pick instead. It is measured in the same run, or the table says why not."""

    name: str

    def available(self) -> str | None:
        """Return None if it can be measured, else the reason in words and the package that installs it."""
        ...

    def version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Latency:
    """Nanoseconds; `count` lookups behind them."""

    p50_ns: float
    p99_ns: float
    count: int


def percentile(ordered: Sequence[int], share: float) -> float:
    """Return the value below which `share` (0..1) of the sorted sample lies, by the nearest rank."""
    if not ordered:
        raise ValueError("no sample: nothing was measured")
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


def latency(samples_ns: Sequence[int]) -> Latency:
    ordered = sorted(samples_ns)
    return Latency(percentile(ordered, 0.5), percentile(ordered, 0.99), len(ordered))


def median_latency(rounds: Sequence[Latency]) -> Latency:
    """Return the median of each percentile over rounds: one disturbed round does not move it."""
    return Latency(
        statistics.median(one.p50_ns for one in rounds),
        statistics.median(one.p99_ns for one in rounds),
        sum(one.count for one in rounds),
    )


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of above/below, paired by round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def interleaved(names: Sequence[Name], rounds: int, seed: int = 0) -> Iterator[Name]:
    """Yield every name once a round, each round in another seeded order."""
    chance = random.Random(seed)
    for _ in range(rounds):
        order = list(names)
        chance.shuffle(order)
        yield from order


def clock_ns(count: int = 20_000) -> float:
    """Return the median cost of taking two times with nothing between them: it is in every latency."""
    now = time.perf_counter_ns
    samples = array("q", bytes(8 * count))
    for i in range(count):
        began = now()
        samples[i] = now() - began
    return percentile(sorted(samples), 0.5)


def timed(action: Callable[[], object], seconds: float, at_least: int = 1) -> list[int]:
    """Return the nanoseconds of each run of `action`, run for `seconds` and at least so many times."""
    now = time.perf_counter_ns
    found: list[int] = []
    end_ns = now() + int(seconds * 1e9)
    while len(found) < at_least or now() < end_ns:
        began = now()
        action()
        found.append(now() - began)
    return found


def micro(ns: float) -> str:
    """Return nanoseconds as microseconds in three figures."""
    return f"{ns / 1000:.3g}" if ns < 1e6 else f"{ns / 1000:.0f}"


def missing(peers: Sequence[Peer]) -> Mapping[str, str]:
    """Return the peers that cannot be measured here, with the reason."""
    return {peer.name: why for peer in peers if (why := peer.available()) is not None}


def find_above(start: Path, wanted: str) -> Path | None:
    """Return the folder `wanted` beside or above `start`, None if there is none."""
    for folder in (start, *start.parents):
        if (found := folder / wanted).is_dir():
            return found
    return None
