"""Owns the threads of one process that compute beside the thread that asks: started at the first need, asleep in between.

    asker:    take ─▶ compute ─▶ pace ─▶ take ...     it alone talks to the supervisor, and waits for the budget
    helper:   take ─▶ compute ─▶ take ...             while the asker does not wait, and so many may compute

Each computes on a CPU of its own with the native code's lock-free calls: onnxruntime and torch let go of the interpreter.
Started by the asker once it has its place among others, they have its priority and its CPUs, and end with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..ipc import prctl

Rows = list[int]


class Work(Protocol):
    """Something that is done in pieces. Both are called by one thread at a time."""

    def take(self) -> Rows | None:
        """Return the next piece; None where there is none left."""
        ...

    @property
    def is_taken(self) -> bool:
        """Say whether every piece was taken."""
        ...


@dataclass(slots=True, eq=False)
class _Shift:
    """One piece of work, and who is at it."""

    work: Work
    compute: Callable[[Rows], None]
    is_held: bool = False  # the asker waits for CPU budget
    is_over: bool = False  # the asker has left
    busy: int = 0  # helpers that compute
    error: BaseException | None = None  # of a helper


class Crew:
    """`size()` says how many threads may compute now, the asking one included; it is asked before each piece.

    Not for two askers at once. Never to be used in a process that is forked afterwards.
    """

    def __init__(self, size: Callable[[], int] = lambda: 1) -> None:
        self.size = size
        self._turn = threading.Condition()
        self._helpers: list[threading.Thread] = []
        self._shift: _Shift | None = None

    def share(self, work: Work, compute: Callable[[Rows], None], pace: Callable[[], None] | None) -> None:
        """Have `compute` called with each piece of `work`, `pace` after each of the asker's.

        Returns when all is computed, and raises what `compute` or `pace` raise once nobody computes any more.
        """
        shift = _Shift(work, compute)
        with self._turn:
            self._shift = shift
        try:
            while (rows := self._take(shift)) is not None:
                self._call(shift)
                compute(rows)
                if pace is not None:
                    self._pace(shift, pace)
        finally:
            with self._turn:
                self._shift, shift.is_over = None, True
                # no sign of life meanwhile: a helper that hangs is this process's hang
                self._turn.wait_for(lambda: not shift.busy)
        if shift.error is not None:
            raise shift.error

    def _take(self, shift: _Shift) -> Rows | None:
        with self._turn:
            return None if shift.error is not None else shift.work.take()

    def _call(self, shift: _Shift) -> None:
        """Wake as many helpers as may compute, if anything is left for them."""
        wanted = self.size() - 1
        if wanted <= 0:
            return
        with self._turn:
            if shift.work.is_taken:
                return
            while len(self._helpers) < wanted:
                number = len(self._helpers) + 1
                helper = threading.Thread(target=self._help, args=(number,), name=f"compute-{number}", daemon=True)
                self._helpers.append(helper)
                helper.start()
            self._turn.notify_all()

    def _pace(self, shift: _Shift, pace: Callable[[], None]) -> None:
        shift.is_held = True  # a helper that ends its piece now waits as well
        try:
            pace()
        finally:
            with self._turn:
                shift.is_held = False
                if self._helpers:
                    self._turn.notify_all()

    def _help(self, number: int) -> None:
        with suppress(OSError):
            prctl.set_name(f"compute-{number}")  # of this thread: `top -H` shows it
        while True:
            with self._turn:
                while (shift := self._shift) is None or not self._may(number, shift):
                    self._turn.wait()
                rows = shift.work.take()
                if rows is None:
                    self._turn.wait()
                    continue
                shift.busy += 1
            try:
                shift.compute(rows)
            except BaseException as error:  # noqa: BLE001 - the asker raises it
                shift.error = shift.error or error
            finally:
                with self._turn:
                    shift.busy -= 1
                    self._turn.notify_all()

    def _may(self, number: int, shift: _Shift) -> bool:
        return not (shift.is_held or shift.is_over or shift.error) and number < self.size()
