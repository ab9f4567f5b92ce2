"""Owns how often a collection is warmed: as soon as results are lacking that a run is worth. Pure.

A run is due when what went missing since the last one (invalidated, expired, never computed) would bring WORTH hits an
hour. How fast that comes is measured at each run: what is lacking then, less what the last one left, over the time since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

USUAL_S = 3600.0  # until something was measured
SHORTEST_S = 900.0
LONGEST_S = 4 * 3600.0
WORTH = 1.0  # hits an hour that a run should bring back
STEP = 2.0  # from one interval to the next, at most: one odd hour makes no schedule
LEAST_S = 600.0  # between two looks that say how fast results go missing


@dataclass(frozen=True, slots=True)
class Looked:
    """What a run found. Gains are hits an hour: `lacking` before it, `left` after it, `waiting` the best of what is left.

    `cost_s`: CPU seconds of a run with as many queries as it may have.
    """

    at: float
    lacking: float
    left: float
    waiting: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Cadence:
    every_s: float
    why: str  # in words


def step(held_s: float, before: Looked | None, found: Looked, spare_s: float | None) -> tuple[Looked, Cadence | None]:
    """Return what to remember of a run that `found` this, and the interval from now on; None: as it was (`held_s`).

    `before` is what the last call said to remember. `spare_s` is the CPU time an hour that warming may use (None: not
    bounded): no interval is so short that the runs would use more.
    """
    if before is None or found.at < before.at:
        return found, None
    gone = max(found.lacking - before.left, 0.0)
    if found.at - before.at < LEAST_S:  # too soon to say; the next look counts from the last one that did
        return replace(found, at=before.at, left=found.left - gone), None
    hours = (found.at - before.at) / 3600
    missing = max(WORTH - found.waiting, 0.0)  # until a run is worth it
    wanted_s = 3600 * missing * hours / gone if gone > 0 else LONGEST_S if missing > 0 else SHORTEST_S
    steady_s = min(max(wanted_s, held_s / STEP), held_s * STEP)
    every_s = min(max(steady_s, SHORTEST_S), LONGEST_S)
    why = f"results worth {gone:.2g} hits an hour went missing in {hours:.2g} h"
    if found.waiting >= 0.1 * WORTH:
        why += f", and such worth {found.waiting:.2g} wait for a run"
    if spare_s is not None and found.cost_s * 3600 > spare_s * every_s:
        every_s = min(3600 * found.cost_s / spare_s, LONGEST_S) if spare_s > 0 else LONGEST_S
        why += f"; a run may cost {found.cost_s:.2g} of the {spare_s:.2g} CPU seconds that an hour can spare"
    return found, Cadence(every_s, why)
