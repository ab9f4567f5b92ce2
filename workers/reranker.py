"""Owns the second look at candidates: a cross-encoder, late interaction over tokens, or a live object handed in."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..ipc.errors import InvalidArgument, ModelUnavailable
from ..ipc.settings import ModelSettings, RerankSettings
from .adoption import missing_for_adoption, missing_for_use
from .batches import SubBatches
from .bm25 import bm25
from .fast_pairs import FastPairs, fast_pairs, pair_graph_of
from .fingerprint import fingerprint
from .graphs import Graph, Verdict
from .models import quietly_load, torch_threads
from .pair_adoption import adopt_pairs
from .scoring import Question
from .task import Embedder, Floats, Reranker
from .vectors import Vectors

log = logging.getLogger(__name__)

TOKEN_CACHE_BYTES = 256 * 1024 * 1024  # of float16 token vectors: about 1,500 documents of 250 tokens
TEXTS_AT_ONCE = 200  # whose token vectors are computed together: 77 MB of float32 at 250 tokens
CROSS_ENCODER_BATCH = 32  # pairs, at most; how many is found at run time (batches.py)
PREDICT_PAIRS = 64  # handed to an application's `predict` at once, then `pace` is asked
LOAD_AGAIN_S = 60.0  # after a load that failed: it takes seconds, and each query would wait for it in vain


class ByMany(ABC):
    """A Reranker whose `score` is its `score_many` of one query: see ManyReranker."""

    @abstractmethod
    def score_many(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> list[Floats]: ...

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        (scores,) = self.score_many([Question(query, texts, dense_scores)], pace=pace)
        return scores


class CrossEncoderReranker(ByMany):
    """A sentence-transformers CrossEncoder with one label, by folder or hub name; or its graph, once one is adopted.

    Both give the same scores (pair_adoption.py), so a task may begin with one and end with the other. Without
    `graph_folder`, and on another device than the CPU, there is no graph.
    """

    def __init__(self, name: str, device: str = "cpu", graph_folder: str = "") -> None:
        self._name, self._device = name, device
        self._folder = graph_folder if device == "cpu" else ""
        self.batches = SubBatches(CROSS_ENCODER_BATCH)
        self._reference: Any = None
        self._fast: FastPairs | None = None
        self._is_decided = not self._folder
        self.reason = ""  # why there is no fast path; "" while that is open, and where there is one
        self._refused, self._again_at = "", 0.0

    @property
    def name(self) -> str:
        return self._name

    def load(self) -> None:
        """Load who computes now, without computing. Raises ModelUnavailable, for LOAD_AGAIN_S without trying."""
        if (fast := self.choose()) is None:
            _ = self.reference()
        else:
            fast.load()

    def reference(self) -> Any:
        """Return the CrossEncoder. Raises as `load` does."""
        if self._reference is None:
            if self._refused and time.monotonic() < self._again_at:
                raise ModelUnavailable(self._refused)
            try:
                self._reference = self._load()
            except ModelUnavailable as error:
                self._refused, self._again_at = str(error), time.monotonic() + LOAD_AGAIN_S
                raise
        return self._reference

    def _load(self) -> Any:
        def load(target: str, is_folder: bool) -> Any:
            from sentence_transformers import CrossEncoder

            made = CrossEncoder(target, device=self._device, local_files_only=is_folder)
            from .matching import KEY, MatchingCrossEncoder

            is_matching = hasattr(getattr(made.model, "config", None), KEY)
            return MatchingCrossEncoder(made.model, made.tokenizer) if is_matching else made

        model = quietly_load(self._name, load)
        if model.num_labels != 1:
            raise ModelUnavailable(
                f"{self._name!r} gives {model.num_labels} scores a pair: a cross-encoder that reranks gives one"
            )
        return model

    # --- its graph ----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Say whether there is no verdict on a graph yet, and one can be had. Raises ModelUnavailable."""
        return self.choose() is None and not self._is_decided

    def choose(self) -> FastPairs | None:
        """Return the graph if there is an adopted one by now; None: the reference computes. Raises ModelUnavailable."""
        if self._is_decided:
            return self._fast
        verdict = None if self._graph is None else self._graph.verdict()
        reason = "" if verdict is None or verdict.is_adopted else verdict.reason
        if self._graph is None:
            reason = "its files were not found"
        elif not reason:
            reason = missing_for_adoption() if verdict is None else missing_for_use()
        if reason:
            self.reason = reason
            log.info("cross-encoder %s is used without a fast path: %s", self._name, reason)
        elif verdict is not None and self._graph is not None:
            self._fast, self.batches = (
                fast_pairs(self._name, self._graph, verdict),
                self.batches.renewed(),
            )
            log.info("the fast path of cross-encoder %s is used; %s", self._name, verdict.words)
        self._is_decided = bool(reason) or verdict is not None
        return self._fast

    @cached_property
    def _graph(self) -> Graph | None:
        if (found := pair_graph_of(self._name, self._folder)) is None:
            _ = self.reference()  # the hub gives it now
            found = pair_graph_of(self._name, self._folder)
        return found

    def adopt(self, pace: Callable[[], None] | None = None) -> Verdict | None:
        """Make a graph and judge it. Returns and raises as pair_adoption.adopt_pairs does, and ModelUnavailable."""
        assert self._graph is not None
        return adopt_pairs(self._name, self.reference(), self._graph, pace)

    # --- scores -------------------------------------------------------------------------------------------------------

    def score_many(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> list[Floats]:
        """See ManyReranker. Pairs of several queries share batches, sorted by length: little of one is padding."""
        fast = self.choose()
        compute = self._predict if fast is None else fast.scores
        if fast is None:
            _ = self.reference()  # not within what is measured of a batch
        pairs = [(question.query, text) for question in questions for text in question.texts]
        scores = np.empty(len(pairs), dtype=np.float32)
        lengths = [len(query) + len(text) for query, text in pairs]
        for rows in self.batches.rows(lengths, is_paced=pace is not None):
            scores[rows] = compute([pairs[row] for row in rows])
            if pace is not None:
                pace()
        return split(scores, [len(question.texts) for question in questions])

    def _predict(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        with torch_threads(1):
            found: Floats = self.reference().predict(list(pairs), batch_size=len(pairs), show_progress_bar=False)
        return found


def split(scores: Floats, counts: Sequence[int]) -> list[Floats]:
    """Cut scores of shape (sum of counts,) into pieces of these lengths."""
    return np.split(scores, np.cumsum(counts)[:-1]) if counts else []


class LateInteractionReranker(ByMany):
    """MaxSim over token vectors (Khattab and Zaharia 2020), fused with the dense and BM25 scores as z-scores.

    On SciFact nDCG@10 0.645 dense, 0.703 MaxSim alone, 0.714 fused. Token vectors of documents are kept for the next
    query that has them as candidates, in float16, up to TOKEN_CACHE_BYTES.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._tokens: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0

    @property
    def embedder(self) -> Embedder:
        return self._embedder

    @property
    def name(self) -> str:
        return f"late interaction ({self._embedder.name})"

    def score_many(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> list[Floats]:
        """See ManyReranker."""
        found = self.similarities(questions, pace=pace)
        return [_fused(one, similarity) for one, similarity in zip(questions, found, strict=True)]

    def similarities(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> list[Floats]:
        """Return MaxSim of each question's texts. The queries' tokens are computed together, and those of all documents
        that are not kept."""
        found: list[Floats] = []
        for group in in_groups(questions, TEXTS_AT_ONCE):
            queries = self._embedder.token_vectors([question.query for question in group])
            known = self._document_tokens([text for question in group for text in question.texts], pace)
            for question, tokens in zip(group, queries, strict=True):
                documents = [known[fingerprint(text)].astype(np.float32) for text in question.texts]
                found.append(max_sims(tokens, documents))
        return found

    def similarity(self, query: str, texts: Sequence[str], pace: Callable[[], None] | None = None) -> Floats:
        """Return MaxSim of each text, shape (len(texts),)."""
        (found,) = self.similarities([Question(query, texts, np.empty(0, dtype=np.float32))], pace=pace)
        return found

    def _document_tokens(self, texts: Sequence[str], pace: Callable[[], None] | None) -> dict[str, Any]:
        """Return the token vectors of each text by its fingerprint, float16."""
        wanted = {fingerprint(text): text for text in texts}
        missing = {key: text for key, text in wanted.items() if key not in self._tokens}
        computed = self._embedder.token_vectors(list(missing.values()), pace=pace)
        fresh = {key: tokens.astype(np.float16) for key, tokens in zip(missing, computed, strict=True)}
        found = {key: fresh[key] if key in fresh else self._tokens[key] for key in wanted}
        for key, tokens in fresh.items():
            self._tokens[key] = tokens
            self._bytes += tokens.nbytes
        for key in wanted:
            self._tokens.move_to_end(key)
        while self._bytes > TOKEN_CACHE_BYTES:
            _, dropped = self._tokens.popitem(last=False)
            self._bytes -= dropped.nbytes
        return found


def in_groups(questions: Sequence[Question], texts: int) -> Iterator[list[Question]]:
    """Yield the questions in order, in groups with at most so many texts, or of one question."""
    group: list[Question] = []
    count = 0
    for question in questions:
        if group and count + len(question.texts) > texts:
            yield group
            group, count = [], 0
        group.append(question)
        count += len(question.texts)
    if group:
        yield group


def _fused(question: Question, similarity: Floats) -> Floats:
    """Return MaxSim, the dense scores and BM25 as z-scores, added."""
    if not question.texts:
        return np.empty(0, dtype=np.float32)
    parts = (similarity, np.asarray(question.dense, dtype=np.float32), bm25(question.query, question.texts))
    fused: Floats = np.sum([z_scores(part) for part in parts], axis=0, dtype=np.float32)
    return fused


def max_sim(query_tokens: Vectors, document_tokens: Vectors) -> float:
    """Return the mean over query tokens of the best cosine among document tokens; 0 where either has none."""
    return float(max_sims(query_tokens, [document_tokens])[0])


def max_sims(query_tokens: Vectors, documents: Sequence[Vectors]) -> Floats:
    """Return `max_sim` of each document, shape (len(documents),).

    One matrix product for all: in fifty small ones BLAS's threads wait for each other every time, which on a machine
    whose CPUs were taken came to 790 ms a query instead of 16.
    """
    scores = np.zeros(len(documents), dtype=np.float32)
    rows = [row for row, tokens in enumerate(documents) if len(tokens)]
    if rows and len(query_tokens):
        starts = np.cumsum([0, *(len(documents[row]) for row in rows[:-1])])
        similarity = query_tokens @ np.concatenate([documents[row] for row in rows]).T
        scores[rows] = np.maximum.reduceat(similarity, starts, axis=1).mean(axis=0)
    return scores


def z_scores(values: Floats) -> Floats:
    """Return (values - mean) / standard deviation; zeroes where all are equal."""
    deviation = float(values.std())
    return (values - values.mean()) / deviation if deviation > 1e-9 else np.zeros_like(values)


class LiveReranker:
    """A reranking object of the application's with rerank(query, documents) or rank(query, documents)."""

    def __init__(self, service: Any, method: str) -> None:
        self._service, self._ask = service, getattr(service, method)

    @property
    def name(self) -> str:
        return str(getattr(self._service, "name", type(self._service).__name__))

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        scores = scores_of(self._ask(query, list(texts)), len(texts))
        if pace is not None:
            pace()
        return scores


class LivePairs(ByMany, LiveReranker):
    """One with predict(pairs), such as a CrossEncoder: it gets pairs of several queries at once."""

    def score_many(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> list[Floats]:
        """See ManyReranker."""
        pairs = [(question.query, text) for question in questions for text in question.texts]
        scores = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), PREDICT_PAIRS):
            some = pairs[start : start + PREDICT_PAIRS]
            scores[start : start + len(some)] = scores_of(self._ask(some), len(some))
            if pace is not None:
                pace()
        return split(scores, [len(question.texts) for question in questions])


def scores_of(answer: Any, count: int) -> Floats:
    """Return `count` scores from what a reranking object answered.

    Understood: a score for each document in order; (index, score) pairs; mappings with index (or corpus_id) and score
    (or relevance_score); objects with such attributes; any of them as `results`; arrays and tensors. Documents left out
    score below all others. Raises InvalidArgument for anything else.
    """
    answer = answer.get("results", answer) if isinstance(answer, Mapping) else getattr(answer, "results", answer)
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise InvalidArgument(
            f"the reranking service answered with {repr(answer)[:80]}: return a score for each document"
        )
    rows = answer.tolist() if hasattr(answer, "tolist") else list(answer)
    if rows and all(isinstance(row, int | float | np.number) for row in rows):
        if len(rows) != count:
            raise InvalidArgument(f"the reranking service gave {len(rows)} scores for {count} documents")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which is refused later
            return np.asarray(rows, dtype=np.float32)
    scores, is_scored = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=bool)
    for row in rows:
        index, score = _index_and_score(row)
        if not 0 <= index < count:
            raise InvalidArgument(f"the reranking service named document {index} of {count}")
        scores[index], is_scored[index] = score, True
    if count and not is_scored.any():
        raise InvalidArgument("the reranking service scored no document")
    if not is_scored.all():
        scores[~is_scored] = scores[is_scored].min() - 1
    return scores


def _index_and_score(row: Any) -> tuple[int, float]:
    if isinstance(row, tuple | list):
        match row:
            case [int() | np.integer() as index, int() | float() | np.number() as score]:
                return int(index), float(score)
        raise InvalidArgument(f"the reranking service answered with {row!r}: a pair is (index of a document, score)")

    def field(*names: str) -> Any:
        for name in names:
            value = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
            if value is not None:
                return value
        raise InvalidArgument(f"the reranking service answered with {row!r}: no {' or '.join(names)} in it")

    return int(field("index", "corpus_id")), float(field("score", "relevance_score"))


def as_reranker(service: Any) -> Reranker:
    """Return a Reranker over whatever the application handed in. Raises InvalidArgument if it offers no known method."""
    if callable(getattr(service, "score", None)) and isinstance(getattr(service, "name", None), str):
        reranker: Reranker = service
        return reranker
    methods = [name for name in ("rerank", "rank", "predict") if callable(getattr(service, name, None))]
    if not methods:
        raise InvalidArgument(
            f"{type(service).__name__} has none of rerank(query, documents), rank(query, documents),"
            " predict(pairs): a reranking service needs one of them"
        )
    # a CrossEncoder's `rank` is its `predict`, a query at a time
    is_pairs = methods == ["predict"] or type(service).__module__.startswith("sentence_transformers")
    return LivePairs(service, "predict") if is_pairs else LiveReranker(service, methods[0])


def make_reranker(settings: RerankSettings, embedder: Embedder) -> Reranker:
    """Return the configured cross-encoder, on the embedder's device, or late interaction over the embedder's tokens."""
    if settings.cross_encoder and isinstance(model := getattr(embedder, "settings", None), ModelSettings):
        folder = "" if model.loader == "reference" else model.graph_folder
        return CrossEncoderReranker(settings.cross_encoder, model.device, folder)
    if settings.cross_encoder:
        return CrossEncoderReranker(settings.cross_encoder)
    return LateInteractionReranker(embedder)
