"""Owns the overlap of a re-index with its store: while a piece is embedded the next one is read, and the last one written.

    reads      1  2     3     4
    embeds        1──── 2──── 3────
    writes              1     2
    reported                  1     2       what a checkpoint says is written

The store's calls are made by further threads, one that reads and one that writes, where it may be used by others than this one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..ipc.records import Point, PointId
from .vectors import VectorStore

Made = TypeVar("Made")
Done = TypeVar("Done")

IN_FLIGHT = 2  # pieces that are embedded and not reported yet


@dataclass(frozen=True, slots=True)
class Piece(Generic[Done]):
    """Points that were dealt with: everything up to `after`, the first id of the next ones, is written."""

    points: Sequence[Point]
    after: PointId | None
    done: Done


def takes_threads(store: VectorStore) -> bool:
    """Say whether other threads than this one may call it, two at a time."""
    return bool(getattr(store, "takes_threads", False))


def piece_size(store: VectorStore, at_risk: int) -> int:
    """Return the points of a piece, where a crash may have at most `at_risk` points embedded twice."""
    return max(at_risk // IN_FLIGHT, 1) if takes_threads(store) else at_risk


def pieces(
    read: Callable[[PointId | None], tuple[list[Point], PointId | None]],
    make: Callable[[Sequence[Point]], Made],
    write: Callable[[Made], Done],
    after: PointId | None,
    *,
    is_overlapping: bool,
) -> Generator[Piece[Done], None, None]:
    """Yield each piece from `after` on once it is written. `make` is called by this thread, the others by further ones.

    Where this is left early, what was made is still written: it is not lost, and not reported.
    """
    if not is_overlapping:
        while True:
            points, after = read(after)
            yield Piece(points, after, write(make(points)))
            if after is None:
                return
    store = ThreadPoolExecutor(
        2, thread_name_prefix="store"
    )  # for one read and one write: each waits for the last of its kind
    try:
        coming: Future[tuple[list[Point], PointId | None]] | None = store.submit(read, after)
        last: tuple[Sequence[Point], PointId | None, Future[Done]] | None = None
        while coming is not None:
            points, after = coming.result()
            coming = None if after is None else store.submit(read, after)
            made = make(points)
            done = None if last is None else Piece(last[0], last[1], last[2].result())
            last = points, after, store.submit(write, made)
            if done is not None:
                yield done
        assert last is not None
        yield Piece(last[0], last[1], last[2].result())
    finally:
        store.shutdown()  # nobody uses the store behind the back of what comes next
