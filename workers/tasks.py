"""Owns which function runs which type of task."""

from __future__ import annotations

from ..ipc.records import TaskType
from .dry_run import or_dry, would_compute, would_embed
from .learning import learn
from .ping import ping
from .reindexing import reindex
from .reranking import rerank, warm
from .task import Bare, Tasks
from .tuning import tune

TASKS: Tasks = {
    TaskType.REINDEX: or_dry(reindex, would_embed),
    TaskType.RERANK: or_dry(rerank, would_compute),
    TaskType.WARM: or_dry(warm, would_compute),
    TaskType.TUNE: tune,
    TaskType.LEARN: learn,
    TaskType.PING: Bare(ping),
}
