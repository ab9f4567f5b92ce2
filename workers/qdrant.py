"""Owns the store behind a qdrant-client: a server by url, or a live object handed in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from ..ipc.errors import InvalidArgument, StoreUnavailable, SwapImpossible
from ..ipc.records import CollectionInfo, Hit, IndexInfo, IndexSettings, Point, PointId
from .fingerprint import fingerprint, of_payload
from .names import (
    check_distance,
    check_id,
    check_kinds,
    check_vectors,
    not_found,
    row_of,
    taken,
    vector_of,
)
from .qdrant_errors import NOT_FOUND, reachable
from .qdrant_forms import (
    MARK_FIELD,
    copy_of,
    filter_of,
    forget,
    has_text,
    is_local,
    is_marked,
    is_one,
    numbers_of,
    point_alias,
    point_of,
    settings_like,
    unstamped,
    wants_index,
)
from .retries import until_answered
from .sparse import SAMPLE, SparseEncoder, SparseRow, encoder_of
from .vectors import AS_KEY, COPIED_KEY, STAMP_KEY, Only, Rewrite, Vectors
from .versions import is_ours, serving_aliases

ENCODER_KNOWN_S = 600.0  # then it is looked again for what made a collection's sparse vectors

NEEDED = (1, 17)  # version of the server: older ones pass over the conditions of writes, and say nothing
TRIES = 4  # of writing vectors of points that are deleted meanwhile


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
        return numbers_of(getattr(self._client.info(), "version", ""))

    @reachable
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

    @reachable
    def collections(self) -> list[CollectionInfo]:
        names = [one.name for one in self._client.get_collections().collections]
        aliases = self._aliases()
        return [info for name in names if (info := self._info(name, aliases)) is not None]  # None: dropped since

    @reachable
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

    @reachable
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
        self._client.create_collection(name, **settings_like(model.config, params, vector_name))
        for field, index in (model.payload_schema or {}).items():
            self._client.create_payload_index(name, field, field_schema=index.params or index.data_type, wait=True)
        return self.info(name)

    @reachable
    def drop(self, name: str) -> None:
        if self.info(name).name != name:
            raise InvalidArgument(f"{name!r} is an alias: drop the collection it points at")
        self._client.delete_collection(name)

    @reachable
    def set_alias(self, alias: str, name: str) -> None:
        real = self.info(name).name
        if alias in {one.name for one in self._client.get_collections().collections}:
            raise taken(alias)
        # it takes the place of another of this name at once
        self._client.update_collection_aliases(change_aliases_operations=[point_alias(alias, real)])

    @reachable
    def drop_alias(self, alias: str) -> None:
        if alias in self._aliases():
            self._client.update_collection_aliases(change_aliases_operations=[forget(alias)])

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        """See VectorStore. One request, within which nobody searches; asked for again where its answer is lost.

        A server that refuses one of its actions, since a collection was dropped meanwhile, has obeyed those before it: so
        the old version is kept first, and no name is ever forgotten before it means the new one.
        """
        until_answered(lambda: self._swap(old, new, kept_as))

    @reachable
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
        operations = [point_alias(kept_as, old)] + [point_alias(alias, new) for alias in served]
        operations += [forget(alias) for alias in after.aliases if is_ours(alias) and alias != kept_as]
        self._client.update_collection_aliases(change_aliases_operations=operations)

    def _aliases(self) -> dict[str, str]:
        return {one.alias_name: one.collection_name for one in self._client.get_aliases().aliases}

    # --- points -------------------------------------------------------------------------------------------------------

    @reachable
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
            scroll_filter=unstamped() if only_unstamped else None,
            with_payload=True,
            with_vectors=with_vectors,
        )
        return [point_of(record, info) for record in records], next_id

    @reachable
    def fetch(self, name: str, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        info = self.info(name)
        records = self._client.retrieve(info.name, ids=list(ids), with_payload=True, with_vectors=with_vectors)
        return [point_of(record, info) for record in records]

    @reachable
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
        if is_local(self._client):
            params = None  # local mode is exact anyway and warns about parameters
        requests = [
            models.QueryRequest(
                query=vector.tolist(),
                using=info.vector_name or None,
                filter=filter_of(query_filter),
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

    @reachable
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

    @reachable
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

        info, wanted = self.info(name), filter_of(query_filter)
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

    @reachable
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

    @reachable
    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        from qdrant_client import models

        if ids:
            self._client.delete(self.info(name).name, points_selector=models.PointIdsList(points=list(ids)), wait=True)

    @reachable
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
            self._stamp(info.name, [(one, has_text(one, text)) for one, text in fresh])
        except UnexpectedResponse as error:
            if not wants_index(error):
                raise
            # without the condition: the stamp of a text that is another by now makes its point stale, and no more
            self._stamp(info.name, [(one, is_one(one.id)) for one, _ in fresh])
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
            unchanged = models.Filter(should=[has_text(one, text) for one, text in left])
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

    @reachable
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

    @reachable
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
        condition: dict[str, Any] = {"update_filter": models.Filter(must=[is_marked(mark)])}
        if only is Only.NEW:
            condition = {"update_mode": models.UpdateMode.INSERT_ONLY}
        elif only is Only.MARKED:
            condition["update_mode"] = models.UpdateMode.UPDATE_ONLY
        if structs:
            self._client.upsert(into, points=structs, wait=True, **condition)
        return len(structs)

    @reachable
    def delete_if(self, name: str, ids: Sequence[PointId], *, mark: str) -> None:
        from qdrant_client import models
        from qdrant_client.http.exceptions import UnexpectedResponse

        self.demand_version()
        real = self.info(name).name
        wanted = models.FilterSelector(
            filter=models.Filter(must=[models.HasIdCondition(has_id=list(ids)), is_marked(mark)])
        )
        try:
            self._client.delete(real, points_selector=wanted, wait=True)
        except UnexpectedResponse as error:
            if not wants_index(error):
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
                structs.append(copy_of(record, info.vector_name, row, {STAMP_KEY: stamp}))
        for record in (held[one_id] for one_id in bare if one_id in held):
            extra = {STAMP_KEY: {COPIED_KEY: mark, AS_KEY: of_payload(record.payload or {})}} if mark else {}
            structs.append(copy_of(record, info.vector_name, None, extra, keeps_vector=keeps_vectors))
        return structs, info.name

    def close(self) -> None:
        if self._is_own:
            self._client.close()

    # --- the index ----------------------------------------------------------------------------------------------------

    @reachable
    def index_info(self, name: str) -> IndexInfo:
        described = self._client.get_collection(self.info(name).name)
        graph = described.config.hnsw_config
        has_none = is_local(self._client)  # which reports a graph that it does not have
        return IndexInfo(
            settings=IndexSettings() if has_none else IndexSettings(m=graph.m, ef_construct=graph.ef_construct),
            indexed_vectors=0 if has_none else described.indexed_vectors_count or 0,
            payload={field: str(one.data_type.value) for field, one in (described.payload_schema or {}).items()},
        )

    @reachable
    def configure_index(self, name: str, settings: IndexSettings, payload: Mapping[str, str]) -> list[str]:
        """See Tunable. A server builds another graph by itself, and keeps no depth of searches."""
        from qdrant_client import models

        check_kinds(payload)
        real, words = self.info(name).name, []
        if is_local(self._client):
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
