"""Owns the nouns that cross a process boundary: tasks, schedules, executions, points, hits, computed results.

Times are Unix seconds (float, UTC) and names end in `_at`; durations are seconds and end in `_s`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

PointId = int | str
"""A Qdrant point id: an unsigned 64-bit integer or a UUID in its canonical text form."""


class TaskType(StrEnum):
    REINDEX = "reindex"  # embed the points whose text or model changed
    RERANK = "rerank"  # search and rerank popular queries, publish their results
    WARM = "warm"  # precompute what the cache lacks for the popular queries
    TUNE = "tune"  # measure the index and propose other settings, or apply them
    LEARN = "learn"  # learn a reranker for one collection from its judgments, and use it where it is better
    PING = "ping"  # answer, and do nothing: it says whether workers do


class TaskFrequency(StrEnum):
    HOURLY = "hourly"  # the next full hour
    DAILY = "daily"  # 02:00 local time
    WEEKLY = "weekly"  # Sunday 03:00 local time


class TaskStatus(StrEnum):
    PENDING = "pending"  # accepted and durable, waits for its turn
    RUNNING = "running"  # a worker holds its lease
    COMPLETED = "completed"  # done, its result is recorded
    FAILED = "failed"  # gave up: a permanent error, or the attempts are used up (dead letter)
    SKIPPED = "skipped"  # not run: no resources (and not forced), or nothing to do it on
    CANCELLED = "cancelled"  # somebody asked for it to stop

    is_final: bool

    def __init__(self, value: str) -> None:
        self.is_final = value not in ("pending", "running")


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the records: immutable, compared by value, msgpack maps on the wire. The collector need not look at them."""


class TaskProgress(Record, frozen=True):
    done: int = 0  # steps' worth of items finished
    total: int = 0  # items in all; 0 while unknown
    note: str = ""  # what is being done, in words
    eta_s: float | None = None


class TaskRecord(Record, frozen=True):
    """One accepted task. `version` grows with every change, so that a waiting client sees each only once."""

    task_id: str
    task_type: TaskType
    collection: str
    params: dict[str, Any] = {}
    status: TaskStatus = TaskStatus.PENDING
    priority: int = 0  # higher runs first
    is_forced: bool = False  # ignores the CPU budget: somebody asked for it now; scheduling class and niceness stay
    attempt: int = 0  # the current lease; results of any other are refused
    failures: int = 0  # attempts that ended with an error
    outages: int = 0  # attempts in a row that found the store unreachable; they use up nothing
    kills: int = 0  # attempts that ended with the worker's death
    version: int = 0
    created_at: float = 0.0
    not_before_at: float = 0.0  # back-off after a transient failure
    deadline_at: float | None = None  # given up where it has not ended by then
    started_at: float | None = None
    completed_at: float | None = None
    progress: TaskProgress = TaskProgress()
    result: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    schedule_id: str | None = None
    waits_for: str = ""  # why it is not running, in words; empty once it runs
    worker: int | None = None


class Order(Record, frozen=True, omit_defaults=True):
    """A task to be handed in together with others: the fields of `submit` that are the task's own."""

    task_type: str
    collection: str
    params: dict[str, Any] = {}
    priority: int = 0
    is_forced: bool = False
    deadline_s: float | None = None


class ScheduleRecord(Record, frozen=True):
    task_id: str
    task_type: TaskType
    collection: str
    frequency: TaskFrequency
    next_run_at: float
    last_run_at: float | None = None
    is_enabled: bool = True
    metadata: dict[str, Any] = {}
    note: str = ""  # why its last run did nothing, in words; empty where it did


class ExecutionRecord(Record, frozen=True):
    """What one run of a task did. `before_score` and `after_score` are `metric` (e.g. nDCG@10) where it was measured.

    `attempt` counts its leases; `worker`, `wall_s`, `cpu_s` and `budget` are of the last of them.
    """

    task_id: str
    task_type: TaskType
    collection: str
    status: TaskStatus
    started_at: float
    completed_at: float
    attempt: int = 1
    worker: int | None = None
    wall_s: float = 0.0  # from its last lease to its end
    cpu_s: float = 0.0  # CPU time of the worker meanwhile
    budget: float | None = None  # mean share of one CPU granted meanwhile, 2.0 for two; None where it was never leased
    result: dict[str, Any] | None = None
    error_message: str | None = None
    metric: str | None = None
    before_score: float | None = None
    after_score: float | None = None


class Spread(Record, frozen=True):
    """A figure over some time: its mean, each moment counted as long as it lasted, and the highest value seen."""

    mean: float
    peak: float


class DecisionRow(Record, frozen=True):
    """What the governor decided and read in `seconds`, about a minute or up to a change. Shares are of the machine, 0..1.

    `is_admitting` (a task may begin) and `reason` are of its beginning. A reading that failed counts as a busy machine.
    """

    started_at: float
    seconds: float  # by a clock that nobody sets
    is_admitting: bool
    reason: str  # in words
    is_change: bool  # it began because tasks were admitted from then on or no more, or for another kind of reason
    changes: int  # of these in it, with the one that began it; more than one only while they come too fast for rows
    admitted: float  # share of the time in which a task might begin
    budget: Spread  # for background work
    limit: Spread  # of the hour: for everything together
    own: Spread  # CPU of the workers
    others: Spread  # CPU of everybody else
    memory: Spread  # used, by everybody
    query_rate: Spread  # searches a second


class QueryRecord(Record, frozen=True):
    """What is known of one query of one collection. `popularity` is the decayed count, `access_count` the raw one."""

    query_hash: str
    query_text: str
    collection: str
    access_count: int
    popularity: float
    total_response_s: float
    timed_count: int  # accesses that reported a response time
    first_accessed_at: float
    last_accessed_at: float
    scope: str = ""
    decayed: tuple[float, ...] = ()  # the counts `popularity` is the sum of, as of `decayed_at`; empty: not known
    decayed_at: float = 0.0
    is_twin: bool = False  # each access is counted under another scope of the same query as well; never listed
    day: tuple[float, ...] = ()  # where in the day it was asked: real and imaginary parts of two sums
    cost_s: float = 0.0  # CPU seconds that its last reranked result took; 0: not known


class QueryJob(Record, frozen=True):
    """A query handed to a worker, with the judgments known for it: point id (as text) -> grade."""

    text: str
    weight: float = 1.0
    judgments: dict[str, float] = {}


class Measure(Record, frozen=True):
    """The best documents for one query in two orders, the vector search's (before) and the reranker's (after).

    `ndcg` and `mrr`: (before, after) at 10 by the query's judgments, None without any. `overlap`: the share of the first
    ten that both have; `agreement`: rank-biased overlap of the two orders. Both 0..1, and neither says which is better.
    """

    query_text: str
    reranker: str
    overlap: float
    agreement: float
    ndcg: tuple[float, float] | None = None
    mrr: tuple[float, float] | None = None


class Point(Record, frozen=True):
    """A point on its way to or from a vector store. `vector` is little-endian float32, shape (D,), or None."""

    id: PointId
    payload: dict[str, Any] = {}
    vector: bytes | None = None


class Hit(Record, frozen=True):
    id: PointId
    score: float
    payload: dict[str, Any] = {}
    rerank_score: float | None = None


class CollectionInfo(Record, frozen=True):
    name: str
    points: int
    vector_size: int
    distance: str  # "cosine", "dot", "euclid" or "manhattan"
    vector_name: str = ""
    aliases: tuple[str, ...] = ()


class IndexSettings(Record, frozen=True):
    """How a collection's HNSW graph is built and searched. 0: as the engine does it by itself."""

    m: int = 0  # edges of a node
    ef_construct: int = 0  # candidates looked at while it is built
    ef: int = 0  # candidates looked at in a search


class IndexInfo(Record, frozen=True):
    """What a collection's index is. `payload` maps the fields with a payload index to its kind."""

    settings: IndexSettings = IndexSettings()
    indexed_vectors: int = 0  # those that the graph holds; the others are searched one by one
    payload: dict[str, str] = {}
    filters: dict[str, int] = {}  # searches that each field filtered since the owner was started


class ComputedResult(Record, frozen=True):
    """One query's precomputed results, best first: the rows of the result store.

    `scores` and `rerank_scores` are little-endian float32 of shape (k,), k = len(ids); `rerank_scores` is empty where
    nothing was reranked. `embedding` is the query's float32 vector of shape (D,), empty where unknown.
    """

    query_text: str
    collection: str
    ids: tuple[PointId, ...]
    scores: bytes
    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]
    computed_at: float
    rerank_scores: bytes = b""
    embedding: bytes = b""
    scope: str = ""
    quality: float | None = None  # 0..1; `quality_basis` says of what
    quality_basis: str = ""
    language: str = ""
    cost_s: float = 0.0  # CPU seconds it took to compute
    candidates: tuple[PointId, ...] = ()  # all that the rows were chosen from; empty where unknown
    as_of: int = 0  # the last PointsChanged before the candidates were found; 0: not known
    cutoff: float | None = None  # similarity (higher is nearer) a new document must reach to matter; None: any may
