"""Owns which embedder of the configured model computes: the reference until a graph of it is adopted, then the graph.

Their vectors are interchangeable, so a task may begin with one and end with the other. With 8-bit weights they are not: there
the choice is made once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

from ..ipc.settings import ModelSettings
from .adoption import adopt, missing_for_adoption, missing_for_use
from .batches import SubBatches
from .fast import FastEmbedder
from .graphs import Graph, Verdict, graph_of
from .models import SentenceTransformerEmbedder
from .task import Embedder
from .vectors import Vectors

log = logging.getLogger(__name__)


class Handover:
    """An Embedder. `choose` looks for a verdict at each use until there is one; nothing is looked up before the first."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.reference = SentenceTransformerEmbedder(settings)
        self.fast: FastEmbedder | None = None
        self.reason = ""  # why the reference is used for good

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def revision(self) -> str:
        return self.choose().revision

    @property
    def size(self) -> int:
        return self.choose().size

    @property
    def batches(self) -> SubBatches:
        return self.reference.batches if self.fast is None else self.fast.batches

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        return self.choose().embed(texts, pace=pace)

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        return self.choose().token_vectors(texts, pace=pace)

    def choose(self) -> Embedder:
        """Return who computes now. Raises ModelUnavailable."""
        if self.is_open and self.settings.precision != "fp32":
            self.settle()
        return self.fast or self.reference

    @property
    def is_open(self) -> bool:
        """Say whether there is no verdict yet, and one can be had. Raises ModelUnavailable."""
        if self.fast is None and not self.reason:
            self._look()
        return self.fast is None and not self.reason

    @cached_property
    def _graph(self) -> Graph | None:
        if (found := graph_of(self.settings)) is None:
            _ = self.reference.size  # the hub gives it now
            found = graph_of(self.settings)
        return found

    def _look(self) -> None:
        graph = self._graph
        verdict = None if graph is None else graph.verdict()
        if graph is None:
            self._stay("its files were not found")
        elif verdict is None:
            if missing := missing_for_adoption():
                self._stay(missing)
        elif not verdict.is_adopted:
            self._stay(verdict.reason)
        elif missing := missing_for_use():
            self._stay(missing)
        else:
            self.fast = FastEmbedder(self.settings, graph, verdict, self.reference.batches.renewed())
            log.info("the fast path of model %s is used; %s", self.name, verdict.words)

    def _stay(self, reason: str) -> None:
        self.reason = reason
        level = logging.WARNING if self.settings.loader == "fast" else logging.INFO
        log.log(level, "model %s is used without its fast path: %s", self.name, reason)

    def adopt(self, pace: Callable[[], None] | None = None) -> Verdict | None:
        """Make a graph and judge it. Returns and raises as adoption.adopt does."""
        assert self._graph is not None
        return adopt(self.reference, self._graph, pace)

    def settle(self) -> None:
        """Go by what there is now, for good: no later verdict changes the vectors. Raises ModelUnavailable."""
        if self.is_open:
            self._stay("there is no graph of it, and no other vectors may come in the middle")

    def load(self) -> None:
        """Load who computes now, without computing."""
        if self.choose() is self.reference:
            _ = self.reference.size
        elif self.fast is not None:
            self.fast.load()


def make_embedder(settings: ModelSettings) -> Embedder:
    """Return the embedder of the configured model. Loads nothing."""
    if settings.loader == "reference" or settings.device != "cpu" or not settings.graph_folder:
        return SentenceTransformerEmbedder(settings)
    return Handover(settings)
