"""Owns how many texts are computed at once: so many that a pause takes effect soon, and no more than memory allows.

CPU time grows with the padded length of a batch, and with little else that is known before it is computed; so what a
character took so far says how many texts fit. A paced worker that is told to stop does so after at most one batch of
each of its threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from .climb import Climb
from .crew import Crew

SUB_BATCH_S = 0.035  # CPU time of a sub-batch: with what comes between two of them, a pause takes effect within 50 ms
MEMORY_OF_COST = 0.5  # of what was believed before, when a new measurement comes
CALL_CHARACTERS = 150  # that a call costs beside its texts: about 4 ms of the default model


@runtime_checkable
class Batched(Protocol):
    """What computes texts in sub-batches."""

    batches: SubBatches


class SubBatches:
    """Cuts texts of one kind of computation into sub-batches, and learns from how long each of them took.

    `size` is the most texts of one. `is_small` says whether memory is short: then each text is one for itself, and one
    thread computes. `threads` says how many may compute at once, one sub-batch each.
    """

    def __init__(
        self,
        size: int,
        is_small: Callable[[], bool] = lambda: False,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._size, self._is_small, self._cpu = size, is_small, cpu
        self._threads: Callable[[], int] = lambda: 1
        self._crew, self._lock = Crew(self.threads), threading.Lock()
        self._cost_s: float | None = None  # CPU seconds of a padded character
        self._climbs: dict[int, Climb] = {}  # by the bits of a length: of texts of 100 and of 1000 characters apart

    def renewed(self) -> SubBatches:
        """Return one with the same limits that has learned nothing yet."""
        fresh = SubBatches(self._size, self._is_small, self._cpu)
        fresh._threads, fresh._crew = self._threads, self._crew
        return fresh

    def watch(self, is_small: Callable[[], bool], threads: Callable[[], int] = lambda: 1) -> None:
        """Ask these from now on."""
        self._is_small, self._threads = is_small, threads

    def threads(self) -> int:
        """Return how many threads may compute now, at least one."""
        return 1 if self._is_small() else max(self._threads(), 1)

    def rows(self, lengths: Sequence[int], *, is_paced: bool) -> Iterator[list[int]]:
        """Yield the rows of texts of these lengths, each once, in batches of similar length: padding is thrown away.

        What the caller does between two of them is what is measured. Where it is not paced, somebody waits: batches are
        of the size that computes the most, see climb.py.
        """
        cut = _Cut(self, lengths, is_paced=is_paced, is_shared=False)
        while (batch := cut.take()) is not None:
            began = self._cpu()
            yield batch
            self._learn(lengths, batch, self._cpu() - began)

    def each(
        self, lengths: Sequence[int], compute: Callable[[list[int]], None], pace: Callable[[], None] | None
    ) -> None:
        """Call `compute` with the rows of each batch, in as many threads as may compute, and `pace` between batches.

        The first batch of all is computed alone: the libraries below set themselves up in it.
        """

        def measured(batch: list[int]) -> None:
            began = self._cpu()
            compute(batch)
            self._learn(lengths, batch, self._cpu() - began)

        cut = _Cut(self, lengths, is_paced=pace is not None, is_shared=True)
        if self._cost_s is None and (first := cut.take()) is not None:
            measured(first)
            if pace is not None:
                pace()
        self._crew.share(cut, measured, pace)

    def _size_of(self, lengths: Sequence[int], order: Sequence[int], start: int, *, is_paced: bool) -> int:
        """Return how many rows of `order` from `start` on are the next batch."""
        if self._is_small():
            return 1
        if is_paced:
            return self._fitting([lengths[row] for row in order[start : start + self._size]])
        with self._lock:
            return self._climb(lengths[order[start]]).size()

    def _fitting(self, lengths: Sequence[int]) -> int:
        """Return how many of these ascending lengths fit a sub-batch, at least one."""
        if self._cost_s is None:
            return 1  # not measured yet
        cost_s = self._cost_s
        return max((n for n, longest in enumerate(lengths, 1) if _work(n, longest) * cost_s <= SUB_BATCH_S), default=1)

    def _climb(self, shortest: int) -> Climb:
        return self._climbs.setdefault(shortest.bit_length(), Climb(self._size))

    def _learn(self, lengths: Sequence[int], batch: Sequence[int], used_s: float) -> None:
        cost_s = used_s / _work(len(batch), lengths[batch[-1]])
        with self._lock:
            held = self._cost_s
            self._cost_s = cost_s if held is None else MEMORY_OF_COST * held + (1 - MEMORY_OF_COST) * cost_s
            self._climb(lengths[batch[0]]).learn(len(batch), used_s / sum(1 + lengths[row] for row in batch))


class _Cut:
    """Texts of these lengths, and how far they are cut into batches. A crew's work."""

    def __init__(self, batches: SubBatches, lengths: Sequence[int], *, is_paced: bool, is_shared: bool) -> None:
        self._batches, self._lengths = batches, lengths
        self._is_paced, self._is_shared = is_paced, is_shared
        self._order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self._start = 0

    @property
    def is_taken(self) -> bool:
        return self._start >= len(self._order)

    def take(self) -> list[int] | None:
        """Return the next batch; where threads share them, at most an equal part: they are to end at the same time."""
        left = len(self._order) - self._start
        if left <= 0:
            return None
        size = self._batches._size_of(self._lengths, self._order, self._start, is_paced=self._is_paced)
        if self._is_shared:
            size = min(size, -(-left // self._batches.threads()))
        batch = self._order[self._start : self._start + size]
        self._start += size
        return batch


def _work(texts: int, longest: int) -> int:
    """Return how many characters are computed for so many texts, all padded to the longest."""
    return texts * longest + CALL_CHARACTERS
