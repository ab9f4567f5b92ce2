"""Owns `ReindexingTask` and `RerankingTask`: one task each, run now, its result as a dict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .executor import BackgroundTaskExecutor
from .ipc.client import Client
from .ipc.records import TaskStatus
from .lane import Lane
from .supervisor.config import Config


class _Runner:
    """Runs a task at once, whatever the CPU budget, and always returns a dict with "success" and "error_message".

    Where there was nothing to do that is a success, and "reason" says why.
    """

    def __init__(
        self,
        vector_db_client: Any = None,
        reranking_service: Any = None,
        *,
        lane: Lane | None = None,
        client: Client | None = None,
        config: Config | None = None,
    ) -> None:
        self._executor = BackgroundTaskExecutor(
            vector_db_client, reranking_service, lane=lane, client=client, config=config
        )

    def _run(self, task_type: str, collection: str, params: dict[str, Any], counted: str) -> dict[str, Any]:
        done = self._executor.execute_task_now(task_type, collection, force=True, params=params)
        # forced, so SKIPPED means that there was nothing to do, and the result's "reason" says why
        if done.status in (TaskStatus.COMPLETED, TaskStatus.SKIPPED) and done.result is not None:
            return done.result
        return {
            "success": False,
            "collection_name": collection,
            counted: 0,
            "processing_time_seconds": 0.0,
            "quality_improvement": None,
            "error_message": done.error_message or f"the task ended as {done.status.value}",
        }

    def close(self) -> None:
        self._executor.close()


class ReindexingTask(_Runner):
    """Embeds the points of a collection whose text or model changed."""

    def reindex_collection(self, collection_name: str, force_rebuild: bool = False) -> dict[str, Any]:
        """Return success, collection_name, documents_processed, processing_time_seconds, error_message and more.

        `force_rebuild` embeds every point anew.
        """
        params = {"force_rebuild": True} if force_rebuild else {}
        return self._run("reindex", collection_name, params, "documents_processed")


class RerankingTask(_Runner):
    """Searches and reranks queries of a collection and publishes their results."""

    def rerank_popular_queries(self, collection_name: str, max_queries: int = 10) -> dict[str, Any]:
        """Rerank the most popular queries.

        Returns success, collection_name, queries_processed, processing_time_seconds, quality_improvement (nDCG@10 after
        less before, None without judgments), error_message and more.
        """
        return self._run("rerank", collection_name, {"max_queries": max_queries}, "queries_processed")

    def precompute_results(self, collection_name: str, queries: Iterable[str] | None = None) -> dict[str, Any]:
        """Compute and publish the results of `queries` (None: of the popular ones). Returns the same keys."""
        params: dict[str, Any] = {"force_refresh": True}
        if queries is not None:
            params["queries"] = list(queries)
        return self._run("warm", collection_name, params, "queries_processed")
