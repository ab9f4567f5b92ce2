"""Owns what is counted of quality: searches, hits, response times and feedback, by day and collection. Pure.

    searched, looked_up, fed_back ──▶ counts since the last `take` ──once a minute──▶ journal: a row a day and collection

Counts are added to their row in the journal, so neither a restart nor a clock that is set to and fro loses what a day
had before. What queries were measured to be is in the journal from the start (quality_tables.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from ..ipc.durations import bucket_of

DAY_S = 86400.0
ALL = ""  # the collection of what is not known of one alone
MAX_ROWS = 1000  # counted apart until they are saved: names come from applications, and may be anything
KEPT_DAYS = 400  # a year, and the month before it to compare with
KEPT_ROWS = 20_000  # whatever the clock and the names do: 50 collections for KEPT_DAYS

Counts = dict[int, int]


class Day(msgspec.Struct, gc=False):
    """What was counted on one day of UTC (`day`: since 1970). Response times are counts of durations.bucket_of."""

    day: int
    collection: str = ALL
    lookups: int = 0  # of ALL: every look into the result store
    hits: int = 0
    served: Counts = {}  # of ALL: searches that the store answered, by how long they took
    computed: Counts = {}  # searches that it did not
    searches: int = 0  # those that were reported: timed or not
    positive: int = 0  # judgments with a relevance above 0
    negative: int = 0

    def add(self, other: Day) -> None:
        self.lookups += other.lookups
        self.hits += other.hits
        self.searches += other.searches
        self.positive += other.positive
        self.negative += other.negative
        add_counts(self.served, other.served)
        add_counts(self.computed, other.computed)


def add_counts(sums: Counts, counts: Mapping[int, int]) -> None:
    for key, count in counts.items():
        sums[key] = sums.get(key, 0) + count


def day_of(now: float) -> int:
    return int(now // DAY_S)


class QualityLog:
    """See the module. `now` is in Unix seconds, and may go backwards."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], Day] = {}

    def _row(self, collection: str, now: float) -> Day:
        key = day_of(now), collection
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS and collection != ALL:
                return self._row(ALL, now)
            row = self._rows[key] = Day(*key)
        return row

    def searched(self, collection: str, response_s: float, now: float) -> None:
        """Count a search that the result store did not answer; `response_s` 0: its time is not known."""
        row = self._row(collection, now)
        row.searches += 1
        if response_s > 0:
            add_counts(row.computed, {bucket_of(response_s): 1})

    def looked_up(
        self, lookups: int, hits: int, by_collection: Mapping[str, int], served: Mapping[int, int], now: float
    ) -> None:
        """Count what readers counted: lookups and hits, the hits of each collection, response times of those served."""
        if lookups:
            row = self._row(ALL, now)
            row.lookups += lookups
            row.hits += hits
            add_counts(row.served, served)
        for collection, count in by_collection.items():
            self._row(collection, now).hits += count

    def fed_back(self, collection: str, relevance: float, now: float) -> None:
        """Count a judgment by an application."""
        row = self._row(collection, now)
        if relevance > 0:
            row.positive += 1
        else:
            row.negative += 1

    def rows(self) -> list[Day]:
        """Return what was counted since the last `take`."""
        return list(self._rows.values())

    def take(self) -> list[Day]:
        """Return the same, once."""
        rows, self._rows = self.rows(), {}
        return rows


def joined(rows: Iterable[Day]) -> dict[str, list[Day]]:
    """Return the days of each collection, in order, rows of one day added up."""
    found: defaultdict[str, dict[int, Day]] = defaultdict(dict)
    for row in rows:
        of_collection = found[row.collection]
        if row.day not in of_collection:
            of_collection[row.day] = Day(row.day, row.collection)
        of_collection[row.day].add(row)
    return {name: [days[day] for day in sorted(days)] for name, days in found.items()}
