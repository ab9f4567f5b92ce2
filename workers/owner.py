"""Owns what the store owner answers: every call of ipc/calls.py, from applications and task workers alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec
import numpy as np
import zmq

from ..ipc import calls, wire
from ..ipc.errors import InvalidArgument, MorganError, ProtocolError
from ..ipc.messages import Failure
from ..ipc.query import scope_of
from ..ipc.records import ComputedResult, Point, QueryJob
from ..ipc.settings import WorkerSettings
from .fingerprint import fingerprint, stamp
from .search import compute
from .task import Embedder, Reranker, Tools
from .vectors import STAMP_KEY, Rewrite, Vectors, VectorStore

log = logging.getLogger(__name__)

CALLS_PER_TURN = 16  # then the supervisor's commands are looked at again


class OwnerService:
    """Answers calls one at a time. `publish` hands computed results to the supervisor, which owns the result store."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        reranker: Reranker,
        settings: WorkerSettings,
        publish: Callable[[tuple[ComputedResult, ...]], None],
    ) -> None:
        self._store, self._embedder, self._settings, self._publish = store, embedder, settings, publish
        # not paced: an application waits for the answer
        self._tools = Tools(store, embedder, reranker, settings, time.time, lambda: None)

    def answer(self, call: calls.Call) -> calls.Answer:
        """Return the answer, a Failure for whatever went wrong. Never raises."""
        try:
            answer = self._answer(call)
        except MorganError as error:
            answer = Failure(code=error.code, message=str(error))
        except Exception as error:
            log.exception("%s failed", type(call).__name__)
            answer = Failure(code=MorganError.code, message=f"{type(error).__name__}: {error}")
        return msgspec.structs.replace(answer, rid=call.rid)

    def _answer(self, call: calls.Call) -> calls.Answer:  # noqa: PLR0911, PLR0912 - one case a call
        store = self._store
        match call:
            case calls.Collections():
                return calls.CollectionList(collections=tuple(store.collections()))
            case calls.Info():
                return calls.CollectionList(collections=(store.info(call.collection),))
            case calls.Create():
                size = call.vector_size or self._embedder.size
                made = store.create(call.collection, size, distance=call.distance, vector_name=call.vector_name)
                return calls.CollectionList(collections=(made,))
            case calls.Drop():
                store.drop(call.collection)
                return calls.Changed(count=1)
            case calls.SetAlias():
                store.set_alias(call.alias, call.collection)
                return calls.Changed(count=1)
            case calls.Scroll():
                points, after = store.scroll(
                    call.collection, after=call.after, limit=call.limit, with_vectors=call.with_vectors
                )
                return calls.Page(points=tuple(points), next_after=after)
            case calls.Fetch():
                found = store.fetch(call.collection, call.ids, with_vectors=call.with_vectors)
                return calls.Page(points=tuple(found))
            case calls.SearchVectors():
                hits = store.search(
                    call.collection,
                    _matrix(call.vectors, call.count),
                    limit=call.limit,
                    query_filter=call.query_filter,
                    exact=call.exact,
                )
                return calls.HitLists(hits=tuple(tuple(one) for one in hits))
            case calls.SearchText():
                return calls.Computed(result=self._search(call))
            case calls.Embed():
                vectors = self._embedder.embed(call.texts)
                return calls.Embedded(vectors=vectors.tobytes(), count=len(vectors), size=vectors.shape[1])
            case calls.Upsert():
                store.info(call.collection)  # an unknown name is refused before anything is embedded
                store.upsert(call.collection, self._with_vectors(call.points))
                return calls.Changed(count=len(call.points))
            case calls.Delete():
                store.delete(call.collection, call.ids)
                return calls.Changed(count=len(call.ids))
            case calls.RewriteMany():
                return calls.Changed(count=store.rewrite(call.collection, [_rewrite(one) for one in call.rewrites]))
            case _:
                assert_never(call)

    def _search(self, call: calls.SearchText) -> ComputedResult | None:
        if not call.text.strip() or call.limit < 1:
            raise InvalidArgument("a search needs a text that is not empty and a limit of at least 1")
        ((_, result, _),) = compute(
            [QueryJob(text=call.text)],
            call.collection,
            self._tools,
            limit=call.limit,
            candidates=self._settings.rerank.candidates,
            is_reranked=call.is_reranked,
            query_filter=call.query_filter,
            scope=scope_of(call.query_filter, call.tenant),
        )
        if result is not None:
            self._publish((result,))
        return result

    def _with_vectors(self, points: Sequence[Point]) -> list[Point]:
        """Return `points`, those without a vector embedded from their text and stamped with it."""
        field = self._settings.model.text_field
        missing = [point for point in points if point.vector is None]
        for point in missing:
            text = point.payload.get(field)
            if not isinstance(text, str) or not text.strip():
                raise InvalidArgument(f"point {point.id!r} has neither a vector nor a text in {field!r}")
        if not missing:
            return list(points)
        texts = [str(point.payload[field]) for point in missing]
        embedded = dict(zip((p.id for p in missing), self._embedder.embed(texts), strict=True))
        return [self._embedded(point, embedded[point.id]) if point.vector is None else point for point in points]

    def _embedded(self, point: Point, vector: Vectors) -> Point:
        text = str(point.payload[self._settings.model.text_field])
        mark = stamp(fingerprint(text), self._embedder.name, self._embedder.revision)
        return Point(id=point.id, payload=point.payload | {STAMP_KEY: mark}, vector=vector.astype("<f4").tobytes())


def _matrix(raw: bytes, count: int) -> Vectors:
    flat = np.frombuffer(raw, dtype="<f4")
    if count < 1 or len(flat) % count:
        raise InvalidArgument(f"{len(raw)} bytes are not {count} vectors of float32")
    return flat.reshape(count, -1)


def _rewrite(item: calls.RewriteItem) -> Rewrite:
    return Rewrite(item.id, np.frombuffer(item.vector, dtype="<f4"), item.text_field, item.text_fingerprint, item.stamp)


def serve_ready(socket: zmq.Socket[bytes], service: OwnerService) -> int:
    """Answer the calls that wait on a ROUTER, at most CALLS_PER_TURN; return how many those were."""
    for count in range(CALLS_PER_TURN):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return count
        identity, frame = frames[0], frames[-1]
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a call is one frame, not {len(frames) - 1}; docs/protocol.md")
            answer = service.answer(wire.calls.decode(frame))
        except ProtocolError as error:
            answer = Failure(rid=wire.rid_of(frame), code=error.code, message=str(error))
        try:
            socket.send_multipart([identity, wire.encode(answer)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            log.info("an answer was dropped: who asked has left or does not read")
    return CALLS_PER_TURN
