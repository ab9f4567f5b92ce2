"""Owns when a dead worker is started again. Pure.

A worker that dies now and then comes back at once; from its second death in a row on it waits longer each time, and past
the intensity limit it is tried only once a minute and reported: the pool shrinks, the service goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BASE_S = 0.1  # after the second death in a row
CAP_S = 60.0
CALM_S = 10.0  # a worker that lived this long had a good start: its deaths are forgotten
INTENSITY = 5  # deaths in a row without a calm life before the slot counts as degraded


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the pool. `deaths` counts those in a row that followed a short life."""

    deaths: int = 0
    start_at: float = 0.0  # when to start the next process; 0 at once

    @property
    def is_degraded(self) -> bool:
        return self.deaths >= INTENSITY


def after_death(slot: Slot, now: float, lived_s: float, jitter: float, *, is_proven: bool = False) -> Slot:
    """Return the slot with its next start. `jitter` is 0..1 and spreads starts by up to half the delay.

    `is_proven`: it had got something done, so its start was as good as a calm life's. A task that kills the workers that
    run it is given up for that; it must not slow down the others.
    """
    deaths = 1 if lived_s >= CALM_S or is_proven else slot.deaths + 1
    delay_s = CAP_S if deaths >= INTENSITY else min(BASE_S * 4 ** (deaths - 2), CAP_S) if deaths > 1 else 0.0
    return replace(slot, deaths=deaths, start_at=now + delay_s * (1 + jitter / 2))


@dataclass(frozen=True, slots=True)
class Wear:
    """When a healthy task worker is replaced; 0 tasks is never."""

    max_rss_kib: int
    max_tasks: int = 0

    def is_worn(self, rss_kib: int, tasks: int) -> bool:
        """Say so of one that has run `tasks`. None that has run nothing: its successor would be the same."""
        return tasks > 0 and (rss_kib > self.max_rss_kib or 0 < self.max_tasks <= tasks)
