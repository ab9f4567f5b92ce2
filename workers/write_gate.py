"""Owns what a re-index asks of whoever sees the application's writes: which points they touched, to hold them, to swap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from ..ipc import calls, wire
from ..ipc.errors import ProtocolError, ServiceUnavailable, StoreUnavailable
from ..ipc.exchange import Exchange
from ..ipc.messages import Message
from .vectors import VectorStore
from .watches import Touched

R = TypeVar("R", bound=Message)

IDS_AT_ONCE = 1000  # touched points in one answer


class WriteGate(Protocol):
    sees_every_write: bool
    """Whether no write can pass by it: the embedded store's owner is the only process that writes."""

    def watch(self, collection: str) -> tuple[int, int]:
        """Return the token of a new watch of a collection, and the number of the last change before it."""
        ...

    def touched(self, token: int, seq: int) -> Touched | None:
        """Return points touched after change `seq`; None where the watch is not known any more."""
        ...

    def hold(self, token: int, for_s: float) -> None:
        """Let writes wait for so long; 0 lets them go on."""
        ...

    def slow(self, token: int, for_s: float, points_per_s: float) -> None:
        """Let so many points a second be written for so long, each write being delayed a little at most; 0: no limit."""
        ...

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        """Swap (VectorStore.swap) if no point was touched after `seq`, and let held writes go on; say whether it did."""
        ...


class NoGate:
    """Where nobody sees the application's writes: it writes through a client of its own. Every write may pass by it."""

    sees_every_write = False

    def __init__(self, store: VectorStore) -> None:
        self._store = store

    def watch(self, collection: str) -> tuple[int, int]:
        return 0, 0

    def touched(self, token: int, seq: int) -> Touched | None:
        return Touched((), seq)

    def hold(self, token: int, for_s: float) -> None:
        """Do nothing: there is nobody to ask."""

    def slow(self, token: int, for_s: float, points_per_s: float) -> None:
        """Do nothing: there is nobody to ask."""

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        self._store.swap(old, new, kept_as=kept_as, rename_to=rename_to)
        return True


class OwnersGate:
    """The store owner's: it sees what applications write through our client, and with the embedded store everything."""

    def __init__(self, socket: Path, timeout_s: float, *, sees_every_write: bool) -> None:
        self._exchange = Exchange(socket, wire.answers, timeout_s)
        self.sees_every_write = sees_every_write

    def _ask(self, kind: type[R], call: Message) -> R:
        return ask(self._exchange.ask, kind, call)

    def watch(self, collection: str) -> tuple[int, int]:
        answer = self._ask(calls.Watched, calls.Watch(collection=collection))
        return answer.token, answer.seq

    def touched(self, token: int, seq: int) -> Touched | None:
        answer = self._ask(calls.TouchedIds, calls.TouchedSince(token=token, seq=seq, limit=IDS_AT_ONCE))
        if not answer.is_known:
            return None
        return Touched(answer.ids, answer.seq, is_whole=answer.is_whole, left=answer.left)

    def hold(self, token: int, for_s: float) -> None:
        self._ask(calls.Changed, calls.Hold(token=token, for_s=for_s))

    def slow(self, token: int, for_s: float, points_per_s: float) -> None:
        self._ask(calls.Changed, calls.Slow(token=token, for_s=for_s, points_per_s=points_per_s))

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        call = calls.Swap(old=old, new=new, kept_as=kept_as, rename_to=rename_to, token=token, seq=seq)
        return self._ask(calls.Changed, call).count == 1

    def filters(self, collection: str) -> dict[str, int]:
        """Return how many searches filtered by each field, as the owner has seen them."""
        return self._ask(calls.IndexDescription, calls.DescribeIndex(collection=collection)).index.filters

    def close(self) -> None:
        self._exchange.close()


def ask(exchange: Callable[[Message], Message], kind: type[R], call: Message) -> R:
    """Return the owner's answer to a task worker. Raises StoreUnavailable where there is none: tasks wait for it."""
    try:
        answer = exchange(call)
    except ServiceUnavailable as error:
        raise StoreUnavailable("the store owner does not answer: it is starting or busy; tasks wait for it") from error
    if not isinstance(answer, kind):
        raise ProtocolError(f"the store owner answered {type(call).__name__} with {type(answer).__name__}")
    return answer
