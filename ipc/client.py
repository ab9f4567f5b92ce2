"""Owns what an application holds: requests to the supervisor, calls to the store owner, reads from shared memory.

with Client() as client:
    found = client.search("how to implement auth", "morgan_knowledge")
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from . import calls, messages, wire
from .errors import ProtocolError, ServiceUnavailable
from .events import AnyEvent
from .exchange import Exchange
from .messages import Message
from .paths import RuntimePaths, default_runtime_dir, default_state_dir
from .query import scope_of
from .reader import ResultReader
from .records import CollectionInfo, Hit, Order, Point, PointId
from .result import CachedResult
from .subscription import Subscription
from .tracker import Tracker

REQUEST_S = 5.0  # the supervisor answers within one turn of its loop; this is for a machine under load
PATIENCE_S = 30.0  # who follows events waits this long for a service that is started anew
CALL_S = 60.0  # a batch of documents may have to be embedded

ORDERS_AT_ONCE = 500  # tasks in one message: half of what is allowed; it keeps the supervisor for some 10 ms
ORDERS_BYTES = wire.MAX_CLIENT_BYTES - 1024  # less the envelope

UPSERT_BATCH = 64  # points a call: a second or two of embedding, so that progress is seen and a deadline is far

R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`hits` best first. `is_precomputed`: they came from shared memory, none was computed. `response_s` is wall time.

    `similar_to` is the query whose result it is, where that is another's.
    """

    hits: tuple[Hit, ...]
    is_precomputed: bool
    response_s: float
    similar_to: str | None = None


class Client:
    """Talks to the service of `state_dir` (or to the one whose sockets are in `runtime_dir`). Use from any thread."""

    def __init__(
        self,
        runtime_dir: Path | str | None = None,
        state_dir: Path | str | None = None,
        timeout_s: float = REQUEST_S,
        call_timeout_s: float = CALL_S,
    ) -> None:
        state = Path(state_dir) if state_dir else default_state_dir()
        self.runtime = RuntimePaths(Path(runtime_dir) if runtime_dir else default_runtime_dir(state))
        self._requests = Exchange(self.runtime.clients, wire.replies, timeout_s)
        self._calls = Exchange(self.runtime.owner, wire.answers, call_timeout_s)
        self._tracker = Tracker(self.runtime.clients)
        self._reader: ResultReader | None = None

    # --- the two sockets ----------------------------------------------------------------------------------------------

    def request(self, message: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """Ask the supervisor. Raises ServiceUnavailable after the deadline, and what a Failure stands for."""
        return self._requests.ask(message, timeout_s)

    def call(self, call: calls.Call, timeout_s: float | None = None) -> calls.Answer:
        """Ask the store owner. Raises ServiceUnavailable after the deadline, and what a Failure stands for."""
        return self._calls.ask(call, timeout_s)

    def is_running(self) -> bool:
        """Say whether a service answers."""
        if not self.runtime.clients.exists():
            return False
        try:
            self.request(messages.Hello())
        except ServiceUnavailable:
            return False
        return True

    @property
    def reader(self) -> ResultReader:
        """The precomputed results in shared memory. Works while the service is down or restarting."""
        if self._reader is None:
            self._reader = ResultReader(self.runtime.results, counters_dir=self.runtime.readers)
        return self._reader

    # --- what an application does -------------------------------------------------------------------------------------

    def search(
        self,
        text: str,
        collection: str,
        limit: int = 10,
        *,
        query_filter: Mapping[str, Any] | None = None,
        tenant: str = "",
        is_reranked: bool = False,
        vector: Sequence[float] | None = None,
    ) -> SearchResult:
        """Search by meaning: from shared memory where the answer is precomputed, else by the store owner.

        `query_filter` maps payload fields to the value they must have. Results of one filter or tenant are never
        another's. What a miss computes is published, so that the next equal search is a hit. With the query's own
        `vector` it may be served a similar query's result, where `cache.similar_errors` allows any to be wrong.
        """
        began = time.perf_counter()
        scope = scope_of(query_filter, tenant)
        held, similar = self.reader.get(text, collection, scope), None
        if held is None and vector is not None and not scope:
            held = similar = self.find_similar(text, collection, vector)
        if held is not None and _serves(held, limit, is_reranked=is_reranked):
            hits, is_precomputed = held.hits()[:limit], True
        else:
            answer = expect(
                calls.Computed,
                self.call(
                    calls.SearchText(
                        collection=collection,
                        text=text,
                        limit=limit,
                        query_filter=dict(query_filter) if query_filter else None,
                        tenant=tenant,
                        is_reranked=is_reranked,
                    )
                ),
            )
            hits, is_precomputed, similar = hits_of(answer), False, None
        response_s = time.perf_counter() - began
        if is_precomputed:
            self.reader.timed(response_s)
        if not is_precomputed or similar is not None:  # the reader counted the others
            track = messages.Track(
                query=text, collection=collection, response_s=response_s, scope=scope, was_looked_up=True
            )
            self.post(track)
        return SearchResult(hits[:limit], is_precomputed, response_s, similar.query_text if similar else None)

    def find_similar(self, text: str, collection: str, vector: Sequence[float]) -> CachedResult | None:
        """Return another query's result that may be served to this one, which has none; None: search.

        `vector` is the query's own, of the collection's model. The service allows it only with evidence that so similar
        queries have the same rows, and computes afterwards whether it was right.
        """
        import numpy as np

        packed = np.asarray(vector, dtype="<f4").tobytes()
        ask = messages.FindSimilar(query=text, collection=collection, vector=packed)
        found = expect(messages.Similar, self.request(ask))
        if found.query is None:
            return None
        held = self.reader.get_at(found.query, collection, "", time.time())
        return held if held is not None and held.computed_at == found.computed_at else None

    def create_collection(self, name: str, vector_size: int = 0, distance: str = "cosine") -> CollectionInfo:
        """Create an empty collection for vectors of `vector_size`; 0 means the embedding model's.

        Raises InvalidArgument if a collection or an alias of that name exists.
        """
        call = calls.Create(collection=name, vector_size=vector_size, distance=distance)
        return expect(calls.CollectionList, self.call(call)).collections[0]

    def collections(self) -> tuple[CollectionInfo, ...]:
        return expect(calls.CollectionList, self.call(calls.Collections())).collections

    def roll_back(self, collection: str, *, is_forced: bool = False) -> calls.RolledBack:
        """Serve the version kept at the collection's last swap again; the one served now is kept.

        Raises InvalidArgument where none is kept, and, unless `is_forced`, where documents were written or deleted
        since the swap: these changes are in the newer version alone.
        """
        call = calls.RollBack(collection=collection, is_forced=is_forced)
        return expect(calls.RolledBack, self.call(call))

    def upsert(self, collection: str, points: Iterable[Point | Mapping[str, Any]]) -> int:
        """Insert or replace points, in batches; return how many. Durable on return.

        A point is a Point or a mapping with `id`, an optional `vector` (D floats) and either `payload` or the payload's
        own keys beside them. One without a vector is embedded from its text field by the owner.
        """
        count = 0
        batch: list[Point] = []
        for point in points:
            batch.append(point if isinstance(point, Point) else point_of(point))
            if len(batch) == UPSERT_BATCH:
                count += self._upsert(collection, batch)
                batch = []
        return count + (self._upsert(collection, batch) if batch else 0)

    def _upsert(self, collection: str, batch: list[Point]) -> int:
        return expect(calls.Changed, self.call(calls.Upsert(collection=collection, points=tuple(batch)))).count

    def delete(self, collection: str, ids: Iterable[PointId]) -> int:
        """Delete points by id; return how many ids were given."""
        return expect(calls.Changed, self.call(calls.Delete(collection=collection, ids=tuple(ids)))).count

    def report_change(self, collection: str, ids: Iterable[PointId] = ()) -> None:
        """Say that points were written or deleted without this client; results they can alter are dropped on return.

        Without `ids`: any point may have changed, every result of the collection is dropped.
        """
        expect(calls.Changed, self.call(calls.ReportChange(collection=collection, ids=tuple(ids))))

    def submit_many(self, orders: Iterable[Order | Mapping[str, Any]]) -> tuple[str, ...]:
        """Hand in tasks, hundreds in a message; return their ids, in order. All are durable on return.

        An order is an Order or a mapping with its fields. Where an equal task is pending already, the id is that one's.
        Raises InvalidArgument for one that is refused; the batches before its own were accepted, nothing else was.
        """
        task_ids: list[str] = []
        for batch in batches(orders):
            task_ids += expect(messages.AllSubmitted, self.request(messages.SubmitMany(orders=batch))).task_ids
        return tuple(task_ids)

    def track(self, query: str, collection: str, response_s: float = 0.0) -> None:
        """Report a search the application made itself, and that shared memory did not answer. Never blocks."""
        self.post(messages.Track(query=query, collection=collection, response_s=response_s))

    def post(self, message: messages.Track | messages.Publish) -> None:
        """Tell the supervisor something and want no reply. Never blocks; what is dropped is counted."""
        dropped_before = self._tracker.dropped
        self._tracker.post(message)
        if self._tracker.dropped != dropped_before:
            self.reader.count_dropped(self._tracker.dropped)

    def events(
        self, deadline_s: float | None = None, patience_s: float = PATIENCE_S
    ) -> Iterator[messages.Snapshot | AnyEvent]:
        """Follow what happens in the service: a Snapshot of its state, then events (ipc/events.py), each once, in order.

        A reader that was too slow, or whose service was started anew, is given a Snapshot again: take the state from
        it and go on. Ends after `deadline_s` seconds (None: never). A service that is away is waited for; raises
        ServiceUnavailable where none answers for `patience_s` seconds.
        """
        return Subscription(self._requests, patience_s).follow(deadline_s)

    def status(self) -> dict[str, Any]:
        return expect(messages.Report, self.request(messages.Status())).report

    def close(self) -> None:
        self._requests.close()
        self._calls.close()
        self._tracker.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def batches(orders: Iterable[Order | Mapping[str, Any]]) -> Iterator[tuple[Order, ...]]:
    """Yield orders in batches that a `submit_many` takes: at most ORDERS_AT_ONCE, within what a request may have."""
    batch: list[Order] = []
    room = ORDERS_BYTES
    for one in orders:
        order = one if isinstance(one, Order) else Order(**one)
        size = wire.size_of(order)
        if batch and (len(batch) == ORDERS_AT_ONCE or size > room):
            yield tuple(batch)
            batch, room = [], ORDERS_BYTES
        batch.append(order)
        room -= size
    if batch:
        yield tuple(batch)


def _serves(held: CachedResult, limit: int, *, is_reranked: bool) -> bool:
    """Say whether a cached result answers a search: it has rows enough or all there are, and is reranked if asked."""
    is_whole = held.cutoff is None and len(held.candidates) <= len(held)
    return (len(held) >= limit or is_whole) and not (is_reranked and len(held) and not len(held.rerank_scores))


def expect(kind: type[R], reply: Message) -> R:
    """Return `reply` as the type its request promises. Raises ProtocolError if the other side broke the promise."""
    if not isinstance(reply, kind):
        raise ProtocolError(f"expected {kind.__name__}, got {type(reply).__name__}: update the older side")
    return reply


def hits_of(answer: calls.Computed) -> tuple[Hit, ...]:
    """Return a computed result's rows as hits, best first."""
    result = answer.result
    if result is None:
        return ()
    scores = memoryview(result.scores).cast("f")
    reranked = memoryview(result.rerank_scores).cast("f") if result.rerank_scores else None
    return tuple(
        Hit(
            id=point_id,
            score=scores[i],
            payload={"content": content, "source": source, "metadata": metadata},
            rerank_score=reranked[i] if reranked is not None else None,
        )
        for i, (point_id, content, source, metadata) in enumerate(
            zip(result.ids, result.contents, result.sources, result.metadata, strict=True)
        )
    )


def point_of(given: Mapping[str, Any]) -> Point:
    """Return a mapping as a Point; see `Client.upsert`. Raises ValueError without an id."""
    import numpy as np

    if "id" not in given:
        raise ValueError(
            f"a point needs an 'id' (a whole number or a UUID); this one has {', '.join(given) or 'nothing'}"
        )
    vector = given.get("vector")
    payload = given.get("payload", {key: given[key] for key in given if key not in ("id", "vector")})
    packed = None if vector is None else np.asarray(vector, dtype="<f4").tobytes()
    return Point(id=given["id"], payload=dict(payload), vector=packed)
