"""Owns `BackgroundTaskExecutor`: runs one task now and keeps the record of what ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .ipc import messages
from .ipc.client import Client, expect
from .ipc.records import ExecutionRecord, TaskRecord, TaskStatus
from .lane import Lane, choose_lane
from .supervisor.config import Config
from .supervisor.scheduler import parse_task_type


@dataclass(frozen=True, slots=True)
class TaskExecution:
    """One run of a task. Times are naive local times. `status` is COMPLETED, FAILED, SKIPPED or CANCELLED."""

    task_id: str
    task_type: str
    collection_name: str
    status: TaskStatus
    started_at: datetime | None
    completed_at: datetime | None
    result: dict[str, Any] | None
    error_message: str | None

    @classmethod
    def of_task(cls, record: TaskRecord) -> TaskExecution:
        status, error = record.status, record.error_message
        if not status.is_final:  # its first attempt failed; the service tries it again on its own
            status, error = TaskStatus.FAILED, f"{error} (tried again later as {record.task_id})"
        return cls(
            task_id=record.task_id,
            task_type=record.task_type.value,
            collection_name=record.collection,
            status=status,
            started_at=_local(record.started_at),
            completed_at=_local(record.completed_at),
            result=record.result,
            error_message=error,
        )

    @classmethod
    def of_execution(cls, record: ExecutionRecord) -> TaskExecution:
        return cls(
            task_id=record.task_id,
            task_type=record.task_type.value,
            collection_name=record.collection,
            status=record.status,
            started_at=_local(record.started_at),
            completed_at=_local(record.completed_at),
            result=record.result,
            error_message=record.error_message,
        )


@dataclass(frozen=True, slots=True)
class QualityTrend:
    """A measured change. `metric` says of what the scores are, such as nDCG@10 from judgments."""

    task_id: str
    collection_name: str
    metric: str
    before_score: float
    after_score: float
    improvement: float
    measurement_time: datetime


class BackgroundTaskExecutor:
    """Runs tasks on the given vector client (inline), or through the daemon, or on the configured store."""

    def __init__(
        self,
        vector_db_client: Any = None,
        reranking_service: Any = None,
        *,
        lane: Lane | None = None,
        client: Client | None = None,
        config: Config | None = None,
    ) -> None:
        self._lane = lane or choose_lane(vector_db_client, reranking_service, config=config, client=client)

    def execute_task_now(
        self, task_type: str, collection_name: str, force: bool = False, params: Mapping[str, Any] | None = None
    ) -> TaskExecution:
        """Run a task and wait for it. Without `force` it is SKIPPED when the machine has nothing to spare.

        A failure is in the returned execution, not raised; bad arguments raise InvalidArgument (a ValueError).
        """
        kind = parse_task_type(task_type)
        submitted = expect(
            messages.Submitted,
            self._lane.request(
                messages.Submit(
                    task_type=kind.value,
                    collection=collection_name,
                    params=dict(params or {}),
                    priority=1,
                    is_forced=force,
                    run_or_skip=not force,
                )
            ),
        )
        return TaskExecution.of_task(self._lane.wait(submitted.task_id, until_attempted=True))

    def get_execution_stats(self) -> dict[str, Any]:
        """Return total_executions, completed, failed, skipped, success_rate (0..1), average_improvement and more."""
        return expect(messages.Report, self._lane.request(messages.ExecutionStats())).report

    def get_execution_history(self, limit: int = 50) -> list[TaskExecution]:
        """Return executions, newest first."""
        found = expect(messages.ExecutionList, self._lane.request(messages.ListExecutions(limit=limit)))
        return [TaskExecution.of_execution(record) for record in found.executions]

    def get_quality_trends(self, limit: int = 50) -> list[QualityTrend]:
        """Return the executions whose effect was measured from judgments, newest first."""
        ask = messages.ListExecutions(limit=limit, only_measured=True)
        found = expect(messages.ExecutionList, self._lane.request(ask)).executions
        return [
            QualityTrend(
                e.task_id,
                e.collection,
                e.metric or "",
                e.before_score,
                e.after_score,
                e.after_score - e.before_score,
                datetime.fromtimestamp(e.completed_at),
            )
            for e in found
            if e.before_score is not None and e.after_score is not None
        ]

    def close(self) -> None:
        self._lane.close()


def _local(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at)
