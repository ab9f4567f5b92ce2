"""Owns what the store owner answers: every call of ipc/calls.py, from applications and task workers alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec
import zmq

from ..ipc import calls, wire
from ..ipc.checks import check_collection, check_limit
from ..ipc.commands import PointsChanged
from ..ipc.errors import InvalidArgument, MorganError, ProtocolError
from ..ipc.messages import Failure
from ..ipc.query import scope_of
from ..ipc.records import ComputedResult, Point, QueryJob
from ..ipc.settings import WorkerSettings
from . import changes
from .fingerprint import fingerprint, stamp
from .names import check_id, check_size, floats_of, vector_of
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
        report: Callable[[PointsChanged], None],
    ) -> None:
        self._store, self._embedder, self._settings, self._publish = store, embedder, settings, publish
        self._report = report
        # of the last change: above every number of an earlier owner, also where the clock was set back meanwhile
        self.seq = time.monotonic_ns()
        self.awaited: int | None = None  # the change that the last answer is to be held for
        # not paced: an application waits for the answer
        self._tools = Tools(store, embedder, reranker, settings, time.time, lambda: None, as_of=lambda: self.seq)

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

    def _answer(self, call: calls.Call) -> calls.Answer:  # noqa: PLR0911, PLR0912 - one case a call
        store = self._store
        match call:
            case calls.Collections():
                return calls.CollectionList(collections=tuple(store.collections()))
            case calls.Info():
                return calls.CollectionList(collections=(store.info(call.collection),))
            case calls.Create():
                check_collection(call.collection)
                size = check_size(call.vector_size or self._embedder.size)
                made = store.create(call.collection, size, distance=call.distance, vector_name=call.vector_name)
                return calls.CollectionList(collections=(made,))
            case calls.Drop():
                names = changes.names_of(store.info(call.collection))
                store.drop(call.collection)
                self._changed(changes.anything(names))
                return calls.Changed(count=1)
            case calls.SetAlias():
                store.set_alias(check_collection(call.alias), call.collection)
                self._changed(changes.anything((call.alias,)))
                return calls.Changed(count=1)
            case calls.Scroll():
                points, after = store.scroll(
                    call.collection, after=call.after, limit=check_limit(call.limit), with_vectors=call.with_vectors
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
                )
                return calls.HitLists(hits=tuple(tuple(one) for one in hits), as_of=self.seq)
            case calls.SearchText():
                return calls.Computed(result=self._search(call))
            case calls.Embed():
                vectors = self._embedder.embed(call.texts)
                return calls.Embedded(vectors=vectors.tobytes(), count=len(vectors), size=vectors.shape[1])
            case calls.Upsert():
                info = store.info(call.collection)  # an unknown name is refused before anything is embedded
                points = self._with_vectors(call.points)
                for point in points:  # before the report below: the supervisor counts on ids and vectors that fit
                    check_id(point.id)
                    vector_of(point, info)
                try:
                    store.upsert(call.collection, points)
                finally:  # also where it failed half-way: what was written counts
                    self._changed(changes.written(info, points))
                return calls.Changed(count=len(call.points))
            case calls.Delete():
                info = store.info(call.collection)
                for one in call.ids:
                    check_id(one)
                try:
                    store.delete(call.collection, call.ids)
                finally:
                    self._changed(changes.deleted(info, call.ids))
                return calls.Changed(count=len(call.ids))
            case calls.ReportChange():
                self._changed(*changes.looked_up(store, call.collection, call.ids))
                return calls.Changed(count=len(call.ids))
            case calls.RewriteMany():
                return calls.Changed(count=store.rewrite(call.collection, [_rewrite(one) for one in call.rewrites]))
            case _:
                assert_never(call)

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
            self._tools,
            limit=call.limit,
            candidates=self._settings.rerank.candidates,
            is_reranked=call.is_reranked,
            query_filter=call.query_filter,
            scope=scope_of(call.query_filter, call.tenant),
        )
        self._publish((result or self._nothing(call),))
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
    flat = floats_of(raw)
    if count < 1 or len(flat) % count:
        raise InvalidArgument(f"{len(raw)} bytes are not {count} vectors of float32")
    return flat.reshape(count, -1)


def _rewrite(item: calls.RewriteItem) -> Rewrite:
    return Rewrite(item.id, floats_of(item.vector), item.text_field, item.text_fingerprint, item.stamp)


class Desk:
    """Answers calls on a ROUTER. Answers to writes are held until the supervisor has seen the change."""

    def __init__(self, socket: zmq.Socket[bytes], service: OwnerService) -> None:
        self._socket, self._service = socket, service
        self._held: dict[int, list[bytes]] = {}  # number of the change -> the answer's frames

    def seen(self, seq: int) -> None:
        """Send what was held for the change `seq`, or for one before it."""
        for held in [held for held in self._held if held <= seq]:
            _send(self._socket, self._held.pop(held))

    def serve_ready(self) -> None:
        """Answer the calls that wait, at most CALLS_PER_TURN: then the supervisor's commands are looked at again."""
        for _ in range(CALLS_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            answer, awaited = self._answer(frames)
            reply = [frames[0], wire.encode(answer)]
            if awaited is None:
                _send(self._socket, reply)
            else:
                self._held[awaited] = reply

    def _answer(self, frames: list[bytes]) -> tuple[calls.Answer, int | None]:
        """Return the answer, and the change it is to be held for."""
        frame = frames[-1]
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a call is one frame, not {len(frames) - 1}; docs/protocol.md")
            return self._service.answer(wire.calls.decode(frame)), self._service.awaited
        except ProtocolError as error:
            return Failure(rid=wire.rid_of(frame), code=error.code, message=str(error)), None


def _send(socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            raise
        log.info("an answer was dropped: who asked has left or does not read")
