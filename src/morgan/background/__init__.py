"""Spends a RAG machine's spare capacity on making retrieval better.

Importing this is light: each name is loaded when first used, and none of torch, sentence-transformers or qdrant-client
is needed by a client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .ipc.version import VERSION as __version__

if TYPE_CHECKING:
    from .cache import PrecomputedSearchCache
    from .executor import BackgroundTaskExecutor
    from .ipc.client import Client
    from .ipc.errors import MorganError
    from .ipc.reader import ResultReader
    from .ipc.records import TaskFrequency, TaskStatus
    from .monitoring import ResourceMonitor
    from .scheduling import ScheduledTask, SimpleTaskScheduler
    from .service import BackgroundProcessingService
    from .tasks import ReindexingTask, RerankingTask
else:
    _HOMES = {
        "BackgroundProcessingService": ".service",
        "BackgroundTaskExecutor": ".executor",
        "Client": ".ipc.client",
        "MorganError": ".ipc.errors",
        "PrecomputedSearchCache": ".cache",
        "ReindexingTask": ".tasks",
        "RerankingTask": ".tasks",
        "ResourceMonitor": ".monitoring",
        "ResultReader": ".ipc.reader",
        "ScheduledTask": ".scheduling",
        "SimpleTaskScheduler": ".scheduling",
        "TaskFrequency": ".ipc.records",
        "TaskStatus": ".ipc.records",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)


__all__ = [
    "BackgroundProcessingService",
    "BackgroundTaskExecutor",
    "Client",
    "MorganError",
    "PrecomputedSearchCache",
    "ReindexingTask",
    "RerankingTask",
    "ResourceMonitor",
    "ResultReader",
    "ScheduledTask",
    "SimpleTaskScheduler",
    "TaskFrequency",
    "TaskStatus",
    "__version__",
]
