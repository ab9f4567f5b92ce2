"""Owns how a client follows the events: snapshot first, then events in a row, a new snapshot after every gap.

get_snapshot ─▶ Snapshot(epoch, seq) ─▶ next_events(epoch, after=seq) ─▶ events seq+1, seq+2, ...
     ▲                                            │
     └── a gap: too slow, or another epoch ◀──────┘
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol, TypeVar

import msgspec

from .errors import ProtocolError, ServiceUnavailable
from .events import AnyEvent
from .messages import EventList, GetSnapshot, Message, NextEvents, Reply, Request, Snapshot

POLL_S = 5.0  # a long poll: answered earlier where there is something to tell, so this is how late a death is noticed
ANSWER_S = 2.0  # beyond the poll's own time; later is no failure, it is asked again

M = TypeVar("M", bound=Message)


class Asks(Protocol):
    """An exchange with the supervisor. Raises ServiceUnavailable after the deadline."""

    def ask(self, message: Request, timeout_s: float | None = None) -> Reply: ...


class Subscription:
    """Follows one service. Not for two threads at once. `patience_s`: how long a service may be away."""

    def __init__(self, asks: Asks, patience_s: float) -> None:
        self._asks, self._patience_s = asks, patience_s
        self._epoch = self._seq = 0
        self._end_at = float("inf")

    def follow(self, deadline_s: float | None) -> Iterator[Snapshot | AnyEvent]:
        """Yield a Snapshot and the events after it, each once and in order; after a gap a Snapshot again.

        A gap is: this reader was too slow, or the supervisor was started anew (its `epoch` differs). Ends after
        `deadline_s` seconds (None: never). Raises ServiceUnavailable where nobody answers for `patience_s` seconds.
        """
        self._end_at = float("inf") if deadline_s is None else time.monotonic() + deadline_s
        needs_snapshot = True
        while not self._is_over():
            if needs_snapshot:
                if (snapshot := self._ask(Snapshot, GetSnapshot())) is None:
                    return
                self._epoch, self._seq, needs_snapshot = snapshot.epoch, snapshot.seq, False
                yield snapshot
                continue
            told = self._ask(EventList, NextEvents(epoch=self._epoch, after=self._seq), POLL_S)
            if told is None:
                return
            needs_snapshot = told.is_gap or told.epoch != self._epoch
            for event in () if needs_snapshot else told.events:
                if event.seq != self._seq + 1:
                    raise ProtocolError(f"event {event.seq} came after {self._seq}: update the older side")
                self._seq = event.seq
                yield event

    def _ask(self, kind: type[M], request: GetSnapshot | NextEvents, poll_s: float = 0.0) -> M | None:
        """Return the reply, asked again while nobody answers; None where the subscription's time is over."""
        silent_at = time.monotonic() + poll_s + self._patience_s
        while True:
            poll_s = max(min(poll_s, self._end_at - time.monotonic()), 0.0)
            if isinstance(request, NextEvents):
                request = msgspec.structs.replace(request, wait_s=poll_s)
            try:
                reply = self._asks.ask(request, min(poll_s + ANSWER_S, poll_s + self._patience_s))
            except ServiceUnavailable:
                if self._is_over():
                    return None
                if time.monotonic() >= silent_at:
                    raise
                poll_s = 0.0  # what it missed it is told at once
                continue
            if not isinstance(reply, kind):
                raise ProtocolError(f"expected {kind.__name__}, got {type(reply).__name__}: update the older side")
            return reply

    def _is_over(self) -> bool:
        return time.monotonic() >= self._end_at
