"""Owns what the calls do: each collection is one shard of qdrant-edge, as a server's is with one shard.

One call at a time, as a server obeys the updates of a shard one after the other, and lets no search see half a change of
aliases. A batch is not one call: others come in between its operations.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from .catalog import Catalog, Collection
from .native import MODES, fields_of, filter_of, id_of, plain_id, plain_record, point_of, query_of, vector_of
from .refusal import Refusal, known, not_found, unknown, wrong

DONE = {"operation_id": 0, "status": "completed"}
OF_NO_USE = ("shard_key", "ordering")  # null, or of a cluster
STRICT = ("unindexed_filtering_update", "unindexed_filtering_retrieve")
_update = edge.UpdateOperation


class Engine:
    """Collections in `folder`, which survive the process. Raises Refusal as the server would."""

    def __init__(self, folder: Path) -> None:
        self._shards_folder = folder / "shards"
        self._shards_folder.mkdir(parents=True, exist_ok=True)
        self._catalog = Catalog(folder / "catalog.json")
        self._shards: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._is_closed = False

    def close(self) -> None:
        """Close every shard. Calls that are still on their way are refused: the folder may be removed now."""
        with self._lock:
            self._is_closed = True
            for shard in self._shards.values():
                shard.flush()
                shard.close()
            self._shards = {}

    # --- collections and aliases --------------------------------------------------------------------------------------

    def collections(self) -> Any:
        with self._lock:
            return {"collections": [{"name": name} for name in sorted(self._catalog.collections)]}

    def aliases(self) -> Any:
        with self._lock:
            pairs = self._catalog.aliases.items()
            return {"aliases": [{"alias_name": alias, "collection_name": name} for alias, name in pairs]}

    def change_aliases(self, body: Mapping[str, Any]) -> Any:
        with self._lock:
            self._check_open()
            self._catalog.change_aliases(known(body, "actions")["actions"])
            return True

    def exists(self, name: str) -> Any:
        with self._lock:
            return {"exists": self._catalog.aliases.get(name, name) in self._catalog.collections}

    def info(self, name: str) -> Any:
        with self._lock:
            shard, held = self._open(name)
            found = shard.info()
            return {
                "status": "green",
                "optimizer_status": "ok",
                "points_count": found.points_count,
                "indexed_vectors_count": found.indexed_vectors_count,
                "segments_count": found.segments_count,
                "config": held.config,
                "payload_schema": {
                    field: {"data_type": _kind(one), "points": one.points}
                    | ({"params": held.schema[field]} if field in held.schema else {})
                    for field, one in found.payload_schema.items()
                },
            }

    def create(self, name: str, body: Mapping[str, Any]) -> Any:
        known(
            body,
            *("vectors", "sparse_vectors", "shard_number", "replication_factor", "write_consistency_factor"),
            *("on_disk_payload", "hnsw_config", "optimizers_config", "quantization_config", "strict_mode_config"),
        )
        known(body.get("strict_mode_config") or {}, "enabled", *STRICT)
        with self._lock:
            self._check_open()
            held = self._catalog.add(name, uuid.uuid4().hex, body)
            try:
                self._shards[name] = edge.EdgeShard.create(str(self._path(held)), _config(body))
            except Exception as error:
                self._catalog.remove(name)
                raise wrong(str(error)) from error
            return True

    def change(self, name: str, body: Mapping[str, Any]) -> Any:
        with self._lock:
            self._check_open()
            self._catalog.change(name, body)
            return True

    def drop(self, name: str) -> Any:
        with self._lock:
            self._check_open()
            if (gone := self._catalog.remove(name)) is None:
                return False
            if (shard := self._shards.pop(name, None)) is not None:
                shard.close()
            shutil.rmtree(self._path(gone))
            return True

    def create_index(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "field_name", "field_schema")
        field, schema = body["field_name"], body["field_schema"]
        kind = schema if isinstance(schema, str) else schema["type"]
        with self._lock:
            shard, held = self._open(name)
            self._do(shard, _update.create_field_index(field, getattr(edge.PayloadSchemaType, kind.capitalize())))
            if isinstance(schema, Mapping):
                held.schema[field] = dict(schema)
                self._catalog.save()
            return DONE

    # --- points -------------------------------------------------------------------------------------------------------

    def upsert(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "points", "update_filter", "update_mode", *OF_NO_USE)
        points = [point_of(one) for one in body["points"]]
        mode = MODES[body.get("update_mode") or "upsert"]
        return self._change(name, _update.upsert_points(points, filter_of(body.get("update_filter")), mode))

    def update_vectors(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "points", "update_filter", *OF_NO_USE)
        points = [edge.PointVectors(id_of(one["id"]), vector_of(one["vector"])) for one in body["points"]]
        return self._change(name, _update.update_vectors(points, filter_of(body.get("update_filter"))))

    def delete(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "points", "filter", *OF_NO_USE)
        if body.get("filter") is not None:
            self._check_filter(name, body["filter"], STRICT[0])
            return self._change(name, _update.delete_points_by_filter(filter_of(body["filter"])))
        return self._change(name, _update.delete_points([id_of(one) for one in body["points"]]))

    def set_payload(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "payload", "points", "filter", "key", *OF_NO_USE)
        payload, key = body["payload"], body.get("key")
        if body.get("filter") is not None:
            self._check_filter(name, body["filter"], STRICT[0])
            return self._change(name, _update.set_payload_by_filter(filter_of(body["filter"]), payload, key))
        return self._change(name, _update.set_payload([id_of(one) for one in body["points"]], payload, key))

    def batch(self, name: str, body: Mapping[str, Any]) -> Any:
        """Obey one operation after the other; those before one that is refused stay obeyed."""
        kinds = {
            "upsert": self.upsert,
            "delete": self.delete,
            "set_payload": self.set_payload,
            "update_vectors": self.update_vectors,
        }
        operations = [next(iter(one.items())) for one in known(body, "operations")["operations"]]
        for kind, given in operations:
            if kind not in kinds:
                raise unknown(f"the operation {kind!r}")
            if kind in ("delete", "set_payload"):
                self._check_filter(name, given.get("filter"), STRICT[0])
        return [kinds[kind](name, given) for kind, given in operations]

    def retrieve(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "ids", "with_payload", "with_vector", "shard_key")
        with self._lock:
            shard, _ = self._open(name)
            records = shard.retrieve(
                [id_of(one) for one in body["ids"]],
                with_payload=body.get("with_payload", True) or False,
                with_vector=body.get("with_vector") or False,
            )
        return [plain_record(record) for record in records]

    def scroll(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "offset", "limit", "filter", "with_payload", "with_vector", "shard_key")
        self._check_filter(name, body.get("filter"), STRICT[1])
        offset = body.get("offset")
        with self._lock:
            shard, _ = self._open(name)
            records, following = shard.scroll(
                edge.ScrollRequest(
                    offset=None if offset is None else id_of(offset),
                    limit=body.get("limit") or 10,
                    filter=filter_of(body.get("filter")),
                    with_payload=body.get("with_payload", True) or False,
                    with_vector=body.get("with_vector") or False,
                )
            )
        return {
            "points": [plain_record(record) for record in records],
            "next_page_offset": None if following is None else plain_id(following),
        }

    def query(self, name: str, body: Mapping[str, Any]) -> Any:
        return self.query_batch(name, {"searches": [body]})[0]

    def query_batch(self, name: str, body: Mapping[str, Any]) -> Any:
        requests = [query_of(one) for one in known(body, "searches")["searches"]]
        for one in body["searches"]:
            self._check_filter(name, one.get("filter"), STRICT[1])
        with self._lock:
            shard, _ = self._open(name)
            try:
                answers = shard.query_batch(edge.QueryBatchRequest(requests))
            except Exception as error:
                raise wrong(str(error)) from error
        return [{"points": [plain_record(one) for one in points]} for points in answers]

    def count(self, name: str, body: Mapping[str, Any]) -> Any:
        known(body, "exact", "filter", "shard_key")
        self._check_filter(name, body.get("filter"), STRICT[1])
        with self._lock:
            shard, _ = self._open(name)
            return {"count": shard.count(edge.CountRequest(exact=True, filter=filter_of(body.get("filter"))))}

    # --- shards -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise Refusal(503, "the server ends")

    def _path(self, held: Collection) -> Path:
        return self._shards_folder / held.folder

    def _open(self, name: str) -> tuple[Any, Collection]:
        self._check_open()
        real = self._catalog.resolve(name)
        held = self._catalog.collections[real]
        if real not in self._shards:
            self._shards[real] = edge.EdgeShard.load(str(self._path(held)))
        return self._shards[real], held

    def _check_filter(self, name: str, given: Mapping[str, Any] | None, rule: str) -> None:
        """Raise Refusal for a field without an index where strict mode forbids it. The condition of an update is exempt."""
        if given is None:
            return
        with self._lock:
            shard, held = self._open(name)
            strict = held.config.get("strict_mode_config") or {}
            if strict.get("enabled") and strict.get(rule) is False:
                for field in sorted(fields_of(given) - set(shard.info().payload_schema)):
                    raise Refusal(
                        400,
                        f'Bad request: Index required but not found for "{field}" of one of the following types: [keyword].'
                        " Help: Create an index for this key or use a different filter.",
                    )

    def _change(self, name: str, operation: Any) -> Any:
        with self._lock:
            self._do(self._open(name)[0], operation)
        return DONE

    @staticmethod
    def _do(shard: Any, operation: Any) -> None:
        try:
            shard.update(operation)
        except Exception as error:
            if str(error).startswith("No point with id"):
                raise not_found(f"{error} found") from error
            if "ector" in str(error):  # its size, or its name
                raise wrong(str(error)) from error
            raise Refusal(500, f"Service internal error: {error}") from error


def _kind(index: Any) -> str:
    return str(index.data_type).rpartition(".")[2].lower()


def _config(body: Mapping[str, Any]) -> Any:
    """Return the configuration of a shard. The graph's is not in it: none is built."""

    def dense(given: Mapping[str, Any]) -> Any:
        known(given, "size", "distance", "on_disk", "hnsw_config", "quantization_config")
        return edge.EdgeVectorParams(size=given["size"], distance=getattr(edge.Distance, given["distance"]))

    vectors = body.get("vectors") or {}
    named = vectors if "size" not in vectors else {"": vectors}
    sparse = {name: edge.EdgeSparseVectorParams() for name in body.get("sparse_vectors") or {}}
    return edge.EdgeConfig(
        vectors={name: dense(one) for name, one in named.items()} or None, sparse_vectors=sparse or None
    )
