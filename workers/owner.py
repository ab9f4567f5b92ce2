"""Owns what the store owner answers: every call of ipc/calls.py, from applications and task workers alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import assert_never, cast

import msgspec

from ..ipc import calls
from ..ipc.checks import check_collection, check_limit
from ..ipc.commands import PointsChanged
from ..ipc.errors import InvalidArgument, MorganError, StoreUnavailable, SwapImpossible
from ..ipc.messages import Failure
from ..ipc.query import scope_of
from ..ipc.records import ComputedResult, IndexInfo, Point, QueryJob
from ..ipc.settings import WorkerSettings
from . import changes
from .edge import EdgeStore
from .filters import Filters
from .learned_reranker import Rerankers
from .models import load_embedder
from .names import check_id, check_size, floats_of, vector_of
from .rollback import drop_expired, roll_back
from .search import compute
from .serving import Serving
from .task import Embedder, Reranker, Tools
from .texts import Maker
from .vectors import STAMP_KEY, Rewrite, Tunable, Vectors, VectorStore
from .versions import serving_aliases, versions_of
from .watches import MAX_HOLD_S, MAX_SLOW_S, Watches

log = logging.getLogger(__name__)

WRITES = calls.Upsert | calls.Delete | calls.Drop | calls.ReportChange  # of an application


class OwnerService:
    """Answers calls one at a time. `publish` hands computed results to the supervisor, which owns the result store."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        reranker: Reranker,
        settings: WorkerSettings,
        publish: Callable[[tuple[ComputedResult, ...]], None],
        report: Callable[[PointsChanged], None],
        load: Callable[[str], Embedder] | None = None,
    ) -> None:
        self._store, self._embedder, self._settings, self._publish = store, embedder, settings, publish
        self._report = report
        # of the last change: above every number of an earlier owner, also where the clock was set back meanwhile
        self.seq = time.monotonic_ns()
        self.awaited: int | None = None  # the change that the last answer is to be held for
        self._watches = Watches(self.seq)
        self._filters = Filters()
        self._serving = Serving(store, embedder, load or (lambda name: load_embedder(settings.model, name)))
        # not paced: an application waits for the answer
        self._tools = Tools(
            *(store, embedder, reranker, settings, time.time, lambda: None),
            as_of=lambda: self.seq,
            models=self._serving,
            rerankers=Rerankers.of_settings(settings, reranker, self._serving.of),
        )

    def answer(self, call: calls.Call) -> calls.Answer:
        """Return the answer, a Failure for whatever went wrong. Never raises. See `awaited`."""
        self.awaited = None
        try:
            answer = self._answer(call)
        except MorganError as error:
            answer = Failure(code=error.code, message=str(error))
        except Exception as error:
            log.exception("%s failed", type(call).__name__)
            answer = Failure(code=MorganError.code, message=f"{type(error).__name__}: {error}")
        return msgspec.structs.replace(answer, rid=call.rid)

    def _answer(self, call: calls.Call) -> calls.Answer:  # noqa: PLR0911, PLR0912, PLR0915 - one case a call
        store = self._store
        match call:
            case calls.Collections():
                return calls.CollectionList(collections=tuple(store.collections()))
            case calls.Info():
                return calls.CollectionList(collections=(store.info(call.collection),))
            case calls.Create():
                check_collection(call.collection)
                size = check_size(call.vector_size or self._embedder.size)
                made = store.create(
                    call.collection, size, distance=call.distance, vector_name=call.vector_name, like=call.like
                )
                return calls.CollectionList(collections=(made,))
            case calls.Drop():
                info = store.info(call.collection)
                for name in versions_of(call.collection, info, store.collections()):
                    store.drop(name)
                self._watches.end(info.name)
                self._changed(changes.anything(changes.names_of(info)))
                return calls.Changed(count=1)
            case calls.SetAlias():
                store.set_alias(check_collection(call.alias), call.collection)
                self._serving.forget()
                self._changed(changes.anything((call.alias,)))
                return calls.Changed(count=1)
            case calls.DropAlias():
                store.drop_alias(call.alias)
                self._changed(changes.anything((call.alias,)))
                return calls.Changed(count=1)
            case calls.Scroll():
                points, after = store.scroll(
                    call.collection,
                    after=call.after,
                    limit=check_limit(call.limit),
                    with_vectors=call.with_vectors,
                    only_unstamped=call.only_unstamped,
                )
                return calls.Page(points=tuple(points), next_after=after)
            case calls.Fetch():
                found = store.fetch(call.collection, call.ids, with_vectors=call.with_vectors)
                return calls.Page(points=tuple(found))
            case calls.SearchVectors():
                hits = store.search(
                    call.collection,
                    _matrix(call.vectors, call.count),
                    limit=check_limit(call.limit),
                    query_filter=call.query_filter,
                    exact=call.exact,
                    ef=call.ef,
                )
                self._filters.note(call.collection, call.query_filter)
                return calls.HitLists(hits=tuple(tuple(one) for one in hits), as_of=self.seq)
            case calls.SearchText():
                return calls.Computed(result=self._search(call))
            case calls.Embed():
                vectors = self._embedder.embed(call.texts)
                return calls.Embedded(vectors=vectors.tobytes(), count=len(vectors), size=vectors.shape[1])
            case calls.Upsert():
                info = store.info(call.collection)  # an unknown name is refused before anything is embedded
                points = self._with_vectors(call.collection, call.points)
                for point in points:  # before the report below: the supervisor counts on ids and vectors that fit
                    check_id(point.id)
                    vector_of(point, info)
                try:
                    store.upsert(call.collection, points)
                finally:  # also where it failed half-way: what was written counts
                    self._changed(changes.written(info, points))
                    self._watches.note(info.name, [point.id for point in points], self.seq)
                return calls.Changed(count=len(call.points))
            case calls.Delete():
                info = store.info(call.collection)
                for one in call.ids:
                    check_id(one)
                try:
                    store.delete(call.collection, call.ids)
                finally:
                    self._changed(changes.deleted(info, call.ids))
                    self._watches.note(info.name, call.ids, self.seq)
                return calls.Changed(count=len(call.ids))
            case calls.ReportChange():
                self._changed(*changes.looked_up(store, call.collection, call.ids))
                self._watches.note(store.info(call.collection).name, call.ids or None, self.seq)
                return calls.Changed(count=len(call.ids))
            case calls.RewriteMany():
                return calls.Changed(count=store.rewrite(call.collection, [_rewrite(one) for one in call.rewrites]))
            case calls.Transfer():
                rewrites = [_rewrite(one) for one in call.rewrites]
                count = store.transfer(call.source, call.target, rewrites, call.bare, keeps_vectors=call.keeps_vectors)
                return calls.Changed(count=count)
            case calls.Watch():
                return calls.Watched(token=self._watches.begin(store.info(call.collection).name), seq=self.seq)
            case calls.TouchedSince():
                touched = self._watches.since(call.token, call.seq, self.seq, check_limit(call.limit))
                if touched is None:
                    return calls.TouchedIds(is_known=False)
                return calls.TouchedIds(ids=touched.ids, seq=touched.seq, is_whole=touched.is_whole, left=touched.left)
            case calls.Hold():
                return calls.Changed(count=self._hold(call.token, call.for_s))
            case calls.Slow():
                until = time.monotonic() + min(call.for_s, MAX_SLOW_S)
                return calls.Changed(count=int(self._watches.slow(call.token, until, call.points_per_s)))
            case calls.Swap():
                return calls.Changed(count=self._swap(call))
            case calls.MakeAlias():
                if not isinstance(store, EdgeStore):
                    raise SwapImpossible("a Qdrant server cannot rename a collection")
                made = store.make_alias(call.collection, check_collection(call.rename_to))
                self._watches.end(call.collection)  # whoever watched it begins anew
                return calls.CollectionList(collections=(made,))
            case calls.RollBack():
                return self._roll_back(call)
            case calls.Lend():
                if not isinstance(store, EdgeStore):
                    raise InvalidArgument("only the embedded store has collections to lend")
                if serving_aliases(store.info(call.collection)):
                    raise InvalidArgument(f"{call.collection!r} is searched: it is not lent")
                return calls.Lent(folder=str(store.lend(call.collection)))
            case calls.DescribeIndex():
                return calls.IndexDescription(index=self._index_info(call.collection))
            case calls.ConfigureIndex():
                done = cast(Tunable, store).configure_index(call.collection, call.settings, call.payload)
                return calls.IndexDescription(index=self._index_info(call.collection), done=tuple(done))
            case _:
                assert_never(call)

    def _index_info(self, collection: str) -> IndexInfo:
        """Return how a collection is indexed, with the filters of searches under any of its names."""
        found = cast(Tunable, self._store).index_info(collection)
        names = changes.names_of(self._store.info(collection))
        return msgspec.structs.replace(found, filters=self._filters.of(names))

    # --- versions of a collection -------------------------------------------------------------------------------------

    def held(self, now: float) -> frozenset[str]:
        """Return the collections (by their own names) whose writes are held now (monotonic seconds)."""
        return self._watches.held(now)

    def slowed(self, now: float) -> frozenset[str]:
        """Return those whose writes take turns."""
        return self._watches.slowed(now)

    def written_to(self, call: calls.Call) -> str | None:
        """Return the collection (by its own name) that a call writes to; None where it does not."""
        if not isinstance(call, WRITES):
            return None
        try:
            return self._store.info(call.collection).name
        except MorganError:
            return None  # whatever is wrong with it is answered at once

    def due_at(self, collection: str, call: calls.Call, now: float) -> float:
        """Return when a call that writes to a collection is to be carried out: now, unless its writes are slowed."""
        match call:
            case calls.Upsert():
                count = len(call.points)
            case calls.Delete() | calls.ReportChange():
                count = len(call.ids)
            case _:
                count = 0
        return self._watches.due_at(collection, count, now)

    @property
    def next_release(self) -> float | None:
        """When held writes go on at the latest, in monotonic seconds; None where none are held."""
        return self._watches.next_release()

    def _hold(self, token: int, for_s: float) -> int:
        if for_s <= 0:
            self._watches.release(token)
            return 0
        return int(self._watches.hold(token, time.monotonic() + min(for_s, MAX_HOLD_S)))

    def _swap(self, call: calls.Swap) -> int:
        """Swap, unless a point was touched meanwhile. Nothing comes between: calls are answered one at a time."""
        store = self._store
        if call.token:
            touched = self._watches.since(call.token, call.seq, self.seq, 1)
            self._watches.release(call.token)
            if touched is None or touched.ids or touched.is_whole:
                return 0
        names = changes.names_of(store.info(call.old))
        try:
            store.swap(call.old, call.new, kept_as=call.kept_as, rename_to=check_collection(call.rename_to))
        finally:  # an answer that was lost does not say that it was not done
            self._watches.end(call.old)
            self._serving.forget()
            self._changed(changes.anything((*names, call.new), is_soft=True))
        return 1

    def _roll_back(self, call: calls.RollBack) -> calls.RolledBack:
        until_at = time.time() + self._settings.retention_s
        names = changes.names_of(self._store.info(call.collection))
        try:
            done = roll_back(self._store, call.collection, is_forced=call.is_forced, until_at=until_at)
        except StoreUnavailable:  # it may be done all the same
            self._serving.forget()
            self._changed(changes.anything(names))
            raise
        self._serving.forget()
        self._changed(changes.anything((*changes.names_of(done.served), done.kept.name)))
        return calls.RolledBack(served=done.served.name, kept=done.kept.name, kept_as=done.kept_as)

    def drop_expired(self, now: float) -> None:
        """Drop the versions whose retention has passed (Unix seconds)."""
        drop_expired(self._store, now, dropped=lambda name: self._changed(changes.anything((name,))))

    def _changed(self, *events: PointsChanged) -> None:
        """Number the changes and report them; the answer is held until the last of them is seen."""
        for event in events:
            self.seq += 1
            self.awaited = self.seq
            self._report(msgspec.structs.replace(event, seq=self.seq))

    def _search(self, call: calls.SearchText) -> ComputedResult | None:
        if not call.text.strip():
            raise InvalidArgument("a search needs a text that is not empty")
        check_limit(call.limit)
        ((_, result, _),) = compute(
            [QueryJob(text=call.text)],
            call.collection,
            self._tools.of(call.collection),
            limit=call.limit,
            candidates=self._settings.rerank.candidates,
            is_reranked=call.is_reranked,
            query_filter=call.query_filter,
            scope=scope_of(call.query_filter, call.tenant),
        )
        self._publish((result or self._nothing(call),))
        self._filters.note(call.collection, call.query_filter)
        return result

    def _nothing(self, call: calls.SearchText) -> ComputedResult:
        """Return the result that says that nothing was found: it is kept for a short time, and until the next write."""
        return ComputedResult(
            query_text=call.text,
            collection=call.collection,
            scope=scope_of(call.query_filter, call.tenant),
            ids=(),
            scores=b"",
            contents=(),
            sources=(),
            metadata=(),
            computed_at=time.time(),
            as_of=self.seq,
        )

    def _with_vectors(self, collection: str, points: Sequence[Point]) -> list[Point]:
        """Return `points`, those without a vector embedded from their text, by the collection's model, and stamped."""
        field = self._settings.of(collection).model.text_field
        missing = [point for point in points if point.vector is None]
        for point in missing:
            text = point.payload.get(field)
            if not isinstance(text, str) or not text.strip():
                raise InvalidArgument(f"point {point.id!r} has neither a vector nor a text in {field!r}")
        if not missing:
            return list(points)
        texts = {point.id: str(point.payload[field]) for point in missing}
        embedder = self._serving.of(collection)
        maker = Maker(embedder.name, embedder.revision, self._settings.model.chunking)
        vectors = dict(zip(texts, embedder.embed(list(texts.values())), strict=True))
        return [
            point
            if point.vector is not None
            else Point(
                id=point.id,
                payload=point.payload | {STAMP_KEY: maker.stamp(texts[point.id])},
                vector=vectors[point.id].astype("<f4").tobytes(),
            )
            for point in points
        ]


def _matrix(raw: bytes, count: int) -> Vectors:
    flat = floats_of(raw)
    if count < 1 or len(flat) % count:
        raise InvalidArgument(f"{len(raw)} bytes are not {count} vectors of float32")
    return flat.reshape(count, -1)


def _rewrite(item: calls.RewriteItem) -> Rewrite:
    vector = floats_of(item.vector) if item.vector else None
    return Rewrite(item.id, vector, item.text_field, item.text_fingerprint, item.stamp)
