"""Owns what a worker is told about its store, its models and its limits. Read from configuration by supervisor/config.py."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the settings: immutable and sent to workers as they are."""


class Secret(msgspec.Struct, frozen=True):
    """A value that never shows in a log or a traceback. `reveal()` is the only way to it."""

    value: str = ""

    def reveal(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return "Secret(***)" if self.value else "Secret()"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.value)


class StoreSettings(Settings, frozen=True):
    """Where the vectors are: a Qdrant server by `url`, or (empty url) the embedded engine in `path`."""

    url: str = ""
    api_key: Secret = Secret()
    path: str = ""
    timeout_s: float = 30.0
    client_options: dict[str, object] = {}  # further keyword arguments of QdrantClient, from `client.init_options`

    @property
    def is_embedded(self) -> bool:
        return not self.url and not self.client_options


LOADERS = ("auto", "reference", "fast")
PRECISIONS = ("fp32", "int8")
FUSIONS = ("rrf", "dbsf", "none")


class ModelSettings(Settings, frozen=True):
    """Which model embeds which payload field."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    text_field: str = "text"
    source_field: str = "source"
    vector_name: str = ""  # "" is Qdrant's unnamed default vector
    device: str = "cpu"
    batch_size: int = 32  # at most; how many is found at run time (workers/batches.py)
    threads: int = 0  # of a worker, that embed at once at most; 0: as many as the budget has CPUs for
    loader: str = "auto"  # one of LOADERS
    precision: str = "fp32"  # one of PRECISIONS
    graph_folder: str = ""  # where graphs of models are kept; "" is nowhere, so the reference is used
    chunking: str = ""  # the user's own name for how documents were cut up: another one makes every point stale


class RerankSettings(Settings, frozen=True):
    """How candidates are reranked. Without `cross_encoder`: late interaction over the embedding model's tokens."""

    cross_encoder: str = ""
    candidates: int = 50
    fusion: str = "rrf"  # one of FUSIONS: of dense and sparse vectors, where a collection has both
    top_k: int = 10
    max_queries: int = 50  # popular queries per task


class GateSettings(Settings, frozen=True):
    """What a rebuilt index may be worse by and still be swapped in. See workers/gate.py."""

    ndcg_tolerance: float = 0.02
    recall_tolerance: float = 0.01
    latency_ratio: float = 1.2
    latency_floor_ms: float = 1.0  # a search that became slower by less than this is not slower
    queries: int = 200  # at least so many are measured, with texts of documents where searches are too few
    min_judged: int = 200  # below it an interval is wider than the tolerance, and the mean alone decides
    require_judgments: bool = False  # another model needs judged queries to be swapped in


class TuningSettings(Settings, frozen=True):
    """What a tune task aims at, and whether it applies what it proposes."""

    recall_goal: float = 0.98  # @10 of the index against exact search
    apply: bool = False


class LearningSettings(Settings, frozen=True):
    """When a reranker is learned for a collection, and where it is kept. See workers/learning.py."""

    folder: str = ""  # "" is nowhere: then nothing is learned
    min_judged: int = 50  # queries with a relevant document: with fewer nothing is learned
    train_from: int = 200  # pairs of query and relevant document: with fewer the weights of a fusion are learned alone
    epochs: int = 4


class CollectionSettings(Settings, frozen=True):
    """What differs in one collection; an empty text: as in all others."""

    text_field: str = ""
    source_field: str = ""
    time_field: str = ""  # of the payload: when a point is from
    recency_half_life_days: float = 0.0  # 0: recency is no matter
    recency_weight: float = 0.25
    new_points: bool = False  # they are looked for every service.check_interval_s


class RecencySettings(Settings, frozen=True):
    """How recency weighs into the order of results. See workers/recency.py."""

    time_field: str
    half_life_s: float
    weight: float


class WorkerSettings(Settings, frozen=True):
    store: StoreSettings = StoreSettings()
    model: ModelSettings = ModelSettings()
    rerank: RerankSettings = RerankSettings()
    gate: GateSettings = GateSettings()
    tuning: TuningSettings = TuningSettings()
    learning: LearningSettings = LearningSettings()
    collections: dict[str, CollectionSettings] = {}
    recency: RecencySettings | None = None  # of the collection that is worked on
    scroll_size: int = 64  # points per step of a re-index: a checkpoint about every few seconds on one core
    grace_s: float = 10.0
    rebuild_folder: str = ""  # what a rebuild on a server must know after the swap; "": in memory alone
    retention_s: float = 7 * 86400.0  # for so long the version before a swap is kept for a roll-back

    def of(self, collection: str) -> WorkerSettings:
        """Return the settings for work on a collection, by the name it is configured under or by that of a version."""
        base, _, version = collection.rpartition("__v")
        own = self.collections.get(collection) or self.collections.get(base if version.isdigit() else collection)
        if own is None:
            return self
        model = msgspec.structs.replace(
            self.model,
            text_field=own.text_field or self.model.text_field,
            source_field=own.source_field or self.model.source_field,
        )
        recency = None
        if own.time_field and own.recency_half_life_days > 0:
            recency = RecencySettings(
                time_field=own.time_field, half_life_s=own.recency_half_life_days * 86400, weight=own.recency_weight
            )
        return msgspec.structs.replace(self, model=model, recency=recency)
