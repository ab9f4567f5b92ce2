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


class ModelSettings(Settings, frozen=True):
    """Which model embeds which payload field."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    text_field: str = "text"
    source_field: str = "source"
    vector_name: str = ""  # "" is Qdrant's unnamed default vector
    device: str = "cpu"
    batch_size: int = 4  # 1.21x the throughput of 32 on 2 cores, and a pause takes effect sooner (research, 6)
    threads: int = 1  # of torch, per worker


class RerankSettings(Settings, frozen=True):
    """How candidates are reranked. Without `cross_encoder`: late interaction over the embedding model's tokens."""

    cross_encoder: str = ""
    candidates: int = 50
    top_k: int = 10
    max_queries: int = 50  # popular queries per task


class WorkerSettings(Settings, frozen=True):
    store: StoreSettings = StoreSettings()
    model: ModelSettings = ModelSettings()
    rerank: RerankSettings = RerankSettings()
    scroll_size: int = 64  # points per step of a re-index: a checkpoint about every few seconds on one core
    grace_s: float = 10.0
