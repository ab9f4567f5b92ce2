"""Owns how a worker keeps to its share of a CPU: it waits between sub-batches until its CPU time fits its duty."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST_S = 0.05
"""CPU time that may be used ahead of the duty, on each CPU: one sub-batch of the default model, so that pacing has no
jitter below it."""

SLICE_S = 0.05  # a change of the duty, or a stop, takes effect within this while waiting


class Pacer:
    """Keep CPU time at `duty()` permille of wall time, averaged from one `pace` to the next: that of all threads together.

    `wait(seconds)` returns early if it likes; `check()` is called in each slice and raises to leave the wait. `count()`
    is called by each `pace` and in each slice: who waits for its budget has not hung.
    """

    def __init__(
        self,
        duty: Callable[[], int],
        wait: Callable[[float], object],
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        count: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = count
        self._duty, self._wait, self._check, self._clock, self._cpu = duty, wait, check, clock, cpu
        self.waited_s = 0.0
        self.reset()

    def reset(self) -> None:
        """Start anew: what was used before the task (loading a model) is not held against it."""
        self._at, self._used, self._credit_s = self._clock(), self._cpu(), BURST_S

    def _account(self) -> int:
        duty = self._duty()
        now, used = self._clock(), self._cpu()
        self._credit_s += max(now - self._at, 0.0) * duty / 1000 - (used - self._used)
        self._credit_s = min(self._credit_s, BURST_S * max(duty / 1000, 1.0))
        self._at, self._used = now, used
        return duty

    def pace(self) -> None:
        """Return when the CPU time used so far fits the duty granted so far. Raises what `check` raises."""
        duty = self._account()
        self._count()
        while self._credit_s < 0 or duty == 0:
            before = self._clock()
            self._check()
            self._count()
            self._wait(min(SLICE_S, -self._credit_s * 1000 / duty) if duty else SLICE_S)
            self.waited_s += self._clock() - before
            duty = self._account()
