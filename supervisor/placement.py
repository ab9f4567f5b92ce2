"""Owns which CPU each task worker runs on: away from those that others use the most, and from each other. Pure.

A worker is pinned to one CPU, its home, so that its caches stay warm and the other CPUs are left alone. Where others are busy
on that one and not on another, it yields all the time and they still feel its cache misses: it is moved. So is one of two that
have a task and share a CPU while another is free, as the first and the third worker of two CPUs do. One that computes in
several threads has as many CPUs, and the kernel moves its threads between them: a page is done when its slowest thread is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

CLEARLY = 0.2  # of a CPU: so much less must another be used, or the workers would follow noise
PERIOD_S = 5.0  # between looks: use is the mean of as long
MOVE_S = 10.0  # between moves: a whole mean of what the last one brought


def others_of(busy: Mapping[int, float], own: Mapping[int, float]) -> dict[int, float]:
    """Return the share of each CPU that others use: all of it less our workers', 0..1."""
    return {cpu: max(share - own.get(cpu, 0.0), 0.0) for cpu, share in busy.items()}


def moved(places: Mapping[int, int], at_work: Sequence[int], others: Mapping[int, float]) -> tuple[int, int] | None:
    """Return the worker that is to move and its new CPU; None where all are well where they are.

    `places`: worker -> CPU. `at_work`: the workers that have a task; each counts as a whole CPU's use for the others of
    them. One move at once: the next look sees what it brought.
    """
    crowd = Counter(places[worker] for worker in at_work)
    gains = [
        (others[here] + (crowd[here] - 1) - (others[cpu] + crowd[cpu]), -worker, cpu)
        for worker in at_work
        for cpu in others
        if (here := places[worker]) in others and here != cpu
    ]
    gain_cpus, minus_worker, cpu = max(gains, default=(0.0, 0, 0))  # of equal ones the last CPU: see pool.py
    return (-minus_worker, cpu) if gain_cpus >= CLEARLY else None


def spread(
    home: int, count: int, cpus: Collection[int], others: Mapping[int, float], taken: Collection[int]
) -> list[int]:
    """Return `count` of `cpus` for a worker of as many threads, its home first, then those that are used the least.

    `others`: what others use of each, where that is known. `taken`: CPUs of other workers that have a task, taken last. Of
    equal ones the last CPU: see pool.py.
    """
    free = sorted((cpu in taken, round(others.get(cpu, 0.0) / CLEARLY), -cpu) for cpu in cpus if cpu != home)
    return [home, *(-minus_cpu for _, _, minus_cpu in free[: count - 1])]


def in_the_way(cpu: int, places: Mapping[int, int], at_work: Sequence[int]) -> int | None:
    """Return a worker without a task on `cpu`, for it to change places with one that moves there."""
    return next((worker for worker, held in places.items() if held == cpu and worker not in at_work), None)
