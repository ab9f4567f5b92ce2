"""Owns how many texts at once compute the most: found by trying, since it depends on the model, the loader and the caches.

4 of 128 tokens for one, 1 or 32 for another; memory and the time a pause may take bound it from outside (batches.py). Pure.
"""

from __future__ import annotations

FIRST_TRIED = 4  # research: 1.21x the throughput of sentence-transformers' 32
TRIED_AGAIN = 16  # batches until a neighbour of the best is measured once more: the machine may have changed
WORTH = 1.03  # a larger batch must be so much better: it takes more memory, and a pause longer
HELD = 0.5  # of what was measured before, when a new measurement comes


class Climb:
    """Goes up and down the doubled sizes 1, 2, 4 ... `most` to the one that costs least CPU time for a character."""

    def __init__(self, most: int) -> None:
        self._sizes = [size for size in (1 << n for n in range(most.bit_length())) if size < most] + [most]
        self._costs: dict[int, float] = {}
        self._batches = 0

    def size(self) -> int:
        """Return the size to compute next: the best so far, or a neighbour of it that is to be measured."""
        if not self._costs:
            return max(size for size in self._sizes if size <= FIRST_TRIED)
        best = self._sizes.index(self.best())
        beside = [self._sizes[i] for i in (best - 1, best + 1) if 0 <= i < len(self._sizes)]
        if unknown := [size for size in beside if size not in self._costs]:
            return unknown[0]
        self._batches += 1
        turn, rest = divmod(self._batches, TRIED_AGAIN)
        return beside[turn % len(beside)] if beside and rest == 0 else self._sizes[best]

    def best(self) -> int:
        """Return the smallest size that is not noticeably worse than the best one."""
        least = min(self._costs.values())
        return min(size for size, cost in self._costs.items() if cost <= least * WORTH)

    def learn(self, size: int, cost_s: float) -> None:
        """Take in that a batch of `size` took `cost_s` seconds of CPU for each of its characters."""
        if size in self._sizes:  # else the last of some texts, with what was left
            held = self._costs.get(size, cost_s)
            self._costs[size] = HELD * held + (1 - HELD) * cost_s
