"""Owns the part of the journal that quality is kept in. Writes through the journal, with its commits.

day          counts of a day and collection, see quality.py
measure      what each query was last measured to be, a row a query: see records.Measure
measured_day the same, summed up a day, collection and reranker: what is left of it when queries are measured again
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator

import msgspec

from ..ipc.query import query_hash
from ..ipc.records import Measure
from .intervals import Sums
from .quality import DAY_S, KEPT_DAYS, KEPT_ROWS, Day, day_of

KEPT_MEASURES = 5000  # queries: as many as popularity knows. Of a mean over more, the interval is narrow enough

SUMS = """
  count(ndcg_after), total(ndcg_before), total(ndcg_after), total(ndcg_after - ndcg_before),
  total((ndcg_after - ndcg_before) * (ndcg_after - ndcg_before)),
  total(mrr_before), total(mrr_after), total(mrr_after - mrr_before),
  total((mrr_after - mrr_before) * (mrr_after - mrr_before)),
  count(*), total(overlap), total(overlap * overlap), total(agreement), total(agreement * agreement)"""
COLUMNS = (
    "judged, ndcg_before, ndcg_after, ndcg_change, ndcg_squares, mrr_before, mrr_after, mrr_change, mrr_squares,"
    " compared, overlap, overlap_squares, agreement, agreement_squares"
)
# Made where they are missing, in a file of any version: a program that does not know them reads nothing in them wrong.
QUALITY = f"""
create table if not exists day (day integer not null, collection text not null, record blob not null,
  primary key (day, collection)) without rowid;
create table if not exists measure (
  hash text primary key, collection text not null, reranker text not null, at real not null,
  ndcg_before real, ndcg_after real, mrr_before real, mrr_after real,
  overlap real not null, agreement real not null) without rowid;
create index if not exists measure_by_time on measure (at);
create table if not exists measured_day (
  day integer not null, collection text not null, reranker text not null, {COLUMNS.replace(",", " real,")} real,
  primary key (day, collection, reranker)) without rowid;
"""


class Measured(msgspec.Struct, frozen=True):
    """Sums over queries in one collection, by one reranker. Before and after are of the same `judged` queries."""

    collection: str
    reranker: str
    day: int | None  # None: of each query the last measurement
    judged: int
    ndcg_before: float
    ndcg_after: float
    ndcg_change: Sums
    mrr_before: float
    mrr_after: float
    mrr_change: Sums
    compared: int  # queries with two orders, judged or not
    overlap: Sums
    agreement: Sums


def _measured(row: tuple[float, ...], collection: str, reranker: str, day: int | None) -> Measured:
    judged, compared = int(row[0]), int(row[9])
    return Measured(
        collection=collection,
        reranker=reranker,
        day=day,
        judged=judged,
        ndcg_before=row[1],
        ndcg_after=row[2],
        ndcg_change=Sums(judged, row[3], row[4]),
        mrr_before=row[5],
        mrr_after=row[6],
        mrr_change=Sums(judged, row[7], row[8]),
        compared=compared,
        overlap=Sums(compared, row[10], row[11]),
        agreement=Sums(compared, row[12], row[13]),
    )


class QualityTables:
    """`write` executes a statement within the journal's transaction; `rows` reads records and leaves damaged ones out."""

    def __init__(
        self,
        db: sqlite3.Connection,
        write: Callable[..., object],
        rows: Callable[..., Iterator[Day]],
    ) -> None:
        self._db, self._write, self._rows = db, write, rows
        self._unsummed_at: float | None = None  # when the first query was measured that no row of a day has yet

    def add_days(self, days: Iterable[Day]) -> None:
        """Add counts to those that their days have."""
        for row in days:
            key = row.day, row.collection
            total = next(self._rows(Day, "select record from day where day = ? and collection = ?", *key), Day(*key))
            total.add(row)
            self._write("insert or replace into day values (?, ?, ?)", (*key, msgspec.msgpack.encode(total)))

    def days(self, since_day: int) -> list[Day]:
        """Return the rows of this day and later ones, oldest first."""
        return list(self._rows(Day, "select record from day where day >= ? order by day, collection", since_day))

    def add_measures(self, collection: str, measures: Iterable[Measure], now: float) -> None:
        """Keep what queries were measured to be, in place of what they were before."""
        for one in measures:
            ndcg, mrr = one.ndcg or (None, None), one.mrr or (None, None)
            key = query_hash(one.query_text, collection)
            values = key, collection, one.reranker, now, *ndcg, *mrr, one.overlap, one.agreement
            self._write("insert or replace into measure values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._unsummed_at = now if self._unsummed_at is None else min(self._unsummed_at, now)

    def sum_up(self, now: float) -> None:
        """Bring the rows of the days up to date on which queries were measured since the last time."""
        if self._unsummed_at is None:
            return
        for day in range(day_of(self._unsummed_at), day_of(now) + 1):
            self._write(
                f"insert or replace into measured_day select ?, collection, reranker, {SUMS} from measure"
                " where at >= ? and at < ? group by collection, reranker",
                (day, day * DAY_S, (day + 1) * DAY_S),
            )
        self._unsummed_at = None

    def measured(self, since_at: float) -> list[Measured]:
        """Return for each collection what its queries were last measured to be by its latest reranker.

        Queries that another reranker was measured on alone are left out: the two are not the same before and after.
        """
        sql = f"""select collection, reranker, {SUMS}, max(at) from measure where at >= ?
            group by collection, reranker order by max(at)"""
        latest = {row[0]: row for row in self._db.execute(sql, (since_at,))}
        return [_measured(row[2:], row[0], row[1], None) for _, row in sorted(latest.items())]

    def measured_days(self, since_day: int) -> list[Measured]:
        """Return the sums of each day, collection and reranker, oldest first."""
        sql = f"select day, collection, reranker, {COLUMNS} from measured_day where day >= ? order by day, collection"
        return [_measured(row[3:], row[1], row[2], row[0]) for row in self._db.execute(sql, (since_day,))]

    def prune(self, now: float) -> None:
        oldest = day_of(now) - KEPT_DAYS
        self._write("delete from measure where at < ?", (oldest * DAY_S,))
        self._write(
            "delete from measure where at <= (select at from measure order by at desc limit 1 offset ?)",
            (KEPT_MEASURES,),
        )
        for table in ("day", "measured_day"):
            self._write(f"delete from {table} where day < ?", (oldest,))
            self._write(
                f"delete from {table} where day <= (select day from {table} order by day desc limit 1 offset ?)",
                (KEPT_ROWS,),
            )
