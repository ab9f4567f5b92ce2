"""Owns the check that a model fits a collection."""

from __future__ import annotations

from ..ipc.errors import VectorSizeMismatch
from ..ipc.records import CollectionInfo
from .task import Embedder


def check_size(info: CollectionInfo, embedder: Embedder) -> None:
    """Raise VectorSizeMismatch unless the collection's vectors have the model's length."""
    if info.vector_size != embedder.size:
        raise VectorSizeMismatch(
            f"{info.name!r} has vectors of {info.vector_size} dimensions, the model {embedder.name!r} makes"
            f" {embedder.size}: set [model] name to the model that made them"
        )
