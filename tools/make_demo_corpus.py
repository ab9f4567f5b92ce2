"""Owns how the demo's corpus is cut out of SciFact: `python tools/make_demo_corpus.py [SCIFACT_FOLDER]`.

Takes claims of the *train* split (the test split's judgments are for reporting only), the abstracts judged for them,
for each claim the unjudged abstracts that the default model and BM25 rank first in the whole corpus, and a seeded
sample of others: ranking a claim's candidates is then about as hard as among all 5,183. Takes some minutes.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from morgan.background.data import passage
from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.bm25 import bm25
from morgan.background.workers.models import SentenceTransformerEmbedder

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "src" / "morgan" / "background" / "data"

SEED = 20
CLAIMS = 30
DOCUMENTS = 240
NEAR_PER_CLAIM = 4  # unjudged abstracts a claim and ranking: what a search confuses with the right one
MAX_ABSTRACT_CHARS = 2500  # twice what the default model reads; longer ones would only swell the package

Rows = dict[str, dict[str, str]]


def rows(path: Path) -> Rows:
    with path.open(encoding="utf-8") as lines:
        return {row["_id"]: row for row in map(json.loads, lines)}


def judgments(path: Path) -> dict[str, dict[str, float]]:
    """Return claim id -> document id -> grade, in the file's order."""
    found: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        claim, document, grade = line.split("\t")
        if float(grade) > 0:
            found.setdefault(claim, {})[document] = float(grade)
    return found


def choose(corpus: Rows, claims: Rows, judged: dict[str, dict[str, float]]) -> tuple[list[str], list[str]]:
    """Return the ids of the documents and of the claims to ship."""
    chance = random.Random(SEED)
    fitting = [
        claim
        for claim, grades in judged.items()
        if all(len(corpus[document]["text"]) <= MAX_ABSTRACT_CHARS for document in grades)
    ]
    chosen = sorted(chance.sample(sorted(fitting, key=int), CLAIMS), key=int)
    documents = {document for claim in chosen for document in judged[claim]}
    short = [d for d, row in corpus.items() if len(row["text"]) <= MAX_ABSTRACT_CHARS]
    texts = [passage(corpus[d]["title"], corpus[d]["text"]) for d in short]
    embedder = SentenceTransformerEmbedder(ModelSettings())
    asked = [claims[claim]["text"] for claim in chosen]
    similarity = embedder.embed(asked) @ embedder.embed(texts).T
    for text, dense in zip(asked, similarity, strict=True):
        for scores in (dense, bm25(text, texts)):
            unjudged = (short[row] for row in np.argsort(-scores, kind="stable") if short[row] not in documents)
            documents.update(itertools.islice(unjudged, NEAR_PER_CLAIM))
    others = sorted(set(short) - documents, key=int)
    documents.update(chance.sample(others, max(DOCUMENTS - len(documents), 0)))
    return sorted(documents, key=int), chosen


def lines(records: Iterable[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def main(source: Path) -> None:
    corpus, claims = rows(source / "corpus.jsonl"), rows(source / "queries.jsonl")
    judged = judgments(source / "qrels" / "train.tsv")
    documents, chosen = choose(corpus, claims, judged)
    packed = lines({"id": int(d), "title": corpus[d]["title"], "abstract": corpus[d]["text"]} for d in documents)
    # no time and no name in the header: the same records give the same bytes
    (TARGET / "scifact_small.jsonl.gz").write_bytes(gzip.compress(packed, 9, mtime=0))
    (TARGET / "scifact_small_queries.jsonl").write_bytes(
        lines({"text": claims[claim]["text"], "judgments": judged[claim]} for claim in chosen)
    )
    size = sum(path.stat().st_size for path in TARGET.glob("scifact_small*"))
    print(f"{len(documents)} documents, {len(chosen)} claims, {size / 1024:.0f} KiB in {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "shared" / "data" / "scifact")
