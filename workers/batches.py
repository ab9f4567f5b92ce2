"""Owns how many texts are computed at once: so many that a pause takes effect soon, and no more than memory allows.

CPU time grows with the padded length of a batch, and with little else that is known before it is computed; so what a
character took so far says how many texts fit. A paced worker that is told to stop does so after at most one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from .climb import Climb

SUB_BATCH_S = 0.035  # CPU time of a sub-batch: with what comes between two of them, a pause takes effect within 50 ms
MEMORY_OF_COST = 0.5  # of what was believed before, when a new measurement comes
CALL_CHARACTERS = 150  # that a call costs beside its texts: about 4 ms of the default model


@runtime_checkable
class Batched(Protocol):
    """What computes texts in sub-batches."""

    batches: SubBatches


class SubBatches:
    """Cuts texts of one kind of computation into sub-batches, and learns from how long each of them took.

    `size` is the most texts of one. `is_small` says whether memory is short: then each text is one for itself.
    """

    def __init__(
        self,
        size: int,
        is_small: Callable[[], bool] = lambda: False,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._size, self._is_small, self._cpu = size, is_small, cpu
        self._cost_s: float | None = None  # CPU seconds of a padded character
        self._climbs: dict[int, Climb] = {}  # by the bits of a length: of texts of 100 and of 1000 characters apart

    def renewed(self) -> SubBatches:
        """Return one with the same limits that has learned nothing yet."""
        return SubBatches(self._size, self._is_small, self._cpu)

    def watch(self, is_small: Callable[[], bool]) -> None:
        """Ask `is_small` from now on."""
        self._is_small = is_small

    def rows(self, lengths: Sequence[int], *, is_paced: bool) -> Iterator[list[int]]:
        """Yield the rows of texts of these lengths, each once, in batches of similar length: padding is thrown away.

        What the caller does between two of them is what is measured. Where it is not paced, somebody waits: batches are
        of the size that computes the most, see climb.py.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        start = 0
        while start < len(order):
            climb = self._climbs.setdefault(lengths[order[start]].bit_length(), Climb(self._size))
            size = self._size if is_paced else climb.size()
            size = 1 if self._is_small() else size
            if is_paced:
                size = self._fitting([lengths[row] for row in order[start : start + size]])
            batch = order[start : start + size]
            began = self._cpu()
            yield batch
            used_s = self._cpu() - began
            self._learn(used_s / _work(len(batch), lengths[batch[-1]]))
            climb.learn(len(batch), used_s / sum(1 + lengths[row] for row in batch))
            start += size

    def _fitting(self, lengths: Sequence[int]) -> int:
        """Return how many of these ascending lengths fit a sub-batch, at least one."""
        if self._cost_s is None:
            return 1  # not measured yet
        cost_s = self._cost_s
        return max((n for n, longest in enumerate(lengths, 1) if _work(n, longest) * cost_s <= SUB_BATCH_S), default=1)

    def _learn(self, cost_s: float) -> None:
        held = self._cost_s
        self._cost_s = cost_s if held is None else MEMORY_OF_COST * held + (1 - MEMORY_OF_COST) * cost_s


def _work(texts: int, longest: int) -> int:
    """Return how many characters are computed for so many texts, all padded to the longest."""
    return texts * longest + CALL_CHARACTERS
