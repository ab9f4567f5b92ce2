"""Owns how `bench governor` reads who used the CPUs, and what it makes of it: shares, excess over a limit, reaction.

Shares are of the usable CPUs together, 0..1; points are hundredths of that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
IDLE_FIELDS = (3, 4)  # idle and iowait, of a line of /proc/stat
GUEST_FIELD = 8  # from here on fields are part of others


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU seconds used up to `at_s`: by the background, by the foreground, by anybody at all."""

    at_s: float
    own_s: float
    front_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Shares:
    own: float
    front: float
    others: float  # whoever else

    def left(self, limit: float) -> float:
        """Return what a limit leaves for the background."""
        return max(limit - self.front - self.others, 0.0)


def clock_s(pid: int) -> float | None:
    """Return the CPU time of all threads of a process, in steps of a nanosecond; None once it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid makes it
    except OSError:
        return None


def busy_s(cpus: Iterable[int], text: str) -> float:
    """Return the seconds that `cpus` were not idle, from the text of /proc/stat. Time the hypervisor took counts."""
    names, ticks = {f"cpu{cpu}" for cpu in cpus}, 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name in names:
            each = [int(field) for field in fields[:GUEST_FIELD]]
            ticks += sum(each) - sum(each[field] for field in IDLE_FIELDS)
    return ticks * TICK_S


class Meter:
    """Reads the clocks of some processes. One that has ended keeps what it had used."""

    def __init__(self, own: Sequence[int], front: Sequence[int]) -> None:
        self._own, self._front = dict.fromkeys(own, 0.0), dict.fromkeys(front, 0.0)
        self._cpus = os.sched_getaffinity(0)

    def sample(self) -> Sample:
        with open("/proc/stat", encoding="ascii") as stat:
            busy = busy_s(self._cpus, stat.read())
        for clocks in (self._own, self._front):
            for pid in clocks:
                clocks[pid] = clock_s(pid) or clocks[pid]
        return Sample(time.monotonic(), sum(self._own.values()), sum(self._front.values()), busy)


def shares(first: Sample, last: Sample, cpus: int) -> Shares:
    """Return who used what between two samples. The kernel counts what is busy in ticks: others are never below 0."""
    capacity_s = (last.at_s - first.at_s) * cpus
    own, front = (last.own_s - first.own_s) / capacity_s, (last.front_s - first.front_s) / capacity_s
    return Shares(own, front, max((last.busy_s - first.busy_s) / capacity_s - own - front, 0.0))


def errors(samples: Sequence[Sample], limit: float, span_s: float, cpus: int) -> list[float]:
    """Return how far use was from the limit in the mean of each window of `span_s`, in points; above 0: over it.

    Use is everybody's. Where others alone are over the limit, what the background still uses is the error of that
    moment: it could give back no more than that.
    """
    each = [_error(before, after, limit, cpus) for before, after in pairwise(samples)]
    found, end = [], 0
    for start, first in enumerate(samples):
        while end < len(samples) and samples[end].at_s - first.at_s < span_s * 0.999:
            end += 1
        if end == len(samples):
            break
        found.append(fmean(each[start:end], [b.at_s - a.at_s for a, b in pairwise(samples[start : end + 1])]))
    return found


def _error(before: Sample, after: Sample, limit: float, cpus: int) -> float:
    used = shares(before, after, cpus)
    return 100 * min(used.own + used.front + used.others - limit, used.own)


def reaction_s(counts: Sequence[int], wanted: float, hold: int, slice_s: float) -> float | None:
    """Return from when on `hold` slices in a row had at least `wanted`; None if that was never so."""
    row = 0
    for at, count in enumerate(counts):
        row = row + 1 if count >= wanted else 0
        if row == hold:
            return (at + 1 - hold) * slice_s
    return None
