"""Owns what qdrant-client is handed and what it answers with: conditions, points, settings. Pure.

qdrant_client is imported late: it takes a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ipc.records import CollectionInfo, Point, PointId
from .names import check_filter
from .vectors import COPIED_KEY, MADE_BY_KEY, STAMP_KEY, Rewrite

BAD_REQUEST = 400
MARK_FIELD = f"{STAMP_KEY}.{COPIED_KEY}"


def numbers_of(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def settings_like(config: Any, params: Any, vector_name: str) -> dict[str, Any]:
    """Return the arguments that create a collection of this configuration, but for our vector's `params`."""
    from qdrant_client import models

    vectors = config.params.vectors
    wanted: dict[str, Any] = {
        "vectors_config": {**vectors, vector_name: params} if isinstance(vectors, Mapping) else params,
        "sparse_vectors_config": config.params.sparse_vectors,
        "quantization_config": config.quantization_config,
        "shard_number": config.params.shard_number,
        "replication_factor": config.params.replication_factor,
        "on_disk_payload": config.params.on_disk_payload,
        "strict_mode_config": _strictness(config),
    }
    for name, kind, held in (
        ("hnsw_config", models.HnswConfigDiff, config.hnsw_config),
        ("optimizers_config", models.OptimizersConfigDiff, config.optimizer_config),
    ):
        if held is not None:
            known = {key: value for key, value in held.model_dump().items() if key in kind.model_fields}
            wanted[name] = kind(**known)
    return {key: value for key, value in wanted.items() if value is not None}


def _strictness(config: Any) -> Any:
    from qdrant_client import models

    held = getattr(config, "strict_mode_config", None)
    return None if held is None else models.StrictModeConfig(**held.model_dump(exclude_none=True))


def copy_of(
    record: Any, vector_name: str, vector: list[float] | None, extra: Mapping[str, Any], *, keeps_vector: bool = False
) -> Any:
    """Return a point as it was read, with another vector under our name (None: without one, unless it is kept)."""
    from qdrant_client import models

    held = record.vector if isinstance(record.vector, Mapping) else {"": record.vector}
    vectors = {name: one for name, one in held.items() if one is not None}
    if vector is not None:
        vectors[vector_name] = vector
    elif not keeps_vector:
        vectors.pop(vector_name, None)
    unnamed = vectors.keys() == {""}
    return models.PointStruct(
        id=record.id, vector=vectors[""] if unnamed else vectors, payload=(record.payload or {}) | dict(extra)
    )


def has_text(one: Rewrite, text: str) -> Any:
    """Return the condition that a point still has the text it was embedded from."""
    from qdrant_client import models

    same = models.FieldCondition(key=one.text_field, match=models.MatchValue(value=text))
    return models.Filter(must=[models.HasIdCondition(has_id=[one.id]), same])


def is_one(point_id: PointId) -> Any:
    from qdrant_client import models

    return models.Filter(must=[models.HasIdCondition(has_id=[point_id])])


def wants_index(error: Any) -> bool:
    """Say whether a server in strict mode refused a filter over a field that has no index."""
    return error.status_code == BAD_REQUEST and b"Index required" in (error.content or b"")


def is_marked(mark: str) -> Any:
    from qdrant_client import models

    return models.FieldCondition(key=MARK_FIELD, match=models.MatchValue(value=mark))


def unstamped() -> Any:
    from qdrant_client import models

    return models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key=MADE_BY_KEY))])


def forget(alias: str) -> Any:
    from qdrant_client import models

    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def point_alias(alias: str, name: str) -> Any:
    from qdrant_client import models

    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))


def is_local(client: Any) -> bool:
    options = getattr(client, "init_options", None) or {}
    return bool(options.get("path")) or options.get("location") == ":memory:"


def filter_of(wanted: Mapping[str, Any] | None) -> Any:
    if not wanted:
        return None
    from qdrant_client import models

    check_filter(wanted)

    def condition(key: str, value: Any) -> models.FieldCondition:
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))

    conditions: list[Any] = [
        # MatchAny takes texts or whole numbers alone
        models.Filter(should=[condition(key, one) for one in value])
        if isinstance(value, list | tuple)
        else condition(key, value)
        for key, value in wanted.items()
    ]
    return models.Filter(must=conditions)


def point_of(record: Any, info: CollectionInfo) -> Point:
    vector = record.vector
    if isinstance(vector, Mapping):
        vector = vector.get(info.vector_name)
    packed = None if vector is None else np.asarray(vector, dtype="<f4").tobytes()
    return Point(id=record.id, payload=record.payload or {}, vector=packed)
