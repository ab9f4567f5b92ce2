"""Owns the corpus that ships with the package: a part of SciFact, for the demo and for the tests. See ATTRIBUTION.txt."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import Any, TypedDict


class Document(TypedDict):
    """An abstract: `text` is what is embedded, title and abstract together. Point id, and payload keys as they are."""

    id: int
    title: str
    text: str
    source: str


class Query(TypedDict):
    """A claim, and the grades of the documents that support or refute it: document id (as text) -> grade."""

    text: str
    judgments: dict[str, float]


def passage(title: str, abstract: str) -> str:
    """Return the text that stands for a document: `Title. Abstract`."""
    return f"{title.rstrip('. ')}. {abstract}"


def documents() -> list[Document]:
    """Return the corpus, 276 documents in the order of their ids."""
    packed = (files(__package__) / "scifact_small.jsonl.gz").read_bytes()
    rows: list[dict[str, Any]] = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return [
        {
            "id": row["id"],
            "title": row["title"],
            "text": passage(row["title"], row["abstract"]),
            "source": f"scifact/{row['id']}",
        }
        for row in rows
    ]


def queries() -> list[Query]:
    """Return 30 claims with their judgments; every judged document is in `documents()`."""
    text = (files(__package__) / "scifact_small_queries.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
