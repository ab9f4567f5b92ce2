"""Owns which CPU each task worker runs on: away from those that others use the most. Pure.

A worker is pinned to one CPU, so that its caches stay warm and the other CPUs are left alone. Where others are busy on that
one and not on another, it yields all the time and they still feel its cache misses: it is moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CLEARLY = 0.2  # of a CPU: so much less must another be used by others, or the workers would follow noise
PERIOD_S = 5.0  # between looks, and so between moves: use is the mean of as long


def others_of(busy: Mapping[int, float], own: Mapping[int, float]) -> dict[int, float]:
    """Return the share of each CPU that others use: all of it less our workers', 0..1."""
    return {cpu: max(share - own.get(cpu, 0.0), 0.0) for cpu, share in busy.items()}


def moved(places: Mapping[int, int], at_work: Sequence[int], others: Mapping[int, float]) -> tuple[int, int] | None:
    """Return the worker that is to move and its new CPU; None where all are well where they are.

    `places`: worker -> CPU. `at_work`: the workers that have a task. One move a look: the next one sees what it brought.
    """
    taken = {places[worker] for worker in at_work}
    free = [cpu for cpu in others if cpu not in taken]
    candidates = [worker for worker in at_work if places[worker] in others]
    if not free or not candidates:
        return None
    best = min(free, key=lambda cpu: (others[cpu], -cpu))
    worst = max(candidates, key=lambda worker: others[places[worker]])
    return (worst, best) if others[places[worst]] - others[best] >= CLEARLY else None
