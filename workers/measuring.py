"""Owns the measurement of two versions of a collection on the same queries: recall, nDCG, MRR, latency. Judged by gate.py."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ..ipc.records import PointId, QueryJob, TaskProgress
from .gate import Measured
from .quality import is_judged, ndcg, recall, reciprocal_rank
from .task import Embedder, Step
from .texts import text_of
from .vectors import Vectors, VectorStore

K = 10
AT_ONCE = 8  # queries between two looks at the budget: some 50 ms of searches
SENTENCE_WORDS = 24  # of a document's first sentence that stands in for a query: as long as a claim
PAGES = 16  # of documents, that sentences are taken from at most


@dataclass(frozen=True, slots=True)
class Side:
    """A version and the model that made its vectors."""

    collection: str
    embedder: Embedder


def measured(
    before: Side,
    after: Side,
    queries: Sequence[QueryJob],
    store: VectorStore,
    pace: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Step, None, tuple[Measured, Measured]]:
    """Search both versions with each query, in turns. `clock` is in seconds.

    Which version is searched first alternates, so that neither always finds warm caches. Recall is of the index against
    exact search of the same version. Queries without judgments count for recall and latency alone.
    """
    columns: tuple[_Columns, _Columns] = (_Columns(), _Columns())
    sides = (before, after)
    for side in sides:  # the first search of a version opens its files
        if queries:
            store.search(side.collection, side.embedder.embed([queries[0].text]), limit=K)
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        vectors = [side.embedder.embed([query.text for query in some], pace=pace) for side in sides]
        for row, query in enumerate(some):
            for which in (0, 1) if (start + row) % 2 == 0 else (1, 0):
                _measure(columns[which], store, sides[which].collection, vectors[which][row : row + 1], query, clock)
        pace()
        done = TaskProgress(done=start + len(some), total=len(queries), note="comparing what both versions find")
        yield Step(done)
    return columns[0].measured(), columns[1].measured()


class _Columns:
    def __init__(self) -> None:
        self.recall: list[float] = []
        self.ndcg: list[float] = []
        self.reciprocal_rank: list[float] = []
        self.latency_ms: list[float] = []

    def measured(self) -> Measured:
        return Measured(*(np.array(one) for one in (self.recall, self.ndcg, self.reciprocal_rank, self.latency_ms)))


def _measure(
    columns: _Columns,
    store: VectorStore,
    collection: str,
    vector: Vectors,
    query: QueryJob,
    clock: Callable[[], float],
) -> None:
    began = clock()
    (hits,) = store.search(collection, vector, limit=K)
    columns.latency_ms.append((clock() - began) * 1000)
    (exact,) = store.search(collection, vector, limit=K, exact=True)
    found: list[PointId] = [hit.id for hit in hits]
    columns.recall.append(recall(found, [hit.id for hit in exact]))
    if is_judged(query.judgments):
        columns.ndcg.append(ndcg(found, query.judgments, K))
        columns.reciprocal_rank.append(reciprocal_rank(found, query.judgments, K))


def with_sentences(
    queries: Sequence[QueryJob], wanted: int, store: VectorStore, collection: str, field: str
) -> list[QueryJob]:
    """Return `queries`, and so many sentences of documents that there are `wanted`, as far as there are documents.

    A sentence has no judgments: that its own document should come first is not what people ask for.
    """
    found = list(queries)
    texts: list[str] = []
    after = None
    for _ in range(PAGES):
        if len(found) >= wanted:
            return found
        points, after = store.scroll(collection, after=after, limit=wanted)
        texts += [text for point in points if (text := text_of(point, field)) is not None]
        if after is None or len(texts) >= PAGES * wanted:
            break
    known = {query.text for query in found}
    sentences = sorted({_sentence(text) for text in texts} - known)
    random.Random(0).shuffle(sentences)
    return found + [QueryJob(text=one) for one in sentences[: max(wanted - len(found), 0)]]


def _sentence(text: str) -> str:
    first = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return " ".join(first.split()[:SENTENCE_WORDS])
