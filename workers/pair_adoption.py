"""Owns whether a graph may stand for its cross-encoder: exported, compared with `predict` pair by pair, taken or refused.

Scores of both stand side by side in one collection's results, so they must be the same: see LARGEST_DIFFERENCE.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .adoption import check_room, compared_texts
from .export import NotExportable, export_pairs, pair_recipe_of
from .fast_pairs import fast_pairs
from .graphs import Graph, Recipe, Verdict
from .models import torch_threads
from .task import Floats

log = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 1e-4  # of a score: what is further away is another score
SHARE_OF_SPREAD = 0.01  # and of the scores' standard deviation: a model whose scores are all alike must not hide one
ROUNDING = 1e-6  # that two ways of computing the same score may differ by, whatever the spread
COMPARED_AT_ONCE = 4  # pairs: one of them may be 512 tokens


def compared_pairs() -> list[tuple[str, str]]:
    """Return the pairs that both score: each text with one of another length, nothing and far too long among them."""
    texts = compared_texts()
    return list(zip(texts, texts[len(texts) // 2 :] + texts[: len(texts) // 2], strict=True))


def adopt_pairs(name: str, model: Any, graph: Graph, pace: Callable[[], None] | None = None) -> Verdict | None:
    """Make the graph of a CrossEncoder, compare, and keep the verdict. Return it; None where another process does it now.

    Takes seconds. Calls `pace` between batches. Raises OSError where nothing can be written: then there is no verdict.
    """
    with graph.making() as made:
        if made is None:
            return None
        check_room(model.parameters(), made)
        verdict = graph.keep(made, _judged(name, model, made, pace))
    level = logging.INFO if verdict.is_adopted else logging.WARNING
    log.log(level, "fast path of %s %s: %s", name, "adopted" if verdict.is_adopted else "refused", verdict.words)
    return verdict


def _judged(name: str, model: Any, made: Path, pace: Callable[[], None] | None) -> Verdict:
    refused = Verdict(model=name, revision="", precision="fp32", is_adopted=False, kind="pairs")
    pairs = compared_pairs()
    try:
        recipe = pair_recipe_of(model)
        with torch_threads(1):
            export_pairs(model, recipe, made)
        found = _by_graph(name, made, recipe, pairs, pace)
    except NotExportable as error:
        return msgspec.structs.replace(refused, reason=str(error))
    wanted = _by_reference(model, pairs, pace)
    difference = float(np.abs(found - wanted).max())
    allowed = min(LARGEST_DIFFERENCE, max(SHARE_OF_SPREAD * float(wanted.std()), ROUNDING))
    is_adopted = difference <= allowed  # not with NaN
    reason = "" if is_adopted else f"its scores are not the reference's: {difference:.1e} apart, {allowed:.0e} allowed"
    return msgspec.structs.replace(
        refused,
        is_adopted=is_adopted,
        reason=reason,
        texts=len(pairs),
        largest_difference=difference,
        recipe=recipe,
    )


def _by_graph(
    name: str,
    made: Path,
    recipe: Recipe,
    pairs: Sequence[tuple[str, str]],
    pace: Callable[[], None] | None,
) -> Floats:
    trial = Graph(made, "model")
    trial.tokenizer_path = made / "tokenizer.json"
    verdict = Verdict(model="", revision="", precision="", is_adopted=True, recipe=recipe)
    fast = fast_pairs(name, trial, verdict)
    try:
        return _in_batches(fast.scores, pairs, pace)
    except Exception as error:  # whatever onnxruntime or the tokenizer make of this graph
        words = str(error).strip().splitlines()
        raise NotExportable(f"its graph does not run: {words[0] if words else type(error).__name__}") from error


def _by_reference(model: Any, pairs: Sequence[tuple[str, str]], pace: Callable[[], None] | None) -> Floats:
    def predict(some: Sequence[tuple[str, str]]) -> Floats:
        with torch_threads(1):
            return np.asarray(model.predict(list(some), batch_size=len(some), show_progress_bar=False))

    return _in_batches(predict, pairs, pace)


def _in_batches(
    score: Callable[[Sequence[tuple[str, str]]], Floats],
    pairs: Sequence[tuple[str, str]],
    pace: Callable[[], None] | None,
) -> Floats:
    parts = []
    for start in range(0, len(pairs), COMPARED_AT_ONCE):
        parts.append(score(pairs[start : start + COMPARED_AT_ONCE]))
        if pace is not None:
            pace()
    return np.concatenate(parts)
