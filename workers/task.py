"""Owns what a task is: a generator of steps that ends in an outcome. Knows no task: see reindexing, reranking, warming.

Job ──▶ steps(job, tools) ──▶ Step, Step, Step ... ──▶ Outcome
                               │ progress, checkpoint, results: reported by whoever drives it (drive)
                               └ between two steps the driver obeys pause, cancel and the CPU budget
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ..ipc.commands import PointsChanged
from ..ipc.records import ComputedResult, Measure, QueryJob, TaskProgress, TaskType
from ..ipc.result import CachedResult
from ..ipc.settings import WorkerSettings
from .query_vectors import QueryVectors
from .texts import Maker
from .vectors import Vectors, VectorStore
from .write_gate import WriteGate

Floats = npt.NDArray[np.float32]


class Interrupted(Exception):
    """The task was told to stop while it waited for CPU budget in the middle of a step; the step is run again later."""


class Embedder(Protocol):
    """Turns texts into vectors. Loading is late: the first call may take seconds."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str:
        """A fingerprint of the weights: vectors of two revisions are not comparable."""
        ...

    @property
    def size(self) -> int:
        """D, the length of a vector."""
        ...

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        """Return float32 of shape (len(texts), D), L2-normalised. Calls `pace` between sub-batches."""
        ...

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        """Return for each text its token embeddings, float32 of shape (tokens, D), rows L2-normalised."""
        ...


class OtherModels(Protocol):
    """See serving.py."""

    def of(self, collection: str) -> Embedder: ...

    def by_name(self, name: str) -> Embedder | None: ...


class Reranker(Protocol):
    """Scores candidates against a query. Scores of one query are comparable with each other and with nothing else."""

    @property
    def name(self) -> str: ...

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        """Return float32 of shape (len(texts),), higher is better. `dense_scores` are the vector search's, same shape."""
        ...


class OtherRerankers(Protocol):
    """See learned_reranker.py."""

    def of(self, collection: str) -> Reranker: ...


class Job(msgspec.Struct, frozen=True):
    """One attempt at a task. `checkpoint` is what the last attempt saved, None at the first."""

    task_id: str
    task_type: TaskType
    collection: str
    params: Mapping[str, Any] = {}
    queries: tuple[QueryJob, ...] = ()  # the popular queries, most popular first, with their judgments
    checkpoint: Mapping[str, Any] | None = None
    cached: tuple[QueryJob, ...] = ()  # queries that have a result already, to be seen whether it still holds
    why_none: str = ""  # why there are no queries although some lack a result


@dataclass(frozen=True, slots=True)
class Step:
    """A finished batch: what is done, where to resume, and results that are ready to be published."""

    progress: TaskProgress
    checkpoint: dict[str, Any] | None = None  # None: resume where the last one said
    results: tuple[ComputedResult, ...] = ()
    changes: tuple[PointsChanged, ...] = ()  # of documents, by this step
    measures: tuple[Measure, ...] = ()  # of the queries that this step reranked


class Outcome(msgspec.Struct, frozen=True):
    """How a task ended. `before_score` and `after_score` are `metric` on the same queries, None where not measured."""

    result: dict[str, Any]
    metric: str | None = None
    before_score: float | None = None
    after_score: float | None = None
    is_skipped: bool = False  # nothing to do it on; `result["reason"]` says what


@dataclass(frozen=True, slots=True)
class Tools:
    """What a task may use. `pace` returns when the CPU budget allows more work; `clock` is Unix time."""

    store: VectorStore
    embedder: Embedder
    reranker: Reranker
    settings: WorkerSettings
    clock: Callable[[], float]
    pace: Callable[[], None]
    as_of: Callable[[], int] = lambda: 0
    """The number of the last change of documents before the last search; 0 where changes are not numbered."""
    cached: Callable[[str, str], CachedResult | None] = lambda _text, _collection: None
    """What the result store holds for a query of a collection."""
    gate: WriteGate | None = None
    """Who sees what applications write; None where nobody does."""
    models: OtherModels | None = None
    """Of collections whose vectors another model made; None: there are none."""
    rerankers: OtherRerankers | None = None
    """Of collections that a reranker was learned for; None: there are none."""
    filters: Callable[[str], Mapping[str, int]] = lambda _collection: {}
    """Which payload fields searches of a collection filter by, and how many did; nothing where nobody counts them."""
    query_vectors: QueryVectors = field(default_factory=QueryVectors)
    """What queries were embedded last: one of several collections is embedded once."""
    reached: Callable[[str], None] = lambda _point: None
    """Told each point of a re-index at which a crash has to be survived: tests end the process there."""

    def of(self, collection: str) -> Tools:
        """Return the same with the settings of a collection."""
        return replace(self, settings=self.settings.of(collection))

    def searching(self, collection: str) -> Embedder:
        """Return what embeds queries of a collection: the model that made its vectors."""
        return self.embedder if self.models is None else self.models.of(collection)

    def reranking(self, collection: str) -> Reranker:
        """Return what reranks hits of a collection: what was learned for it, else the configured reranker."""
        return self.reranker if self.rerankers is None else self.rerankers.of(collection)

    @property
    def maker(self) -> Maker:
        """What the stamps of vectors made from now on say."""
        return Maker(self.embedder.name, self.embedder.revision, self.settings.model.chunking)

    def named(self, model: str) -> Embedder | None:
        """Return the embedder of a model by its name; None where it cannot be loaded."""
        if model == self.embedder.name:
            return self.embedder
        return None if self.models is None else self.models.by_name(model)


Steps = Generator[Step, None, Outcome]
TaskFunction = Callable[[Job, Tools], Steps]


@dataclass(frozen=True, slots=True)
class Bare:
    """A task that needs no tools: for it no model is loaded and no store is opened."""

    steps: Callable[[Job], Steps]


Tasks = Mapping[TaskType, TaskFunction | Bare]


class Verdict(Enum):
    GO_ON = "go_on"  # run the next step
    PAUSE = "pause"  # stop here, resume later at the checkpoint
    CANCEL = "cancel"  # stop here for good


def drive(steps: Steps, on_step: Callable[[Step], Verdict]) -> Outcome | Verdict:
    """Run `steps` to its end and return the Outcome, or the verdict with which `on_step` stopped it."""
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            verdict = on_step(step)
            if verdict is not Verdict.GO_ON:
                return verdict
    finally:
        steps.close()
