"""Owns the embedded store: Qdrant's engine in this process, one shard a collection.

    PATH/lock   PATH/catalog.json   PATH/shards/NAME-N/

One process at a time opens it. `optimize` of the engine holds the GIL and is not called while serving.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..ipc.errors import ConfigError, InvalidArgument, StoreLocked, StoreUnavailable
from ..ipc.records import CollectionInfo, Hit, IndexInfo, IndexSettings, Point, PointId
from .catalog import Catalog, Entry
from .fingerprint import fingerprint
from .names import check_distance, check_filter, check_id, check_kinds, check_vectors, not_found, row_of, vector_of
from .vectors import MADE_BY_KEY, STAMP_KEY, Rewrite, Vectors

log = logging.getLogger(__name__)

ENGINE_M, ENGINE_EF_CONSTRUCT = 16, 100  # of a graph that nothing is said of
FULL_SCAN_KB = 10_000  # of vectors below which a filtered search looks at each of them: the engine's own value


class EdgeStore:
    """A VectorStore in the folder `path`. Raises StoreLocked while another process has it open, and ConfigError where
    its catalog is damaged or lost.

    Writes are durable on return: the engine's write-ahead log survives SIGKILL, and `flush` on close orders it to disk.
    """

    can_rename = True

    def __init__(self, path: Path) -> None:
        try:
            import qdrant_edge
        except ImportError as error:
            raise StoreUnavailable(
                f"the embedded store needs qdrant-edge-py ({error}): pip install 'morgan-background[qdrant]'"
            ) from error
        self._edge: Any = qdrant_edge
        self._path = path
        (path / "shards").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(path / "lock")
        try:
            self._catalog = self._open_catalog()
            self._remove_orphans()
        except BaseException:
            os.close(self._lock)
            raise
        self._shards: dict[str, Any] = {}

    def _open_catalog(self) -> Catalog:
        """Raises ConfigError if the file is lost: then every shard would look like one that no collection has."""
        path = self._path / "catalog.json"
        if not path.exists() and any((self._path / "shards").iterdir()):
            raise ConfigError(
                f"{path} is missing, but there are shards beside it: restore it from a backup,"
                f" or remove {self._path} to begin with an empty store"
            )
        return Catalog(path)

    def _remove_orphans(self) -> None:
        """Remove shard folders that no collection has: what a crash left between their creation and the catalog."""
        known = {entry.folder for entry in self._catalog.contents.collections.values()}
        for folder in (self._path / "shards").iterdir():
            if folder.name not in known:
                log.warning("removing %s: no collection has it", folder)
                shutil.rmtree(folder)

    def _open(self, name: str, *, is_counted: bool = False) -> tuple[Any, CollectionInfo]:
        """Return the shard and the description of a collection, by name or alias; `points` is 0 unless counted.

        To count 45,000 points exactly takes 1.7 ms, to search a graph of them 0.06.
        """
        real = self._catalog.resolve(name)
        if real is None:
            raise not_found(name, self._catalog.names())
        entry = self._catalog.contents.collections[real]
        if real not in self._shards:
            self._shards[real] = self._load(real, self._path / "shards" / entry.folder)
        shard = self._shards[real]
        info = CollectionInfo(
            name=real,
            points=shard.count(self._edge.CountRequest(exact=True)) if is_counted else 0,
            vector_size=entry.vector_size,
            distance=entry.distance,
            vector_name=entry.vector_name,
            aliases=self._catalog.aliases_of(real),
        )
        return shard, info

    def _load(self, name: str, folder: Path) -> Any:
        try:
            return self._edge.EdgeShard.load(str(folder))
        except Exception as error:
            if "WouldBlock" in str(error):
                raise StoreUnavailable(f"{name!r} is being indexed by another process: ask again") from error
            raise

    # --- collections --------------------------------------------------------------------------------------------------

    def collections(self) -> list[CollectionInfo]:
        return [self._open(name, is_counted=True)[1] for name in sorted(self._catalog.contents.collections)]

    def info(self, name: str) -> CollectionInfo:
        return self._open(name, is_counted=True)[1]

    def create(
        self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "", like: str = ""
    ) -> CollectionInfo:
        check_distance(distance)
        if vector_size < 1 or not name:
            raise InvalidArgument(f"a collection needs a name and a vector size above 0, not {name!r}, {vector_size}")
        folder = uuid.uuid4().hex
        params = self._edge.EdgeVectorParams(
            size=vector_size, distance=getattr(self._edge.Distance, distance.capitalize())
        )
        model = self._catalog.resolve(like) if like else None
        index = self._catalog.contents.collections[model].index if model else IndexSettings()
        entry = Entry(folder=folder, vector_size=vector_size, distance=distance, vector_name=vector_name, index=index)
        if name in self._catalog.names():
            self._catalog.add(name, entry)  # raises, before anything is made
        config = self._edge.EdgeConfig(
            vectors={vector_name: params} if vector_name else params, hnsw_config=graph_of(index)
        )
        shard = self._edge.EdgeShard.create(str(self._path / "shards" / folder), config)
        if like:
            for field, index in self._open(like)[0].info().payload_schema.items():
                shard.update(self._edge.UpdateOperation.create_field_index(field, index.params or index.data_type))
        self._catalog.add(name, entry)
        self._shards[name] = shard
        return self.info(name)

    def drop(self, name: str) -> None:
        if name in self._catalog.contents.aliases:
            raise InvalidArgument(f"{name!r} is an alias: drop the collection it points at")
        if name not in self._catalog.contents.collections:
            raise not_found(name, self._catalog.names())
        entry = self._catalog.contents.collections[name]
        self._catalog.remove(name)
        if (shard := self._shards.pop(name, None)) is not None:
            shard.close()
        shutil.rmtree(self._path / "shards" / entry.folder)

    def set_alias(self, alias: str, name: str) -> None:
        real = self._catalog.resolve(name)
        if real is None:
            raise not_found(name, self._catalog.names())
        self._catalog.point(alias, real)

    def drop_alias(self, alias: str) -> None:
        self._catalog.forget(alias)

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        for name in (old, new):
            if name not in self._catalog.contents.collections:
                raise not_found(name, self._catalog.names())
        self._catalog.swap(old, new, kept_as=kept_as, rename_to=rename_to)
        self._follow(old, rename_to)

    def make_alias(self, name: str, rename_to: str) -> CollectionInfo:
        """Rename a collection, and let its name be an alias of it."""
        if name not in self._catalog.contents.collections:
            raise not_found(name, self._catalog.names())
        self._catalog.make_alias(name, rename_to)
        self._follow(name, rename_to)
        return self.info(name)

    def _follow(self, name: str, renamed: str) -> None:
        """Keep an open shard under its collection's new name."""
        if name not in self._catalog.contents.collections and name in self._shards:
            self._shards[renamed] = self._shards.pop(name)

    def lend(self, name: str) -> Path:
        """Close a collection and return its folder, for another process to open; see `_open` for how it comes back."""
        real = self._catalog.resolve(name)
        if real is None:
            raise not_found(name, self._catalog.names())
        if (shard := self._shards.pop(real, None)) is not None:
            shard.flush()
            shard.close()
        return self._path / "shards" / self._catalog.contents.collections[real].folder

    # --- points -------------------------------------------------------------------------------------------------------

    def scroll(
        self,
        name: str,
        *,
        after: PointId | None = None,
        limit: int = 64,
        with_vectors: bool = False,
        only_unstamped: bool = False,
    ) -> tuple[list[Point], PointId | None]:
        shard, info = self._open(name)
        request = self._edge.ScrollRequest(
            offset=check_id(after) if after is not None else None,
            limit=limit,
            filter=self._edge.Filter(must=[self._edge.IsEmptyCondition(MADE_BY_KEY)]) if only_unstamped else None,
            with_payload=True,
            with_vector=with_vectors,
        )
        records, next_id = shard.scroll(request)
        return [_point(r, info) for r in records], None if next_id is None else _id(next_id)

    def fetch(self, name: str, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        shard, info = self._open(name)
        records = shard.retrieve([check_id(i) for i in ids], with_payload=True, with_vector=with_vectors)
        return [_point(record, info) for record in records]

    def search(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int = 10,
        query_filter: Mapping[str, Any] | None = None,
        exact: bool = False,
        ef: int = 0,
    ) -> list[list[Hit]]:
        shard, info = self._open(name)
        check_vectors(info, vectors)
        edge = self._edge
        depth = ef or self._catalog.contents.collections[info.name].index.ef or None
        requests = [
            edge.QueryRequest(
                query=edge.Query.Nearest(vector.tolist(), using=info.vector_name or None),
                filter=self._filter(query_filter),
                limit=limit,
                with_payload=True,
                params=edge.SearchParams(exact=exact, hnsw_ef=depth),
            )
            for vector in vectors
        ]
        found = shard.query_batch(edge.QueryBatchRequest(requests))
        return [[Hit(id=_id(p.id), score=p.score, payload=p.payload or {}) for p in points] for points in found]

    def _filter(self, wanted: Mapping[str, Any] | None) -> Any:
        if not wanted:
            return None
        edge = self._edge
        check_filter(wanted)

        def condition(key: str, value: Any) -> Any:
            # the engine takes a Python bool for a whole number, so that True matched 1; a numpy one it takes as it is
            match = edge.MatchValue(np.bool_(value) if isinstance(value, bool) else value)
            return edge.FieldCondition(key, match=match)

        conditions = [
            # MatchAny takes texts or whole numbers alone
            edge.Filter(should=[condition(key, one) for one in value])
            if isinstance(value, list | tuple)
            else condition(key, value)
            for key, value in wanted.items()
        ]
        return edge.Filter(must=conditions)

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        shard, info = self._open(name)
        # every point is checked before any is written: a batch is written whole or not at all
        rows = [(check_id(point.id), vector_of(point, info).tolist(), point.payload) for point in points]
        named = info.vector_name
        native = [self._edge.Point(i, {named: v} if named else v, payload) for i, v, payload in rows]
        if native:
            shard.update(self._edge.UpdateOperation.upsert_points(native))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        shard, _ = self._open(name)
        if ids:
            shard.update(self._edge.UpdateOperation.delete_points([check_id(i) for i in ids]))

    def rewrite(self, name: str, rewrites: Sequence[Rewrite]) -> int:
        """See VectorStore. Atomic against all other writers: they pass through this one process, one call at a time."""
        shard, info = self._open(name)
        held = {point.id: point.payload for point in self.fetch(name, [one.id for one in rewrites])}
        fresh = [
            one
            for one in rewrites
            if isinstance(text := held.get(one.id, {}).get(one.text_field), str)
            and fingerprint(text) == one.text_fingerprint
        ]
        if not fresh:
            return 0
        edge, named = self._edge, info.vector_name
        embedded = [(one, row_of(one.vector, info)) for one in fresh if one.vector is not None]
        marked = [one for one in fresh if one.vector is None or named]
        if named:  # other named vectors of the point must stay: an upsert would replace them
            vectors = [edge.PointVectors(check_id(one.id), {named: row}) for one, row in embedded]
            if vectors:
                shard.update(edge.UpdateOperation.update_vectors(vectors))
        elif embedded:
            # One upsert a point, vector and stamp together: killed between two, a vector would have no stamp.
            points = [
                edge.Point(check_id(one.id), row, held[one.id] | {STAMP_KEY: dict(one.stamp)}) for one, row in embedded
            ]
            shard.update(edge.UpdateOperation.upsert_points(points, update_mode=edge.UpdateMode.UpdateOnly))
        for one in marked:
            shard.update(edge.UpdateOperation.set_payload([check_id(one.id)], {STAMP_KEY: dict(one.stamp)}))
        return len(fresh)

    def transfer(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId] = (),
        *,
        keeps_vectors: bool = False,
    ) -> int:
        into, info = self._open(target)
        wanted = [one.id for one in rewrites] + list(bare)
        held = {point.id: point for point in self.fetch(source, wanted, with_vectors=keeps_vectors)}
        points = [
            Point(
                id=one.id,
                payload=point.payload | {STAMP_KEY: dict(one.stamp)},
                vector=one.vector.astype("<f4").tobytes(),
            )
            for one in rewrites
            if one.vector is not None
            and (point := held.get(one.id)) is not None
            and isinstance(text := point.payload.get(one.text_field), str)
            and fingerprint(text) == one.text_fingerprint
        ]
        points += [held[one] for one in bare if one in held]
        named = info.vector_name

        def vector(point: Point) -> Any:
            if point.vector is None:
                return {}
            row = vector_of(point, info).tolist()
            return {named: row} if named else row

        native = [self._edge.Point(check_id(point.id), vector(point), point.payload) for point in points]
        if native:
            into.update(self._edge.UpdateOperation.upsert_points(native))
        return len(native)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.flush()
            shard.close()
        self._shards = {}
        os.close(self._lock)

    # --- the index ----------------------------------------------------------------------------------------------------

    def index_info(self, name: str) -> IndexInfo:
        shard, info = self._open(name)
        found = shard.info()
        return IndexInfo(
            settings=self._catalog.contents.collections[info.name].index,
            indexed_vectors=found.indexed_vectors_count,
            payload={field: _kind(one.data_type) for field, one in found.payload_schema.items()},
        )

    def configure_index(self, name: str, settings: IndexSettings, payload: Mapping[str, str]) -> list[str]:
        """See Tunable. A graph is built where nobody searches it: another `m` waits for the next version."""
        check_kinds(payload)
        shard, info = self._open(name)
        words = []
        for field, kind in payload.items():
            schema = getattr(self._edge.PayloadSchemaType, kind.capitalize())
            shard.update(self._edge.UpdateOperation.create_field_index(field, schema))
            words.append(f"payload index of {field!r} ({kind}) made")
        named = {key: value for key, value in msgspec.structs.asdict(settings).items() if value}
        if named:
            held = self._catalog.contents.collections[info.name].index
            self._catalog.configure(info.name, msgspec.structs.replace(held, **named))
        if settings.ef:
            words.append(f"searches look at {settings.ef} candidates from now on")
        if settings.m or settings.ef_construct:
            words.append(
                "the next version of the collection gets the other graph: `run reindex --set force_rebuild=true`"
            )
        return words


def graph_of(index: IndexSettings) -> Any:
    """Return the engine's settings of a graph; None where nothing is said of it."""
    import qdrant_edge

    if not (index.m or index.ef_construct):
        return None
    return qdrant_edge.HnswIndexConfig(
        m=index.m or ENGINE_M, ef_construct=index.ef_construct or ENGINE_EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB
    )


def _kind(native: Any) -> str:
    return str(native).rpartition(".")[2].lower()


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreLocked(
            f"another process has the embedded store {path.parent} open: use it through that service's Client,"
            " or stop it (`morgan-background stop`)"
        ) from None
    return fd


def _id(native: Any) -> PointId:
    return native if isinstance(native, int) else str(native)


def _point(record: Any, info: CollectionInfo) -> Point:
    vector = record.vector
    if isinstance(vector, dict):
        vector = vector.get(info.vector_name)
    packed = None if vector is None else np.asarray(vector, dtype="<f4").tobytes()
    return Point(id=_id(record.id), payload=record.payload or {}, vector=packed)
