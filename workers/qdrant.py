"""Owns the store behind a qdrant-client (the only import of qdrant_client): a server by url, or a live object handed in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from ..ipc.errors import CollectionNotFound, InvalidArgument, StoreUnavailable, SwapImpossible
from ..ipc.records import CollectionInfo, Hit, IndexInfo, IndexSettings, Point, PointId
from ..ipc.settings import Secret, StoreSettings
from .fingerprint import fingerprint, of_payload
from .names import (
    check_distance,
    check_filter,
    check_id,
    check_kinds,
    check_vectors,
    not_found,
    row_of,
    taken,
    vector_of,
)
from .retries import until_answered
from .sparse import SAMPLE, SparseEncoder, SparseRow, encoder_of
from .vectors import AS_KEY, COPIED_KEY, MADE_BY_KEY, STAMP_KEY, Only, Rewrite, Vectors
from .versions import is_ours, serving_aliases

ENCODER_KNOWN_S = 600.0  # then it is looked again for what made a collection's sparse vectors

P = ParamSpec("P")
T = TypeVar("T")

BAD_REQUEST = 400
NOT_FOUND = 404
BUSY = (408, 429)  # it ran out of its own time, or of what it lets one client do
NEEDED = (1, 17)  # version of the server: older ones pass over the conditions of writes, and say nothing
MARK_FIELD = f"{STAMP_KEY}.{COPIED_KEY}"
TRIES = 4  # of writing vectors of points that are deleted meanwhile


def _reachable(method: Callable[P, T]) -> Callable[P, T]:
    """Turn what qdrant-client raises for a server that does not answer into StoreUnavailable, without its key."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        import httpx
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        where = getattr(args[0], "where", "the vector store")
        try:
            return method(*args, **kwargs)
        except (ResponseHandlingException, httpx.HTTPError, ConnectionError, TimeoutError) as error:
            raise StoreUnavailable(
                f"Qdrant at {where} does not answer ({type(error).__name__}): check that it runs; tasks wait for it"
            ) from error
        except ResourceExhaustedResponse as error:
            raise StoreUnavailable(f"Qdrant at {where} has too much to do: tasks wait for it") from error
        except UnexpectedResponse as error:
            if error.status_code is not None and (error.status_code in BUSY or error.status_code >= 500):
                raise StoreUnavailable(f"Qdrant at {where} answered with status {error.status_code}") from error
            if error.status_code in (401, 403):
                raise InvalidArgument(f"Qdrant at {where} refused the API key: correct [store] api_key") from error
            if error.status_code == NOT_FOUND:
                raise CollectionNotFound(
                    f"what was asked of Qdrant at {where} is not there any more: {error}"
                ) from error
            raise

    return call


class QdrantStore:
    """A VectorStore over a QdrantClient. The client stays its creator's: `close` closes it only for `connect`'s."""

    can_rename = False

    def __init__(self, client: Any, *, where: str = "the given client", is_own: bool = False) -> None:
        self._client, self.where, self._is_own = client, where, is_own
        self._encoders: dict[tuple[str, str], tuple[float, tuple[SparseEncoder | None, str]]] = {}
        self.takes_threads = is_own  # then it is one of a server, over HTTP: a live one may be anything

    @cached_property
    def version(self) -> tuple[int, ...]:
        """Major and minor version of the server; empty where it does not say. Raises what any call does."""
        return _numbers(getattr(self._client.info(), "version", ""))

    @_reachable
    def demand_version(self) -> None:
        """See Versioned. Raises InvalidArgument for a server that would write without asking for our conditions."""
        if self.version and self.version < NEEDED:
            have, needed = (".".join(map(str, one)) for one in (self.version, NEEDED))
            raise InvalidArgument(
                f"Qdrant at {self.where} is {have}: a re-index needs {needed} or newer, since older ones would overwrite what"
                " applications write meanwhile. Update the server"
            )

    def _names(self) -> list[str]:
        names = [one.name for one in self._client.get_collections().collections]
        return names + [one.alias_name for one in self._client.get_aliases().aliases]

    # --- collections --------------------------------------------------------------------------------------------------

    @_reachable
    def collections(self) -> list[CollectionInfo]:
        names = [one.name for one in self._client.get_collections().collections]
        aliases = self._aliases()
        return [info for name in names if (info := self._info(name, aliases)) is not None]  # None: dropped since

    @_reachable
    def info(self, name: str) -> CollectionInfo:
        aliases = self._aliases()
        info = self._info(aliases.get(name, name), aliases)
        if info is None:
            raise not_found(name, self._names())
        return info

    def _info(self, real: str, aliases: Mapping[str, str]) -> CollectionInfo | None:
        """Return what a collection is, by its own name; None where there is none."""
        from qdrant_client.http.exceptions import UnexpectedResponse

        try:
            described = self._client.get_collection(real)
        except UnexpectedResponse as error:
            if error.status_code != NOT_FOUND:
                raise
            return None
        except ValueError:  # of the local mode
            return None
        vectors = described.config.params.vectors
        vector_name = ""
        if isinstance(vectors, Mapping):  # named vectors: the configured one is chosen by the settings, else the first
            if not vectors:
                raise InvalidArgument(f"{real!r} has no dense vectors")
            vector_name, vectors = next(iter(vectors.items()))
        return CollectionInfo(
            name=real,
            points=described.points_count or 0,
            vector_size=vectors.size,
            distance=str(vectors.distance.value).lower(),
            vector_name=vector_name,
            aliases=tuple(sorted(alias for alias, target in aliases.items() if target == real)),
        )

    @_reachable
    def create(
        self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "", like: str = ""
    ) -> CollectionInfo:
        from qdrant_client import models

        check_distance(distance)
        if vector_size < 1 or not name:
            raise InvalidArgument(f"a collection needs a name and a vector size above 0, not {name!r}, {vector_size}")
        if name in self._names():
            raise taken(name)
        params = models.VectorParams(size=vector_size, distance=getattr(models.Distance, distance.upper()))
        if not like:
            self._client.create_collection(name, vectors_config={vector_name: params} if vector_name else params)
            return self.info(name)
        model = self._client.get_collection(like)
        self._client.create_collection(name, **_settings_like(model.config, params, vector_name))
        for field, index in (model.payload_schema or {}).items():
            self._client.create_payload_index(name, field, field_schema=index.params or index.data_type, wait=True)
        return self.info(name)

    @_reachable
    def drop(self, name: str) -> None:
        if self.info(name).name != name:
            raise InvalidArgument(f"{name!r} is an alias: drop the collection it points at")
        self._client.delete_collection(name)

    @_reachable
    def set_alias(self, alias: str, name: str) -> None:
        real = self.info(name).name
        if alias in {one.name for one in self._client.get_collections().collections}:
            raise taken(alias)
        # it takes the place of another of this name at once
        self._client.update_collection_aliases(change_aliases_operations=[_point_alias(alias, real)])

    @_reachable
    def drop_alias(self, alias: str) -> None:
        if alias in self._aliases():
            self._client.update_collection_aliases(change_aliases_operations=[_forget(alias)])

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        """See VectorStore. One request, within which nobody searches; asked for again where its answer is lost.

        A server that refuses one of its actions, since a collection was dropped meanwhile, has obeyed those before it: so
        the old version is kept first, and no name is ever forgotten before it means the new one.
        """
        until_answered(lambda: self._swap(old, new, kept_as))

    @_reachable
    def _swap(self, old: str, new: str, kept_as: str) -> None:
        before, after = self.info(old), self.info(new)
        served = serving_aliases(before)
        if not served and kept_as in before.aliases and serving_aliases(after):
            return  # it is done: the answer was lost
        if not served:
            raise SwapImpossible(
                f"{old!r} is a collection and no alias: a Qdrant server cannot rename it, so its name cannot come to mean"
                f" {new!r} without a gap. `morgan-background adopt-alias {old}` makes an alias of it (searches fail for"
                " some milliseconds)"
            )
        operations = [_point_alias(kept_as, old)] + [_point_alias(alias, new) for alias in served]
        operations += [_forget(alias) for alias in after.aliases if is_ours(alias) and alias != kept_as]
        self._client.update_collection_aliases(change_aliases_operations=operations)

    def _aliases(self) -> dict[str, str]:
        return {one.alias_name: one.collection_name for one in self._client.get_aliases().aliases}

    # --- points -------------------------------------------------------------------------------------------------------

    @_reachable
    def scroll(
        self,
        name: str,
        *,
        after: PointId | None = None,
        limit: int = 64,
        with_vectors: bool = False,
        only_unstamped: bool = False,
    ) -> tuple[list[Point], PointId | None]:
        info = self.info(name)
        records, next_id = self._client.scroll(
            info.name,
            offset=after,
            limit=limit,
            scroll_filter=_unstamped() if only_unstamped else None,
            with_payload=True,
            with_vectors=with_vectors,
        )
        return [_point(record, info) for record in records], next_id

    @_reachable
    def fetch(self, name: str, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        info = self.info(name)
        records = self._client.retrieve(info.name, ids=list(ids), with_payload=True, with_vectors=with_vectors)
        return [_point(record, info) for record in records]

    @_reachable
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
        from qdrant_client import models

        info = self.info(name)
        check_vectors(info, vectors)
        params = models.SearchParams(exact=exact, hnsw_ef=ef or None) if exact or ef else None
        if _is_local(self._client):
            params = None  # local mode is exact anyway and warns about parameters
        requests = [
            models.QueryRequest(
                query=vector.tolist(),
                using=info.vector_name or None,
                filter=_filter(query_filter),
                limit=limit,
                with_payload=True,
                params=params,
            )
            for vector in vectors
        ]
        if not requests:
            return []
        answers = self._client.query_batch_points(info.name, requests=requests)
        return [[Hit(id=p.id, score=p.score, payload=p.payload or {}) for p in one.points] for one in answers]

    @_reachable
    def sparse_encoder(self, name: str, text_field: str) -> tuple[SparseEncoder | None, str]:
        """See Hybrid. Looked for once in ENCODER_KNOWN_S."""
        looked_at, found = self._encoders.get((name, text_field), (-ENCODER_KNOWN_S, (None, "")))
        if time.monotonic() - looked_at >= ENCODER_KNOWN_S:
            found = self._find_encoder(self.info(name).name, text_field)
            self._encoders[name, text_field] = time.monotonic(), found
        return found

    def _find_encoder(self, real: str, text_field: str) -> tuple[SparseEncoder | None, str]:
        names = sorted(self._client.get_collection(real).config.params.sparse_vectors or {})
        if not names:
            return None, ""
        records, _ = self._client.scroll(real, limit=SAMPLE, with_payload=[text_field], with_vectors=names)
        for name in names:
            documents = [
                (text, vector.indices)
                for record in records
                if isinstance(text := (record.payload or {}).get(text_field), str)
                and (vector := (record.vector or {}).get(name)) is not None
            ]
            if (found := encoder_of(name, documents)) is not None:
                return found, ""
        return None, f"it is not known what made the sparse vectors {', '.join(map(repr, names))}; BM25 is"

    @_reachable
    def search_hybrid(
        self,
        name: str,
        vectors: Vectors,
        sparse: Sequence[SparseRow],
        *,
        using: str,
        fusion: str,
        limit: int = 10,
        query_filter: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """See Hybrid. One request: both searches, their fusion, and the dense scores of what it leaves."""
        from qdrant_client import models

        info, wanted = self.info(name), _filter(query_filter)
        check_vectors(info, vectors)
        dense = info.vector_name or None
        requests = []
        for vector, row in zip(vectors.tolist(), sparse, strict=True):
            words = models.SparseVector(indices=list(row.indices), values=list(row.values))
            both = [
                models.Prefetch(query=vector, using=dense, filter=wanted, limit=limit),
                models.Prefetch(query=words, using=using, filter=wanted, limit=limit),
            ]
            fused = models.Prefetch(prefetch=both, query=models.FusionQuery(fusion=models.Fusion(fusion)), limit=limit)
            requests.append(
                models.QueryRequest(prefetch=fused, query=vector, using=dense, limit=limit, with_payload=True)
            )
        answers = self._client.query_batch_points(info.name, requests=requests) if requests else []
        return [[Hit(id=p.id, score=p.score, payload=p.payload or {}) for p in one.points] for one in answers]

    @_reachable
    def upsert(self, name: str, points: Sequence[Point]) -> None:
        from qdrant_client import models

        info = self.info(name)
        rows = [(point, vector_of(point, info).tolist()) for point in points]
        for point in points:
            check_id(point.id)
        named = info.vector_name
        structs = [
            models.PointStruct(id=point.id, vector={named: vector} if named else vector, payload=point.payload)
            for point, vector in rows
        ]
        if structs:
            self._client.upsert(info.name, points=structs, wait=True)

    @_reachable
    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        from qdrant_client import models

        if ids:
            self._client.delete(self.info(name).name, points_selector=models.PointIdsList(points=list(ids)), wait=True)

    @_reachable
    def rewrite(self, name: str, rewrites: Sequence[Rewrite]) -> int:
        """See VectorStore. Every write is under the condition that the point still has its text.

        A write by the application between the two of ours (vector, then stamp) keeps its text, payload and vector: the
        condition fails for the stamp, or the text is the same and so is what its vector should be.
        """
        from qdrant_client.http.exceptions import UnexpectedResponse

        self.demand_version()
        info = self.info(name)
        held = {point.id: point.payload for point in self.fetch(name, [one.id for one in rewrites])}
        fresh = [
            (one, text)
            for one in rewrites
            if isinstance(text := held.get(one.id, {}).get(one.text_field), str)
            and fingerprint(text) == one.text_fingerprint
        ]
        if not fresh:
            return 0
        self._update_vectors(info, fresh)
        # after the vectors: a crash between the two leaves an old stamp, and the point is embedded once more
        try:
            self._stamp(info.name, [(one, _has_text(one, text)) for one, text in fresh])
        except UnexpectedResponse as error:
            if not _wants_index(error):
                raise
            # without the condition: the stamp of a text that is another by now makes its point stale, and no more
            self._stamp(info.name, [(one, _is_one(one.id)) for one, _ in fresh])
        return len(fresh)

    def _stamp(self, real: str, stamps: Sequence[tuple[Rewrite, Any]]) -> None:
        """Set the stamp of each rewrite on the points that pass its filter."""
        from qdrant_client import models

        operations = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(payload={STAMP_KEY: dict(one.stamp)}, filter=wanted)
            )
            for one, wanted in stamps
        ]
        self._client.batch_update_points(real, update_operations=operations, wait=True)

    def _update_vectors(self, info: CollectionInfo, fresh: Sequence[tuple[Rewrite, str]]) -> None:
        """Write the vectors of points that still have their text. One that is gone fails a request for all: it is left out.

        Raises StoreUnavailable where points come and go too fast for that.
        """
        from qdrant_client import models
        from qdrant_client.http.exceptions import UnexpectedResponse

        named, left = info.vector_name, [(one, text) for one, text in fresh if one.vector is not None]
        for _ in range(TRIES):
            points = []
            for one, _text in left:
                row = row_of(cast(Vectors, one.vector), info)
                points.append(models.PointVectors(id=one.id, vector={named: row} if named else row))
            if not points:
                return
            unchanged = models.Filter(should=[_has_text(one, text) for one, text in left])
            try:
                self._client.update_vectors(info.name, points=points, wait=True, update_filter=unchanged)
            except (UnexpectedResponse, KeyError) as error:  # KeyError: of the local mode
                if isinstance(error, UnexpectedResponse) and error.status_code != NOT_FOUND:
                    raise
                there = {point.id for point in self.fetch(info.name, [one.id for one, _ in left])}
                left = [(one, text) for one, text in left if one.id in there]
            else:
                return
        raise StoreUnavailable(f"points of {info.name!r} are deleted faster than they can be written: tasks wait")

    @_reachable
    def transfer(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId] = (),
        *,
        keeps_vectors: bool = False,
    ) -> int:
        """See VectorStore. Further named vectors of a point are copied as they are."""
        structs, into = self._copies(source, target, rewrites, bare, keeps_vectors=keeps_vectors)
        if structs:
            self._client.upsert(into, points=structs, wait=True)
        return len(structs)

    @_reachable
    def transfer_if(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId],
        *,
        mark: str,
        only: Only | None = None,
        keeps_vectors: bool = False,
    ) -> int:
        """See Conditional. A point that is not there passes every filter of Qdrant's, and is inserted."""
        from qdrant_client import models

        self.demand_version()
        structs, into = self._copies(source, target, rewrites, bare, keeps_vectors=keeps_vectors, mark=mark)
        condition: dict[str, Any] = {"update_filter": models.Filter(must=[_is_marked(mark)])}
        if only is Only.NEW:
            condition = {"update_mode": models.UpdateMode.INSERT_ONLY}
        elif only is Only.MARKED:
            condition["update_mode"] = models.UpdateMode.UPDATE_ONLY
        if structs:
            self._client.upsert(into, points=structs, wait=True, **condition)
        return len(structs)

    @_reachable
    def delete_if(self, name: str, ids: Sequence[PointId], *, mark: str) -> None:
        from qdrant_client import models
        from qdrant_client.http.exceptions import UnexpectedResponse

        self.demand_version()
        real = self.info(name).name
        wanted = models.FilterSelector(
            filter=models.Filter(must=[models.HasIdCondition(has_id=list(ids)), _is_marked(mark)])
        )
        try:
            self._client.delete(real, points_selector=wanted, wait=True)
        except UnexpectedResponse as error:
            if not _wants_index(error):
                raise
            keyword = models.PayloadSchemaType.KEYWORD
            self._client.create_payload_index(real, MARK_FIELD, field_schema=keyword, wait=True)
            self._client.delete(real, points_selector=wanted, wait=True)

    def _copies(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId],
        *,
        keeps_vectors: bool,
        mark: str = "",
    ) -> tuple[list[Any], str]:
        """Return the points of `source` as `target` is to have them, those without text with the `mark` too, and its name."""
        info = self.info(target)
        wanted = [one.id for one in rewrites] + list(bare)
        records = self._client.retrieve(self.info(source).name, ids=wanted, with_payload=True, with_vectors=True)
        held = {record.id: record for record in records}
        structs: list[Any] = []
        for one in rewrites:
            record = held.get(one.id)
            text = (record.payload or {}).get(one.text_field) if record is not None else None
            if record is None or one.vector is None:
                continue
            if isinstance(text, str) and fingerprint(text) == one.text_fingerprint:
                row, stamp = row_of(one.vector, info), dict(one.stamp)
                if COPIED_KEY in stamp:
                    stamp[AS_KEY] = of_payload(record.payload or {})
                structs.append(_copy(record, info.vector_name, row, {STAMP_KEY: stamp}))
        for record in (held[one_id] for one_id in bare if one_id in held):
            extra = {STAMP_KEY: {COPIED_KEY: mark, AS_KEY: of_payload(record.payload or {})}} if mark else {}
            structs.append(_copy(record, info.vector_name, None, extra, keeps_vector=keeps_vectors))
        return structs, info.name

    def close(self) -> None:
        if self._is_own:
            self._client.close()

    # --- the index ----------------------------------------------------------------------------------------------------

    @_reachable
    def index_info(self, name: str) -> IndexInfo:
        described = self._client.get_collection(self.info(name).name)
        graph = described.config.hnsw_config
        is_local = _is_local(self._client)  # which reports a graph that it does not have
        return IndexInfo(
            settings=IndexSettings() if is_local else IndexSettings(m=graph.m, ef_construct=graph.ef_construct),
            indexed_vectors=0 if is_local else described.indexed_vectors_count or 0,
            payload={field: str(one.data_type.value) for field, one in (described.payload_schema or {}).items()},
        )

    @_reachable
    def configure_index(self, name: str, settings: IndexSettings, payload: Mapping[str, str]) -> list[str]:
        """See Tunable. A server builds another graph by itself, and keeps no depth of searches."""
        from qdrant_client import models

        check_kinds(payload)
        real, words = self.info(name).name, []
        if _is_local(self._client):
            return ["nothing: the local mode of qdrant-client has no index and ignores what is set"]
        for field, kind in payload.items():
            self._client.create_payload_index(real, field, field_schema=models.PayloadSchemaType(kind), wait=True)
            words.append(f"payload index of {field!r} ({kind}) made")
        if settings.m or settings.ef_construct:
            graph = models.HnswConfigDiff(m=settings.m or None, ef_construct=settings.ef_construct or None)
            self._client.update_collection(real, hnsw_config=graph)
            words.append("the server builds the other graph by itself, and answers from the old one meanwhile")
        if settings.ef:
            words.append(f"nothing: a server keeps no depth of searches; give hnsw_ef={settings.ef} with each of yours")
        return words


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def _settings_like(config: Any, params: Any, vector_name: str) -> dict[str, Any]:
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


def _copy(
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


def _has_text(one: Rewrite, text: str) -> Any:
    """Return the condition that a point still has the text it was embedded from."""
    from qdrant_client import models

    same = models.FieldCondition(key=one.text_field, match=models.MatchValue(value=text))
    return models.Filter(must=[models.HasIdCondition(has_id=[one.id]), same])


def _is_one(point_id: PointId) -> Any:
    from qdrant_client import models

    return models.Filter(must=[models.HasIdCondition(has_id=[point_id])])


def _wants_index(error: Any) -> bool:
    """Say whether a server in strict mode refused a filter over a field that has no index."""
    return error.status_code == BAD_REQUEST and b"Index required" in (error.content or b"")


def _is_marked(mark: str) -> Any:
    from qdrant_client import models

    return models.FieldCondition(key=MARK_FIELD, match=models.MatchValue(value=mark))


def _unstamped() -> Any:
    from qdrant_client import models

    return models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key=MADE_BY_KEY))])


def _forget(alias: str) -> Any:
    from qdrant_client import models

    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _point_alias(alias: str, name: str) -> Any:
    from qdrant_client import models

    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))


def load_client() -> None:
    """Import qdrant-client if it is installed: a second of CPU and 60 MB, for all who are forked from here."""
    with suppress(ImportError):
        import qdrant_client  # noqa: F401


def connect(settings: StoreSettings) -> QdrantStore:
    """Return a store over a new client of the configured server. Connects at the first call."""
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise StoreUnavailable(
            f"a Qdrant server needs qdrant-client ({error}): pip install 'morgan-background[qdrant]'"
        ) from error
    options: dict[str, Any] = {
        "url": settings.url,
        "timeout": max(int(settings.timeout_s), 1),
        "check_compatibility": False,
    }
    if settings.api_key:
        options["api_key"] = settings.api_key.reveal()
    return QdrantStore(QdrantClient(**options | settings.client_options), where=settings.url, is_own=True)


def _is_local(client: Any) -> bool:
    options = getattr(client, "init_options", None) or {}
    return bool(options.get("path")) or options.get("location") == ":memory:"


def is_rebuildable(client: Any) -> bool:
    """Say whether a client can be made again in another process: it names a server, not a folder or its own memory."""
    options = getattr(client, "init_options", None)
    return isinstance(options, Mapping) and bool(options.get("url") or options.get("host"))


def settings_of(client: Any) -> StoreSettings:
    """Return what is needed to make a rebuildable client again. Its API key is kept as a Secret."""
    options = dict(client.init_options)
    url = options.pop("url", None)
    if not url:
        scheme = "https" if options.get("https") else "http"
        url = f"{scheme}://{options['host']}:{options.get('port') or 6333}"
        options.pop("port", None)
    return StoreSettings(
        url=str(url),
        api_key=Secret(options.get("api_key") or ""),
        timeout_s=float(options.get("timeout") or 30.0),
        # both say where the server is, beside the url
        client_options={key: options[key] for key in ("port", "prefix") if options.get(key) is not None},
    )


def _filter(wanted: Mapping[str, Any] | None) -> Any:
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


def _point(record: Any, info: CollectionInfo) -> Point:
    vector = record.vector
    if isinstance(vector, Mapping):
        vector = vector.get(info.vector_name)
    packed = None if vector is None else np.asarray(vector, dtype="<f4").tobytes()
    return Point(id=record.id, payload=record.payload or {}, vector=packed)
