"""Owns which cached results are to be computed again or checked, and which collections change the most.

A change of documents that is reported drops what it can alter at once (results.py). What is left for here: results past
their soft age, results that a re-index made old, and changes nobody reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ..ipc.commands import PointsChanged
from ..ipc.records import QueryJob, TaskRecord, TaskType
from ..ipc.settings import CollectionSettings
from .affected import Change
from .popularity import Popularity
from .results import ResultKeeper
from .scheduler import busiest

log = logging.getLogger(__name__)


class Freshness:
    """Times are Unix seconds. `collections` are the scheduled ones."""

    def __init__(self, keeper: ResultKeeper, popularity: Popularity, collections: Sequence[str]) -> None:
        self._keeper, self._popularity, self.collections = keeper, popularity, collections
        self._written: dict[str, int] = {}  # collection -> points written since its last re-index
        self._unchecked: set[str] = set()
        self._seen_new: set[str] = set()  # collections without new points that were not looked for
        self.check_all()  # what changed while the service was down, or just before it was killed, is not known

    def check_all(self) -> None:
        """Have every result held against the documents: others may have written them behind our back."""
        self._unchecked |= {entry.collection for entry in self._keeper.store.entries() if entry.is_ours}

    def check(self, collection: str) -> None:
        self._unchecked.add(collection)

    def points_changed(self, event: PointsChanged, now: float) -> None:
        try:
            change = Change.of(event)
        except (ValueError, OverflowError) as error:  # ids or vectors that are none: what changed cannot be told
            log.error("a change of %s cannot be read (%s): all its results are dropped", event.names, error)
            change = Change.of(PointsChanged(seq=event.seq, names=event.names, is_whole=True))
        self._keeper.change(change, now)
        if not event.is_soft:
            for name in event.names:
                self._written[name] = self._written.get(name, 0) + max(len(event.ids), 1)
                self._seen_new.discard(name)

    def with_new(
        self, settings: Mapping[str, CollectionSettings], is_known: Callable[[str], bool], *, is_reported: bool
    ) -> list[str]:
        """Return the collections to be looked at for new points: all that are to be, or, where every write `is_reported`,
        those that were written since this was asked before. After a start that is not known: all of them.

        `is_known` says whether a collection was re-indexed as a whole: before that everything in it is new.
        """
        wanted = [name for name, own in settings.items() if own.new_points and is_known(name)]
        if is_reported:
            wanted = [name for name in wanted if name not in self._seen_new]
            self._seen_new |= set(wanted)
        return wanted

    def completed(self, record: TaskRecord, now: float) -> bool:
        """Take note of a completed task; True where results are to be computed again because of it."""
        if record.task_type is TaskType.WARM:
            self._unchecked.discard(record.collection)
            self._keeper.similar.attempted(record.collection)
        if record.task_type is not TaskType.REINDEX:
            return False
        self._written.pop(record.collection, None)
        if not (record.result or {}).get("documents_embedded"):
            return False
        if record.attempt > 1:  # what an attempt changed just before it was killed was not reported
            self._keeper.make_all_stale(record.collection, now)
        return True

    def is_gone(self, collection: str) -> None:
        """Drop the results of a collection that does not exist any more."""
        self._unchecked.discard(collection)
        self._keeper.drop_ours(collection)

    def wanted(self, now: float) -> list[str]:
        """Return the collections that need a warm task."""
        return sorted(self._keeper.stale(now).keys() | self._unchecked | self._keeper.similar.waiting().keys())

    def stale_queries(self, collection: str, now: float) -> list[str]:
        """Return the queries to be computed, whatever they are worth.

        Those whose result is served and to be computed again, the most popular first, after those that were served a
        similar query's: whether that was right is to be known.
        """
        stale = [entry.query_text for entry in self._keeper.stale(now).get(collection, [])]
        return [*self._keeper.similar.waiting().get(collection, []), *stale]

    def to_check(self, record: TaskRecord, now: float) -> tuple[QueryJob, ...]:
        """Return the cached queries that a warm task is to hold against the documents."""
        if record.task_type is not TaskType.WARM or record.collection not in self._unchecked:
            return ()
        return tuple(QueryJob(text=entry.query_text) for entry in self._keeper.valid(record.collection, now))

    def active(self, now: float) -> frozenset[str]:
        """Return the scheduled collections that are searched or written the most."""
        searched = self._popularity.by_collection(now)
        return busiest({n: searched.get(n, 0.0) + self._written.get(n, 0) for n in self.collections})
