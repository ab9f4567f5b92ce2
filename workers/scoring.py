"""Owns the scores of the candidates of several queries at once, or the reason why there are none.

A reranker may raise, answer nonsense or not fit into memory. What it gives counts only where it is one finite number for
each text: else the vector search's order stands, and `problem` says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..ipc.errors import ModelUnavailable, MorganError
from .task import Floats, Interrupted, Reranker

log = logging.getLogger(__name__)

# MemoryError aside: what torch and onnxruntime say, in a RuntimeError or one of their own
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate memory")


class Question(NamedTuple):
    """A query and its candidates: their texts, and the vector search's scores of them, higher is better."""

    query: str
    texts: Sequence[str]
    dense: Floats


class Scored(NamedTuple):
    """float32 of shape (candidates,), higher is better; None where there are none, and `problem` says why."""

    scores: Floats | None
    problem: str = ""


@runtime_checkable
class ManyReranker(Protocol):
    """A Reranker that scores the candidates of several queries together."""

    def score_many(self, questions: Sequence[Question], *, pace: Callable[[], None] | None = None) -> Sequence[Floats]:
        """Return for each question what `score` does, to the rounding of float32."""
        ...


def score_each(reranker: Reranker, questions: Sequence[Question], pace: Callable[[], None]) -> list[Scored]:
    """Return the scores of each question's candidates, in its order. Raises nothing that the reranker does wrong."""
    if len(questions) > 1 and isinstance(reranker, ManyReranker):
        together = _attempt(lambda: reranker.score_many(questions, pace=pace))
        if isinstance(together, ModelUnavailable):  # no use in loading it once more for each
            return [Scored(None, words_of(together))] * len(questions)
        if not isinstance(together, Exception):
            return [checked(one, len(q.texts)) for one, q in zip(together, questions, strict=True)]
        # one query may be what it cannot do, or all of them together too much
    return [_score_one(reranker, question, pace) for question in questions]


def _score_one(reranker: Reranker, question: Question, pace: Callable[[], None]) -> Scored:
    found = _attempt(lambda: reranker.score(question.query, question.texts, question.dense, pace=pace))
    return Scored(None, words_of(found)) if isinstance(found, Exception) else checked(found, len(question.texts))


def _attempt(call: Callable[[], Any]) -> Any:
    """Return what `call` does, or what it raised: a reranker is a model or an application's object, and may raise any."""
    try:
        return call()
    except Interrupted:  # the task is to stop, and `pace` said so
        raise
    except Exception as error:
        log.warning("reranking failed: the vector search's order stands", exc_info=not isinstance(error, MorganError))
        return error


def checked(answer: Any, count: int) -> Scored:
    """Return `answer` as scores if it is `count` finite numbers."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
            scores = np.asarray(answer, dtype=np.float32)
    except (TypeError, ValueError):
        return Scored(None, f"the reranker answered with {repr(answer)[:80]}: it has to give a score for each document")
    if scores.shape != (count,):
        return Scored(None, f"the reranker gave scores of shape {scores.shape} for {count} documents")
    if not (finite := np.isfinite(scores)).all():
        return Scored(None, f"the reranker gave NaN or infinity for {int((~finite).sum())} of {count} documents")
    return Scored(scores)


def words_of(error: Exception) -> str:
    """Say what was raised, and what to do where it was a lack of memory."""
    if isinstance(error, MorganError):
        return str(error)
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
        return f"the reranking model does not fit into memory: configure a smaller one or fewer candidates ({words})"
    return words
