"""Owns what judged queries teach and test: their candidates with texts, and which queries are for which of the two."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import xxhash

from ..ipc.errors import InvalidArgument
from ..ipc.records import PointId, QueryJob, TaskProgress
from .excerpts import excerpts
from .names import check_id
from .quality import is_judged, ndcg
from .task import Embedder, Floats, Step
from .training import Example
from .vectors import VectorStore

K = 10
AT_ONCE = 8  # queries between two steps
PARTS = 20


class Part(StrEnum):
    FIT = "fit"  # the model is trained on it
    CHOOSE = "choose"  # the weights of the views are fitted on it
    HELD_OUT = "held out"  # the new reranker is compared with the one in use on it, and nothing else


def part_of(text: str) -> Part:
    """Return what a query is for: 11 in 20 to fit, 4 to choose, 5 held out.

    By its text alone, so that it is the same however many queries are judged later: what an earlier training saw is never
    what a later one is compared on.
    """
    place = xxhash.xxh3_64_intdigest(text.encode(), seed=7) % PARTS
    return Part.FIT if place < 11 else Part.CHOOSE if place < 15 else Part.HELD_OUT


@dataclass(frozen=True, slots=True)
class Case:
    """A judged query, and the candidates of the vector search in its order; `dense` is higher for nearer ones."""

    query: QueryJob
    ids: tuple[PointId, ...]
    texts: tuple[str, ...]
    dense: Floats
    beside: tuple[str, ...] = ()  # texts of relevant documents that are not among the candidates

    @property
    def relevant(self) -> npt.NDArray[np.bool_]:
        """Which candidates are relevant, shape (len(ids),)."""
        grades = self.query.judgments
        return np.array([grades.get(str(one), 0.0) > 0 for one in self.ids], dtype=np.bool_)

    def ndcg(self, scores: npt.NDArray[np.floating]) -> float:
        """Return nDCG@10 of the candidates in the order of `scores`; equal ones keep the vector search's order."""
        order = np.argsort(-np.asarray(scores), kind="stable")
        return ndcg([self.ids[row] for row in order], self.query.judgments, K)

    def examples(self, max_words: int) -> list[Example]:
        """Return an example for each relevant document; the others are candidates that are not known to be relevant.

        Of excerpts, as a LearnedReranker reads them.
        """
        relevant = self.relevant
        texts = excerpts(self.query.text, (*self.texts, *self.beside), max_words)
        others = tuple(text for text, is_one in zip(texts, relevant, strict=False) if not is_one)
        wanted = [text for text, is_one in zip(texts, relevant, strict=False) if is_one] + texts[len(relevant) :]
        return [Example(self.query.text, text, others) for text in wanted if others]


def judged(queries: Iterable[QueryJob]) -> list[QueryJob]:
    """Return the queries that have a relevant document, in an order that does not depend on how often they are asked."""
    return sorted((one for one in queries if is_judged(one.judgments)), key=lambda one: one.text)


def gathered(
    queries: Sequence[QueryJob],
    collection: str,
    store: VectorStore,
    embedder: Embedder,
    *,
    field: str,
    candidates: int,
    pace: Callable[[], None],
) -> Generator[Step, None, list[Case]]:
    """Search for each query and return its case; queries for which nothing is found are left out."""
    known: dict[PointId, str] = {}  # one copy of a text, however many queries have it as a candidate
    cases: list[Case] = []
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        vectors = embedder.embed([one.text for one in some], pace=pace)
        lists = store.search(collection, vectors, limit=candidates)
        for query, hits in zip(some, lists, strict=True):
            if not hits:
                continue
            texts = tuple(known.setdefault(hit.id, str(hit.payload.get(field) or "")) for hit in hits)
            dense = np.array([hit.score for hit in hits], dtype=np.float32)
            dense = -dense if dense[0] < dense[-1] else dense  # distances: the nearest come first all the same
            found = {str(hit.id) for hit in hits}
            absent = [one for one, grade in query.judgments.items() if grade > 0 and one not in found]
            wanted = [one for text in absent if (one := point_id(text)) is not None]
            points = store.fetch(collection, wanted) if wanted else []
            beside = tuple(known.setdefault(point.id, str(point.payload.get(field) or "")) for point in points)
            ids = tuple(hit.id for hit in hits)
            cases.append(Case(query, ids, texts, dense, tuple(text for text in beside if text)))
        pace()
        done = start + len(some)
        yield Step(TaskProgress(done=done, total=len(queries), note="looking for candidates of judged queries"))
    return cases


def point_id(text: str) -> PointId | None:
    """Return the id that a judgment's text stands for; None for what cannot be one: a judgment may say anything."""
    found: PointId = int(text) if text.isdecimal() else text
    try:
        check_id(found)
    except InvalidArgument:
        return None
    return found
