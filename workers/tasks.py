"""Owns which function runs which type of task."""

from __future__ import annotations

from collections.abc import Mapping

from ..ipc.records import TaskType
from .reindexing import reindex
from .reranking import rerank, warm
from .task import TaskFunction

TASKS: Mapping[TaskType, TaskFunction] = {
    TaskType.REINDEX: reindex,
    TaskType.RERANK: rerank,
    TaskType.WARM: warm,
}
