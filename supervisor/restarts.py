"""Owns when a dead worker is started again. Pure.

A worker that dies now and then comes back at once; one that keeps dying waits longer each time, and past the
intensity limit it is tried only once a minute and reported: the pool shrinks, the service goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BASE_S = 0.1
CAP_S = 60.0
CALM_S = 60.0  # a worker that lived this long had a good start: its deaths are forgotten
INTENSITY = 5  # deaths in a row without a calm life before the slot counts as degraded


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the pool. `deaths` counts those in a row that followed a short life."""

    deaths: int = 0
    start_at: float = 0.0  # when to start the next process; 0 at once

    @property
    def is_degraded(self) -> bool:
        return self.deaths >= INTENSITY


def after_death(slot: Slot, now: float, lived_s: float, jitter: float) -> Slot:
    """Return the slot with its next start. `jitter` is 0..1 and spreads starts by up to half the delay."""
    deaths = 1 if lived_s >= CALM_S else slot.deaths + 1
    delay_s = CAP_S if deaths >= INTENSITY else min(BASE_S * 4 ** (deaths - 1), CAP_S)
    return replace(slot, deaths=deaths, start_at=now + delay_s * (1 + jitter / 2))
