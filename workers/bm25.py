"""Owns BM25 over a query's candidates: what the words themselves say, beside the vectors. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

K1, B = 1.2, 0.75  # Robertson and Zaragoza 2009, and every engine's default

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def bm25(query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the BM25 score of each text, float32 of shape (len(texts),).

    Document frequencies are those among `texts`: with the candidates of one query that weighs the words that tell
    them apart.
    """
    counts = [Counter(words(text)) for text in texts]
    lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
    mean_length = max(float(lengths.mean()) if len(texts) else 0.0, 1.0)
    scores = np.zeros(len(texts), dtype=np.float64)
    for word in set(words(query)):
        frequency = np.array([count[word] for count in counts], dtype=np.float64)
        holding = int((frequency > 0).sum())
        if holding:
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            scores += idf * frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * lengths / mean_length))
    return scores.astype(np.float32)
