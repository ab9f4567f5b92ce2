"""Owns `PrecomputedSearchCache`: popular queries, and their results in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from .ipc import messages
from .ipc.client import Client, expect
from .ipc.errors import MorganError
from .ipc.query import normalise, query_hash, scope_of
from .ipc.records import ComputedResult, PointId, QueryRecord, TaskStatus
from .ipc.result import CachedResult, Floats
from .lane import Lane, choose_lane
from .supervisor.config import Config
from .wrapping import Terms, rows_result, wrapped

P = ParamSpec("P")
T = TypeVar("T")

MAX_LISTED = 1000


@dataclass(frozen=True, slots=True)
class QueryAnalytics:
    """What is known of a query. `access_count` is raw; popularity decays. Times are naive local times."""

    query_hash: str
    query_text: str
    access_count: int
    popularity: float
    collections: frozenset[str]
    average_response_time: float  # seconds, of the accesses that reported one
    first_accessed: datetime
    last_accessed: datetime


class ResultRow(dict[str, Any]):
    """One result: content, source, score and metadata, as keys or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, slots=True)
class PrecomputedResult:
    """A query's precomputed results, best first. `quality_score` is 0..1, of `quality_basis`; None where unknown."""

    query_text: str
    query_hash: str
    collection_name: str
    results: list[ResultRow]
    rerank_scores: list[float]
    computed_at: datetime
    access_count: int
    last_accessed: datetime | None
    quality_score: float | None
    quality_basis: str
    language: str


class PrecomputedSearchCache:
    """Tracks queries and keeps the results of popular ones in shared memory.

    Through the daemon the results are every process's; alone (inline) they are this process's.
    """

    def __init__(
        self,
        vector_db_client: Any = None,
        reranking_service: Any = None,
        *,
        lane: Lane | None = None,
        client: Client | None = None,
        config: Config | None = None,
        top_k: int = 10,
    ) -> None:
        self._given = lane
        self._choose: Callable[[], Lane] = lambda: choose_lane(
            vector_db_client, reranking_service, config=config, client=client
        )
        self._top_k = top_k

    @property
    def _lane(self) -> Lane:
        if self._given is None:
            self._given = self._choose()
        return self._given

    # --- queries ------------------------------------------------------------------------------------------------------

    def track_query(self, query: str, collection_name: str, response_time: float = 0.0) -> str:
        """Count one search (`response_time` in seconds); return the query's 32-character hash.

        One that `get_cached_results` answered is counted by itself.
        """
        ask = messages.Track(rid=1, query=query, collection=collection_name, response_s=response_time)
        return expect(messages.Tracked, self._lane.request(ask)).query_hash

    @property
    def query_analytics(self) -> dict[str, QueryAnalytics]:
        """The tracked queries by hash, the most popular 1,000."""
        records = self._queries(None, MAX_LISTED, 1)
        return {record.query_hash: shown for record, shown in zip(records, _analytics(records), strict=True)}

    def get_popular_queries(
        self, collection_name: str | None = None, limit: int = 20, min_frequency: int = 3
    ) -> list[QueryAnalytics]:
        """Return the queries seen at least `min_frequency` times, most popular (decayed count) first."""
        return _analytics(self._queries(collection_name, limit, min_frequency))

    def _queries(self, collection: str | None, limit: int, min_frequency: int) -> tuple[QueryRecord, ...]:
        ask = messages.ListQueries(collection=collection, limit=limit, min_frequency=min_frequency)
        return expect(messages.QueryList, self._lane.request(ask)).queries

    def record_feedback(self, query: str, collection: str, document_id: str | int, relevance: float) -> None:
        """Record a graded judgment: 0 irrelevant, higher is better. Judgments feed nDCG@10 before and after."""
        self._lane.request(
            messages.Feedback(query=query, collection=collection, document_id=str(document_id), relevance=relevance)
        )

    # --- results ------------------------------------------------------------------------------------------------------

    def precompute_query_results(
        self, query: str, collection_name: str, force_refresh: bool = False
    ) -> PrecomputedResult | None:
        """Return the query's results from the cache, else search, rerank and publish them now.

        None where the search finds nothing. Raises CollectionNotFound (naming those that exist).
        """
        if not force_refresh and (held := self.get_cached_results(query, collection_name)) is not None:
            return held
        computed = self._lane.compute(query, collection_name, self._top_k)
        # Not read back from the cache: that would count as a hit, and a result the cache cannot take is a result too.
        return None if computed is None else _shown(computed)

    def get_cached_results(self, query: str, collection_name: str) -> PrecomputedResult | None:
        """Return the query's results if they are cached and not expired, else None. Sends no message."""
        reader = self._lane.reader
        held = reader.get(query, collection_name)
        return _shown(held, reader.use_of(held)) if held else None  # one without rows says that there are none

    def get_many(self, queries: Iterable[str], collection_name: str) -> list[PrecomputedResult | None]:
        """Return what `get_cached_results` does for each query, in order."""
        return [self.get_cached_results(query, collection_name) for query in queries]

    def put(
        self,
        query: str,
        collection_name: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        query_filter: Mapping[str, Any] | None = None,
        tenant: str = "",
        ttl_s: float | None = None,
    ) -> None:
        """Publish results the application computed, best first.

        A row has `id`, and if known `content`, `source`, `score` (float), `rerank_score` (of all rows or none) and
        `metadata`. They expire after `ttl_s`, by default after the configured time, and are dropped when any document
        of the collection changes: what they depend on is not known.
        """
        result = rows_result(query, collection_name, rows, scope_of(query_filter, tenant))
        self._lane.request(messages.Publish(result=result, ttl_s=ttl_s))

    def wrap(
        self,
        search: Callable[P, T],
        *,
        collection: str | None = None,
        tenant: str | None = None,
        ttl_s: float | None = None,
        decode: Callable[[CachedResult], T] | None = None,
    ) -> Callable[P, T]:
        """Return `search` answered from shared memory where it can be; sync or async. See wrapping.py."""
        return wrapped(
            lambda: self._lane, search, Terms(collection=collection, tenant=tenant, ttl_s=ttl_s, decode=decode)
        )

    def warm_cache(self, collection_name: str, max_queries: int = 50) -> int:
        """Precompute the collection's popular queries that are not cached; return how many were computed.

        Runs now, whatever the CPU budget. Raises MorganError with the reason where it cannot.
        """
        ask = messages.Submit(
            task_type="warm",
            collection=collection_name,
            params={"max_queries": max_queries},
            priority=1,
            is_forced=True,
        )
        task_id = expect(messages.Submitted, self._lane.request(ask)).task_id
        record = self._lane.wait(task_id, until_attempted=True)
        if record.status is TaskStatus.COMPLETED and record.result is not None:
            return int(record.result["precomputed_count"])
        if record.status is TaskStatus.SKIPPED:
            return 0
        raise MorganError(record.error_message or f"warming {collection_name} ended as {record.status.value}")

    def invalidate_cache(self, collection_name: str | None = None, query_pattern: str | None = None) -> int:
        """Drop results of a collection (None: all) whose query contains the pattern (None: any); return how many."""
        ask = messages.Invalidate(collection=collection_name, pattern=query_pattern)
        return expect(messages.Done, self._lane.request(ask)).count

    def report_change(self, collection_name: str, ids: Iterable[PointId] = ()) -> None:
        """Say that points were written or deleted by the application itself; results they can alter are dropped.

        Without `ids`: any may have changed. Changes through `Client` and by the service's own tasks need no report, and
        changes in a server or a live client are found within `check_interval_seconds` without one.
        """
        self._lane.report_change(collection_name, tuple(ids))

    def get_cache_stats(self) -> dict[str, Any]:
        """Return total_cached_queries, valid_entries, expired_entries, total_tracked_queries, cache_hit_rate, ..."""
        return expect(messages.Report, self._lane.request(messages.CacheStats())).report

    def close(self) -> None:
        if self._given is not None:
            self._given.close()


def _analytics(records: tuple[QueryRecord, ...]) -> list[QueryAnalytics]:
    collections: dict[str, set[str]] = {}
    for record in records:
        collections.setdefault(normalise(record.query_text), set()).add(record.collection)
    return [
        QueryAnalytics(
            query_hash=r.query_hash,
            query_text=r.query_text,
            access_count=r.access_count,
            popularity=r.popularity,
            collections=frozenset(collections[normalise(r.query_text)]),
            average_response_time=r.total_response_s / r.timed_count if r.timed_count else 0.0,
            first_accessed=datetime.fromtimestamp(r.first_accessed_at),
            last_accessed=datetime.fromtimestamp(r.last_accessed_at),
        )
        for r in records
    ]


def _floats(values: Floats | bytes) -> list[float]:
    return list(memoryview(values).cast("f")) if isinstance(values, bytes) else values.tolist()


def _shown(held: CachedResult | ComputedResult, use: tuple[int, float | None] = (0, None)) -> PrecomputedResult:
    access_count, last_at = use
    return PrecomputedResult(
        query_text=held.query_text,
        query_hash=query_hash(held.query_text, held.collection, held.scope),
        collection_name=held.collection,
        results=[
            ResultRow(content=content, source=source, score=score, metadata=metadata)
            for content, source, score, metadata in zip(
                held.contents, held.sources, _floats(held.scores), held.metadata, strict=True
            )
        ],
        rerank_scores=_floats(held.rerank_scores),
        computed_at=datetime.fromtimestamp(held.computed_at),
        access_count=access_count,
        last_accessed=None if last_at is None else datetime.fromtimestamp(last_at),
        quality_score=held.quality,
        quality_basis=held.quality_basis,
        language=held.language,
    )
