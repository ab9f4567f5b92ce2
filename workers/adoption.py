"""Owns whether a graph may stand for its model: exported, compared with the reference text by text, taken or refused.

A vector of a graph carries the reference's stamp, so it must be the reference's vector. What was measured is kept either way:
a refusal is not tried again until the model or a library changes.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .batches import SubBatches
from .export import NotExportable, export, recipe_of
from .fast import FastEmbedder
from .graphs import Graph, Recipe, Verdict
from .models import SentenceTransformerEmbedder, torch_threads

log = logging.getLogger(__name__)

LEAST_COSINE = 0.9999  # what is further away is another vector
COMPARED_TEXTS = 72
ROOM = 6  # times the weights that the disk must have free: the graph as traced, with 8 bits, and fused
LONGEST_WORDS = 1200  # several times what models of sentences take: cut, and at the same place

SPEECH = (
    "zinc absorption in the gut of mice was measured after the fourth week , and n = 128 ; p < 0.05 . The price of gold"
    " rose by 3.7 % to $ 1,942 per ounce ! DEF main ( argv ) : return 0 http://example.org/a?b=c#d e-mail @ user Straße"
    " naïve café Ångström Ελλάδα москва 東京 大学 한국어 العربية עברית हिन्दी ไทย 🙂 ﬁ ½ x² antidisestablishmentarianism"
    " Donaudampfschifffahrtsgesellschaft CRISPR-Cas9 IL-6 mTORC1 β-catenin"
)
ODD = ("", " ", "\n\t", ".", "a", "\u200b", "\x00", "[SEP]", "[MASK] <s> </s>", "e\u0301", "🙂🙂🙂", "x" * 3000)


def missing_for_adoption() -> str:
    """Return in words what is not installed to make a graph; "" where nothing is missing."""
    absent = [name for name in ("onnxruntime", "tokenizers", "onnx") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install 'morgan-background[fast]'" if absent else ""


def missing_for_use() -> str:
    """Return in words what is not installed to run a graph; "" where nothing is missing. onnx itself is not needed."""
    missing = missing_for_adoption()
    return missing if "onnxruntime" in missing or "tokenizers" in missing else ""


def compared_texts() -> list[str]:
    """Return the texts that reference and graph are compared on: the same at each call, from nothing to far too long."""
    random_words = random.Random(0)
    texts = list(ODD)
    while len(texts) < COMPARED_TEXTS:
        share = (len(texts) - len(ODD)) / (COMPARED_TEXTS - len(ODD) - 1)
        count = round(LONGEST_WORDS**share)  # as many of 4 to 40 words as of 40 to 400
        texts.append(" ".join(random_words.choices(SPEECH.split(), k=count)))
    return texts


def adopt(
    reference: SentenceTransformerEmbedder, graph: Graph, pace: Callable[[], None] | None = None
) -> Verdict | None:
    """Make the graph of the reference, compare, and keep the verdict. Return it; None where another process does it now.

    Takes the time of loading the reference, if it is not yet, then seconds. Calls `pace` between sub-batches. Raises
    ModelUnavailable, and OSError where nothing can be written: then there is no verdict.
    """
    with graph.making() as made:
        if made is None:
            return None
        check_room(reference.model.parameters(), made)
        verdict = graph.keep(made, _judged(reference, made, pace))
    log.log(
        logging.INFO if verdict.is_adopted else logging.WARNING,
        "fast path of %s %s: %s",
        verdict.model,
        "adopted" if verdict.is_adopted else "refused",
        verdict.words,
    )
    return verdict


def check_room(weights: Iterable[Any], folder: Path) -> None:
    """Raise OSError where a graph does not fit: from the exporter it would look like a model that has none."""
    needed = ROOM * sum(tensor.numel() * tensor.element_size() for tensor in weights)
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB are needed in {folder.parent} to make a graph")


def _judged(reference: SentenceTransformerEmbedder, made: Path, pace: Callable[[], None] | None) -> Verdict:
    settings = reference.settings
    is_int8 = settings.precision == "int8"
    revision = reference.revision + ("-int8" if is_int8 else "")
    refused = Verdict(model=settings.name, revision=revision, precision=settings.precision, is_adopted=False)
    try:
        recipe = recipe_of(reference.model)
        with torch_threads(1):
            export(reference.model, recipe, made, settings.precision)
        least, mean, count = _cosines(reference, made, recipe, pace)
    except NotExportable as error:
        return msgspec.structs.replace(refused, reason=str(error))
    is_adopted = least >= LEAST_COSINE or (is_int8 and bool(np.isfinite(least)))
    reason = "" if is_adopted else f"its vectors are not the reference's: cosine {least:.6f} in {count} texts"
    return msgspec.structs.replace(
        refused,
        is_adopted=is_adopted,
        reason=reason,
        texts=count,
        least_cosine=least,
        mean_cosine=mean,
        recipe=recipe,
    )


def _cosines(
    reference: SentenceTransformerEmbedder, made: Path, recipe: Recipe, pace: Callable[[], None] | None
) -> tuple[float, float, int]:
    """Return the least and the mean cosine between reference and graph, and of how many texts."""
    trial = Graph(made, "model")
    trial.tokenizer_path = made / "tokenizer.json"
    verdict = Verdict(model="", revision="", precision="", is_adopted=True, recipe=recipe)
    fast = FastEmbedder(reference.settings, trial, verdict, SubBatches(reference.settings.batch_size))
    texts = compared_texts()
    try:
        found = fast.embed(texts, pace=pace)
    except Exception as error:  # whatever onnxruntime or the tokenizer make of this graph
        words = str(error).strip().splitlines()
        raise NotExportable(f"its graph does not run: {words[0] if words else type(error).__name__}") from error
    wanted = reference.embed(texts, pace=pace)
    if found.shape != wanted.shape:
        raise NotExportable(f"its graph gives {found.shape[1]} dimensions instead of {wanted.shape[1]}")
    cosines = (found.astype(np.float64) * wanted).sum(axis=1)
    # a vector of nothing, as of a text of which no token is known, has no direction: then the two must be the same
    both_zero = (np.abs(found).max(axis=1) < 1e-6) & (np.abs(wanted).max(axis=1) < 1e-6)
    cosines = np.where(both_zero, 1.0, cosines)
    return float(cosines.min()), float(cosines.mean()), len(texts)
