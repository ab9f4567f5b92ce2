"""Owns `BackgroundProcessingService`: scheduler, monitor, executor and cache over one lane."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from .cache import PrecomputedResult, PrecomputedSearchCache
from .executor import BackgroundTaskExecutor
from .ipc import messages
from .ipc.client import expect
from .lane import Lane
from .monitoring import ResourceMonitor
from .scheduling import SimpleTaskScheduler
from .supervisor.config import Config, load


class BackgroundProcessingService:
    """Re-indexes, reranks and precomputes in the background.

    With a live client that cannot cross a process boundary (in memory, or a path), or with a reranking object, tasks
    run in a thread of this process: the inline lane. With a remote client or none, they run in worker processes of a
    supervisor: the one that serves the state directory already, else one that this object starts and ends.
    `get_service_status()["lane"]` says which.
    """

    def __init__(
        self,
        vector_db_client: Any = None,
        reranking_service: Any = None,
        check_interval_seconds: float = 300,
        enable_auto_scheduling: bool = True,
        *,
        config: Config | None = None,
    ) -> None:
        config = config or load()
        self._lane = _lane_for(
            vector_db_client,
            reranking_service,
            config,
            check_interval_s=float(check_interval_seconds),
            is_auto_scheduling=enable_auto_scheduling,
        )
        self._is_running = False
        self.scheduler = SimpleTaskScheduler(self._lane, config.zone())
        self.monitor = ResourceMonitor(config)
        self.executor = BackgroundTaskExecutor(lane=self._lane)
        self.cache = PrecomputedSearchCache(lane=self._lane)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._is_running

    def start(self) -> bool:
        """Start background processing. False if it runs already."""
        if self._is_running:
            return False
        self._lane.start()
        self._is_running = True
        return True

    def stop(self) -> bool:
        """Stop at the running task's next step; what is queued stays queued. False if it does not run."""
        if not self._is_running:
            return False
        self._lane.stop()
        self._is_running = False
        return True

    def close(self) -> None:
        """Stop and release everything; the object cannot be used afterwards. A client that was passed in stays open."""
        self.stop()
        self._lane.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- work ---------------------------------------------------------------------------------------------------------

    def schedule_reindexing(
        self, collection_name: str, frequency: str = "weekly", metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Schedule re-indexing; return the schedule's id."""
        return self.scheduler.schedule_task("reindex", collection_name, frequency, metadata)

    def schedule_reranking(
        self, collection_name: str, frequency: str = "daily", metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Schedule reranking of popular queries; return the schedule's id."""
        return self.scheduler.schedule_task("rerank", collection_name, frequency, metadata)

    def track_search_query(self, query: str, collection_name: str, response_time: float = 0.0) -> str:
        """Count one search (`response_time` in seconds); return the query's hash."""
        return self.cache.track_query(query, collection_name, response_time)

    def record_feedback(self, query: str, collection: str, document_id: str | int, relevance: float) -> None:
        self.cache.record_feedback(query, collection, document_id, relevance)

    def get_cached_results(self, query: str, collection_name: str) -> PrecomputedResult | None:
        return self.cache.get_cached_results(query, collection_name)

    def warm_cache_for_collection(self, collection_name: str, max_queries: int = 50) -> int:
        return self.cache.warm_cache(collection_name, max_queries)

    # --- what it says -------------------------------------------------------------------------------------------------

    def get_service_status(self) -> dict[str, Any]:
        """Return service_running, last_check (naive local time), resources, execution, cache, scheduled_tasks, lane, ...

        After `stop` of a service that this object had started: as it was then, with `service_running` False.
        """
        report = expect(messages.Report, self._lane.request(messages.Status())).report
        report["service_running"] = self._is_running
        report["last_check"] = datetime.fromtimestamp(report["last_check"])
        return report

    def get_recent_activity(self, limit: int = 20) -> dict[str, Any]:
        """Return executions, quality_trends and popular_queries, each a list of at most `limit` dicts, and quality."""
        return expect(messages.Report, self._lane.request(messages.Activity(limit=limit))).report


def _lane_for(
    vector_db_client: Any, reranking_service: Any, config: Config, *, check_interval_s: float, is_auto_scheduling: bool
) -> Lane:
    from .spawned import SpawnedLane

    store = None
    if vector_db_client is not None:
        from .workers.qdrant_clients import is_rebuildable, settings_of

        store = settings_of(vector_db_client) if is_rebuildable(vector_db_client) else None
    if reranking_service is None and (vector_db_client is None or store is not None):
        return SpawnedLane(
            config, store=store, check_interval_s=check_interval_s, is_auto_scheduling=is_auto_scheduling
        )
    from .inline import InlineLane

    return InlineLane(
        vector_db_client,
        reranking_service,
        config=config,
        check_interval_s=check_interval_s,
        is_auto_scheduling=is_auto_scheduling,
    )
