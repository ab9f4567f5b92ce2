"""Owns the data of the SciFact benchmark: the whole of it from a folder, or the part that ships with the package.

A folder is as BEIR lays it out: corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/test.tsv.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morgan.background.data import Document, Query, documents, passage, queries

from .measure import find_above
from .report import MissingInput

FOLDER = "shared/data/scifact"
FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
GET_IT = (
    "SciFact comes with the BEIR benchmark (https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/"
    "scifact.zip): unpack it and name its folder with --data. --quick needs no download."
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents, and the claims that are judged on them: document id (as text) -> grade."""

    name: str
    documents: Sequence[Document]
    claims: Sequence[Query]

    @property
    def judgments(self) -> int:
        return sum(len(claim["judgments"]) for claim in self.claims)


def shipped(limit: int) -> Corpus:
    """Return the part of SciFact that ships with the package, cut to about `limit` documents: every judged one stays."""
    claims = queries()
    judged = {document_id for claim in claims for document_id in claim["judgments"]}
    wanted = [one for one in documents() if str(one["id"]) in judged]
    others = [one for one in documents() if str(one["id"]) not in judged]
    chosen = sorted([*wanted, *others[: max(limit - len(wanted), 0)]], key=lambda one: one["id"])
    return Corpus("the part of SciFact that ships with the package", chosen, claims)


def whole(folder: Path | None, start: Path, split: str = "test") -> Corpus:
    """Return SciFact with the claims of a split, test or train, from `folder`, else from FOLDER beside or above `start`.

    Raises MissingInput.
    """
    found = folder or find_above(start, FOLDER)
    if found is None:
        raise MissingInput(f"no folder {FOLDER} in {start} or above it. {GET_IT}")
    if absent := [name for name in (*FILES, f"qrels/{split}.tsv") if not (found / name).is_file()]:
        raise MissingInput(f"{found} has no {', no '.join(absent)}. {GET_IT}")
    corpus: list[Document] = [
        {
            "id": int(row["_id"]),
            "title": row["title"],
            "text": passage(row["title"], row["text"]),
            "source": f"scifact/{row['_id']}",
        }
        for row in map(json.loads, _lines(found / "corpus.jsonl"))
    ]
    texts = {row["_id"]: row["text"] for row in map(json.loads, _lines(found / "queries.jsonl"))}
    judgments: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(_lines(found / "qrels" / f"{split}.tsv"), delimiter="\t"):
        judgments.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    claims: list[Query] = [{"text": texts[name], "judgments": grades} for name, grades in judgments.items()]
    return Corpus(f"SciFact, {split} claims", corpus, claims)


def _lines(path: Path) -> list[str]:
    # not splitlines(): it also breaks at characters that JSON allows inside a text
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
