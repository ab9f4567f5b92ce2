"""Owns what happens in which order: from a seed alone. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

BURST = 25  # kills of workers in a row under one supervisor: what grows with each of them is seen
BURSTS = 0.4  # the share of the kills of workers that come so


@dataclass(frozen=True, slots=True)
class Action:
    """One fault. `seed` decides its details."""

    number: int
    fault: str
    seed: int


def plan(seed: int, counts: Mapping[str, int]) -> list[Action]:
    """Return as many actions of each fault as `counts` says, in an order of the seed's.

    Part of the faults "worker" come in bursts, the others anywhere: a supervisor is killed when it is a second old, or
    when it has lost dozens of workers.
    """
    rng = random.Random(seed)
    bursts = int(counts.get("worker", 0) * BURSTS) // BURST
    blocks = [["worker"] * BURST for _ in range(bursts)]
    for fault, count in sorted(counts.items()):
        left = count - bursts * BURST if fault == "worker" else count
        blocks += [[fault]] * left
    rng.shuffle(blocks)
    order = [fault for block in blocks for fault in block]
    return [Action(number, fault, rng.randrange(2**32)) for number, fault in enumerate(order, 1)]
